"""The rule of operators that sum over channels: which rows they are, in either graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.values import constant
from crelu_deploy.op import Array
from crelu_deploy.proof.affine import affine
from crelu_deploy.proof.extents import Dims
from crelu_deploy.proof.layers import INTERNAL, KINDS, Layer, bias_of, read
from crelu_deploy.proof.matching import BIAS, match
from crelu_deploy.proof.pointwise import FLOATS
from crelu_deploy.proof.terms import Key, Vector, vector
from crelu_deploy.proof.views import along, signed, whole

if TYPE_CHECKING:
    from crelu_deploy.proof.walk import Walk

ALIKE = 1e-11
"""Rows whose projections are this near, relative to their size, are compared."""


def layer(walk: Walk, node: ir.Node) -> Vector | None:
    """Sum over channels with constant weights."""
    tensor, bias, value = constant(node.inputs[1]), bias_of(node), node.inputs[0]
    if tensor is None or value is None or (bias is not None and constant(bias) is None):
        return None
    if tensor.dtype not in FLOATS:
        return None  # rows are compared in float64
    shape = tuple(int(d) for d in tensor.shape.numpy())
    if len(shape) < 2:
        return None
    kind = KINDS[node.op_type]
    channels, axis = kind.channels(shape, node), kind.data(len(shape), node)
    if node.op_type in ("Conv", "ConvTranspose"):
        _ranked(walk, walk.read(value), (None, channels, *[None] * (len(shape) - 2)))
    data, extents = _data(walk, along(walk.terms, walk.read(value), axis), channels)
    zeros = walk.lowered and not tensor.numpy().all()  # constants have the shape of a layer
    if _is_scale(node, shape) and len(data) == channels and not zeros:
        return _scaled(walk, node, data, shape[0] // channels)
    found = _summed(walk, node, tensor, signed(walk.terms, data, constants=True), extents)
    lost = zeros and any(walk.terms.is_new(f) for f, _ in walk.terms.groups(found.atoms))
    scales = lost and _is_scale(node, shape) and len(data) == channels
    return _scaled(walk, node, data, shape[0] // channels) if scales else found


def _ranked(walk: Walk, value: Vector, dims: Dims) -> None:
    """Give a tensor of unknown rank the one that its reader needs."""
    family = walk.terms.lead(value) if value.axis is None else None
    while family is not None and family.dims is None:
        family.dims = dims
        family = family.source if family.elementwise else None


def _data(walk: Walk, data: Vector, channels: int) -> tuple[Vector, Array]:
    """Return what is read, and how many input channels each entry has."""
    extents = [e for e in walk.terms.extents(data) if e is not None]
    if len(extents) == len(data) > 1 and sum(extents) == channels:
        return data, np.array(extents)
    return replace(whole(walk.terms, data), axis=data.axis), np.array([channels])


def _is_scale(node: ir.Node, shape: tuple[int, ...]) -> bool:
    """Whether a convolution only multiplies each channel, and adds to it."""
    attributes = node.attributes
    moves = {*attributes.get_ints("strides", ())} - {1} or {*attributes.get_ints("pads", ())} - {0}
    return node.op_type == "Conv" and {*shape[1:]} == {1} and not moves


def _scaled(walk: Walk, node: ir.Node, data: Vector, copies: int) -> Vector | None:
    weight, bias = constant(node.inputs[1]), constant(bias_of(node))
    assert weight is not None, "the caller has looked"
    scale = weight.numpy().astype(np.float64).ravel()
    shift = np.zeros(len(scale)) if bias is None else bias.numpy().astype(np.float64)
    every = np.arange(len(data)).repeat(copies)
    channels = vector(data.axis, data.atoms[every], data.scale[every], data.shift[every])
    found = affine(walk, channels, scale, shift, weight.dtype)
    if not walk.lowered or found is None:
        return found
    given = signed(walk.terms, data, constants=True)
    made = read(node, given, np.ones(len(data), int), walk.terms, weight.numpy())
    return replace(found, layer=made)  # it may be a part of a sum


def _summed(
    walk: Walk, node: ir.Node, tensor: ir.TensorProtocol, data: Vector, extents: Array
) -> Vector:
    bias = constant(bias_of(node))
    digests = tuple(None if t is None else walk.numbers.digest(t) for t in (tensor, bias))
    given = tuple((n, a.value) for n, a in sorted(node.attributes.items()) if n in INTERNAL[1:4])
    made = read(node, data, extents, walk.terms, tensor.numpy())
    rank = len(tensor.shape)
    axis = KINDS[node.op_type].out(rank)
    made.dims, made.dtype = _shape(walk, made, rank, axis), node.outputs[0].dtype or tensor.dtype
    key = ("layer", made.what, made.groups, data.key(), digests, given)
    known = walk.terms.find(key)
    if known is not None and known.layer is not None and known.layer.entries is not None:
        _note(walk, known.layer.roundings)
        return known.layer.entries
    return (_named if walk.lowered else _noted)(walk, key, made, axis)


def _shape(walk: Walk, made: Layer, rank: int, axis: int) -> Dims | None:
    """Return the extents of one output channel."""
    output = made.node.outputs[0]
    dims = walk.dims(output)
    if dims is None and made.node.op_type == "MatMul":
        known = walk.terms.rank(made.data)
        dims = None if known is None else (None,) * (rank - 1 if known == 1 else max(known, rank))
    elif dims is None:
        dims = (None,) * rank
    if dims is not None:
        dims = (*dims[:axis], 1, *dims[axis + len(dims) + 1 :])
    return dims


def _noted(walk: Walk, key: Key, made: Layer, axis: int) -> Vector:
    """Give every row of a canonical layer an atom; equal rows have one."""
    more = {"node": made.node, "layer": made, "what": made.what, "unit": axis}
    family = walk.terms.family(key, "layer", made.outputs, made.dims, made.dtype, **more)
    made.base = family.base
    row, sign = _alike(made)
    shifts, zero = made.shifts(), made.projection[2] & walk.numbers.folded
    zero = zero & (shifts == shifts[:, :1]).all(1)
    atoms = np.where(zero, made.fill() if zero.any() else -1, family.base + row)
    made.entries = vector(axis, atoms, np.where(zero, 0, sign), np.where(zero, shifts[:, 0], 0))
    walk.register.add(made)
    return made.entries


def _alike(made: Layer) -> tuple[Array, Array]:
    """Return for each row the first that is equal or its negation, and which of these it is."""
    values, sizes, _ = made.projection
    total = values + np.nan_to_num(made.shifts()).mean(1) * BIAS
    first, sign = np.arange(made.outputs), np.ones(made.outputs)
    order = np.argsort(np.abs(total), kind="stable")
    ascending = np.abs(total)[order]
    near = np.flatnonzero(np.diff(ascending) <= ALIKE * (sizes[order][1:] + ascending[1:]))
    for at in near:
        one, two = int(order[at]), int(order[at + 1])
        for way in (1, -1):
            if _equal(made, one, two, way):
                first[two], sign[two] = first[one], sign[one] * way
                break
    return _lowest(first, sign)


def _equal(made: Layer, one: int, two: int, sign: int) -> bool:
    same_group = made.group(np.array([one]))[0] == made.group(np.array([two]))[0]
    shifts = made.shifts()
    rows = np.array_equal(made.weight[one], sign * made.weight[two])
    return bool(same_group and rows and np.array_equal(shifts[one], sign * shifts[two]))


def _lowest(first: Array, sign: Array) -> tuple[Array, Array]:
    """Let the lowest of equal rows stand for them."""
    for leader in np.unique(first[first != np.arange(len(first))]):
        at = np.flatnonzero(first == leader)
        low = at[0]
        sign[at] = sign[at] * sign[low]
        first[at] = low
    return first, sign


def _named(walk: Walk, key: Key, made: Layer, axis: int) -> Vector:
    """Return the rows of a lowered layer as those of the canonical graph."""
    found = match(made, walk.register, walk.numbers)
    _note(walk, found.roundings)
    made.roundings = found.roundings
    if found.roundings:
        scaled, shifted = (np.abs(found.scale) != 1) & (found.scale != 0), found.shift != 0
        apart = int(scaled.any()), int((shifted & (found.scale != 0)).any())
        walk.drifting = max(walk.drifting[0], apart[0]), max(walk.drifting[1], apart[1])
    unknown = found.atoms < 0
    if unknown.any():
        more = {"node": made.node, "layer": made, "what": made.what, "unit": axis}
        family = walk.terms.family(key, "layer", made.outputs, made.dims, made.dtype, **more)
        found.atoms[unknown] = family.members[unknown]
    made.entries = replace(vector(axis, found.atoms, found.scale, found.shift), layer=made)
    return made.entries


def _note(walk: Walk, roundings: Mapping[str, int]) -> None:
    for site, count in roundings.items():
        walk.note(site, count)


def combined(one: Layer, two: Layer) -> Layer | None:
    """Return the layer that the sum of two is; None where it is none."""
    biases = one.bias is not None and two.bias is not None
    same = one.what == two.what and one.factor == two.factor and one.outputs == two.outputs
    if not same or biases or one.groups + two.groups > 2 or not _alike_in_shape(one, two):
        return None
    parts = zip(*((d.atoms, d.scale, d.shift) for d in (one.data, two.data)), strict=True)
    return replace(
        one,
        data=vector(one.data.axis, *(np.concatenate(list(arrays)) for arrays in parts)),
        extents=np.concatenate([one.extents, two.extents]),
        weight=np.concatenate([one.weight, two.weight], axis=1),
        bias=one.bias if two.bias is None else two.bias,
        entries=None,
    )


def _alike_in_shape(one: Layer, two: Layer) -> bool:
    """Whether a sum of both broadcasts neither."""
    known = one.dims is not None and None not in one.dims and one.dims == two.dims
    return known or one.fill() == two.fill()


def summed(walk: Walk, one: Vector, two: Vector) -> Vector | None:
    """Return the sum of two layers that are none of the canonical graph, as one layer."""
    if one.layer is None or two.layer is None or one.axis != two.axis:
        return None
    made = combined(one.layer, two.layer)
    if made is None:
        return None
    found = match(made, walk.register, walk.numbers)
    new = [any(walk.terms.is_new(f) for f, _ in walk.terms.groups(v.atoms)) for v in (one, two)]
    if not found.complete and not all(new):
        return None
    _note(walk, found.roundings)
    if not found.complete:
        family = walk.terms.lead(one)
        more = {"node": made.node, "layer": made, "what": made.what, "unit": one.axis}
        key = ("sum", one.key(), two.key())
        sums = walk.terms.family(key, "layer", made.outputs, family.dims, family.dtype, **more)
        found.atoms[found.atoms < 0] = sums.members[found.atoms < 0]
    return replace(vector(one.axis, found.atoms, found.scale, found.shift), layer=made)
