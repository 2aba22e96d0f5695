"""What can be told of a value or a node without running anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard

import onnx_ir as ir


def describe(node: ir.Node | None) -> str:
    """Return ``"Conv conv1"``, the type and the name of a node; ``""`` for none."""
    return f"{node.op_type} {node.name}".strip() if node is not None else ""


def is_onnx(node: ir.Node | None, *op_types: str) -> TypeGuard[ir.Node]:
    """Whether the node is of ONNX's own domain and, where types are given, one of them."""
    return node is not None and node.domain == "" and (not op_types or node.op_type in op_types)


def rank_of(value: ir.Value) -> int | None:
    """Return the rank of a value, from its shape or from the operator behind it."""
    if value.shape is not None:
        return len(value.shape)
    node = value.producer()
    if node is None:
        return None
    if is_onnx(node, "Conv", "ConvTranspose") and (weight := constant(node.inputs[1])) is not None:
        return len(weight.shape)
    if is_onnx(node, "Gemm"):
        return 2
    if is_onnx(node, "Transpose") and "perm" in node.attributes:
        return len(node.attributes["perm"].as_ints())
    return None


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the constant behind a value, through Identity and Cast; its data stays unread.

    An initializer that is also a graph input is none: the caller of the model may replace it.
    """
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if is_onnx(node, "Identity"):
        return constant(node.inputs[0])
    if is_onnx(node, "Cast"):
        return _cast(constant(node.inputs[0]), node)
    return _constant_node(node) if is_onnx(node, "Constant") else None


def _cast(tensor: ir.TensorProtocol | None, node: ir.Node) -> ir.TensorProtocol | None:
    if tensor is None:
        return None
    to = ir.DataType(node.attributes["to"].as_int())
    return ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().astype(to.numpy())),
        dtype=to,
        shape=ir.Shape(tensor.shape.numpy()),
    )


_CONSTANT_TYPES = {
    "value_float": ir.DataType.FLOAT,
    "value_floats": ir.DataType.FLOAT,
    "value_int": ir.DataType.INT64,
    "value_ints": ir.DataType.INT64,
}


def _constant_node(node: ir.Node) -> ir.TensorProtocol | None:
    name, attribute = next(iter(node.attributes.items()))
    if attribute.is_ref():
        return None
    if name == "value":
        return attribute.as_tensor()
    return ir.tensor(attribute.value, _CONSTANT_TYPES[name]) if name in _CONSTANT_TYPES else None


def is_read_once(value: ir.Value) -> bool:
    """Whether one node reads the value, once, and it is no output of a graph."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def node_like(
    like: ir.Value,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int | ir.Attr] | None = None,
) -> ir.Node:
    """Return an operator whose output has the shape and type of ``like``."""
    node = ir.node(op_type, inputs, attributes)
    node.outputs[0].shape, node.outputs[0].type = like.shape, like.type
    return node
