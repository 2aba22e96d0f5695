"""A batch norm, scale or shift behind a producer goes into its weights.

All that lies behind one producer is combined in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.chains import Link, follow
from crelu_deploy.lowerings.editing import Editor, bypass
from crelu_deploy.lowerings.producers import KINDS, Refusal, scaled, write
from crelu_deploy.lowerings.sitenode import Scope
from crelu_deploy.lowerings.steps import STEPS, data_index
from crelu_deploy.lowerings.values import constant, is_onnx, is_read_once, node_like
from crelu_deploy.op import Array

AFFINE = ("BatchNormalization", "Mul", "Div", "Add", "Sub")
"""Operators that are a scale and a shift when their other operands are constant."""


def absorb(editor: Editor, scope: Scope, last: ir.Node) -> bool:
    """Work a node of ``AFFINE`` and those above it into the producer; say whether that was done.

    Nothing is done where another node reads a value between, or where the constants are not one
    for each channel.
    """
    nodes = list(_above(last))[::-1]
    if not is_onnx(nodes[0], *KINDS):
        return False
    try:
        chain = follow(nodes)
    except Refusal:
        return False
    affine = [link for link in chain.links[1:] if is_onnx(link.node, *AFFINE)]
    combined = _combined(affine, chain.channels)
    return combined is not None and _into(editor, scope, chain.producer, affine, combined)


@np.errstate(all="ignore")
def _combined(affine: list[Link], channels: int) -> tuple[Array, Array] | None:
    """Return the scale and the shift of all nodes in turn, in float64 of shape (C,)."""
    scale, shift = np.ones(channels), np.zeros(channels)
    for link in affine:
        values = _scale_and_shift(link, channels)
        if values is None:
            return None
        scale, shift = scale * values[0], shift * values[0] + values[1]
    return scale, shift


def _above(last: ir.Node) -> Iterator[ir.Node]:
    """Yield the node and those above it that nothing else reads, up to a possible producer."""
    node: ir.Node | None = last
    while node is not None:
        yield node
        passes = is_onnx(node, *AFFINE) or (is_onnx(node, *STEPS) and STEPS[node.op_type].moves)
        value = node.inputs[data_index(node)]
        if not passes or value is None or not is_read_once(value):
            return
        node = value.producer()
        if node is not None and node.graph is not last.graph:
            return


def _scale_and_shift(link: Link, channels: int) -> tuple[Array, Array] | None:
    """Return the scale and shift of one node in float64, each of shape (1,) or (C,)."""
    if link.spot.extent != channels:
        return None
    if link.node.op_type == "BatchNormalization":
        return _batch_norm(link.node)
    index = 1 - data_index(link.node)
    value = _per_channel(link, index)
    if value is None:
        return None
    one, zero = np.ones(1), np.zeros(1)
    match link.node.op_type, index:
        case "Mul", _:
            return value, zero
        case "Div", _:
            return 1 / value, zero
        case "Add", _:
            return one, value
        case "Sub", 1:
            return one, -value
        case _:
            return -one, value


def _batch_norm(node: ir.Node) -> tuple[Array, Array]:
    tensors = [constant(value) for value in node.inputs[1:5]]
    gamma, beta, mean, variance = (t.numpy().astype(np.float64) for t in tensors if t is not None)
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return scale, beta - mean * scale


def _per_channel(link: Link, index: int) -> Array | None:
    """Return a constant operand as a vector, or None where it differs along another axis."""
    tensor, axis, rank = constant(link.node.inputs[index]), link.spot.axis, link.spot.rank
    if tensor is None or len(tensor.shape) > (-axis if rank is None else rank):
        return None
    shape = [1] * max(0, -axis - len(tensor.shape)) + list(tensor.shape.numpy())
    flat = all(extent == 1 for i, extent in enumerate(shape) if i != len(shape) + axis)
    return tensor.numpy().astype(np.float64).reshape(-1) if flat else None


def _into(
    editor: Editor,
    scope: Scope,
    producer: ir.Node,
    affine: list[Link],
    combined: tuple[Array, Array],
) -> bool:
    has_bias = producer.op_type != "MatMul"
    if not has_bias and len(affine) == 1 and (combined[0] == 1).all():
        return False  # it is the Add that a MatMul has in place of a bias
    weights = scaled(producer, *combined)
    if weights is None:
        return False
    write(editor, scope, producer, weights if has_bias else replace(weights, bias=None))
    producer.attributes.pop("beta", None)
    if not has_bias and weights.bias is not None:
        _add(editor, scope, affine.pop(), weights.bias)
    for link in affine:
        bypass(link.node, data_index(link.node))
    return True


def _add(editor: Editor, scope: Scope, link: Link, bias: Array) -> None:
    """Put the Add of a bias in the place of a node."""
    old = link.node
    data, graph = old.inputs[data_index(old)], old.graph
    assert data is not None, "the chain goes through it"
    assert graph is not None, "the node is in a graph"
    values = bias.reshape(-1, *[1] * (-link.spot.axis - 1))
    add = node_like(
        old.outputs[0], "Add", [data, editor.constant(scope, values, f"{old.name}_bias", old)]
    )
    old.prepend(add)
    editor.name([add], old.name or "")
    editor.substitute(old.outputs[0], add.outputs[0])
    graph.remove(old, safe=True)
