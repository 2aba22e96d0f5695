"""OpenVINO: the precision it is named for, the values, and what it must not do silently."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from bundles import write_bundle

from crelu_deploy import Bundle, Options, build, load, op, verify
from crelu_deploy.errors import BackendUnavailable, BuildError
from crelu_deploy.runner import TensorSpec
from crelu_deploy.targets import BFLOAT16, FLOAT32, INT8, Target

ov = pytest.importorskip("openvino", reason="openvino is not installed")
backend = pytest.importorskip("crelu_deploy.backends.openvino")

ONE = Options(threads=1)
CAN = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif("BF16" not in CAN, reason="this processor has no bf16 instructions")
BF16 = pytest.param("openvino-bf16", marks=needs_bf16)
NAMES = ["openvino", BF16, "openvino-int8"]
LOWERINGS = ("primitive", "mirror", "fold", "depthwise", "auto")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of one convolution and one site, with what the tests read built."""
    return write_bundle(tmp_path_factory.mktemp("openvino") / "bundle")


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", NAMES)
def test_every_lowering_is_verified(name: str, lowering: str, bundle: Bundle) -> None:
    (found,) = verify(bundle, [f"{name}:{lowering}"], ONE)
    assert (found.error, found.passed) == ("", True)
    assert found.opening > 0


@needs_bf16
def test_precisions_differ(bundle: Bundle) -> None:
    names = ("openvino", "openvino-bf16", "openvino-int8")
    errors = {v.target.backend: v.comparison for v in verify(bundle, names, ONE)}
    whole, half, quarter = (errors[name].max_abs for name in names)
    assert 0 <= whole < 1e-5 < half < quarter


def compiled(bundle: Bundle, name: str, precision: str, threads: int = 1) -> ov.CompiledModel:
    target = Target.parse(name)
    build(bundle, [target], ONE)
    options = Options(threads=threads)
    return backend.compile_file(ov.Core(), bundle.artifact(target), precision, options)


@pytest.mark.parametrize(
    ("name", "precision", "hint"),
    [
        ("openvino", FLOAT32, ov.Type.f32),
        pytest.param("openvino-bf16", BFLOAT16, ov.Type.bf16, marks=needs_bf16),
        ("openvino-int8", INT8, ov.Type.f32),
    ],
)
def test_the_settings_are_those_asked_for(name, precision, hint, bundle: Bundle) -> None:
    for threads in (1, 2):
        found = compiled(bundle, name, precision, threads)
        assert found.get_property("INFERENCE_PRECISION_HINT") == hint
        assert found.get_property("INFERENCE_NUM_THREADS") == threads
        assert found.get_property("NUM_STREAMS") == 1
    assert (backend.int8_layers(found) > 0) == (precision == INT8)


def test_a_float_file_is_not_passed_off_as_int8(bundle: Bundle) -> None:
    with pytest.raises(BuildError, match="would compute no layer of it in int8"):
        compiled(bundle, "openvino", INT8)


@pytest.mark.parametrize(
    ("name", "capabilities", "message"),
    [
        (
            "openvino-bf16",
            ["FP32", "INT8"],
            "no BF16 instructions, which openvino-bf16 needs; openvino ",
        ),
        ("openvino-int8", ["FP32"], "no INT8 instructions"),
    ],
)
def test_a_processor_without_the_precision(name, capabilities, message) -> None:
    target = Target.parse(name)
    with pytest.raises(BackendUnavailable, match=message):
        backend.require_capability(capabilities, target)
    backend.require_capability([*capabilities, "BF16", "INT8"], target)
    backend.require_capability([], Target.parse("openvino"))


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_another_float_type_is_not_converted_silently(dtype: str) -> None:
    with pytest.raises(BuildError, match=f"input 'x' is {dtype}, expected float32"):
        backend.require_floats([TensorSpec("x", dtype, (1,))], Target.parse("openvino"))
    backend.require_floats([TensorSpec("i", "int64", (1,))], Target.parse("openvino"))


@pytest.mark.parametrize("name", ["openvino", "openvino-bf16", "openvino-int8"])
def test_functions_are_not_read(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} reads no functions"):
        Target.parse(f"{name}:function")


