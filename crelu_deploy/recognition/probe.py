"""Elementwise ONNX operators in float64 NumPy, to sample what a small piece of a graph computes.

Only inference is meant: a dropout is the identity, a batch norm its running statistics. Real
values are float64 whatever the tensor's dtype; conditions are bool. Rounding is modelled at casts
alone, so two expressions that agree here agree up to the rounding of their own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]
Operands = Sequence[Array | None]
Operator = Callable[[ir.Node, Operands], Array]

FLOATS = frozenset(
    {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE}
)


def attribute(node: ir.Node, name: str, default: float) -> float:
    """Return a number attribute; NaN, which fits nothing, if a function's caller sets it."""
    found = node.attributes.get(name)
    if found is None:
        return default
    return float("nan") if found.is_ref() else float(found.value)


def rounded(x: Array, dtype: ir.DataType) -> Array:
    """Return ``x`` after a cast to ``dtype``, as float64, or as bool for a cast to BOOL."""
    if dtype == ir.DataType.BOOL:
        return np.asarray(x != 0)
    with np.errstate(all="ignore"):
        return np.asarray(x, np.float64).astype(dtype.numpy()).astype(np.float64)


def _of(apply: Callable[..., Any], **defaults: float) -> Operator:
    """Lift ``apply(operands, attributes)``; the attributes come in the order of the defaults."""

    def operator(node: ir.Node, operands: Operands) -> Array:
        present = [operand for operand in operands if operand is not None]
        values = [attribute(node, name, default) for name, default in defaults.items()]
        return np.asarray(apply(*present, *values))

    return operator


def _clip(node: ir.Node, operands: Operands) -> Array:
    low, high = [*operands[1:], None, None][:2]  # inputs since opset 11, attributes before it
    x = np.asarray(operands[0])
    low = np.asarray(attribute(node, "min", -np.inf)) if low is None else low
    high = np.asarray(attribute(node, "max", np.inf)) if high is None else high
    return np.asarray(np.minimum(np.maximum(x, low), high))


def _cast(node: ir.Node, operands: Operands) -> Array:
    return rounded(np.asarray(operands[0]), ir.DataType(int(attribute(node, "to", 1))))


def _cast_like(node: ir.Node, operands: Operands) -> Array:
    like = node.inputs[1]
    return rounded(np.asarray(operands[0]), (like and like.dtype) or ir.DataType.FLOAT)


def _batch_norm(node: ir.Node, operands: Operands) -> Array:
    x, scale, shift, mean, variance = (np.asarray(operand) for operand in operands)
    deviation = np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return np.asarray((x - mean) / deviation * scale + shift)


def _filled(node: ir.Node, operands: Operands) -> Array:
    value = node.attributes.get("value")
    number = 0.0 if value is None else float(value.as_tensor().numpy().reshape(-1)[0])
    return np.full(np.asarray(operands[0]).shape, number)


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x < 0, alpha * np.expm1(x), x)


def _celu(x: Array, alpha: float) -> Array:
    return np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(x / alpha))


OPS: Mapping[str, Operator] = {
    "Abs": _of(np.abs),
    "Add": _of(np.add),
    "And": _of(np.logical_and),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _of(np.ceil),
    "Celu": _of(_celu, alpha=1.0),
    "Clip": _clip,
    "ConstantOfShape": _filled,
    "Div": _of(np.divide),
    "Dropout": lambda node, operands: np.asarray(operands[0]),
    "Elu": _of(_elu, alpha=1.0),
    "Equal": _of(np.equal),
    "Exp": _of(np.exp),
    "Expand": _of(lambda x, shape: x + np.zeros(np.shape(shape))),
    "Floor": _of(np.floor),
    "Greater": _of(np.greater),
    "GreaterOrEqual": _of(np.greater_equal),
    "HardSigmoid": _of(lambda x, a, b: np.clip(a * x + b, 0, 1), alpha=0.2, beta=0.5),
    "HardSwish": _of(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Identity": _of(lambda x: x),
    "LeakyRelu": _of(lambda x, alpha: np.where(x < 0, alpha * x, x), alpha=0.01),
    "Less": _of(np.less),
    "LessOrEqual": _of(np.less_equal),
    "Log": _of(np.log),
    "Max": _of(lambda *x: reduce(np.maximum, x)),
    "Mean": _of(lambda *x: reduce(np.add, x) / len(x)),
    "Min": _of(lambda *x: reduce(np.minimum, x)),
    "Mish": _of(lambda x: x * np.tanh(np.logaddexp(x, 0))),
    "Mul": _of(np.multiply),
    "Neg": _of(np.negative),
    "Not": _of(np.logical_not),
    "Or": _of(np.logical_or),
    "PRelu": _of(lambda x, slope: np.where(x < 0, slope * x, x)),
    "Pow": _of(np.power),
    "Reciprocal": _of(np.reciprocal),
    "Relu": _of(lambda x: np.maximum(x, 0)),
    "Round": _of(np.round),
    "Selu": _of(
        lambda x, alpha, gamma: gamma * _elu(x, alpha),
        alpha=1.67326319217681884765625,
        gamma=1.05070102214813232421875,
    ),
    "Sigmoid": _of(lambda x: 1 / (1 + np.exp(-x))),
    "Sign": _of(np.sign),
    "Softplus": _of(lambda x: np.logaddexp(x, 0)),
    "Softsign": _of(lambda x: x / (1 + np.abs(x))),
    "Sqrt": _of(np.sqrt),
    "Sub": _of(np.subtract),
    "Sum": _of(lambda *x: reduce(np.add, x)),
    "Swish": _of(lambda x, alpha: x / (1 + np.exp(-alpha * x)), alpha=1.0),
    "Tanh": _of(np.tanh),
    "ThresholdedRelu": _of(lambda x, alpha: np.where(x > alpha, x, 0), alpha=1.0),
    "Where": _of(np.where),
    "Xor": _of(np.logical_xor),
}
"""Operator -> its value; a new one is one line. Attributes default as in ONNX."""


def evaluate(nodes: Iterable[ir.Node], known: MutableMapping[ir.Value, Array]) -> None:
    """Add the first output of each node, in order, to ``known``, which holds all operands.

    Overflow and invalid operations give inf and NaN without a warning, as in a runtime.
    """
    with np.errstate(all="ignore"):
        for node in nodes:
            operands = [_lookup(value, known) for value in node.inputs]
            known[node.outputs[0]] = OPS[node.op_type](node, operands)


def _lookup(value: ir.Value | None, known: Mapping[ir.Value, Array]) -> Array | None:
    """Return a value's samples; the shape of a value stands for it, as in ``zeros_like``."""
    if value is None or value in known:
        return None if value is None else known[value]
    node = value.producer()
    shaped = node is not None and node.op_type == "Shape"
    return _lookup(node.inputs[0], known) if node is not None and shaped else None
