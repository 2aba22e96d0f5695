"""What each operator does to terms; one that is not in ``RULES`` is named by what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.values import constant
from crelu_deploy.op import NODE_TYPES, Array
from crelu_deploy.proof.arithmetic import add, batch_norm, div, mul, negated, scaled, sub
from crelu_deploy.proof.layers import KINDS
from crelu_deploy.proof.linear import layer
from crelu_deploy.proof.moves import cast, dropout, regroup, same, transpose
from crelu_deploy.proof.pointwise import APPLY, FLOATS, activation_of, site_activation
from crelu_deploy.proof.pools import average_pool, max_pool, pad
from crelu_deploy.proof.terms import Vector, vector
from crelu_deploy.proof.views import along, elementwise

if TYPE_CHECKING:
    from crelu_deploy.proof.walk import Walk

Rule = Callable[["Walk", ir.Node], Vector | None]


def site(walk: Walk, node: ir.Node) -> Vector:
    """``f(concat(x, -x) * scale + shift)``: what a canonical node is."""
    x, *rest = (walk.read(v) for v in node.inputs if v is not None)
    halves = joined(walk, [x, negated(x)], node.attributes["axis"].as_int())
    if rest:
        halves = scaled(walk, node, halves)
    dtype = walk.numbers.type_of(walk.terms.lead(halves).dtype if len(halves) else None)
    assert node.op_type in NODE_TYPES, "the caller has looked"
    return elementwise(walk.terms, halves, site_activation(node, dtype), node)


def activation(walk: Walk, node: ir.Node) -> Vector | None:
    """A pointwise function."""
    value = _data(walk, node)
    dtype = walk.numbers.type_of(walk.terms.lead(value).dtype if len(value) else None)
    what = activation_of(node, dtype)
    return None if what is None else elementwise(walk.terms, value, what, node)


def _data(walk: Walk, node: ir.Node) -> Vector:
    value = node.inputs[0]
    assert value is not None, "ONNX wants it"
    return walk.read(value)


def bounded(walk: Walk, node: ir.Node) -> Vector | None:
    """``max(x, 0) = relu(x)`` and ``min(x, 0) = -relu(-x)``."""
    values = [v for v in node.inputs if v is not None]
    zeros = [t for v in values if (t := constant(v)) is not None and _is_zero(t)]
    rest = [v for v in values if constant(v) is None]
    if len(zeros) != 1 or len(rest) != 1 or len(values) != 2:
        return None
    value = walk.read(rest[0])
    if len(zeros[0].shape) > (walk.terms.rank(value) or 0):
        return None
    if node.op_type == "Max":
        return elementwise(walk.terms, value, ("Relu",), node)
    return negated(elementwise(walk.terms, negated(value), ("Relu",), node))


def _is_zero(tensor: ir.TensorProtocol) -> bool:
    """Whether a constant is one floating-point zero."""
    return tensor.dtype in FLOATS and tensor.size == 1 and not tensor.numpy().any()


def joined(walk: Walk, values: list[Vector], axis: int) -> Vector:
    """Join tensors along an axis."""
    ranks = [walk.terms.rank(v) for v in values if len(v)]
    rank = next((r for r in ranks if r is not None), None)
    if rank is not None and axis >= 0:
        axis -= rank
    parts = [along(walk.terms, value, axis) for value in values]
    arrays = zip(*((p.atoms, p.scale, p.shift) for p in parts), strict=True)
    return vector(axis, *(np.concatenate(list(a)) for a in arrays))


def concat(walk: Walk, node: ir.Node) -> Vector | None:
    """Join tensors."""
    values = [walk.read(v) for v in node.inputs if v is not None]
    return joined(walk, values, node.attributes["axis"].as_int())


def gather(walk: Walk, node: ir.Node) -> Vector | None:
    """Pick entries along the axis."""
    value, tensor = _data(walk, node), constant(node.inputs[1])
    axis, rank = node.attributes.get_int("axis", 0), walk.terms.rank(value)
    axis = axis - rank if rank is not None and axis >= 0 else axis
    if tensor is None or len(tensor.shape) != 1 or value.axis != axis:
        return None
    extents = {*walk.terms.extents(value)}
    extent = extents.pop() if len(extents) == 1 else None
    index = None if extent is None else _entries(tensor.numpy(), extent, len(value))
    if index is None:
        return None
    return vector(axis, value.atoms[index], value.scale[index], value.shift[index])


def _entries(index: Array, extent: int, n: int) -> Array | None:
    """Return the entries that positions are those of; None where they are not whole ones."""
    total = n * extent
    if not len(index) or len(index) % extent or ((index < -total) | (index >= total)).any():
        return None
    rows = (index % total).reshape(-1, extent)
    whole = (rows - rows[:, :1] == np.arange(extent)).all() and not (rows[:, 0] % extent).any()
    return np.asarray(rows[:, 0] // extent) if whole else None


RULES: Mapping[str, Rule] = {
    "Identity": same,
    "Dropout": dropout,
    "Cast": cast,
    "Neg": lambda walk, node: negated(_data(walk, node)),
    "Transpose": transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), regroup),
    "Add": add,
    "Sub": sub,
    "Mul": mul,
    "Div": div,
    "BatchNormalization": batch_norm,
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), average_pool),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool"), max_pool),
    "Pad": pad,
    **dict.fromkeys(("Max", "Min"), bounded),
    "Concat": concat,
    "Gather": gather,
    **dict.fromkeys(APPLY, activation),
    **dict.fromkeys(KINDS, layer),
}
"""Operator -> its rule, which returns None for a use that it does not look into."""
