"""ONNX files from anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError

from crelu_deploy.bundle import MODEL, Bundle
from crelu_deploy.errors import UnsupportedModel


def read_model(path: str | Path) -> ir.Model:
    """Read an ONNX file, or the model of a bundle; weights in other files stay there.

    Raises:
        UnsupportedModel: No file, no ONNX model, or one whose weights lie outside its folder.
    """
    path = Path(path)
    if path.is_dir():
        return Bundle.open(path).model
    try:
        model = ir.load(path, format="protobuf")
    except FileNotFoundError as error:
        raise UnsupportedModel(f"{path}: no such file") from error
    except (
        OSError,
        DecodeError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnsupportedModel(f"{path}: not a readable ONNX model: {reason[:200]}") from error
    if not model.graph.outputs:
        raise UnsupportedModel(f"{path}: not an ONNX model, or one without outputs")
    _check_external_data(path, model)
    return model


def _check_external_data(path: Path, model: ir.Model) -> None:
    folder = path.parent.resolve()
    for tensor in _external(model):
        file = (folder / tensor.location).resolve()
        if not file.is_relative_to(folder):
            raise UnsupportedModel(
                f"{path}: weight {tensor.name!r} is kept in {str(tensor.location)!r}, outside the "
                f"folder of {MODEL if path.name == MODEL else path.name}; refused"
            )
        if not file.is_file():
            raise UnsupportedModel(
                f"{path}: weight {tensor.name!r} is kept in {file}: no such file"
            )


def _external(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Yield the weights in other files, those of subgraphs and of constants included."""
    for graph in (*model.graphs(), *(function.graph for function in model.functions.values())):
        values = (value.const_value for value in graph.initializers.values())
        attributes = (a.value for node in graph.all_nodes() for a in node.attributes.values())
        yield from (t for t in (*values, *attributes) if isinstance(t, ir.ExternalTensor))
