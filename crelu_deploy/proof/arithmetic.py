"""The rules of arithmetic: with a constant it scales and shifts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.values import constant
from crelu_deploy.op import Array
from crelu_deploy.proof.affine import affine
from crelu_deploy.proof.constants import digest
from crelu_deploy.proof.extents import broadcast
from crelu_deploy.proof.linear import summed
from crelu_deploy.proof.pointwise import FLOATS
from crelu_deploy.proof.terms import Family, Key, Vector, vector
from crelu_deploy.proof.views import along, derived, each

if TYPE_CHECKING:
    from crelu_deploy.proof.walk import Walk


def negated(value: Vector) -> Vector:
    """Return ``-value``."""
    return vector(value.axis, value.atoms, -value.scale, -value.shift)


def add(walk: Walk, node: ir.Node) -> Vector | None:
    """Add a constant, or two layers that are one of the canonical graph."""
    (one, two), tensor = _operands(walk, node)
    if one is not None and two is not None:
        return summed(walk, one, two) if walk.lowered else None
    value = one if one is not None else two
    return None if value is None or tensor is None else plus(walk, node, value, tensor)


def sub(walk: Walk, node: ir.Node) -> Vector | None:
    """Subtract a constant, or from one."""
    (one, two), tensor = _operands(walk, node)
    if tensor is None or (one is None and two is None):
        return None
    if two is not None:
        return plus(walk, node, negated(two), tensor)
    return plus(walk, node, one, tensor, -1) if one is not None else None


def mul(walk: Walk, node: ir.Node) -> Vector | None:
    """Multiply by a constant."""
    (one, two), tensor = _operands(walk, node)
    value = one if one is not None else two
    return None if value is None or tensor is None else times(walk, node, value, tensor)


def div(walk: Walk, node: ir.Node) -> Vector | None:
    """Divide by a constant."""
    (one, two), tensor = _operands(walk, node)
    if one is None or two is not None or tensor is None:
        return None
    return times(walk, node, one, tensor, "Div")


Operands = tuple[tuple[Vector | None, Vector | None], ir.TensorProtocol | None]


def _operands(walk: Walk, node: ir.Node) -> Operands:
    """Return the operands that are computed, and the constant where one is."""
    tensors = [constant(v) for v in node.inputs[:2]]
    one, two = (
        walk.read(v) if t is None and v is not None else None
        for v, t in zip(node.inputs, tensors, strict=False)
    )
    return (one, two), next((t for t in tensors if t is not None), None)


def plus(
    walk: Walk, node: ir.Node, value: Vector, tensor: ir.TensorProtocol, sign: int = 1
) -> Vector | None:
    """Return ``value + sign * constant``; None where that is left to the operator's name."""
    if tensor.dtype not in FLOATS or not len(value):
        return None
    found = _per_entry(walk, value, tensor.numpy().astype(np.float64) * sign)
    if found is not None:
        return affine(walk, found[0], 1.0, found[1], tensor.dtype)
    return _within(walk, node, value, walk.numbers.rounded(tensor.numpy()) * sign, "Add")


def times(
    walk: Walk,
    node: ir.Node,
    value: Vector,
    tensor: ir.TensorProtocol,
    what: str = "Mul",
    *,
    noted: bool = True,
) -> Vector | None:
    """Return ``value * constant``, or ``value / constant`` for ``Div``; None as ``plus`` does."""
    if tensor.dtype not in FLOATS or not len(value):
        return None
    found = _per_entry(walk, value, tensor.numpy().astype(np.float64))
    if found is None:
        return _within(walk, node, value, walk.numbers.rounded(tensor.numpy()), what)
    if what == "Mul":
        return affine(walk, found[0], found[1], 0.0, tensor.dtype, noted=noted)
    with np.errstate(all="ignore"):
        scale, shift = found[0].scale / found[1], found[0].shift / found[1]
    return affine(walk, replace(found[0], scale=scale, shift=shift), 1.0, 0.0, tensor.dtype)


def _per_entry(walk: Walk, value: Vector, array: Array) -> tuple[Vector, Array] | None:
    """Return the vector and one number for each entry; None where numbers differ within one."""
    rank = walk.terms.rank(value)
    if rank is None and value.axis is not None and value.axis < 0:
        rank = -value.axis  # at least
    if array.size == 1 and array.ndim <= (rank or 0):
        return value, np.broadcast_to(array.ravel(), len(value))
    wide = [axis - array.ndim for axis, extent in enumerate(array.shape) if extent != 1]
    if rank is None or array.ndim > rank or len(wide) != 1:
        return None
    if value.axis is None:
        dims = walk.terms.lead(value).dims
        if dims is None or dims[wide[0]] != array.size:
            return None
        value = along(walk.terms, value, wide[0])
    extents = [e for e in walk.terms.extents(value) if e is not None]
    if value.axis != wide[0] or len(extents) < len(value) or sum(extents) != array.size:
        return None
    ends = np.cumsum(extents)
    numbers = array.ravel()[ends - 1]
    return (value, numbers) if (np.repeat(numbers, extents) == array.ravel()).all() else None


