"""Finds the compiled libraries, which ``make plugins`` builds and installs beside this file."""

from __future__ import annotations

import os
from pathlib import Path

from crelu_deploy.errors import BackendUnavailable

VARIABLE = "CRELU_LIBRARY_PATH"
"""Folders, separated as in PATH, that are searched before the package's own."""

LIBRARIES = ("onnxruntime", "tensorrt")
"""The custom op of ONNX Runtime, and the plugin of TensorRT."""


def search_path() -> tuple[Path, ...]:
    """Return the folders that may hold a library, in the order in which they are searched."""
    named = os.environ.get(VARIABLE, "").split(os.pathsep)
    return (*(Path(folder) for folder in named if folder), Path(__file__).parent / "lib")


def library(name: str) -> Path:
    """Return the path of one of ``LIBRARIES``.

    Raises:
        BackendUnavailable: It is in no folder of ``search_path()``.
    """
    if name not in LIBRARIES:
        raise ValueError(f"unknown library {name!r}; known: {', '.join(LIBRARIES)}")
    file = f"libcrelu_{name}.so"
    for folder in search_path():
        if (folder / file).is_file():
            return folder / file
    places = ", ".join(str(folder) for folder in search_path())
    raise BackendUnavailable(
        f"{file} is not built; looked in: {places}; "
        f"run: make plugins (in the source tree), or set {VARIABLE} to its folder"
    )
