"""The rules of pools and pads, which work within each channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.values import constant
from crelu_deploy.op import Array
from crelu_deploy.proof.extents import Dims
from crelu_deploy.proof.pointwise import is_monotonic
from crelu_deploy.proof.terms import Family, Key, Vector
from crelu_deploy.proof.views import along, derived, each

if TYPE_CHECKING:
    from crelu_deploy.proof.walk import Walk


def _channels(walk: Walk, node: ir.Node) -> Vector | None:
    """Return what a pool reads along axis 1; None where the rank is not known."""
    value = walk.read(node.inputs[0]) if node.inputs[0] is not None else None
    if value is None or not len(value):
        return None
    rank = walk.terms.rank(value)
    return None if rank is None else along(walk.terms, value, 1 - rank)


def _what(node: ir.Node) -> Key:
    """Return a pool with its attributes."""
    given = ((name, attribute.value) for name, attribute in node.attributes.items())
    lists = ((n, tuple(v) if isinstance(v, list | tuple) else v) for n, v in given)
    return (node.op_type, *sorted(lists))


def _dims(walk: Walk, node: ir.Node, family: Family, axis: int | None) -> Dims | None:
    """Return the extents of an entry behind a pool or pad."""
    if family.dims is None:
        return None
    declared = walk.dims(node.outputs[0])
    after = declared if declared is not None else (None,) * len(family.dims)
    if axis is None or len(after) != len(family.dims):
        return after
    return (*after[:axis], family.dims[axis], *after[axis + len(after) + 1 :])


def _linear(walk: Walk, node: ir.Node, value: Vector, what: Key) -> Vector:
    """Apply an operator that computes the same sums in every entry."""

    def result(family: Family) -> Family:
        dims = _dims(walk, node, family, value.axis)
        made = derived(walk.terms, family, 1, what, dims, node=node)
        if family.parts and not made.parts:
            made.sums(*(result(part) for _, part in family.parts))
        return made

    return each(walk.terms, value, lambda family, sign: (result(family), sign))


def average_pool(walk: Walk, node: ir.Node) -> Vector | None:
    """Averages of windows, or of all."""
    value = _channels(walk, node)
    return None if value is None else _linear(walk, node, value, _what(node))


def max_pool(walk: Walk, node: ir.Node) -> Vector | None:
    """Largest values of windows; ``max(f(x)) = f(max(x))`` for an f that never falls."""
    value, what = _channels(walk, node), _what(node)
    if value is None:
        return None
    axis = value.axis
    dilated = {*node.attributes.get_ints("dilations", ())} - {1}

    def pooled(family: Family, sign: int) -> Family:
        return derived(walk.terms, family, sign, what, _dims(walk, node, family, axis), node=node)

    def make(family: Family, sign: int) -> tuple[Family, int]:
        source = family.source
        swaps = family.elementwise and is_monotonic(family.what) and not dilated
        if not swaps or sign < 0 or source is None:
            return pooled(family, sign), 1
        inner = pooled(source, family.sign)
        outer = derived(walk.terms, inner, 1, family.what, None, node=family.node, elementwise=True)
        outer.site = outer.site or family.site
        return outer, 1

    return each(walk.terms, value, make, lambda constants: constants)


def pad(walk: Walk, node: ir.Node) -> Vector | None:
    """Values around the tensor, along other axes than the entries."""
    value = walk.read(node.inputs[0]) if node.inputs[0] is not None else None
    rank = None if value is None or not len(value) else walk.terms.rank(value)
    pads, axes, fill = (_numbers(node, n, i) for n, i in (("pads", 1), ("axes", 3), ("value", 2)))
    if value is None or rank is None or pads is None or axes is None or fill is None:
        return None
    at = [int(a) % rank for a in axes] or list(range(rank))
    around = {a - rank: (pads[i], pads[i + len(at)]) for i, a in enumerate(at)}
    if value.axis is not None and any(around.get(value.axis, ())):
        return None
    mode = node.attributes.get_string("mode", "constant")
    filled = (fill or [0.0])[0] if mode == "constant" else 0.0
    what = ("Pad", mode, tuple(sorted(around.items())), filled)
    if filled == 0:
        return _linear(walk, node, value, what)

    def make(family: Family, sign: int) -> tuple[Family, int]:
        dims = _dims(walk, node, family, value.axis)
        return derived(walk.terms, family, sign, what, dims, node=node), 1

    return each(walk.terms, value, make) if (value.scale != 0).all() else None


def _numbers(node: ir.Node, name: str, index: int) -> list[float] | None:
    """Return an attribute of old opsets, an input of new ones; [] for none, None if computed."""
    if name in node.attributes:
        return _exact(np.asarray(node.attributes[name].value))
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return []
    tensor = constant(value)
    return None if tensor is None else _exact(tensor.numpy())


def _exact(array: Array) -> list[float]:
    """Return numbers as Python's own; integers stay what they are."""
    return [v if isinstance(v, int) else float(v) for v in array.ravel().tolist()]
