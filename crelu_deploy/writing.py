"""ONNX files on disk, written without a second copy of the weights in memory."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from crelu_deploy.staging import staged_file

INLINE_LIMIT = 2_000_000_000
"""Bytes of weights that one ONNX file can hold: a protobuf message ends at 2 GiB."""

STREAMED = 1 << 16
"""Bytes from which on a weight goes to the file on its own."""

# Field numbers of onnx.proto; each of these fields is a length-delimited one (wire type 2).
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9


def save_model(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Write an ONNX file, with its weights beside it where they exceed ``INLINE_LIMIT``.

    Returns:
        The files written.

    Raises:
        BuildError: The file cannot be written; what was there is kept.
    """
    with staged_file(path) as temporary:
        files = write_model(model, temporary)
    return tuple(path.with_name(file.name) for file in files)


def write_model(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Write as ``save_model`` does, but not in one step.

    Raises:
        OSError: A file cannot be written.
    """
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value]
    if sum(tensor.nbytes for tensor in tensors) > INLINE_LIMIT:
        data = path.with_name(path.name + ".data")
        ir.save(model, path, external_data=data.name)
        return path, data
    with path.open("wb") as file:
        _write(model.clone(), file)
    return (path,)


def _write(model: ir.Model, file: BinaryIO) -> None:
    """Write the model that ``ir.save`` would, its large weights last; the model loses them."""
    initializers = model.graph.initializers
    names = [
        name
        for name, value in initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= STREAMED
    ]
    large = [(name, initializers.pop(name).const_value) for name in names]
    _hold(model)
    proto = ir.to_proto(model)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = [_head(name, tensor) for name, tensor in large if tensor is not None]
    tensors = [tensor for _, tensor in large if tensor is not None]
    sizes = [len(head) + tensor.nbytes for head, tensor in zip(heads, tensors, strict=True)]
    total = len(graph) + sum(len(_tag(_GRAPH_INITIALIZER, size)) + size for size in sizes)
    file.write(proto.SerializeToString() + _tag(_MODEL_GRAPH, total) + graph)
    for head, tensor, size in zip(heads, tensors, sizes, strict=True):
        file.write(_tag(_GRAPH_INITIALIZER, size) + head)
        file.write(tensor.tobytes())


def _hold(model: ir.Model) -> None:
    """Copy weights that lie in other files: one file is written.

    Closing those files, as ``ir.external_data.load_to_model`` does, fails while anyone reads them.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(tensor := value.const_value, ir.ExternalTensor):
                copy = tensor.numpy().copy()
                value.const_value = ir.Tensor(copy, dtype=tensor.dtype, name=tensor.name)


def _head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """Return a TensorProto up to its data."""
    dims = tensor.numpy().shape
    proto = onnx.TensorProto(name=name, dims=dims, data_type=tensor.dtype.value)
    head: bytes = proto.SerializeToString()
    return head + _tag(_TENSOR_RAW_DATA, tensor.nbytes)


def _tag(field: int, size: int) -> bytes:
    """Return what stands before the bytes of a length-delimited field."""
    return _varint(field << 3 | 2) + _varint(size)


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
