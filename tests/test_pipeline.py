"""From a bundle to verified and timed targets, in Python; one failure never hides another."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from bundles import write_bundle
from torch import nn

import crelu_deploy
from crelu_deploy import Bundle, Options, Target, bench, build, deploy, export, load, verify
from crelu_deploy.accuracy import Tolerance
from crelu_deploy.bundle import SAMPLES
from crelu_deploy.errors import BackendUnavailable, BuildError, UnsupportedModel
from crelu_deploy.latency import Effort
from crelu_deploy.nn import CReLU
from crelu_deploy.samples import Sample, save_samples

pytestmark = pytest.mark.torch

QUICK = Effort(runs=5, warmup=1, seconds=1.0)
ONE = Options(threads=1)
MIRROR = Target("ort-cpu", "mirror")


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a module in memory, whose batch is fixed at 1."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 4, 3), CReLU())
    out = tmp_path_factory.mktemp("fixed") / "out"
    return export(module, out, inputs=["1x2x6x5"], dynamic=["none"]).path


@pytest.mark.parametrize("as_object", [False, True], ids=["path", "object"])
def test_build_verify_bench_load(as_object: bool, bundle: Path) -> None:
    opened = Bundle.open(bundle) if as_object else str(bundle)
    target = MIRROR if as_object else "ort-cpu:mirror"
    (done,) = build(opened, [target], ONE)
    assert (done.target, done.error) == (MIRROR, "")
    assert [*done.lowerings.values()] == ["mirror"] * 6
    verified = verify(opened, [target, "torch"], ONE)
    assert [(str(v.target), v.passed) for v in verified] == [
        ("ort-cpu:mirror", True),
        ("torch", True),
    ]
    found = bench(opened, [target], ONE, batches=[1, 3], effort=QUICK)
    assert [(str(row.target), row.batch) for row in found.rows] == [
        *(("ort-cpu:primitive", 1), ("ort-cpu:mirror", 1)),
        *(("ort-cpu:primitive", 3), ("ort-cpu:mirror", 3)),
    ]
    assert [row.ratio for row in found.rows if str(row.target) == "ort-cpu:primitive"] == [1, 1]
    assert all(0 < r.latency.p10 <= r.latency.median <= r.latency.p90 for r in found.rows)
    assert found.refused == {}
    sample = Bundle.open(bundle).samples[0]
    with load(opened, target, threads=1) as runner:
        (got,) = runner(sample.inputs).values()
        (same,) = runner(sample.inputs["input"]).values()
    np.testing.assert_allclose(got, sample.outputs["logits"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got, same)


def test_every_lowering_is_verified(bundle: Path) -> None:
    targets = [f"ort-cpu:{name}" for name in ("function", "primitive", "mirror", "fold", "auto")]
    found = verify(bundle, targets, ONE)
    assert [str(v.target) for v in found if v.passed] == targets
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert {*manifest["targets"]} == {*targets}
    Bundle.open(bundle)


def test_without_targets_every_built_one_counts(bundle: Path) -> None:
    built = ["ort-cpu:function", "ort-cpu:auto"]
    assert [str(v.target) for v in verify(bundle, options=ONE)] == built
    found = bench(bundle, options=ONE, effort=QUICK)
    assert [str(row.target) for row in found.rows] == ["ort-cpu:primitive", *built]


def test_what_is_not_built_is_not_loaded(bundle: Path) -> None:
    with pytest.raises(BuildError, match=r"ort-cpu:mirror is not built; run: crelu build .* -t"):
        load(bundle, "ort-cpu:mirror")


def test_unknown_names_are_a_programmers_mistake(bundle: Path) -> None:
    with pytest.raises(ValueError, match="unknown target 'ort'"):
        build(bundle, ["ort"])
    with pytest.raises(ValueError, match="unknown lowering 'miror'; did you mean 'mirror'"):
        verify(bundle, ["ort-cpu:miror"])


def test_a_failure_does_not_stop_the_others(fixed: Path) -> None:
    built = build(fixed, ["torch", "ort-cpu:fold"], ONE)
    assert [bool(done.error) for done in built] == [True, False]
    assert "exported from a module in memory" in built[0].error
    found = verify(fixed, ["torch", "ort-cpu:fold"], ONE)
    assert [v.passed for v in found] == [False, True]
    timed = bench(fixed, ["torch", "ort-cpu:fold"], ONE, effort=QUICK)
    assert [str(row.target) for row in timed.rows] == ["ort-cpu:primitive", "ort-cpu:fold"]
    with pytest.raises(BackendUnavailable, match="module in memory"):
        load(fixed, "torch")


def test_a_fixed_batch_refuses_others_with_a_reason(fixed: Path) -> None:
    found = bench(fixed, ["ort-cpu:mirror"], ONE, batches=[1, 8], effort=QUICK)
    assert {row.batch for row in found.rows} == {1}
    assert {*found.refused} == {"ort-cpu:primitive batch 8", "ort-cpu:mirror batch 8"}
    for reason in found.refused.values():
        assert "expected shape (1, 2, 6, 5), got (8, 2, 6, 5)" in reason


def artifact(bundle: Path, target: str = "ort-cpu:auto") -> Path:
    return Bundle.open(bundle).artifact(Target.parse(target))


@pytest.mark.parametrize("name", ["targets/ort-cpu-auto.onnx", "samples.npz", "model.onnx"])
def test_a_changed_file_is_named(name: str, bundle: Path) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    for use in (build, verify, bench):
        with pytest.raises(UnsupportedModel, match=re.escape(name) + ": changed since"):
            use(bundle, ["ort-cpu:mirror"])
    with pytest.raises(UnsupportedModel, match=re.escape(name) + ": changed since"):
        load(bundle, "ort-cpu:auto")
    (bundle / name).unlink()
    with pytest.raises(UnsupportedModel, match=re.escape(name) + ": missing"):
        load(bundle, "ort-cpu:auto")


def plant(bundle: Path, factor: float) -> None:
    """Scale one weight of a built target and give the manifest the file's new hash."""
    file = artifact(bundle)
    model = onnx.load(file)
    weight = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    changed = onnx.numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    onnx.save(model, file)
    manifest = json.loads((bundle / "manifest.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest["files"][str(file.relative_to(bundle))] = digest
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("factor", [1.001, 0.0, float("nan")])
def test_a_planted_fault_fails_and_has_no_speed(factor: float, bundle: Path) -> None:
    plant(bundle, factor)
    function, auto = verify(bundle, options=ONE)
    assert (function.passed, auto.passed) == (True, False)
    assert auto.comparison is not None
    assert auto.comparison.score > 1
    assert "logits[" in auto.comparison.worst
    found = bench(bundle, options=ONE, effort=QUICK)
    assert [str(row.target) for row in found.rows] == ["ort-cpu:primitive", "ort-cpu:function"]
    assert [str(v.target) for v in found.verifications if not v.passed] == ["ort-cpu:auto"]


def test_the_tolerance_is_the_callers(bundle: Path) -> None:
    strict = verify(bundle, ["ort-cpu:auto"], ONE, tolerance=Tolerance(1e-12, 0.0))
    plant(bundle, 1.001)
    loose = verify(bundle, ["ort-cpu:auto"], ONE, tolerance=Tolerance(1.0, 1.0))
    assert [v.comparison and v.comparison.passed for v in (*strict, *loose)] == [False, True]
    assert not loose[0].passed  # whatever the tolerance: its weights are others
    assert "weight of" in loose[0].refuted
    assert bench(bundle, options=ONE, effort=QUICK, tolerance=Tolerance(1e-12, 0.0)).rows == ()


def test_pytorch_needs_the_unchanged_checkpoint(digits: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "digits.pt"
    checkpoint.write_bytes(digits.read_bytes())
    bundle = export(checkpoint, tmp_path / "out")
    assert verify(bundle, ["torch"])[0].passed
    checkpoint.write_bytes(digits.read_bytes() + b" ")
    (found,) = verify(bundle, ["torch"])
    assert not found.passed
    assert f"the checkpoint {checkpoint}" in found.error
    assert "is gone or has changed" in found.error


def test_deploy_is_all_of_it(digits: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    done = deploy(
        digits,
        tmp_path / "out",
        targets=["torch", MIRROR],
        options=ONE,
        effort=QUICK,
        samples=1,
        progress=steps.append,
    )
    assert [str(b.target) for b in done.builds] == ["torch", "ort-cpu:mirror"]
    assert done.failed == []
    assert {str(row.target) for row in done.benchmark.rows} == {
        *("ort-cpu:primitive", "torch", "ort-cpu:mirror"),
    }
    assert steps[0] == "load"
    assert steps[-1] == "bench batch 1"
    assert Bundle.open(tmp_path / "out").manifest == json.loads(json.dumps(done.bundle.manifest))


def test_deploy_goes_on_without_a_target(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), CReLU())
    done = deploy(
        module,
        tmp_path / "out",
        targets=["torch", "ort-cpu:fold"],
        options=ONE,
        effort=QUICK,
        inputs=["1x2x6x5"],
    )
    assert [str(made.target) for made in done.builds if made.skipped] == ["torch"]
    assert done.failed == []
    assert [str(row.target) for row in done.benchmark.rows] == [
        *("ort-cpu:primitive", "ort-cpu:fold"),
    ]


def test_the_public_names_are_there() -> None:
    assert all(callable(getattr(crelu_deploy, name)) for name in crelu_deploy.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = crelu_deploy.nothing


@pytest.mark.parametrize("allowed", [False, True])
def test_nan_on_both_sides_passes_only_where_it_was_asked_for(tmp_path: Path, allowed) -> None:
    bundle = write_bundle(tmp_path / "b")
    (first, *_) = bundle.samples
    nan = {name: np.full_like(x, np.nan) for name, x in first.inputs.items()}
    outputs = {name: np.full_like(y, np.nan) for name, y in first.outputs.items()}
    save_samples(bundle.path / SAMPLES, (Sample(nan, outputs),))
    bundle.record((bundle.path / SAMPLES,), allow_nan=allowed)
    (found,) = verify(bundle.path, ["ort-cpu:primitive"])
    assert found.passed is allowed
    assert ("PyTorch's outputs are not all finite" in found.error) is not allowed
