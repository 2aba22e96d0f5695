"""int8 inside the graph: QuantizeLinear and DequantizeLinear around what a runtime then fuses.

Weights are int8 with one scale per output channel, activations uint8 with one scale and zero point
per tensor, as calibration finds them: the smallest and largest value on the bundle's samples. Where
products of 8-bit weights would saturate, weights are -64 to 64, which is 7 bits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from crelu_deploy.bundle import Bundle
from crelu_deploy.environment import cpu_name
from crelu_deploy.errors import BuildError
from crelu_deploy.samples import Array, Sample
from crelu_deploy.saturation import REDUCED, WHOLE, weight_bits
from crelu_deploy.staging import staged_file
from crelu_deploy.targets import BACKENDS, Target

QUANTIZED = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul"),
    *("Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Relu"),
)
"""Operators that compute in int8: layers, and what lies between them in most networks.

A softmax or sigmoid is left in float32: 256 levels are too few for probabilities near 0 and 1.
"""

CALIBRATED = 100
"""Samples at most that calibration runs."""


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The samples' inputs, one call after the other."""

    def __init__(self, samples: tuple[Sample, ...]) -> None:
        self._calls = iter([dict(sample.inputs) for sample in samples[:CALIBRATED]])

    def get_next(self) -> dict[str, Array] | None:
        """Return the next call's inputs by name, None after the last."""
        return next(self._calls, None)


def quantize(bundle: Bundle, target: Target) -> dict[str, Any]:
    """Put int8 into a target's lowered file, calibrated on the bundle's samples.

    Returns:
        For the manifest: the bits of a weight and the processor that they were chosen for, where
        a processor computes.

    Raises:
        BackendUnavailable: The target's runtime is not installed.
        BuildError: The network does not compute in float32, or ONNX Runtime cannot quantise it.
    """
    for spec in bundle.inputs:
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f" and dtype != np.float32:
            raise BuildError(
                f"{target}: input {spec.name!r} is {spec.dtype}, expected float32, which int8 is "
                "made from; export module.float()"
            )
    if BACKENDS[target.backend].symmetric:
        quantize_file(bundle.artifact(target), bundle.samples, symmetric=True)
        return {}
    bits = weight_bits(target)
    quantize_file(bundle.artifact(target), bundle.samples, bits=bits)
    return {"weight_bits": bits, "processor": cpu_name()}


def quantize_file(
    path: Path, samples: tuple[Sample, ...], *, symmetric: bool = False, bits: int = WHOLE
) -> None:
    """Replace an ONNX file by its quantised form, in one step.

    Args:
        path: The file.
        samples: What calibration runs.
        symmetric: Signed activations, every zero point 0, biases left in float32: what TensorRT
            reads.
        bits: Of a weight, 8 or 7.

    Raises:
        BuildError: It has nothing to quantise, or ONNX Runtime cannot do it.
    """
    with staged_file(path) as temporary, _quiet():
        try:
            model = onnx.shape_inference.infer_shapes(onnx.load(path))
            add_pre_process_metadata(model)  # says that the shapes are there
            quantize_static(
                model,
                temporary,
                Calibration(samples),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=bits == REDUCED,
                op_types_to_quantize=list(QUANTIZED),
                extra_options={"ActivationSymmetric": symmetric, "QuantizeBias": not symmetric},
            )
        except Exception as error:  # what onnxruntime.quantization raises shares no base class
            why = " ".join(str(error).split()) or type(error).__name__
            raise BuildError(f"{path}: cannot be quantised to int8: {why}") from error
        if not quantized_layers(temporary):
            raise BuildError(f"{path}: has no convolution or product that int8 could replace")


def quantized_layers(path: Path) -> int:
    """Return how many convolutions and products of an ONNX file read quantised weights."""
    graph = onnx.load(path, load_external_data=False).graph
    dequantized = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    layers = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    return sum(n.op_type in layers and n.input[1] in dequantized for n in graph.node)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's advice, given through the root logger, from the user's terminal."""
    earlier = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(earlier)
