"""8-bit products that saturate: found by asking the runtime, and told where a file meets them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import write_bundle
from onnx import numpy_helper

from crelu_deploy import Bundle, Options, build, load, verify
from crelu_deploy.accuracy import Tolerance
from crelu_deploy.backends import onnxruntime as backend
from crelu_deploy.cli import run
from crelu_deploy.environment import cpu_name
from crelu_deploy.render.stages import verifications_json
from crelu_deploy.samples import Array
from crelu_deploy.saturation import saturates
from crelu_deploy.targets import BACKENDS, Target

ONE = Options(threads=1)
INT8 = "ort-cpu-int8"

Product = Callable[[Array, Array], Array]


def in_pairs(a: Array, b: Array) -> Array:
    """Add two products in 16 bits, as kernels without an 8-bit dot product do."""
    pairs = (a * b).reshape(-1, 2, *a.shape[1:]).sum(1)
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(0)


PRODUCTS: dict[str, tuple[Product, bool]] = {
    "32 bits": (lambda a, b: (a * b).sum(0), False),
    "pairs in 16 bits": (in_pairs, True),
    "float": (lambda a, b: (a.astype(np.float32) * b).sum(0), False),
}


@pytest.mark.parametrize(("product", "expected"), PRODUCTS.values(), ids=PRODUCTS)
def test_the_probe_tells_sums_that_saturate(product: Product, expected: bool) -> None:
    def run_probe(path: Path, x: Array) -> Array:
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        weight = tensors["w"].astype(int)[0, :, 0, 0]
        assert weight.tolist() == [127] * 16
        y = product(x[0].astype(int), weight[:, None, None])
        return np.broadcast_to(y, (1, 16, *y.shape)).astype(np.float32)

    assert saturates(run_probe) is expected


@pytest.mark.parametrize("module", ["onnxruntime", "openvino"])
def test_every_runtime_of_a_processor_is_asked_once(module: str) -> None:
    name = next(b.name for b in BACKENDS.values() if b.module == module)
    pytest.importorskip(module)
    runtime = BACKENDS[name].implementation()
    before = runtime.saturates.cache_info().misses
    assert runtime.saturates() is runtime.saturates()
    assert runtime.saturates.cache_info().misses <= before + 1


def made(path: Path, saturating: bool, patch: pytest.MonkeyPatch, target: str = INT8) -> Bundle:
    """A bundle with a target built on a processor where products saturate, or do not."""
    patch.setattr(backend, "saturates", lambda: saturating)
    bundle = write_bundle(path)
    (done,) = build(bundle, [target], ONE)
    assert done.passed
    return bundle


@pytest.mark.parametrize(("saturating", "bits"), [(True, 7), (False, 8)])
def test_the_manifest_has_the_bits_and_the_processor(saturating, bits, tmp_path, monkeypatch):
    bundle = made(tmp_path / "b", saturating, monkeypatch)
    entry = Bundle.open(bundle.path).manifest["targets"]["ort-cpu-int8:auto"]
    assert (entry["weight_bits"], entry["processor"]) == (bits, cpu_name())


# made where products saturate, opened where they do, what was built -> whether it warns
OPENED = {
    "as made, whole": (False, False, INT8, False),
    "as made, reduced": (True, True, INT8, False),
    "more here": (True, False, INT8, False),
    "less here": (False, True, INT8, True),
    "float32": (False, True, "ort-cpu", False),
}


@pytest.mark.parametrize(("there", "here", "target", "warns"), OPENED.values(), ids=OPENED)
def test_opened_on_another_processor(there, here, target, warns, tmp_path, monkeypatch) -> None:
    bundle = made(tmp_path / "b", there, monkeypatch, target)
    monkeypatch.setattr(backend, "saturates", lambda: here)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(bundle, target, threads=1).close()
    told = f"run here: crelu build {bundle.path} -t ort-cpu-int8:auto"
    assert [str(w.message).endswith(told) for w in caught] == [True] * warns
    assert [Path(w.filename) for w in caught] == [Path(__file__)] * warns
    (found,) = verify(bundle, [target], ONE)
    assert found.passed  # these numbers did not change
    assert (found.note != "") == warns
    assert verifications_json([found])["targets"][0]["note"] == found.note


def test_an_entry_that_does_not_tell_has_8_bits(tmp_path, monkeypatch) -> None:
    bundle = made(tmp_path / "b", False, monkeypatch)
    entry = bundle.manifest["targets"]["ort-cpu-int8:auto"]
    del entry["weight_bits"], entry["processor"]
    monkeypatch.setattr(backend, "saturates", lambda: True)
    with pytest.warns(RuntimeWarning, match="was made with 8-bit weights, whose products saturate"):
        load(bundle, INT8, threads=1).close()


def test_a_failure_says_why_and_the_way_out(tmp_path, monkeypatch, capsys) -> None:
    bundle = made(tmp_path / "b", False, monkeypatch)
    monkeypatch.setattr(backend, "saturates", lambda: True)
    (found,) = verify(bundle, [INT8], ONE, tolerance=Tolerance(1e-9, 1e-9))
    assert not found.passed
    strict = ["verify", str(bundle.path), "-t", INT8, "--atol", "1e-9", "-q"]
    assert run(strict) == 1
    out, err = capsys.readouterr()
    assert err == f"error: 1 of 1 targets failed (ort-cpu-int8:auto): {found.note}\n"
    assert "FAILED" in out
    assert run(["build", str(bundle.path), "-t", INT8, "-q"]) == 0
    assert "weights of 7 bits" in capsys.readouterr().out
    (found,) = verify(Bundle.open(bundle.path), [INT8], ONE)
    assert (found.passed, found.note) == (True, "")


@pytest.mark.parametrize(("field", "value"), [("weight_bits", "8"), ("processor", 7)])
def test_a_damaged_entry_is_refused(field, value, tmp_path, monkeypatch) -> None:
    bundle = made(tmp_path / "b", False, monkeypatch)
    file = bundle.path / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["targets"]["ort-cpu-int8:auto"][field] = value
    file.write_text(json.dumps(manifest))
    with pytest.raises(Exception, match="its targets are missing or of a wrong type"):
        Bundle.open(bundle.path)


def test_a_gpus_int8_has_8_bits_everywhere(monkeypatch) -> None:
    from crelu_deploy.saturation import weight_bits

    monkeypatch.setattr(backend, "saturates", lambda: True)
    assert weight_bits(Target.parse("trt-int8")) == 8
    assert weight_bits(Target.parse(INT8)) == 7
