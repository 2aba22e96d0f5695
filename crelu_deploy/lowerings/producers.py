"""Operators with constant weights, seen as rows: one row of weights for each output channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.editing import Editor
from crelu_deploy.lowerings.sitenode import Scope
from crelu_deploy.lowerings.values import constant, describe
from crelu_deploy.op import Array


class Refusal(Exception):
    """Why a site stays as it is; caught where the reason is recorded."""


@dataclass(frozen=True)
class Kind:
    """How one operator keeps its output channels.

    Attributes:
        axis: The axis of the output's channels, counted from the end, from the weight's rank.
        channels: The number of output channels, from the weight's shape.
        rows: The weight with the output channels first.
        weight: The weight from its rows.
    """

    axis: Callable[[int], int]
    channels: Callable[[tuple[int, ...], ir.Node], int]
    rows: Callable[[Array, ir.Node], Array]
    weight: Callable[[Array, ir.Node], Array]


def _integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes.get_int(name, default)


def groups_of(node: ir.Node) -> int:
    """Return the number of channel groups, 1 for an operator that has none."""
    return _integer(node, "group", 1)


def _transposed_rows(weight: Array, node: ir.Node) -> Array:
    """(in, out / groups, ...) -> (out, in / groups, ...)."""
    groups = groups_of(node)
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return np.swapaxes(split, 1, 2).reshape(-1, split.shape[1], *weight.shape[2:])


def _transposed_weight(rows: Array, node: ir.Node) -> Array:
    groups = groups_of(node)
    split = rows.reshape(groups, rows.shape[0] // groups, *rows.shape[1:])
    return np.swapaxes(split, 1, 2).reshape(-1, split.shape[1], *rows.shape[2:])


def _gemm_rows(weight: Array, node: ir.Node) -> Array:
    return weight if _integer(node, "transB", 0) else weight.T


KINDS: Mapping[str, Kind] = {
    "Conv": Kind(lambda rank: 1 - rank, lambda shape, _: shape[0], lambda w, _: w, lambda r, _: r),
    "ConvTranspose": Kind(
        lambda rank: 1 - rank,
        lambda shape, node: shape[1] * groups_of(node),
        _transposed_rows,
        _transposed_weight,
    ),
    "Gemm": Kind(
        lambda _: -1,
        lambda shape, node: shape[0 if _integer(node, "transB", 0) else 1],
        _gemm_rows,
        _gemm_rows,
    ),
    "MatMul": Kind(
        lambda _: -1,
        lambda shape, _: shape[-1],
        lambda w, _: np.moveaxis(w, -1, 0),
        lambda r, _: np.moveaxis(r, 0, -1),
    ),
}


def bias_of(node: ir.Node) -> ir.Value | None:
    """Return the bias that the node reads; a MatMul has none."""
    return node.inputs[2] if node.op_type != "MatMul" and len(node.inputs) > 2 else None


def channels_of(node: ir.Node) -> tuple[int, int]:
    """Return the axis of the output channels, counted from the end, and their number.

    Raises:
        Refusal: The weights or the bias are not constant.
    """
    weight = _required(node, node.inputs[1], "weight")
    if bias_of(node) is not None:
        _required(node, bias_of(node), "bias")
    if len(weight.shape) < 2:
        raise Refusal(f"the weight of its producer {describe(node)} is a vector")
    shape, kind = tuple(weight.shape.numpy()), KINDS[node.op_type]
    return kind.axis(len(shape)), kind.channels(shape, node)


def _required(node: ir.Node, value: ir.Value | None, what: str) -> ir.TensorProtocol:
    if (tensor := constant(value)) is not None:
        return tensor
    producer = describe(node)
    if value is None:
        raise Refusal(f"its producer {producer} has no {what}")
    where = f"the {what} {value.name!r} of its producer {producer}"
    if value.is_graph_input():
        raise Refusal(f"{where} is an input that the caller may replace")
    raise Refusal(f"{where} is computed by {describe(value.producer())}")


@dataclass(frozen=True)
class Weights:
    """What an operator multiplies by and adds.

    Attributes:
        rows: The weight, output channels first: (C, ...).
        bias: Broadcasts against the output with the channels last: (..., C); None for none.
    """

    rows: Array
    bias: Array | None


def read(node: ir.Node) -> Weights:
    """Return the weights of a producer in their own dtype."""
    weight = constant(node.inputs[1])
    assert weight is not None, "channels_of has refused weights that are not constant"
    rows = KINDS[node.op_type].rows(weight.numpy(), node)
    tensor = constant(bias_of(node))
    if tensor is None:
        return Weights(rows, None)
    bias = tensor.numpy()
    return Weights(rows, np.broadcast_to(bias, (*bias.shape[:-1], len(rows))))


def write(editor: Editor, scope: Scope, node: ir.Node, weights: Weights) -> None:
    """Give a producer new constants; other readers of the old ones keep them."""
    weight, bias = KINDS[node.op_type].weight(weights.rows, node), weights.bias
    name = node.inputs[1].name if node.inputs[1] is not None else None
    value = editor.constant(scope, np.ascontiguousarray(weight), name or "weight", node)
    node.replace_input_with(1, value)
    if bias is None:
        return
    name = old.name if (old := bias_of(node)) is not None else f"{name}_bias"
    node.resize_inputs(3)
    node.replace_input_with(
        2, editor.constant(scope, np.ascontiguousarray(bias), name or "bias", node)
    )


@np.errstate(all="ignore")
def scaled(node: ir.Node, scale: Array, shift: Array) -> Weights | None:
    """Return the weights of ``node(x) * scale + shift``, computed in float64 and rounded once.

    ``scale`` and ``shift`` are float64 of shape (C,). A Gemm's beta is worked into the bias, so
    the caller sets it to 1. None where the dtype has no such numbers: too large, or so small that
    a channel would lose its precision.
    """
    weights = read(node)
    rows = weights.rows.astype(np.float64) * scale.reshape(-1, *[1] * (weights.rows.ndim - 1))
    bias = shift if shift.any() else None
    if weights.bias is not None:
        beta = node.attributes.get_float("beta", 1.0)
        bias = weights.bias.astype(np.float64) * beta * scale + shift
    dtype = weights.rows.dtype
    if not _is_representable(rows, bias, dtype):
        return None
    return Weights(rows.astype(dtype), None if bias is None else bias.astype(dtype))


def _is_representable(rows: Array, bias: Array | None, dtype: np.dtype[Any]) -> bool:
    limits = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    largest = np.abs(rows).max(axis=tuple(range(1, rows.ndim)), initial=0)
    within = (largest == 0) | ((largest >= limits.smallest_normal) & (largest <= limits.max))
    return bool(within.all() and (bias is None or (np.abs(bias) <= limits.max).all()))