def _within(walk: Walk, node: ir.Node, value: Vector, array: Array, what: str) -> Vector | None:
    """Apply a constant that differs within an entry."""
    rank = walk.terms.rank(value)
    if rank is None or array.ndim > rank or value.axis is None:
        return None
    if array.ndim < -value.axis or array.shape[value.axis] == 1:
        return _by(walk, node, value, array, what)
    extents = [e for e in walk.terms.extents(value) if e is not None]
    if len(extents) < len(value) or sum(extents) != array.shape[value.axis]:
        return None
    pieces = np.split(array, np.cumsum(extents)[:-1], axis=value.axis)
    parts = list[Vector]()
    for i, piece in enumerate(pieces):
        entry = vector(value.axis, *(a[i : i + 1] for a in value.arrays))
        if (made := _by(walk, node, entry, piece, what)) is None:
            return None
        parts.append(made)
    arrays = zip(*(part.arrays for part in parts), strict=True)
    return vector(value.axis, *(np.concatenate(list(a)) for a in arrays))


def _by(walk: Walk, node: ir.Node, value: Vector, array: Array, what: str) -> Vector | None:
    """Apply one constant to entries, odd in them: ``-x + c = -(x - c)``."""
    zero = value.scale == 0
    if zero.any() and what == "Add":
        return _constants(walk, node, value, array)
    with np.errstate(all="ignore"):
        if zero.any() and not np.isfinite(array if what == "Mul" else 1 / array).all():
            return None  # 0 * inf and 0 / 0 are no zeros

    def make(family: Family, sign: int) -> tuple[Family, int]:
        content = digest(array * sign + 0.0 if what == "Add" else array)
        return _broadcast(walk, node, family, array, ("within", what, content)), sign

    return each(walk.terms, value, make)


def _broadcast(walk: Walk, node: ir.Node, family: Family, array: Array, key: Key) -> Family:
    """Return the results for a family, which may be larger than its members."""
    dims = broadcast(family.dims, array.shape)
    return derived(walk.terms, family, 1, key, dims, node=node, unit=family.unit)


def _constants(walk: Walk, node: ir.Node, value: Vector, array: Array) -> Vector:
    """Add a constant to entries of which some are constants: these are what was added to them.

    Of a constant and its negation, one is named.
    """
    atoms, scale, shift = (a.copy() for a in value.arrays)
    for i in range(len(value)):
        entry = vector(value.axis, *(a[i : i + 1] for a in value.arrays))
        if scale[i] != 0:
            made = _by(walk, node, entry, array, "Add")
            assert made is not None, "it is no constant"
            atoms[i], scale[i], shift[i] = (a[0] for a in made.arrays)
            continue
        total = array.astype(np.float64) + shift[i]
        first = total.ravel()[np.flatnonzero(total)[:1]]
        sign = -1 if (first < 0).any() else 1
        key: Key = ("within", "Constant", digest(total * sign + 0.0))
        atoms[i] = _broadcast(walk, node, walk.terms.lead(entry), array, key).base
        scale[i], shift[i] = sign, 0
    return vector(value.axis, atoms, scale, shift)


def scaled(walk: Walk, node: ir.Node, halves: Vector) -> Vector:
    """Return ``halves * scale + shift`` with the operands of a canonical node."""
    scale, shift = node.inputs[1:3]
    assert scale is not None, "a canonical node has them"
    assert shift is not None, "a canonical node has them"
    factor, term = constant(scale), constant(shift)
    product = None
    if factor is not None:
        product = times(walk, node, halves, factor, noted=term is None)
    if product is None:
        product = walk.binary("Mul", halves, walk.read(scale), node)
    total = None if term is None else plus(walk, node, product, term)
    return walk.binary("Add", product, walk.read(shift), node) if total is None else total


def batch_norm(walk: Walk, node: ir.Node) -> Vector | None:
    """Scale and shift each channel by constant statistics."""
    tensors = [constant(v) for v in node.inputs[1:5]]
    fixed = [t for t in tensors if t is not None]
    attributes = node.attributes
    trains = attributes.get_int("training_mode", 0) or not attributes.get_int("spatial", 1)
    value = walk.read(node.inputs[0]) if node.inputs[0] is not None else None
    rank = None if value is None else walk.terms.rank(value)
    if len(fixed) < 4 or trains or value is None or rank is None:
        return None
    value = along(walk.terms, value, 1 - rank)
    gamma, beta, mean, variance = (
        walk.numbers.rounded(t.numpy()).astype(np.float64) for t in fixed
    )
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + attributes.get_float("epsilon", 1e-5))
        shift = beta - mean * scale
    if walk.terms.extents(value) == [1] * len(gamma):
        return affine(walk, value, scale, shift, fixed[0].dtype)
    scale, shift = (one.reshape(-1, *[1] * (rank - 2)) for one in (scale, shift))
    product = _within(walk, node, value, scale, "Mul")
    return None if product is None else _within(walk, node, product, shift, "Add")