def test_outputs_are_copies_in_the_models_order(bundle: Bundle) -> None:
    build(bundle, ["openvino"], ONE)
    x = np.ones((1, 2, 3, 3), np.float32)
    with load(bundle, "openvino", threads=1) as runner:
        first = runner(x)["y"]
        kept = first.copy()
        second = runner({"x": -x})["y"]
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)
    assert (first != second).any()
    assert (first.dtype, first.shape) == (np.dtype("float32"), (1, 8, 3, 3))


def test_any_batch_and_any_memory_layout(bundle: Bundle) -> None:
    build(bundle, ["openvino", "ort-cpu"], ONE)
    generator = np.random.default_rng(0)
    with load(bundle, "openvino", threads=1) as one, load(bundle, "ort-cpu", threads=1) as other:
        for batch in (1, 5, 2):
            x = generator.standard_normal((3, 3, batch, 2), np.float32).transpose(2, 3, 0, 1)
            np.testing.assert_allclose(one(x)["y"], other(x)["y"], rtol=1e-5, atol=1e-6)


def test_an_empty_batch_is_refused(bundle: Bundle) -> None:
    build(bundle, ["openvino"], ONE)
    with (
        load(bundle, "openvino", threads=1) as runner,
        pytest.raises(ValueError, match=r"input 'x': shape \(0, 2, 3, 3\) is empty"),
    ):
        runner(np.zeros((0, 2, 3, 3), np.float32))


WRONG = {
    "shape": (np.zeros((1, 3, 3, 3), np.float32), ValueError, r"expected shape \(N, 2, 3, 3\)"),
    "type": (np.zeros((1, 2, 3, 3)), TypeError, "expected float32, got float64"),
    "rank": (np.zeros((2, 3, 3), np.float32), ValueError, "expected shape"),
}


@pytest.mark.parametrize(("x", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_inputs(x, error, message, bundle: Bundle) -> None:
    build(bundle, ["openvino"], ONE)
    with load(bundle, "openvino", threads=1) as runner, pytest.raises(error, match=message):
        runner(x)


def test_a_closed_runner_is_refused(bundle: Bundle) -> None:
    build(bundle, ["openvino"], ONE)
    runner = load(bundle, "openvino", threads=1)
    runner.close()
    with pytest.raises(ValueError, match="the runner is closed"):
        runner(np.zeros((1, 2, 3, 3), np.float32))


def test_threads_take_turns(bundle: Bundle) -> None:
    build(bundle, ["openvino"], ONE)
    inputs = [np.full((1, 2, 3, 3), i, np.float32) for i in range(8)]
    found: dict[int, np.ndarray] = {}
    with load(bundle, "openvino", threads=1) as runner:
        alone = [runner(x)["y"] for x in inputs]

        def work(i: int) -> None:
            for _ in range(20):
                found[i] = runner(inputs[i])["y"]

        workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for i, expected in enumerate(alone):
        np.testing.assert_array_equal(found[i], expected)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x07"])
def test_a_damaged_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(BuildError, match=r"m\.onnx: OpenVINO refuses it: ") as error:
        backend.compile_file(ov.Core(), path, FLOAT32, ONE)
    assert "\n" not in str(error.value)
    assert "src/" not in str(error.value)


def test_names_must_be_the_bundles(bundle: Bundle) -> None:
    model = compiled(bundle, "openvino", FLOAT32)
    backend.require_names(model, bundle)
    other = Bundle(bundle.path, {**bundle.manifest, "outputs": ["y", "z"]})
    with pytest.raises(BuildError, match="has no output 'z'; it has y"):
        backend.require_names(model, other)


def test_the_values_are_crelus(bundle: Bundle) -> None:
    build(bundle, ["openvino:fold"], ONE)
    sample = bundle.samples[0]
    with load(bundle, "openvino:fold", threads=1) as runner:
        y = runner(sample.inputs)["y"]
    half = y.shape[1] // 2
    np.testing.assert_allclose(op.reference(y[:, :half] - y[:, half:]), y, rtol=1e-6)
