"""ONNX models from anywhere."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from crelu_deploy.bundle import Bundle
from crelu_deploy.modelfile import read_file


def read_model(path: str | Path) -> ir.Model:
    """Read an ONNX file, or the model of a bundle; weights in other files stay there.

    Raises:
        UnsupportedModel: No file, no ONNX model, or one that ``read_file`` refuses.
    """
    path = Path(path)
    return Bundle.open(path).model if path.is_dir() else read_file(path)
