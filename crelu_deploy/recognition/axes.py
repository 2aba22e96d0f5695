"""Dtype, rank, channel axis and number of channels of values, as far as the graph before tells.

Shape annotations are used where a model has them. Where it has none, the operators before a value
often tell its rank (a convolution's weight has the rank of its output) and which axis holds the
channels, which is what tells a concat of channels from one of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from crelu_deploy.op import DOMAIN, NODE_TYPES
from crelu_deploy.recognition.constants import stored
from crelu_deploy.recognition.probe import FLOATS, OPS

Extent = int | str | None


@dataclass(frozen=True)
class Layout:
    """What is known of one value; None is unknown.

    Attributes:
        rank: Number of dimensions.
        axis: The axis of the channels, from the front, or -1 for the last of an unknown rank.
        channels: The extent of that axis.
        shape: Extents: a number, a symbol, or None; empty where none is known.
        dtype: The element type.
    """

    rank: int | None = None
    axis: int | None = None
    channels: int | None = None
    shape: tuple[Extent, ...] = ()
    dtype: ir.DataType | None = None


Rule = Callable[[ir.Node, list[Layout]], Layout]
UNKNOWN = Layout()


def normalized(axis: int, rank: int | None) -> int:
    """Return ``axis`` counted from the front where the rank is known, else as written."""
    return axis + rank if axis < 0 and rank is not None else axis


Shapes = Mapping[ir.Value, ir.Shape]


def layouts(nodes: Iterable[ir.Node], inferred: Shapes) -> dict[ir.Value, Layout]:
    """Return what is known of each input and output of ``nodes``, which are in graph order.

    Args:
        nodes: All nodes of a model.
        inferred: Shapes that are known beside those which the values themselves carry.
    """
    known: dict[ir.Value, Layout] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None and value not in known:
                known[value] = _annotated(value, UNKNOWN, inferred)
        inputs = [UNKNOWN if value is None else known[value] for value in node.inputs]
        rule = _RULES.get(node.op_type, _unknown) if node.domain in ("", DOMAIN) else _unknown
        layout = replace(rule(node, inputs), dtype=_dtype(node, inputs))
        for output in node.outputs:
            known[output] = _annotated(output, layout, inferred)
    return known


def inferred_shapes(model: ir.Model) -> dict[ir.Value, ir.Shape]:
    """Return the shapes that ONNX infers for the main graph; the model stays as it is."""
    return {value: twin.shape for value, twin in _inferred(model) if twin.shape is not None}


def annotate(model: ir.Model) -> None:
    """Give the values of the main graph that have no type or shape those that ONNX infers."""
    for value, twin in _inferred(model):
        value.type = value.type or twin.type
        value.shape = twin.shape if value.shape is None else value.shape


def _inferred(model: ir.Model) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield what the nodes make, each value with its twin in a copy that is annotated."""
    copy = model.clone()
    ShapeInferencePass(check_type=False, strict_mode=False)(copy)
    for node, other in zip(model.graph, copy.graph, strict=True):
        yield from zip(node.outputs, other.outputs, strict=True)


def extent(axis: int, layout: Layout) -> int | None:
    """Return the extent of one axis, None if unknown."""
    if -len(layout.shape) <= axis < len(layout.shape):
        size = layout.shape[axis]
        if isinstance(size, int):
            return size
    same = layout.axis is not None and layout.axis == normalized(axis, layout.rank)
    return layout.channels if same else None


def _annotated(value: ir.Value, layout: Layout, inferred: Shapes) -> Layout:
    shape = inferred.get(value, value.shape)
    if value.const_value is not None:
        tensor = value.const_value
        stored_shape = tuple(tensor.shape.numpy())
        return Layout(len(stored_shape), shape=stored_shape, dtype=tensor.dtype)
    dtype = value.dtype or layout.dtype
    if shape is None:
        return layout if dtype == layout.dtype else replace(layout, dtype=dtype)
    axis = None if layout.axis is None else normalized(layout.axis, len(shape))
    sizes = tuple(size if isinstance(size, int) else size.value for size in shape)
    return replace(layout, rank=len(shape), axis=axis, shape=sizes, dtype=dtype)


def _dtype(node: ir.Node, inputs: list[Layout]) -> ir.DataType | None:
    """Return the element type of the first output: of most, that of the floating-point inputs."""
    if node.op_type == "CastLike" and len(inputs) == 2:
        return inputs[1].dtype
    named = node.attributes.get("to" if node.op_type == "Cast" else "dtype")
    if named is not None and not named.is_ref():
        return ir.DataType(named.as_int())
    tensor = stored(node.outputs[0]) if node.op_type == "Constant" else None
    if tensor is not None:
        return tensor.dtype
    known = [layout.dtype for layout in inputs if layout.dtype is not None]
    return next((dtype for dtype in known if dtype in FLOATS), known[0] if known else None)


