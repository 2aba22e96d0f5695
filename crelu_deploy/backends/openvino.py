"""OpenVINO on the CPU: float32, bfloat16, and int8 where the graph says so."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import properties

from crelu_deploy import saturation
from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BackendUnavailable, BuildError
from crelu_deploy.runner import Runner, TensorSpec
from crelu_deploy.targets import BACKENDS, BFLOAT16, FLOAT32, INT8, Options, Target

Array = np.ndarray[Any, Any]

DEVICE = "CPU"
TYPES = {BFLOAT16: ov.Type.bf16}
"""Precision -> what the layers compute in; float32 for every other one.

In an int8 graph that is the type of the layers that no QuantizeLinear surrounds.
"""
CAPABILITIES = {BFLOAT16: "BF16", INT8: "INT8"}
"""Precision -> what OpenVINO calls it among the things that a processor can do."""


class CompiledRunner(Runner):
    """A compiled model with one request; calls from several threads take turns."""

    def __init__(
        self, compiled: ov.CompiledModel, inputs: Sequence[TensorSpec], outputs: Sequence[str]
    ) -> None:
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def _run(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        _refuse_empty(self.inputs, feeds)
        with self._lock:
            try:
                # Inputs are read where they are; outputs are copies, which the next call leaves.
                found = self._request.infer(dict(feeds), share_inputs=True, share_outputs=False)
            except RuntimeError as error:
                raise BuildError(f"OpenVINO failed on it: {summary(error)}") from error
            return [found[name] for name in self.outputs]

    def close(self) -> None:
        """Free the request and with it the compiled model."""
        super().close()
        self.__dict__.pop("_request", None)


def _refuse_empty(specs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> None:
    for spec in specs:
        if feeds[spec.name].size == 0:
            raise ValueError(
                f"input {spec.name!r}: shape {feeds[spec.name].shape} is empty, which OpenVINO "
                "answers with the values of an earlier call; leave such calls out"
            )


def build(bundle: Bundle, target: Target, options: Options) -> None:
    """Check that OpenVINO takes the file on this processor; it compiles again at each load.

    Raises:
        BackendUnavailable: The processor lacks the precision.
        BuildError: OpenVINO refuses the file.
    """
    load(bundle, target, options).close()


def load(bundle: Bundle, target: Target, options: Options) -> CompiledRunner:
    """Compile the target's lowered file, and check that it got the precision it is named for.

    Raises:
        BackendUnavailable: The processor lacks the precision.
        BuildError: OpenVINO refuses the file, or would compute in another precision.
    """
    precision = BACKENDS[target.backend].precision
    require_floats(bundle.inputs, target)
    core = ov.Core()
    require_capability(core.get_property(DEVICE, properties.device.capabilities()), target)
    compiled = compile_file(core, bundle.artifact(target), precision, options)
    require_names(compiled, bundle)
    return CompiledRunner(compiled, bundle.inputs, bundle.outputs)


def open_copy(path: Path, bundle: Bundle, options: Options) -> CompiledRunner:
    """Compile a copy of a target in float32 that has more outputs.

    Raises:
        BuildError: OpenVINO refuses the file.
    """
    compiled = compile_file(ov.Core(), path, FLOAT32, options)
    names = sorted({name for port in compiled.outputs for name in port.get_names()})
    return CompiledRunner(compiled, bundle.inputs, names)


@cache
def saturates() -> bool:
    """Whether products of 8-bit weights saturate on this processor."""

    def run(path: Path, x: Array) -> Array:
        found: Array = compile_file(ov.Core(), path, FLOAT32, Options(threads=1))({"x": x})["y"]
        return found

    return saturation.saturates(run)


def require_floats(specs: Sequence[TensorSpec], target: Target) -> None:
    """Refuse a network whose floats are no float32: OpenVINO would convert it without a word.

    Raises:
        BuildError: An input is one of another floating-point type.
    """
    for spec in specs:
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f" and dtype != np.float32:
            raise BuildError(
                f"{target}: input {spec.name!r} is {spec.dtype}, expected float32, from which the "
                "other precisions are made; export module.float()"
            )


def require_capability(capabilities: Sequence[str], target: Target) -> None:
    """Refuse a precision that the processor has no instructions for: emulated it is slower.

    Args:
        capabilities: What OpenVINO says that the processor can do, such as ``BF16``.
        target: What is to run.

    Raises:
        BackendUnavailable: It lacks the target's precision.
    """
    wanted = CAPABILITIES.get(BACKENDS[target.backend].precision)
    if wanted and wanted not in capabilities:
        raise BackendUnavailable(
            f"this processor has no {wanted} instructions, which {target.backend} needs; "
            "openvino computes in float32"
        )


def compile_file(core: ov.Core, path: Path, precision: str, options: Options) -> ov.CompiledModel:
    """Compile an ONNX file for single calls.

    Raises:
        BuildError: OpenVINO refuses the file, or would compute in another precision.
    """
    wanted = TYPES.get(precision, ov.Type.f32)
    settings: dict[str, Any] = {
        properties.hint.inference_precision(): wanted,
        properties.hint.performance_mode(): properties.hint.PerformanceMode.LATENCY,
        properties.inference_num_threads(): options.cores,
    }
    try:
        compiled = core.compile_model(core.read_model(path), DEVICE, settings)
    except RuntimeError as error:
        raise BuildError(f"{path}: OpenVINO refuses it: {summary(error)}") from error
    found = compiled.get_property(properties.hint.inference_precision())
    if found != wanted:
        raise BuildError(f"{path}: asked OpenVINO for {wanted}, it would compute in {found}")
    if precision == INT8 and not int8_layers(compiled):
        raise BuildError(f"{path}: OpenVINO would compute no layer of it in int8")
    return compiled


def int8_layers(compiled: ov.CompiledModel) -> int:
    """Return how many of the layers that hold weights compute in int8."""
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return sum(
        info["layerType"].astype(str) in ("Convolution", "Deconvolution", "FullyConnected")
        and info["runtimePrecision"].astype(str) in ("u8", "i8")
        for info in infos
    )


def require_names(compiled: ov.CompiledModel, bundle: Bundle) -> None:
    """Refuse a compiled model whose inputs or outputs are not called as the bundle's.

    Raises:
        BuildError: A name is missing.
    """
    for kind, names, ports in (
        ("input", [spec.name for spec in bundle.inputs], compiled.inputs),
        ("output", bundle.outputs, compiled.outputs),
    ):
        found = {name for port in ports for name in port.get_names()}
        if missing := sorted(set(names) - found):
            raise BuildError(
                f"{bundle.path}: OpenVINO's model has no {kind} {missing[0]!r}; it has "
                f"{', '.join(sorted(found)) or 'none'}"
            )


def summary(error: Exception) -> str:
    """Return the line of OpenVINO's message that says what is wrong, without its source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [
        line
        for line in lines
        if line and not line.startswith(("Exception from", "Check '", "FrontEnd API failed", "-- "))
    ]
    return (told or lines or [type(error).__name__])[0]
