"""How a random network writes a site: the negation, the activation, and the join of the halves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from fuzz_builder import Builder, Value
from onnx import numpy_helper

Unary = Callable[[Builder, str], str]


@dataclass(frozen=True)
class Written:
    """One way to write a function of one tensor.

    Attributes:
        apply: Adds the nodes and returns the result.
        since: The first opset in which that is valid.
        exact: Whether it rounds as the canonical node does.
        faithful: Whether NaN and infinities pass as through the canonical node.
    """

    apply: Unary
    since: int = 7
    exact: bool = True
    faithful: bool = False


def _clip(low: float | None, high: float | None) -> Unary:
    def apply(b: Builder, x: str) -> str:
        limits = {"min": low, "max": high}
        if b.opset < 11:
            return b.op("Clip", x, **{k: float(v) for k, v in limits.items() if v is not None})
        values = ["" if v is None else b.constant(v) for v in limits.values()]
        return b.op("Clip", x, *(values if values[1] else values[:1]))

    return apply


def _where(b: Builder, x: str, other: str) -> str:
    """``other`` where x is negative, in one of the ways to compare."""
    zero = b.number(0)
    if b.rarely(2):
        return b.op("Where", b.op("Greater", x, zero), x, other)
    return b.op("Where", b.op("Less", x, zero), other, x)


def _masked(b: Builder, x: str) -> str:
    mask = b.op("Cast", b.op("Greater", x, b.number(0)), to=b.elem_type)
    return b.op("Mul", x, mask)


def _half_sum(b: Builder, x: str) -> str:
    return b.op("Mul", b.op("Add", b.op("Abs", x), x), b.number(0.5))


RELU = (
    Written(lambda b, x: b.op("Relu", x), faithful=True),
    Written(lambda b, x: b.op("Max", x, b.number(0)), 8),
    Written(lambda b, x: b.op("Max", b.number(0), x), 8),
    Written(_clip(0, None)),
    Written(lambda b, x: _where(b, x, b.number(0)), 9),
    Written(_masked),
    Written(_half_sum),
    Written(lambda b, x: b.op("LeakyRelu", x, alpha=0.0)),
    Written(lambda b, x: b.op("PRelu", x, b.constant([0]))),
    Written(lambda b, x: b.op("ThresholdedRelu", x, alpha=0.0), 10),
    Written(lambda b, x: b.op("Relu", b.op("Relu", x)), faithful=True),
)
NEGATIVE_RELU = (
    Written(lambda b, x: b.op("Neg", b.op("Min", x, b.number(0))), 8),
    Written(lambda b, x: b.op("Sub", b.op("Relu", x), x)),
    Written(lambda b, x: b.op("Mul", b.number(-1), _clip(None, 0)(b, x))),
)
"""Ways to write relu(-x) of x."""


def leaky_relu(slope: float) -> tuple[Written, ...]:
    """Return the ways to write a leaky relu."""

    def scaled(b: Builder, x: str) -> str:
        return b.op("Mul", x, b.number(slope))

    return (
        Written(lambda b, x: b.op("LeakyRelu", x, alpha=slope), faithful=True),
        Written(lambda b, x: b.op("Max" if slope < 1 else "Min", x, scaled(b, x)), 8),
        Written(lambda b, x: _where(b, x, scaled(b, x)), 9),
        Written(lambda b, x: b.op("PRelu", x, b.constant([slope]))),
    )


def elu(alpha: float) -> tuple[Written, ...]:
    """Return the ways to write an elu."""

    def below(b: Builder, x: str) -> str:
        exp = b.op("Exp", b.op("Min", x, b.number(0)))
        return b.op("Mul", b.op("Sub", exp, b.number(1)), b.number(alpha))

    return (
        Written(lambda b, x: b.op("Elu", x, alpha=alpha)),
        Written(lambda b, x: _where(b, x, below(b, x)), 9, exact=False),
    )


def clip(low: float | None, high: float | None) -> tuple[Written, ...]:
    """Return the ways to write a clip; a limit that is None is none."""

    def by_min_and_max(b: Builder, x: str) -> str:
        for op_type, limit in (("Max", low), ("Min", high)):
            if limit is not None:
                x = b.op(op_type, x, b.number(limit))
        return x

    def relu_min(b: Builder, x: str) -> str:
        return b.op("Min", b.op("Relu", x), b.number(high or 0))

    ways = (Written(_clip(low, high)), Written(by_min_and_max, 8))
    return (*ways, Written(relu_min, 8)) if low == 0 and high else ways


def _sigmoid(b: Builder, x: str) -> str:
    return b.op("Reciprocal", b.op("Add", b.op("Exp", b.op("Neg", x)), b.number(1)))


def _softsign(b: Builder, x: str) -> str:
    return b.op("Div", x, b.op("Add", b.number(1), b.op("Abs", x)))


ACTIVATIONS: Mapping[str, Callable[[Builder], Sequence[Written]]] = {
    "CReLU": lambda b: RELU,
    "CLeakyRelu": lambda b: leaky_relu(b.pick([0.25, 0.01 if b.dtype is np.float32 else 0.5, 1.5])),
    "CElu": lambda b: elu(b.pick([1.0, 0.5])),
    "CClip": lambda b: clip(*b.pick([(0, 6), (-1, 1), (0.5, 2), (None, 1), (-0.5, None)])),
    "CSelu": lambda b: [Written(lambda b, x: b.op("Selu", x))],
    "CSoftplus": lambda b: [Written(lambda b, x: b.op("Softplus", x))],
    "CSigmoid": lambda b: [
        Written(lambda b, x: b.op("Sigmoid", x)),
        Written(_sigmoid, exact=False),
    ],
    "CTanh": lambda b: [Written(lambda b, x: b.op("Tanh", x))],
    "CSoftsign": lambda b: [
        Written(lambda b, x: b.op("Softsign", x)),
        Written(_softsign, exact=False),
    ],
}
"""Canonical node -> the ways to write its activation."""


def chosen(b: Builder, ways: Sequence[Written]) -> Written:
    """Pick a way that is valid in the opset and note what it costs in exactness."""
    valid = [way for way in ways if b.opset >= way.since]
    way = b.pick([way for way in valid if way.faithful] or valid if b.plain else valid)
    b.exact &= way.exact
    b.faithful &= way.faithful
    return way


def _zeros_like(b: Builder, x: str) -> str:
    shape = b.op("Shape", x)
    if b.rarely(2):
        return b.op("Expand", b.number(0), shape)
    return b.op("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, b.dtype)))


def _ones(b: Builder, x: str, value: float) -> str:
    """A constant of the shape of x behind its first axis, full of one number."""
    return b.constant(np.full([extent or 1 for extent in b.extents(x)[1:]], value))


NEGATIONS = (
    Written(lambda b, x: b.op("Neg", x), faithful=True),
    Written(lambda b, x: b.op("Mul", x, b.number(-1)), faithful=True),
    Written(lambda b, x: b.op("Mul", b.number(-1), x), faithful=True),
    Written(lambda b, x: b.op("Mul", x, _ones(b, x, -1)), faithful=True),
    Written(lambda b, x: b.op("Div", x, b.number(-1)), faithful=True),
    Written(lambda b, x: b.op("Sub", b.number(0), x), faithful=True),
    Written(lambda b, x: b.op("Sub", _ones(b, x, 0), x), faithful=True),
    Written(lambda b, x: b.op("Mul", x, b.op("Neg", b.number(1))), faithful=True),
    Written(lambda b, x: b.op("Neg", b.op("Neg", b.op("Neg", x))), faithful=True),
    Written(lambda b, x: b.op("Sub", _zeros_like(b, x), x), 9, faithful=True),
)


def negated(b: Builder, x: str) -> str:
    """Return -x."""
    return chosen(b, NEGATIONS).apply(b, x)


def joined(b: Builder, first: str, second: str, axis: int, *, within: Unary | None = None) -> str:
    """Return the two values joined on an axis, sometimes with alternating channels.

    ``within`` is applied to what is joined: of a stack, sometimes before its reshape.
    """
    after = within or (lambda b, x: x)
    b.seams += [first, second]
    extents = b.extents(first)
    stackable = axis > 0 and extents[axis] is not None and extents[axis + 1 :].count(None) < 2
    if stackable and b.rarely(5):
        new = axis + b.pick([0, 1])  # before the channels, or behind: then they alternate
        stack = b.op("Concat", _unsqueezed(b, first, new), _unsqueezed(b, second, new), axis=new)
        early = within is not None and b.rarely(2)
        stack = after(b, stack) if early else stack
        merged = b.op("Reshape", stack, _merged_shape(b, first, axis))
        return merged if early else after(b, merged)
    if b.opset >= 11 and b.rarely(3):
        axis -= len(b.shape(first))
    b.seams.append(b.op("Concat", first, second, axis=axis))
    return after(b, b.seams[-1])


def _unsqueezed(b: Builder, value: str, axis: int) -> str:
    if b.opset < 13:
        return b.op("Unsqueeze", value, axes=[axis])
    return b.op("Unsqueeze", value, b.integers(axis))


def _merged_shape(b: Builder, half: str, axis: int) -> str:
    trailing = [-1 if extent is None else extent for extent in b.extents(half)[axis + 1 :]]
    return b.integers(*[0] * axis, 2 * b.shape(half)[axis], *trailing)


def dropout(b: Builder, x: str) -> str:
    """Return x behind a Dropout outside training."""
    if b.opset < 12:
        return b.op("Dropout", x, ratio=0.5)
    training = b.constant(False, np.bool_)
    return b.op("Dropout", x, *([] if b.rarely(2) else [b.constant(0.5), training]))


def batch_norm(b: Builder, x: str) -> str:
    """Return x behind a batch norm over axis 1, in inference."""
    b.referable &= b.opset >= 14  # its older ones mix in the statistics of the batch
    channels = b.shape(x)[1]
    ranges = ((0.5, 1.5), (-1, 1), (-1, 1), (0.5, 2))
    constants = [b.constant(b.uniform(low, high, channels)) for low, high in ranges]
    return b.op("BatchNormalization", x, *constants, epsilon=b.pick([1e-5, 1e-3]))


def scaled(b: Builder, x: str, axis: int) -> str:
    """Return x with a scale and a shift per channel, or one of them, or a number each."""
    kinds = b.pick([("Mul",), ("Add",), ("Mul", "Add"), ("Sub", "Mul"), ("Div", "Add")])
    for op_type in kinds:
        array = b.uniform(0.55, 0.95, b.shape(x)[axis])
        array *= np.where(b.uniform(0, 1, array.shape) < 0.2, -1, 1)
        operand = b.number(array[0]) if b.rarely(4) else b.by_channel(array, x, axis)
        flipped = op_type in ("Mul", "Add") and b.rarely(4)
        x = b.op(op_type, operand, x) if flipped else b.op(op_type, x, operand)
    return x


def value_of(name: str, like: Value) -> Value:
    """Return a value with the channel axis of another."""
    return Value(name, like.axis)