def _unknown(node: ir.Node, inputs: list[Layout]) -> Layout:
    return UNKNOWN


def _constant(node: ir.Node, inputs: list[Layout]) -> Layout:
    tensor = stored(node.outputs[0])
    shape = () if tensor is None else tuple(tensor.shape.numpy())
    return UNKNOWN if tensor is None else Layout(len(shape), shape=shape)


def _convolution(node: ir.Node, inputs: list[Layout]) -> Layout:
    return Layout(inputs[1].rank, 1, extent(0, inputs[1]))


def _transposed_convolution(node: ir.Node, inputs: list[Layout]) -> Layout:
    group, per_group = node.attributes.get_int("group", 1), extent(1, inputs[1])
    return Layout(inputs[1].rank, 1, None if per_group is None else group * per_group)


def _gemm(node: ir.Node, inputs: list[Layout]) -> Layout:
    transposed = node.attributes.get_int("transB", 0)
    return Layout(2, 1, extent(0 if transposed else 1, inputs[1]))


def _matmul(node: ir.Node, inputs: list[Layout]) -> Layout:
    left, right = inputs[0].rank, inputs[1].rank
    rank = max(left, right) if left and right and min(left, right) > 1 else None
    weight = node.inputs[1]
    if weight is None or stored(weight) is None or right != 2:
        return Layout(rank)
    return Layout(rank, normalized(-1, rank), extent(1, inputs[1]))


def _flatten(node: ir.Node, inputs: list[Layout]) -> Layout:
    return Layout(2)


def _reshape(node: ir.Node, inputs: list[Layout]) -> Layout:
    return Layout(extent(0, inputs[1]) if len(node.inputs) > 1 else None)


def _transpose(node: ir.Node, inputs: list[Layout]) -> Layout:
    if "perm" not in node.attributes or node.attributes["perm"].is_ref():
        return Layout(inputs[0].rank)
    order = list(node.attributes["perm"].as_ints())
    axis = inputs[0].axis
    placed = None if axis is None else order.index(normalized(axis, len(order)))
    return Layout(len(order), placed, inputs[0].channels)


def _batch_norm(node: ir.Node, inputs: list[Layout]) -> Layout:
    return replace(inputs[0], axis=1, channels=extent(0, inputs[1]))


def _same(node: ir.Node, inputs: list[Layout]) -> Layout:
    return inputs[0]


def _pooled(node: ir.Node, inputs: list[Layout]) -> Layout:
    return replace(inputs[0], shape=())


def _resized(node: ir.Node, inputs: list[Layout]) -> Layout:
    """Keep what the axes mean; their extents change."""
    return replace(inputs[0], channels=None, shape=())


def _broadcast(node: ir.Node, inputs: list[Layout]) -> Layout:
    ranks = [layout.rank for layout in inputs]
    rank = max((r for r in ranks if r is not None), default=None) if None not in ranks else None
    shape = _broadcast_shape(inputs, rank) if rank else ()
    for layout in inputs:
        if layout.axis is not None and layout.rank == rank:
            return Layout(rank, layout.axis, layout.channels, shape)
    return Layout(rank, shape=shape)


def _broadcast_shape(inputs: list[Layout], rank: int) -> tuple[Extent, ...]:
    """Return the extents on which all inputs agree, those of one aside; () if one is unknown."""
    if any(len(layout.shape) != layout.rank for layout in inputs):
        return ()
    columns: list[set[Extent]] = [set() for _ in range(rank)]
    for layout in inputs:
        for column, size in zip(reversed(columns), reversed(layout.shape), strict=False):
            column.update({size} - {1})
    single = [column.pop() if len(column) == 1 else 1 if not column else None for column in columns]
    return tuple(single)


def _gather(node: ir.Node, inputs: list[Layout]) -> Layout:
    """A list of places puts entries in another order and moves no axis."""
    return _resized(node, inputs) if inputs[1].rank == 1 else UNKNOWN


_CHANGING = ("Slice", "Split", "Concat", "Pad", "DepthToSpace", "SpaceToDepth", "Resize")
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(OPS, _broadcast),
    **dict.fromkeys((*_CHANGING, "Upsample", "Expand", *NODE_TYPES), _resized),
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool"), _pooled),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _pooled),
    **dict.fromkeys(
        (
            *("LayerNormalization", "GroupNormalization", "LpNormalization", "LRN", "Softmax"),
            *("QuantizeLinear", "DequantizeLinear", "Cast", "CastLike", "Clip", "Dropout", "PRelu"),
            *("Gelu", "Erf"),
        ),
        _same,
    ),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _batch_norm),
    "Constant": _constant,
    "ConstantOfShape": _unknown,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Transpose": _transpose,
}
