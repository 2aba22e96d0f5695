"""What may compute the channels of a site, and what may lie between it and the site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from fuzz_builder import Builder, Value
from fuzz_spellings import batch_norm, dropout, negated, scaled

Layer = Callable[[Builder, Value], Value]
CHANNELS = [3, 2, 4, 5, 6, 7, 8, 1, 16]


def _nothing(b: Builder, x: Value) -> Value:
    return x


def _sigmoid(b: Builder, x: Value) -> Value:
    return Value(b.op("Sigmoid", x.name), x.axis)


def _attributes(b: Builder, extents: tuple[int, ...], kernel: list[int]) -> dict[str, Any]:
    """Draw strides, dilations and padding under which at least one pixel is left."""
    found: dict[str, Any] = {"kernel_shape": kernel} if b.rarely(3) else {}
    if b.rarely(3):
        found["strides"] = [b.pick([1, 2]) for _ in kernel]
    if b.rarely(4):
        fits = [(k - 1) * 2 < size for k, size in zip(kernel, extents, strict=True)]
        found["dilations"] = [b.pick([1, 2]) if fit else 1 for fit in fits]
    padding = b.pick(["none", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"])
    if padding == "pads":
        found["pads"] = [b.pick([0, 1, 2]) for _ in range(2 * len(kernel))]
    elif padding != "none" and "dilations" not in found:
        found["auto_pad"] = padding
    return found


def _kernel(b: Builder, extents: tuple[int, ...]) -> list[int]:
    return [b.pick([k for k in (1, 2, 3) if k <= size]) for size in extents]


def _conv(b: Builder, x: Value) -> Value:
    channels, *extents = b.shape(x)[1:]
    kernel = _kernel(b, tuple(extents))
    groups = b.pick([g for g in (1, 1, 1, 1, 2, 3, channels) if channels % g == 0])
    out = b.pick(CHANNELS) if groups == 1 else groups * b.pick([2, 3, 1])
    b.blocked |= out % 2 == 0
    weight = b.weight(out, channels // groups, *kernel)
    more = [b.weight(out)] if b.rarely(2) else []
    attributes = _attributes(b, tuple(extents), kernel)
    if groups > 1:
        attributes["group"] = groups
    y = b.op("Conv", x.name, weight, *more, **attributes)
    b.exact &= np.prod(b.shape(y)[2:]) > 1  # one pixel: a matrix by a vector, by other kernels
    if b.rarely(8):
        b.op("Conv", x.name, weight, *more, **{**attributes, "strides": [1] * len(kernel)})
    return Value(y, 1)


def _transposed_conv(b: Builder, x: Value) -> Value:
    channels, *extents = b.shape(x)[1:]
    kernel = _kernel(b, tuple(extents))
    groups = b.pick([g for g in (1, 1, 1, 2, channels) if channels % g == 0])
    per_group = b.pick([3, 2, 4, 1])
    b.referable &= groups == 1  # it takes the shape of the weight wrongly
    weight = b.weight(channels, per_group, *kernel)
    more = [b.weight(groups * per_group)] if b.rarely(2) else []
    attributes: dict[str, Any] = {"group": groups} if groups > 1 else {}
    if b.rarely(2):
        attributes["strides"] = [2] * len(kernel)
        attributes["output_padding"] = [b.pick([0, 1]) for _ in kernel]
    b.exact &= np.prod(extents) > 1  # as for a Conv
    return Value(b.op("ConvTranspose", x.name, weight, *more, **attributes), 1)


def _gemm(b: Builder, x: Value) -> Value:
    features = b.shape(x)[1]
    out = b.pick(CHANNELS)
    attributes: dict[str, Any] = {}
    if b.rarely(3):
        attributes |= {"alpha": 0.3}
    if transposed := b.rarely(2):
        attributes |= {"transB": 1}
    weight = b.weight(out, features) if transposed else b.weight(features, out)
    shapes = [(out,), (1, out), (), (1,), (1, 1)]
    if not b.rarely(4) or b.opset < 11:
        bias = [b.weight(*b.pick(shapes))] if not b.rarely(3) else [b.weight(out)]
        if b.rarely(3):
            attributes |= {"beta": 0.7}
    else:
        bias = []
    return Value(b.op("Gemm", x.name, weight, *bias, **attributes), 1)


def _matmul(b: Builder, x: Value) -> Value:
    shape = b.shape(x)
    out = b.pick(CHANNELS)
    batched = len(shape) > 2 and b.rarely(5)
    b.exact &= out > 1  # one column: a vector too
    y = b.op("MatMul", x.name, b.weight(*([1] * batched), shape[-1], out))
    if b.rarely(2):
        bias = b.weight(out)
        y = b.op("Add", y, bias) if b.rarely(2) else b.op("Add", bias, y)
    return Value(y, None if batched else len(shape) - 1)


PRODUCERS: Mapping[str, tuple[int, int, int, Layer]] = {
    "convolution": (6, 3, 5, _conv),
    "transposed convolution": (2, 3, 5, _transposed_conv),
    "Gemm": (4, 2, 2, _gemm),
    "MatMul": (3, 2, 5, _matmul),
    "nothing": (1, 2, 5, _nothing),
    "Sigmoid": (1, 2, 5, _sigmoid),
}
"""Name -> how often, the lowest and the highest rank that it takes, and what adds it."""


POINTWISE = ("nothing", "Sigmoid")


def _identity(b: Builder, x: Value) -> Value:
    return replace(x, name=b.op("Identity", x.name))


def _dropout(b: Builder, x: Value) -> Value:
    return replace(x, name=dropout(b, x.name))


def _negated(b: Builder, x: Value) -> Value:
    return replace(x, name=negated(b, x.name))


def _batch_norm(b: Builder, x: Value) -> Value:
    b.exact = False
    return Value(batch_norm(b, x.name), 1)


def _affine(b: Builder, x: Value) -> Value:
    b.exact = False
    axis = len(b.shape(x)) - 1 if x.axis is None else x.axis
    return x if b.extents(x)[axis] is None else replace(x, name=scaled(b, x.name, axis))


def _pool(b: Builder, x: Value) -> Value:
    op_type = b.pick(["AveragePool", "AveragePool", "MaxPool"])
    extents = b.shape(x)[2:]
    attributes: dict[str, Any] = {"kernel_shape": [min(2, size) for size in extents]}
    if b.rarely(2) and b.nodes and b.nodes[-1].op_type != "Pad":  # ORT would refuse to fuse them
        b.referable &= op_type == "AveragePool"  # it forgets some of a MaxPool's pads
        attributes["pads"] = [0] * len(extents) + [int(size > 1) for size in extents]
        if op_type == "AveragePool":
            attributes["count_include_pad"] = b.pick([0, 1])
    return replace(x, name=b.op(op_type, x.name, **attributes))


def pooled(b: Builder, x: Value) -> Value:
    """Return x behind a max pool, where it has pixels."""
    extents = b.shape(x)[2:]
    kernel = [min(2, size) for size in extents]
    return replace(x, name=b.op("MaxPool", x.name, kernel_shape=kernel)) if kernel else x


def _global_pool(b: Builder, x: Value) -> Value:
    return replace(x, name=b.op("GlobalAveragePool", x.name))


def _pad(b: Builder, x: Value) -> Value:
    rank = len(b.shape(x))
    pads = np.zeros((2, rank), np.int64)
    for axis in range(2, rank):
        if axis != x.axis:
            pads[:, axis] = b.pick([0, 1]), b.pick([0, 1])
    if b.opset < 11:
        return replace(x, name=b.op("Pad", x.name, pads=pads.ravel()))
    inputs = [b.integers(*pads.ravel())] + ([b.constant(0)] if b.rarely(2) else [])
    return replace(x, name=b.op("Pad", x.name, *inputs))


def _transposed(b: Builder, x: Value) -> Value:
    rank = len(b.shape(x))
    perm = [0, *range(2, rank), 1] if b.rarely(2) else [0, *range(1, rank)][::1]
    if b.rarely(4):
        perm = list(b.pick([range(rank)[::-1], (*range(1, rank), 0)]))
    axis = None if x.axis is None else perm.index(x.axis)
    return Value(b.op("Transpose", x.name, perm=perm), axis)


def _flattened(b: Builder, x: Value) -> Value:
    """Join all that lies behind the channels, or all behind the batch."""
    if b.rarely(2):
        return Value(b.op("Flatten", x.name, axis=1))
    return Value(b.op("Reshape", x.name, b.integers(0, b.shape(x)[1], -1)))


BETWEEN: Mapping[str, tuple[Callable[[Builder, Value], bool], Layer]] = {
    "identity": (lambda b, x: True, _identity),
    "dropout": (lambda b, x: True, _dropout),
    "negation": (lambda b, x: True, _negated),
    "batch norm": (lambda b, x: x.axis in (None, 1), _batch_norm),
    "affine": (lambda b, x: True, _affine),
    "pool": (lambda b, x: len(b.shape(x)) > 2, _pool),
    "global pool": (lambda b, x: len(b.shape(x)) > 2, _global_pool),
    "pad": (lambda b, x: len(b.shape(x)) > 2, _pad),
    "transpose": (lambda b, x: True, _transposed),
    "flatten": (lambda b, x: len(b.shape(x)) > 2, _flattened),
}
"""Name -> where it can stand, and what adds it."""


def produced(b: Builder, x: Value, *, pointwise: bool = True) -> Value:
    """Return x behind a random producer, if allowed a pointwise one, and up to two layers."""
    rank = len(b.shape(x))
    fitting = [
        add
        for name, (weight, low, high, add) in PRODUCERS.items()
        for _ in range(weight)
        if low <= rank <= high and (pointwise or name not in POINTWISE)
    ]
    y = b.pick(fitting)(b, x)
    for _ in range(b.pick([0, 0, 1, 2])):
        names = [name for name, (fits, _) in BETWEEN.items() if fits(b, y)]
        y = BETWEEN[b.pick(names)][1](b, y)
    return y
