"""What looks like CReLU and is none: it must stay as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from fuzz_builder import Builder, Value
from fuzz_spellings import clip, leaky_relu, negated

Lookalike = Callable[[Builder, Value, int], object]


def _cat(b: Builder, *parts: str, axis: int) -> str:
    return b.op("Concat", *parts, axis=axis)


def _mirror(b: Builder, x: Value, axis: int) -> str:
    return _cat(b, x.name, negated(b, x.name), axis=axis)


def _relus(b: Builder, x: Value) -> tuple[str, str]:
    return b.op("Relu", x.name), b.op("Relu", negated(b, x.name))


def _ncrelu(b: Builder, x: Value, axis: int) -> object:
    first, second = _relus(b, x)
    return _cat(b, first, b.op("Neg", second), axis=axis)


def _positive_and_negative_part(b: Builder, x: Value, axis: int) -> object:
    parts = [clip(0, None)[0].apply(b, x.name), clip(None, 0)[0].apply(b, x.name)]
    return _cat(b, *parts, axis=axis)


def _other_axis(b: Builder, x: Value, axis: int) -> object:
    """Pixels or the batch are joined, not channels."""
    rank = len(b.shape(x))
    others = {0, *range(2, rank - 1)} if x.axis is None else {0, *range(1, rank)} - {x.axis}
    return b.op("Relu", _mirror(b, x, b.pick(sorted(others - {axis}))))


def _softmax(b: Builder, x: Value, axis: int) -> object:
    return b.op("Softmax", _mirror(b, x, axis), axis=axis)


def _different_slopes(b: Builder, x: Value, axis: int) -> object:
    first = leaky_relu(0.1)[0].apply(b, x.name)
    return _cat(b, first, leaky_relu(0.2)[0].apply(b, negated(b, x.name)), axis=axis)


def _relu_and_elu(b: Builder, x: Value, axis: int) -> object:
    return _cat(b, b.op("Relu", x.name), b.op("Elu", negated(b, x.name)), axis=axis)


def _different_limits(b: Builder, x: Value, axis: int) -> object:
    first = clip(0, 6)[0].apply(b, x.name)
    return _cat(b, first, clip(0, 5)[0].apply(b, negated(b, x.name)), axis=axis)


def _times_minus_two(b: Builder, x: Value, axis: int) -> object:
    twice = b.op("Mul", x.name, b.number(-2))
    return b.op("Relu", _cat(b, x.name, twice, axis=axis))


def _doubled_half(b: Builder, x: Value, axis: int) -> object:
    first, second = _relus(b, x)
    return _cat(b, first, b.op("Mul", second, b.number(2)), axis=axis)


def _different_shifts(b: Builder, x: Value, axis: int) -> object:
    first = b.op("Relu", b.op("Add", x.name, b.number(0.5)))
    second = b.op("Relu", b.op("Sub", b.number(0.25), x.name))
    return _cat(b, first, second, axis=axis)


def _three_parts(b: Builder, x: Value, axis: int) -> object:
    return b.op("Relu", _cat(b, x.name, negated(b, x.name), x.name, axis=axis))


def _absolute(b: Builder, x: Value, axis: int) -> object:
    return b.op("Add", *_relus(b, x))


def _same_sign(b: Builder, x: Value, axis: int) -> object:
    return _cat(b, b.op("Relu", x.name), b.op("Relu", x.name), axis=axis)


def _two_tensors(b: Builder, x: Value, axis: int) -> object:
    other = b.op("Softmax", x.name, axis=axis)
    return _cat(b, b.op("Relu", x.name), b.op("Relu", b.op("Neg", other)), axis=axis)


def _slope_per_channel(b: Builder, x: Value, axis: int) -> object:
    joint = _mirror(b, x, axis)
    slopes = np.linspace(0.1, 0.8, b.shape(joint)[axis])
    return b.op("PRelu", joint, b.constant(slopes.reshape(-1, *[1] * (len(b.shape(x)) - 1 - axis))))


def _shift_per_row(b: Builder, x: Value, axis: int) -> object:
    joint = _mirror(b, x, axis)
    shape = [size if i != axis else 1 for i, size in enumerate(b.shape(joint))]
    rows = np.arange(np.prod(shape)).reshape(shape)
    return b.op("Relu", b.op("Add", joint, b.constant(rows)))


def _has_rows(b: Builder, x: Value, axis: int) -> bool:
    return int(np.prod(b.shape(x))) > b.shape(x)[axis]


def _since(opset: int) -> Callable[[Builder, Value, int], bool]:
    return lambda b, x, axis: b.opset >= opset


def _computed_scale(b: Builder, x: Value, axis: int) -> object:
    joint = _mirror(b, x, axis)
    return b.op("Relu", b.op("Mul", joint, b.op("Softmax", joint, axis=axis)))


def _may_jump(b: Builder, x: Value, axis: int) -> bool:
    """Whether rounding is too fine to move a value over a jump; float16 is rounded anew."""
    return b.opset >= 9 and b.dtype is not np.float16


def _window(b: Builder, x: Value, axis: int) -> object:
    joint = _mirror(b, x, axis)
    inside = b.op("And", b.op("Greater", joint, b.number(0.7)), b.op("Less", joint, b.number(0.75)))
    return b.op("Where", inside, b.number(0.5), b.op("Relu", joint))


def _nothing_behind(b: Builder, x: Value, axis: int) -> object:
    return b.op("LogSoftmax", b.op("Identity", _mirror(b, x, axis)), axis=axis)


def _not_in_the_table(b: Builder, x: Value, axis: int) -> object:
    return b.op(b.pick(["HardSigmoid", "Abs"]), _mirror(b, x, axis))


def _clipped_negation(b: Builder, x: Value, axis: int) -> object:
    limited = clip(-2, 2)[0].apply(b, x.name)
    return b.op("Relu", _cat(b, x.name, b.op("Neg", limited), axis=axis))


def _training_dropout(b: Builder, x: Value, axis: int) -> object:
    joint = _mirror(b, x, axis)
    yes = b.constant(True, np.bool_)
    return b.op("Relu", b.op("Dropout", joint, b.constant(0), yes))


LOOKALIKES: Mapping[str, tuple[Callable[[Builder, Value, int], bool], Lookalike]] = {
    "ncrelu": (_since(7), _ncrelu),
    "positive and negative part": (_since(7), _positive_and_negative_part),
    "another axis": (_since(7), _other_axis),
    "softmax": (_since(7), _softmax),
    "different slopes": (_since(7), _different_slopes),
    "relu and elu": (_since(7), _relu_and_elu),
    "different limits": (_since(7), _different_limits),
    "times minus two": (_since(7), _times_minus_two),
    "doubled half": (_since(7), _doubled_half),
    "different shifts": (_since(7), _different_shifts),
    "three parts": (_since(7), _three_parts),
    "absolute value": (_since(7), _absolute),
    "same sign": (_since(7), _same_sign),
    "two tensors": (_since(7), _two_tensors),
    "slope per channel": (_since(9), _slope_per_channel),
    "shift per row": (_has_rows, _shift_per_row),
    "computed scale": (_since(7), _computed_scale),
    "a window": (_may_jump, _window),
    "nothing pointwise behind": (_since(7), _nothing_behind),
    "not in the table": (_since(7), _not_in_the_table),
    "clipped negation": (_since(7), _clipped_negation),
    "training dropout": (_since(12), _training_dropout),
}
"""Name -> where it is one, and what adds it."""
