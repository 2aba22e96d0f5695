"""Runtimes are asked for what they are known to have compiled wrong."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import write_bundle

from crelu_deploy import miscompilation, pipeline
from crelu_deploy.errors import BackendUnavailable, BuildError
from crelu_deploy.miscompilation import REPRODUCERS, present
from crelu_deploy.results import Verification
from crelu_deploy.targets import ENGINES, Options, Target

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

RUNTIMES = ("ort-cpu", "openvino")


@pytest.fixture(autouse=True)
def _anew():
    pipeline.miscompiled.cache_clear()
    yield
    pipeline.miscompiled.cache_clear()


@pytest.mark.parametrize("backend", RUNTIMES)
def test_a_runtime_that_is_right_has_none(backend: str) -> None:
    try:
        assert pipeline.miscompiled(backend) == ()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reproducers that expect what a sum computes that reads the other half of the split."""

    def wrong(values):
        right = REPRODUCERS[NAMES[0]].reference(values)
        return right + np.float64(0.01) * np.roll(right, 1, 1)

    broken = {NAMES[0]: replace(REPRODUCERS[NAMES[0]], reference=wrong)}
    monkeypatch.setattr(miscompilation, "REPRODUCERS", {**REPRODUCERS, **broken})


NAMES = tuple(REPRODUCERS)


@pytest.mark.usefixtures("dense")
def test_one_that_differs_is_named_with_its_source() -> None:
    (said,) = pipeline.miscompiled("ort-cpu")
    assert re.fullmatch(
        rf"this runtime computes {NAMES[0]} wrong \(score [\d.e+]+\): https://.*4854", said
    )


@pytest.mark.usefixtures("dense")
@pytest.mark.parametrize("engine", [True, False])
def test_verify_asks_engines(engine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime stands in for a runtime that only a GPU has."""
    monkeypatch.setattr(pipeline, "ENGINES", ("onnxruntime",) if engine else ENGINES)
    made = write_bundle(tmp_path / "bundle")
    told = list[str]()
    (found,) = pipeline.verify(made, ["ort-cpu:fold"], Options(threads=1), progress=told.append)
    assert found.passed
    assert ("wrong (score" in found.note) is engine
    assert ("ask ort-cpu for known miscompilations" in told) is engine


@pytest.mark.parametrize(("skipped", "error"), [(True, BackendUnavailable), (False, BuildError)])
def test_what_cannot_run_is_no_answer(skipped: bool, error: type[Exception]) -> None:
    target = Target("trt-fp16", "primitive")
    with pytest.raises(error, match="no GPU"):
        present(lambda _: Verification(target, None, "no GPU", skipped=skipped))


def test_the_gpu_s_checks_have_a_row_for_each_engine() -> None:
    torch = pytest.importorskip("torch")
    import gpu_cases
    from gpu_rows import MISSING, OK, Clock, Row, collect

    def rows(*, dry: bool) -> list[Row]:
        _, rest = gpu_cases.checks(torch.device("cpu"), Path(), dry=dry)
        known = [check for check in rest if check[0] == "miscompilations"]
        return collect(known, Clock(60), lambda _: None)

    assert [(row.case, row.status) for row in rows(dry=True)] == [("ort-cpu", OK)]
    if not torch.cuda.is_available():
        assert {row.status for row in rows(dry=False)} == {MISSING}
