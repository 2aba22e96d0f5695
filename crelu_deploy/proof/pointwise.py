"""Operators that work on each element alone, as keys: the operator's type, then its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.values import constant
from crelu_deploy.op import ACTIVATIONS, NODE_TYPES, Array
from crelu_deploy.proof.terms import Key

DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "LeakyRelu": {"alpha": 0.01},
    "Elu": {"alpha": 1.0},
    "Selu": {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    "Clip": {"min": -3.4028234663852886e38, "max": 3.4028234663852886e38},
}
"""Attributes of activations, and what they are where they are left out."""

APPLY: Mapping[str, Callable[..., Array]] = {
    activation.onnx: activation.apply for activation in ACTIVATIONS.values()
}

MONOTONIC = ("Relu", "Clip", "LeakyRelu")
"""Activations that never fall, exactly so in floating point."""

FLOATS = {
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
}


def activation_of(node: ir.Node, dtype: ir.DataType | None) -> Key | None:
    """Return the key of an activation; None where it is none, or its limits are computed."""
    if node.op_type not in APPLY:
        return None
    names = DEFAULTS.get(node.op_type, {})
    numbers: dict[str, float | np.float32] = {
        n: np.float32(node.attributes.get_float(n, default)) for n, default in names.items()
    }
    if node.op_type == "Clip":
        for name, value in zip(("min", "max"), node.inputs[1:], strict=False):
            tensor = constant(value)
            if value is not None and (tensor is None or tensor.size != 1):
                return None
            if tensor is not None and tensor.dtype not in FLOATS:
                return None  # float64 does not hold every integer
            if tensor is not None:
                numbers[name] = tensor.numpy().astype(np.float64).item()
    return (node.op_type, *(_rounded(number, dtype) for number in numbers.values()))


def site_activation(node: ir.Node, dtype: ir.DataType | None) -> Key:
    """Return the key of a canonical node's activation."""
    kind = ACTIVATIONS[NODE_TYPES[node.op_type][0]]
    numbers = [np.float32(node.attributes[name].as_float()) for name in kind.fits]
    rest = map(np.float32, DEFAULTS["Selu"].values()) if kind.onnx == "Selu" else ()
    return (kind.onnx, *(_rounded(number, dtype) for number in [*numbers, *rest]))


def _rounded(number: float | np.float32, dtype: ir.DataType | None) -> float:
    """Return a number in the type of the data, which a limit has."""
    if dtype not in FLOATS or dtype is None:
        return float(number)
    with np.errstate(over="ignore"):
        return float(np.asarray(number).astype(dtype.numpy()))


def constant_of(what: Key) -> Callable[[Array], Array]:
    """Return what an operator makes of constants, (n,) float64 to the same."""
    numbers = [np.float64(str(v)) for v in what[1:]] if what[0] != "Cast" else []
    given = dict(zip(DEFAULTS.get(str(what[0]), {}), numbers, strict=False))

    @np.errstate(all="ignore")
    def results(values: Array) -> Array:
        if what[0] == "Cast":
            return values.astype(ir.DataType[str(what[1])].numpy()).astype(np.float64)
        if what[0] == "Selu":
            return np.asarray(APPLY["Elu"](values, numbers[0]) * numbers[1])
        return np.asarray(APPLY[str(what[0])](values, **given))

    return results


def is_monotonic(what: Key) -> bool:
    """Whether ``max(f(x)) = f(max(x))``."""
    return what[0] in MONOTONIC and not (what[0] == "LeakyRelu" and float(str(what[1])) < 0)
