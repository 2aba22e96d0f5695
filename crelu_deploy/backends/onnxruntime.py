"""ONNX Runtime on the CPU, in float32."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
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


def open_copy(path: Path, bundle: Bundle, options: Options) -> SessionRunner:
    """Open a copy of a target that has more outputs.

    Raises:
        BuildError: ONNX Runtime refuses the file.
    """
    return open_session(path, options)


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


@functools.cache
def block() -> int:
    """Return the channels of one block in the layout that this runtime has for convolutions here.

    It depends on the processor's instructions: 16 with AVX-512, 8 on other x86-64 processors, 1
    where there is no such layout. Asked of the runtime, which pads the weight of a convolution to
    one channel to a block when it changes its layout.
    """
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> block (float[1,1,4,4] x) => (float[1,1,2,2] y)
        <float[1,1,3,3] w = {1,1,1,1,1,1,1,1,1}> { y = Conv(x, w) }"""
    )
    settings = ort.SessionOptions()
    settings.log_severity_level = FATAL_ONLY
    with tempfile.TemporaryDirectory() as folder:
        settings.optimized_model_filepath = os.path.join(folder, "optimised.onnx")
        ort.InferenceSession(model.SerializeToString(), settings, providers=[PROVIDER])
        graph = onnx.load(settings.optimized_model_filepath).graph
    layers = [node for node in graph.node if node.op_type == "Conv" and node.domain]
    blocked = {node.input[1] for node in layers}  # ONNX's own domain has no name
    return next((value.dims[0] for value in graph.initializer if value.name in blocked), 1)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _spec(value: ort.NodeArg) -> TensorSpec:
    dtype = _DTYPES.get(value.type)
    if dtype is None:
        raise UnsupportedModel(f"input {value.name!r} is a {value.type}, which NumPy cannot hold")
    shape = tuple(d if isinstance(d, int) else d or "?" for d in value.shape)
    return TensorSpec(value.name, dtype, shape)
