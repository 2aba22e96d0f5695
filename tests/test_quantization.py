"""int8 in the graph: what is quantised and how, what is refused, and which form keeps most."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from bundles import decibels, write_bundle
from graphs import Case, model, values
from onnx import numpy_helper

from crelu_deploy import Bundle, Options, build, verify
from crelu_deploy.errors import BuildError
from crelu_deploy.lowerings import lower
from crelu_deploy.quantization import quantize_file, quantized_layers
from crelu_deploy.samples import Sample
from crelu_deploy.targets import BACKENDS, Target
from crelu_deploy.writing import save_model

ONE = Options(threads=1)
INT8 = Target.parse("ort-cpu-int8")

CONV = Case("z = Conv(x, w, b)", (2, 3, 8, 8), {"w": (16, 3, 3, 3), "b": (16,)})
BEHIND = "[site] s = crelu_deploy.CReLU<axis={axis}>(z) y = "
SAMPLES = tuple(Sample({"x": values(f"x{i}", (2, 3, 8, 8))}, {}) for i in range(4))


def written(
    path: Path, lowering: str, site: str = BEHIND + "Softmax<axis=1>(s)"
) -> onnx.ModelProto:
    """Lower and quantise the case in a file; return what is in it then."""
    save_model(lower(model(CONV, site), lowering).model, path)
    quantize_file(path, SAMPLES)
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(path)


def scales(proto: onnx.ModelProto, kind: type) -> list[int]:
    """Return how many scales each quantised tensor with this type of zero point has."""
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    nodes = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and len(n.input) == 3]
    return [weights[n.input[1]].size for n in nodes if weights[n.input[2]].dtype == kind]


@pytest.mark.parametrize(("lowering", "channels"), [("fold", 32), ("mirror", 16)])
def test_weights_per_channel_activations_per_tensor(lowering: str, channels: int, tmp_path: Path):
    proto = written(tmp_path / "m.onnx", lowering)
    assert scales(proto, np.int8) == [channels]
    assert set(scales(proto, np.uint8)) == {1}
    assert quantized_layers(tmp_path / "m.onnx") == 1


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (7, 64)])
def test_products_of_weights_of_7_bits_fit_into_16(bits: int, largest: int, tmp_path: Path):
    path = tmp_path / "m.onnx"
    save_model(lower(model(CONV), "fold").model, path)
    quantize_file(path, SAMPLES, bits=bits)
    tensors = (numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer)
    (weights,) = (t.astype(int) for t in tensors if t.dtype == np.int8 and t.ndim == 4)
    assert np.abs(weights).max() == largest
    assert (2 * 255 * largest < 2**15) == (bits == 7)


def test_a_softmax_stays_in_float(tmp_path: Path):
    proto = written(tmp_path / "m.onnx", "fold")
    (softmax,) = (n for n in proto.graph.node if n.op_type == "Softmax")
    behind = [n.op_type for n in proto.graph.node if softmax.output[0] in n.input]
    assert behind == []
    assert [o.name for o in proto.graph.output] == list(softmax.output)


def test_the_runtime_computes_in_int8(tmp_path: Path):
    written(tmp_path / "m.onnx", "fold")
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    settings.log_severity_level = 3
    ort.InferenceSession(tmp_path / "m.onnx", settings, providers=["CPUExecutionProvider"])
    types = {n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert "QLinearConv" in types
    assert "Conv" not in types


def test_the_same_twice(tmp_path: Path):
    first, second = (written(tmp_path / name, "fold") for name in ("a.onnx", "b.onnx"))
    assert first.SerializeToString() == second.SerializeToString()


def test_nothing_to_quantise(tmp_path: Path):
    path = tmp_path / "m.onnx"
    save_model(lower(model(Case("z = Neg(x)", (1, 4, 3, 3))), "primitive").model, path)
    before = path.read_bytes()
    sample = Sample({"x": values("x", (1, 4, 3, 3))}, {})
    with pytest.raises(BuildError, match=r"m\.onnx: has no convolution or product that int8") as e:
        quantize_file(path, (sample,))
    assert "\n" not in str(e.value)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_samples_that_do_not_fit_leave_the_file(tmp_path: Path):
    path = tmp_path / "m.onnx"
    save_model(lower(model(CONV), "fold").model, path)
    before = path.read_bytes()
    wrong = Sample({"x": values("x", (2, 5, 8, 8))}, {})
    with pytest.raises(BuildError, match=r"cannot be quantised to int8: .*Got: 5 Expected: 3") as e:
        quantize_file(path, (wrong,))
    assert "\n" not in str(e.value)
    assert path.read_bytes() == before


def test_a_bundle_is_built_verified_and_run(tmp_path: Path):
    bundle = write_bundle(tmp_path / "bundle")
    (done,) = build(bundle, [INT8], ONE)
    assert done.error == ""
    assert quantized_layers(bundle.artifact(INT8)) == 1
    (found,) = verify(bundle, [INT8], ONE)
    assert found.passed
    assert found.comparison is not None
    assert 0 < found.comparison.score < 1
    assert found.comparison.max_abs > 1e-4  # as float32 would never be
    Bundle.open(bundle.path)  # the manifest has the hash of the quantised file


def test_the_function_form_is_not_quantised():
    with pytest.raises(ValueError, match="ort-cpu-int8 reads no functions"):
        Target.parse("ort-cpu-int8:function")


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_only_float32_becomes_int8(dtype: str, tmp_path: Path):
    bundle = write_bundle(tmp_path / "bundle")
    bundle.manifest["inputs"][0]["dtype"] = dtype
    quantizer = BACKENDS[INT8.backend].quantizer()
    with pytest.raises(BuildError, match=f"input 'x' is {dtype}, expected float32"):
        quantizer.quantize(bundle, INT8)


@pytest.mark.torch
def test_folding_first_is_more_accurate(digits: Path, tmp_path: Path):
    torch = pytest.importorskip("torch")
    from crelu_deploy import export

    torch.set_num_threads(1)
    images = digits.parent / "digits_samples.npz"
    bundle = export(digits, tmp_path / "bundle", samples=images).path
    forms = ("fold", "auto", "complement")
    build(bundle, [f"ort-cpu-int8:{form}" for form in forms], ONE)
    fold, auto, complement = (decibels(bundle, f"ort-cpu-int8:{form}") for form in forms)
    assert fold > complement + 1
    assert min(auto, complement) > 25
    (found,) = verify(bundle, ["ort-cpu-int8"], ONE)
    assert found.passed
    assert found.agreement is not None
    assert found.agreement.rows >= 100
    assert found.agreement.share >= 0.99
