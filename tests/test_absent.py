"""What is not on this machine: told as that at every stage, and no failure beside what works."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from bundles import write_bundle

from crelu_deploy import Bundle, Options, bench, build, verify
from crelu_deploy.cli import run
from crelu_deploy.errors import BackendUnavailable
from crelu_deploy.latency import Effort
from crelu_deploy.report import write_report
from crelu_deploy.results import succeeded
from crelu_deploy.targets import Backend

ROOT = Path(__file__).resolve().parent.parent
WHY = "this processor has no BF16 instructions"
ABSENT, HERE = "openvino-bf16", "ort-cpu:mirror"
QUICK = ("--runs", "5", "--seconds", "1", "--threads", "1")
ONE = Options(threads=1)


@pytest.fixture(autouse=True)
def _without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has not what one backend needs."""
    found = Backend.implementation

    def implementation(backend: Backend) -> ModuleType:
        if backend.name == ABSENT:
            raise BackendUnavailable(WHY)
        return found(backend)

    monkeypatch.setattr(Backend, "implementation", implementation)


@pytest.fixture
def small(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "small")


# verb, targets -> exit code
ENDS = {
    "build, alone": ("build", (ABSENT,), 1),
    "build, beside": ("build", (ABSENT, HERE), 0),
    "verify, alone": ("verify", (ABSENT,), 1),
    "verify, beside": ("verify", (ABSENT, HERE), 0),
    "bench, alone": ("bench", (ABSENT,), 1),
    "bench, beside": ("bench", (ABSENT, HERE), 0),
}


@pytest.mark.parametrize(("verb", "targets", "code"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_how_a_command_ends(verb, targets, code, as_json, small: Bundle, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    named = [word for target in targets for word in ("-t", target)]
    more = QUICK if verb == "bench" else QUICK[-2:]
    assert run([verb, str(small.path), *named, *more, "-q", *["--json"] * as_json]) == code
    out, err = capsys.readouterr()
    assert "FAILED" not in out
    if code:
        assert err == f"error: 1 of {len(targets)} targets not here (openvino-bf16:auto): {WHY}\n"
    else:
        assert err == ""
    if not as_json:
        assert "not here" in out
        assert WHY in out
        return
    data = json.loads(out)
    if verb == "bench":
        assert data["not_timed"] == {"openvino-bf16:auto": f"not here: {WHY}"}
    else:
        assert data["passed"] is (code == 0)
        assert [row["skipped"] for row in data["targets"]] == [True, False][: len(targets)]


def test_in_python_it_is_skipped_and_not_passed(small: Bundle) -> None:
    for results in (build(small, [ABSENT], ONE), verify(small, [ABSENT], ONE)):
        assert [(r.passed, r.skipped, r.error) for r in results] == [(False, True, WHY)]
        assert not succeeded(results)
    assert succeeded(build(small, [ABSENT, HERE], ONE))
    assert succeeded(())


def test_the_report_says_so(small: Bundle) -> None:
    found = bench(small, [ABSENT, HERE], ONE, effort=Effort(runs=3, warmup=1, seconds=0.5))
    text = write_report(small, found, threads=1)[1].read_text()
    assert "All 2 targets agree with PyTorch; not here: openvino-bf16:auto" in text
    assert f"not here: {WHY}" in text
    assert "FAILED" not in text


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.torch
@pytest.mark.parametrize(("targets", "code"), [((ABSENT, HERE), 0), ((ABSENT,), 1)])
def test_deploy(targets, code, digits: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("torch")
    named = [word for target in targets for word in ("-t", target)]
    assert run(["deploy", str(digits), *named, *QUICK, "-o", str(tmp_path / "out"), "-q"]) == code
    out, err = capsys.readouterr()
    assert out.count("not here") >= 3  # built, verified, timed
    if code:
        assert err == f"error: 1 of 1 targets not here (openvino-bf16:auto): {WHY}\n"


@pytest.mark.torch
def test_the_demo_has_a_row_in_every_table(demo, tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(demo, "TARGETS", (HERE, ABSENT))
    monkeypatch.setattr(demo, "EFFORT", Effort(runs=3, warmup=1, seconds=0.5))
    monkeypatch.setenv("COLUMNS", "120")
    files = (ROOT / "examples" / name for name in ("digits_crelu.pt", "digits_samples.npz"))
    assert demo.main(*files, tmp_path / "out") == 0
    tables = capsys.readouterr().out.split("\n\n")
    told = [
        t.split()[0] for t in tables if "openvino-bf16:auto" in t and WHY in " ".join(t.split())
    ]
    assert told == ["build", "verify", "not", "accuracy"]
