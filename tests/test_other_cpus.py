"""What holds on every processor: int8 is right, and nothing that works is called broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cpus import LEVELS, run_on

from crelu_deploy.targets import BACKENDS

pytestmark = [pytest.mark.torch, pytest.mark.slow]
pytest.importorskip("torch")
GPU = {name for name, backend in BACKENDS.items() if "GPU" in backend.summary}

PROGRAM = """
import json, sys, warnings
from pathlib import Path
from bundles import decibels
from crelu_deploy import Bundle, Options, build, verify
from crelu_deploy.doctor import diagnose
from crelu_deploy.targets import BACKENDS

warnings.simplefilter("ignore")
path, one, found = Path(sys.argv[1]), Options(threads=1), {}
for name in ("ort-cpu-int8", "openvino-int8"):
    brought = verify(path, [name], one)[0]
    if not brought.skipped:
        before = decibels(path, name)
        (done,) = build(path, [name], one)
        (checked,) = verify(path, [name], one)
        found[name] = {
            "saturates": BACKENDS[name].implementation().saturates(),
            "brought": {"dB": before, "passed": brought.passed, "note": brought.note},
            "made": {"dB": decibels(path, name), "bits": done.weight_bits, "note": checked.note},
            "passed": checked.passed,
        }
states = {h.backend: (h.state, h.summary, h.fix) for h in diagnose()}
print(json.dumps({"int8": found, "doctor": states}))
"""


@pytest.fixture(scope="module")
def brought(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose int8 targets have weights of 8 bits, wherever this runs."""
    from crelu_deploy import Options, build, export, saturation

    images = digits.parent / "digits_samples.npz"
    bundle = export(digits, tmp_path_factory.mktemp("brought") / "b", samples=images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saturation, "_saturates", lambda target: False)
        build(bundle, ["ort-cpu-int8", "openvino-int8"], Options(threads=1))
    return bundle.path


@pytest.fixture(scope="module", params=LEVELS)
def found(request, brought: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What int8 and ``doctor`` do where the instructions of a level are hidden."""
    folder = tmp_path_factory.mktemp("cpu")
    bundle = shutil.copytree(brought, folder / "bundle")
    return json.loads(run_on(request.param, folder, PROGRAM, str(bundle)).splitlines()[-1])


def test_int8_made_here_is_right(found) -> None:
    assert "ort-cpu-int8" in found["int8"]
    for name, told in found["int8"].items():
        assert told["passed"], name
        assert told["made"]["dB"] >= 25, name
        assert told["made"]["bits"] == (7 if told["saturates"] else 8), name
        assert told["made"]["note"] == "", name


def test_int8_made_elsewhere_is_right_or_says_why_not(found) -> None:
    for name, told in found["int8"].items():
        brought = told["brought"]
        assert ("crelu build" in brought["note"]) == told["saturates"], name
        assert brought["dB"] >= 25 or told["saturates"], name
        assert brought["passed"] or brought["note"], name


def test_nothing_that_works_is_called_broken(found) -> None:
    told = {name: found["doctor"][name] for name in BACKENDS if name not in GPU}
    assert {name: state for name, (state, *_) in told.items() if state == "broken"} == {}
    assert told["ort-cpu-int8"][0] == "ok"
    without = [name for name, (_, summary, _) in told.items() if "no BF16" in summary]
    assert without in ([], ["openvino-bf16"])
    for name in without:
        state, summary, fix = told[name]
        assert (state, fix) == ("missing", "")
        assert summary.startswith("this processor has no BF16 instructions")
