"""ONNX Runtime on the CPU, in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from crelu_deploy import saturation
from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BuildError, UnsupportedModel
from crelu_deploy.runner import Runner, TensorSpec
from crelu_deploy.targets import Options, Target

Array = np.ndarray[Any, Any]

PROVIDER = "CPUExecutionProvider"
FATAL_ONLY, EVERYTHING = 4, 0  # severities of its log, whose errors it raises as well

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint64)": "uint64",
    "tensor(uint32)": "uint32",
    "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class SessionRunner(Runner):
    """A session of ONNX Runtime; several threads may call it at once."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.inputs = tuple(_spec(value) for value in session.get_inputs())
        self.outputs = tuple(value.name for value in session.get_outputs())

    def _run(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        try:
            result: Sequence[Array] = self._session.run(None, dict(feeds))
        except Exception as error:  # its exceptions share no public base class
            raise BuildError(f"ONNX Runtime failed on it: {_first_line(error)}") from error
        return result

    def close(self) -> None:
        """Free the session."""
        super().close()
        self.__dict__.pop("_session", None)


def build(bundle: Bundle, target: Target, options: Options) -> None:
    """Do nothing: what ONNX Runtime reads is the lowered file itself."""


def load(bundle: Bundle, target: Target, options: Options) -> SessionRunner:
    """Open a session on the target's lowered file.

    Raises:
        BuildError: ONNX Runtime refuses the file.
    """
    return open_session(bundle.artifact(target), options)


@cache
def saturates() -> bool:
    """Whether products of 8-bit weights saturate on this processor."""

    def run(path: Path, x: Array) -> Array:
        with open_session(path, Options(threads=1)) as session:
            return session(x)["y"]

    return saturation.saturates(run)


def open_session(path: Path, options: Options, *, optimise: bool = True) -> SessionRunner:
    """Open a session on an ONNX file.

    Raises:
        BuildError: ONNX Runtime refuses the file.
        UnsupportedModel: An input is no tensor of a type that NumPy has.
    """
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.cores
    settings.log_severity_level = EVERYTHING if options.verbose else FATAL_ONLY
    # Threads that spin after a call would take the cores of whatever is timed next.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if not optimise:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(path, settings, providers=[PROVIDER])
    except Exception as error:  # its exceptions share no public base class
        raise BuildError(f"{path}: ONNX Runtime refuses it: {_first_line(error)}") from error
    return SessionRunner(session)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _spec(value: ort.NodeArg) -> TensorSpec:
    dtype = _DTYPES.get(value.type)
    if dtype is None:
        raise UnsupportedModel(f"input {value.name!r} is a {value.type}, which NumPy cannot hold")
    shape = tuple(d if isinstance(d, int) else d or "?" for d in value.shape)
    return TensorSpec(value.name, dtype, shape)
