"""Half precision inside the graph, for runtimes that compute in the types that they are given.

Inputs and outputs stay float32, with a cast behind and before them; weights and everything between
are float16 or bfloat16. Operands that ONNX wants in float32 whatever the data, such as the scales
of a Resize, stay as they are. The libraries for this know float16 alone, and one of them comes with
ONNX Runtime, which a machine with TensorRT need not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from crelu_deploy.errors import BuildError
from crelu_deploy.lowerings.editing import Editor
from crelu_deploy.targets import BFLOAT16, FLOAT16, Backend

TYPES: Mapping[str, ir.DataType] = {
    FLOAT16: ir.DataType.FLOAT16,
    BFLOAT16: ir.DataType.BFLOAT16,
}
"""Precision -> the element type that float32 becomes."""

FLOAT = ir.DataType.FLOAT

FLOAT_OPERANDS: Mapping[str, tuple[int, ...]] = {
    "Resize": (2,),
    "Upsample": (1,),
    "NonMaxSuppression": (0, 1, 3, 4),
}
"""Operator -> its operands that ONNX defines for float32 alone."""

FLOAT_RESULTS = ("DequantizeLinear",)
TYPE_ATTRIBUTES = ("to", "dtype")


def in_precision(model: ir.Model, backend: Backend) -> ir.Model:
    """Return the model as a backend reads it: in its precision, where the graph holds that.

    int8 is not put in here: it needs samples to calibrate with.
    """
    if not backend.typed or backend.precision not in TYPES:
        return model
    return reduce_precision(model, backend.precision)


def reduce_precision(model: ir.Model, precision: str) -> ir.Model:
    """Return a copy that computes in ``precision``, with the inputs and outputs of the original.

    A weight beyond the range of float16 becomes its largest number; one too small becomes 0.

    Args:
        model: A model in float32; its float64, integers and booleans are left alone.
        precision: A key of ``TYPES``.

    Raises:
        BuildError: It computes nothing in float32, or has an operator that needs it.
    """
    result, to = model.clone(), TYPES[precision]
    editor = Editor(result)
    _refuse(result, precision)
    for value in _initializers(result):
        _convert_initializer(editor, value, to)
    graphs: list[ir.Graph | ir.Function] = [result.graph, *result.functions.values()]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            _convert_node(node, to)
    _cast_interface(editor, to)
    return result


def _refuse(model: ir.Model, precision: str) -> None:
    if all(value.dtype != FLOAT for value in model.graph.inputs):
        raise BuildError(
            f"the network has no float32 input, which {precision} is made from; "
            "export module.float()"
        )
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == "" and node.op_type in (*FLOAT_OPERANDS, *FLOAT_RESULTS):
            _refuse_mixed(node, precision)


def _refuse_mixed(node: ir.Node, precision: str) -> None:
    """Refuse an operator that would read or write float32 beside the reduced type."""
    computed = [
        node.inputs[i]
        for i in FLOAT_OPERANDS.get(node.op_type, ())
        if i < len(node.inputs) and node.inputs[i] is not None
    ]
    if node.op_type in FLOAT_RESULTS or any(not _is_fixed(value) for value in computed):
        raise BuildError(
            f"{node.op_type} node {node.name!r} needs float32, which a network in {precision} "
            "does not compute; use a target in float32"
        )


def _is_fixed(value: ir.Value | None) -> bool:
    """Whether a value is a constant of the model, or left out."""
    if value is None or value.is_initializer():
        return True
    node = value.producer()
    return node is not None and node.op_type == "Constant"


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from list(graph.initializers.values())


def _stays(value: ir.Value) -> bool:
    """Whether every reader of a value wants it in float32."""
    uses = value.uses()
    return bool(uses) and all(
        use.idx in FLOAT_OPERANDS.get(use.node.op_type, ()) and use.node.domain == ""
        for use in uses
    )


def _convert_initializer(editor: Editor, value: ir.Value, to: ir.DataType) -> None:
    if value.const_value is None or value.const_value.dtype != FLOAT or _stays(value):
        return
    value.const_value = _converted(value.const_value, to)
    value.type = ir.TensorType(to)


def _converted(tensor: ir.TensorProtocol, to: ir.DataType) -> ir.TensorProtocol:
    """Return a constant in another type: rounded to nearest, finite values kept finite."""
    array = tensor.numpy()
    if to == ir.DataType.FLOAT16:
        limit = np.finfo(np.float16).max
        array = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
    return ir.Tensor(array.astype(to.numpy()), dtype=to, name=tensor.name)


def _convert_node(node: ir.Node, to: ir.DataType) -> None:
    if all(_stays(output) for output in node.outputs):
        return
    for name, attribute in list(node.attributes.items()):
        changed = _converted_attribute(node, attribute, to)
        if changed is not None:
            node.attributes[name] = changed
    for output in node.outputs:
        if output.dtype == FLOAT:
            output.type = ir.TensorType(to)


def _converted_attribute(node: ir.Node, attribute: ir.Attr, to: ir.DataType) -> ir.Attr | None:
    """Return an attribute that says or holds float32 in the reduced type; None for any other."""
    name, value = attribute.name, attribute.value
    if attribute.is_ref() or node.domain != "":
        return None
    if name in TYPE_ATTRIBUTES and value == FLOAT:
        return ir.AttrInt64(name, to)
    if name == "value" and isinstance(value, ir.TensorProtocol) and value.dtype == FLOAT:
        return ir.AttrTensor(name, _converted(value, to))
    if name in ("value_float", "value_floats"):
        array: np.ndarray[Any, Any] = np.array(value, np.float32)
        del node.attributes[name]
        node.attributes["value"] = ir.AttrTensor("value", _converted(ir.Tensor(array), to))
    return None


def _cast_interface(editor: Editor, to: ir.DataType) -> None:
    graph = editor.model.graph
    for value in graph.inputs:
        if value.dtype == FLOAT:
            _cast_input(editor, value, to)
    for i, value in enumerate(list(graph.outputs)):
        if value.dtype == to:
            graph.outputs[i] = _cast_output(editor, value, to)


def _cast_input(editor: Editor, value: ir.Value, to: ir.DataType) -> None:
    readers = [(node, i) for node, i in value.uses() if i not in _float_operands(node)]
    if not readers:
        return
    cast = _cast(editor, value, to, f"{value.name}/{to.name.lower()}")
    graph = editor.model.graph
    if len(graph):
        graph[0].prepend(cast)
    for node, i in readers:
        node.replace_input_with(i, cast.outputs[0])


def _float_operands(node: ir.Node) -> tuple[int, ...]:
    return FLOAT_OPERANDS.get(node.op_type, ()) if node.domain == "" else ()


def _cast_output(editor: Editor, value: ir.Value, to: ir.DataType) -> ir.Value:
    """Return the output in float32, under its name."""
    name = value.name
    value.name = editor.unused(f"{name}/{to.name.lower()}")
    cast = _cast(editor, value, FLOAT, f"{name}/float")
    cast.outputs[0].name = name
    editor.model.graph.append(cast)
    return cast.outputs[0]


def _cast(editor: Editor, value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": int(to)}, name=editor.unused(name))
    output = cast.outputs[0]
    output.name, output.shape, output.type = cast.name, value.shape, ir.TensorType(to)
    return cast
