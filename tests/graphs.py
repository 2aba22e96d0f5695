"""Small ONNX models from text, and ONNX Runtime to run them on one thread."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from crelu_deploy import op

TYPES = {np.float32: "float", np.float16: "float16", np.float64: "double"}
OFF = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
ALL = ort.GraphOptimizationLevel.ORT_ENABLE_ALL


@dataclass(frozen=True)
class Case:
    """Text that computes z from x, the constants in it, and the axis of a site that reads z.

    A shape in ``constants`` stands for seeded values of that shape. The first dimension of ``x``
    is symbolic unless ``fixed``.
    """

    body: str
    x: tuple[int, ...]
    constants: Mapping[str, tuple[int, ...] | np.ndarray] = field(default_factory=dict)
    axis: int = 1
    fixed: bool = False


def values(name: str, shape: Sequence[int], dtype: type = np.float32) -> np.ndarray:
    """Return standard normal values that depend on the name only."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return generator.standard_normal(shape).astype(dtype)


def model(
    case: Case,
    site: str = "[site] y = crelu_deploy.CReLU<axis={axis}>(z)",
    *,
    outputs: Sequence[str] = ("y",),
    dtype: type = np.float32,
    opset: int = 17,
    infer: bool = True,
) -> ir.Model:
    """Return the case with a site behind it, checked, with the shapes inferred."""
    body = f"{case.body} {site.format(axis=case.axis)}"
    dims = [str(d) for d in case.x] if case.fixed else ["N", *map(str, case.x[1:])]
    kind = TYPES[dtype]
    ends = ", ".join(f"{kind}[] {name}" for name in outputs)
    text = (
        f'<ir_version: 8, opset_import: ["": {opset}, "crelu_deploy": 1]> '
        f"g ({kind}[{','.join(dims)}] x) => ({ends}) {{ {body} }}"
    )
    proto = onnx.parser.parse_model(text)
    for name, value in case.constants.items():
        array = value if isinstance(value, np.ndarray) else values(name, value, dtype)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for op_type in sorted(set(re.findall(r"crelu_deploy\.(\w+)", body))):
        proto.functions.append(ir.serde.serialize_function(op.function(op_type, opset)))
    if infer:
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    return ir.from_proto(proto)


def check(result: ir.Model) -> None:
    """Run the ONNX checker with shape inference over a model."""
    onnx.checker.check_model(ir.to_proto(result), full_check=True)


def run(
    result: ir.Model, x: np.ndarray, level: ort.GraphOptimizationLevel = OFF
) -> list[np.ndarray]:
    """Return the outputs of ONNX Runtime on the CPU, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level
    options.log_severity_level = 3
    data = ir.to_proto(result).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def bytes_of(result: ir.Model) -> bytes:
    """Return the model as a file would hold it."""
    return ir.to_proto(result).SerializeToString(deterministic=True)


def op_types(result: ir.Model) -> list[str]:
    """Return the operators of the main graph in order."""
    return [node.op_type for node in result.graph]


IMAGE = (2, 4, 7, 9)
CONV = "[conv] z = Conv(x, w, b)"
AFFINE_SITE = "[site] y = crelu_deploy.AffineCReLU<axis={axis}>(z, s, t)"
CONV_WEIGHTS = {"w": (6, 4, 3, 3), "b": (6,)}


def image(body: str, axis: int = 1, **constants: tuple[int, ...] | np.ndarray) -> Case:
    """Return a case on a small image, with weights w and a bias b for a conv to 6 channels."""
    return Case(body, IMAGE, {**CONV_WEIGHTS, **constants}, axis)
