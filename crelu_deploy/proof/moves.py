"""The rules of operators that keep or move values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.values import constant
from crelu_deploy.proof.extents import Dim, Dims, count, kept_whole, product, reshaped
from crelu_deploy.proof.pointwise import FLOATS
from crelu_deploy.proof.terms import Family, Key, Vector
from crelu_deploy.proof.views import carried, derived, elementwise

if TYPE_CHECKING:
    from crelu_deploy.proof.walk import Walk


def same(walk: Walk, node: ir.Node) -> Vector | None:
    """The value itself."""
    return walk.read(node.inputs[0]) if node.inputs[0] is not None else None


def dropout(walk: Walk, node: ir.Node) -> Vector | None:
    """The value itself, outside training."""
    trains = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    given = len(node.inputs) > 2 and node.inputs[2] is not None
    if given and (trains is None or trains.numpy().any()):
        return None
    return same(walk, node)


def cast(walk: Walk, node: ir.Node) -> Vector | None:
    """Between types of floating point, an operator on each element."""
    value, source = same(walk, node), node.inputs[0]
    to = ir.DataType(node.attributes["to"].as_int())
    if value is None or source is None or to not in FLOATS or not len(value):
        return None
    if walk.numbers.transparent(source.dtype, to):
        return value
    before = walk.terms.lead(value).dtype
    if before not in FLOATS:
        return None
    return elementwise(walk.terms, value, ("Cast", str(walk.numbers.type_of(to))), node, to)


def transpose(walk: Walk, node: ir.Node) -> Vector | None:
    """Another order of the axes."""
    value, perm = same(walk, node), list(node.attributes.get_ints("perm", ()))
    if value is None or not len(value):
        return None
    rank = walk.terms.rank(value) or len(perm)
    perm = perm or list(range(rank))[::-1]
    if not rank or len(perm) != rank:
        return None
    axis = None if value.axis is None else perm.index(value.axis % rank) - rank

    def dims_after(dims: Dims | None) -> Dims:
        return tuple(None if dims is None else dims[p] for p in perm)

    return moved(walk, node, value, axis, ("Transpose", tuple(perm)), dims_after)


def moved(
    walk: Walk,
    node: ir.Node,
    value: Vector,
    axis: int | None,
    what: Key,
    dims_after: Callable[[Dims | None], Dims],
) -> Vector:
    """Return a vector whose atoms were moved, which commutes with scales and sums."""

    def make(family: Family) -> Family:
        dims = dims_after(family.dims)
        unit = axis if family.unit is not None and family.unit == value.axis else None
        unit = unit if what[0] == "Transpose" else None
        made = derived(walk.terms, family, 1, what, dims, node=node, unit=unit)
        if family.parts and not made.parts:
            made.sums(*(make(part) for _, part in family.parts))
        return made

    return carried(walk.terms, value, axis, make)


def regroup(walk: Walk, node: ir.Node) -> Vector | None:
    """Reshape and its like, where each entry keeps its own elements."""
    value = same(walk, node)
    if value is None or not len(value) or walk.terms.rank(value) is None:
        return None
    extents, dims = walk.terms.extents(value), walk.terms.lead(value).dims
    assert dims is not None, "the rank is known"
    if value.axis is not None and len(value) > 1:
        if None in extents or len({*extents}) > 1:
            return None
        total = len(value) * (extents[0] or 0)
        dims = (*dims[: value.axis], total, *dims[value.axis + len(dims) + 1 :])
    target = _target(node, dims)
    if target is None:
        return None
    if value.axis is None or len(value) == 1:
        return _single(walk, node, value, target)
    axis = kept_whole(dims, value.axis, len(value), target)
    if axis is None:
        return None
    whole = target[axis]
    assert isinstance(whole, int), "kept_whole has looked"
    each = (*target[:axis], whole // len(value), *target[axis + len(target) + 1 :])
    return _regrouped(walk, node, value, axis, each)


def _single(walk: Walk, node: ir.Node, value: Vector, target: Dims) -> Vector | None:
    """Reshape a tensor of one entry; it stays the only one along the axis where it is whole."""
    dims = walk.terms.lead(value).dims
    axis = None
    if value.axis is not None and dims is not None and isinstance(dims[value.axis], int):
        axis = kept_whole(dims, value.axis, 1, target)
    return _regrouped(walk, node, value, axis, target)


def _regrouped(
    walk: Walk, node: ir.Node, value: Vector, axis: int | None, each: Dims
) -> Vector | None:
    if count(each) > 1:
        return None
    return moved(walk, node, value, axis, ("reshape", each), lambda _: each)


def _target(node: ir.Node, dims: Dims) -> Dims | None:
    """Return the extents behind a Reshape or its like; None where they are computed."""
    if node.op_type == "Reshape":
        tensor = constant(node.inputs[1])
        if tensor is None:
            return None
        copies = not node.attributes.get_int("allowzero", 0)
        return reshaped(dims, [int(d) for d in tensor.numpy().ravel()], copies=copies)
    if node.op_type == "Flatten":
        axis = node.attributes.get_int("axis", 1)
        return _one(dims[:axis]), _one(dims[axis:])
    axes = _axes(node)
    if axes is None:
        return None
    if node.op_type == "Squeeze":
        gone = {axis % len(dims) for axis in axes}
        return tuple(dim for i, dim in enumerate(dims) if i not in gone)
    rank, rest = len(dims) + len(axes), iter(dims)
    new = {axis % rank for axis in axes}
    return tuple(1 if i in new else next(rest) for i in range(rank))


def _one(dims: Dims) -> Dim:
    """Return the extent of axes that were put together."""
    found = product(dims)
    return found if found is None or found[1] else found[0]


def _axes(node: ir.Node) -> list[int] | None:
    """Return the axes, an attribute in old opsets and an input in new ones."""
    if "axes" in node.attributes:
        return [int(axis) for axis in node.attributes["axes"].as_ints()]
    tensor = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if tensor is None else [int(axis) for axis in np.ravel(tensor.numpy())]
