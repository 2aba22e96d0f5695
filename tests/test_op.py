"""The canonical nodes: their ONNX bodies agree with the NumPy reference in every opset."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from crelu_deploy import op

ATTRIBUTES = {"leaky_relu": {"alpha": 0.1}, "elu": {"alpha": 0.7}, "clip": {"min": 0.0, "max": 6.0}}
SPECIAL = np.array(
    [[np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-30, -1e-30, 7.0, -7.0, 0.5]], np.float32
)


def model(
    op_type: str, opset: int, x: np.ndarray, axis: int
) -> tuple[bytes, dict[str, np.ndarray]]:
    """One node with its function, as a checked file, and the inputs it takes."""
    name, affine = op.NODE_TYPES[op_type]
    attributes = {"axis": axis, **ATTRIBUTES.get(name, {})}
    feeds = {"x": x}
    if affine:
        generator = np.random.default_rng(1)
        shape = [1] * x.ndim
        shape[axis] = 2 * x.shape[axis]
        for key in ("scale", "shift"):
            feeds[key] = generator.normal(size=shape).astype(x.dtype)
    values = [
        ir.val(k, ir.DataType.from_numpy(v.dtype), ir.Shape(v.shape)) for k, v in feeds.items()
    ]
    node = ir.node(op_type, values, attributes, domain=op.DOMAIN)
    node.outputs[0].name = "y"
    node.outputs[0].dtype = values[0].dtype
    doubled = [2 * d if i == axis % x.ndim else d for i, d in enumerate(x.shape)]
    node.outputs[0].shape = ir.Shape(doubled)
    imports = {"": opset, op.DOMAIN: op.VERSION}
    graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports=imports, name="g")
    ir_version = {7: 8, 13: 8, 25: 11}.get(opset, 10)
    built = ir.Model(graph, ir_version=ir_version, functions=[op.function(op_type, opset)])
    proto = ir.to_proto(built)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString(), feeds


def run(model: bytes, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


@pytest.mark.parametrize("opset", [7, 13, 15, 20, 25])
@pytest.mark.parametrize("op_type", op.NODE_TYPES)
def test_body_agrees_with_the_reference(op_type, opset):
    name, _ = op.NODE_TYPES[op_type]
    if name == "clip" and opset < 15:
        with pytest.raises(ValueError, match="needs opset 15"):
            op.function(op_type, opset)
        return
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32) * 4
    data, feeds = model(op_type, opset, x, 1)
    affine = {k: v for k, v in feeds.items() if k != "x"}
    expected = op.reference(x, 1, name, **affine, **ATTRIBUTES.get(name, {}))
    actual = run(data, feeds)
    assert actual.dtype == expected.dtype
    assert actual.shape == (2, 6, 5)
    if name == "relu" and not affine:
        assert np.array_equal(actual, expected)
    else:
        np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_crelu_is_exact_at_special_values(axis, dtype):
    x = SPECIAL.astype(dtype)
    data, feeds = model("CReLU", 20, x, axis)
    assert np.array_equal(run(data, feeds), op.reference(x, axis), equal_nan=True)
    assert np.isnan(op.reference(x, axis)).sum() == 2


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 1), (5,)])
def test_empty_and_single_elements(shape):
    x = np.full(shape, -2.0, np.float32)
    axis = len(shape) - 1
    data, feeds = model("CReLU", 20, x, axis)
    assert np.array_equal(run(data, feeds), op.reference(x, axis))


def test_every_activation_is_read_off_its_own_reference():
    for name, activation in op.ACTIVATIONS.items():
        attributes = ATTRIBUTES.get(name, {})

        def f(v: float, name: str = name, attributes: dict[str, float] = attributes) -> float:
            return float(op.ACTIVATIONS[name].apply(np.array(v), **attributes))

        read = {key: fit(f) for key, fit in activation.fits.items()}
        assert read == pytest.approx(attributes), name
