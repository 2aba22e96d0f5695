"""Tests under other instruction sets: what is hidden is hidden, and the table tells the truth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "cpus"))

import emulation  # noqa: E402
import processors  # noqa: E402
import run  # noqa: E402
from cpus import run_on, start_on  # noqa: E402
from emulation import NotHere  # noqa: E402
from processors import Way  # noqa: E402
from results import DECIBELS, Found, table  # noqa: E402

ASKED = """
import json, threading
from numpy._core._multiarray_umath import __cpu_features__ as features
names = ("AVX512VNNI", "AVX512F", "AVX2", "SSE42")
found = [None, None]
def ask(i): found[i] = [name for name in names if features[name]]
ask(0)
thread = threading.Thread(target=ask, args=(1,))
thread.start(); thread.join()
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("hidden", "gone"),
    [
        ("vnni", {"AVX512VNNI"}),
        ("avx512", {"AVX512VNNI", "AVX512F"}),
        ("avx2", {"AVX512VNNI", "AVX512F", "AVX2"}),
    ],
)
def test_hidden_instructions_are_hidden(hidden: str, gone: set[str], tmp_path: Path) -> None:
    features = pytest.importorskip("numpy._core._multiarray_umath").__cpu_features__
    here = {n for n in ("AVX512VNNI", "AVX512F", "AVX2", "SSE42") if features[n]}
    found = json.loads(run_on(hidden, tmp_path, ASKED))
    assert [set(names) for names in found] == [here - gone, here - gone]


@pytest.mark.parametrize("program", ["ctypes.string_at(0)", "ctypes.CFUNCTYPE(None)(8)()"])
def test_a_real_fault_still_ends_the_program(program: str, tmp_path: Path) -> None:
    assert start_on("vnni", tmp_path, f"import ctypes; {program}").returncode == -11


def test_the_runtime_takes_the_blocks_of_the_lesser_set(tmp_path: Path) -> None:
    program = "from crelu_deploy.backends.onnxruntime import block; print(block())"
    assert run_on("avx512", tmp_path, program) == "8\n"


GOOD = Found(
    "AVX2",
    "native",
    block=8,
    passed=7,
    errors={
        "digits": {"fold": 0.0, "mirror": 0.0, "complement": 2e-7, "split": 1e-7},
        "stem": {"fold": 0.0, "mirror": 0.0, "complement": 0.0, "split": 4e-7},
    },
    verified={"ort-cpu:auto": True, "ort-cpu-int8:auto": True},
    decibels=38.5,
)
INEXACT = {"digits": {"fold": 1e-8, "mirror": 0.0, "complement": 0.0, "split": 0.0}}


def test_the_table() -> None:
    rows = [
        GOOD,
        replace(GOOD, name="ARM64", how="qemu-aarch64 -cpu x", block=1, failed=("a::b", "a::c")),
        Found("AVX-512", "no C compiler to make the mask with", ran=False),
    ]
    assert table(rows).splitlines() == [
        "instruction set  how                  block  tests               bit for bit"
        "   complement  split    int8",
        "AVX2             native               8      7 passed            fold, mirror"
        "  2.0e-07     4.0e-07  38.5 dB",
        "ARM64            qemu-aarch64 -cpu x  none   7 passed, 2 failed  fold, mirror"
        "  2.0e-07     4.0e-07  38.5 dB",
        "AVX-512          not here: no C compiler to make the mask with",
        "",
        "ARM64: failed: a::b",
        "ARM64: failed: a::c",
    ]


FAULTS = {
    "none": (GOOD, []),
    "not-here": (Found("ARM64", "no network", ran=False), []),
    "test": (replace(GOOD, failed=("a::b",)), ["failed: a::b"]),
    "bits": (replace(GOOD, errors=INEXACT), ["fold is not bit for bit equal"]),
    "nan": (
        replace(GOOD, errors={**GOOD.errors, "other": {**GOOD.errors["stem"], "fold": np.nan}}),
        ["fold is not bit for bit equal"],
    ),
    "wrong": (
        replace(GOOD, verified={"ort-cpu:auto": False}),
        ["ort-cpu:auto does not agree with PyTorch"],
    ),
    "int8": (
        replace(GOOD, decibels=DECIBELS - 1),
        ["int8 has 24.0 dB, less than 25"],
    ),
    "int8-nan": (
        replace(GOOD, decibels=float("nan")),
        ["int8 has nan dB, less than 25"],
    ),
    "crash": (Found("AVX2", "native", passed=3, broken=("it ended",)), ["it ended"]),
}


@pytest.mark.parametrize(("found", "faults"), FAULTS.values(), ids=FAULTS)
def test_faults(found: Found, faults: list[str]) -> None:
    assert found.faults() == faults


@pytest.mark.parametrize("found", [row for row, _ in FAULTS.values()], ids=FAULTS)
def test_a_fault_is_the_exit_status(found: Found, monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "fixture", lambda: tmp_path)
    monkeypatch.setattr(processors, "ways", lambda _: {found.name: lambda: Way("native")})
    monkeypatch.setattr(run, "examine", lambda *_: found)
    assert run.main() == bool(found.faults())
    assert capsys.readouterr().out == table([found]) + "\n"


def test_a_failing_test_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 0\n"
        "def test_skipped(): pytest.skip('no')\n"
        "@pytest.fixture\ndef broken(): raise OSError\n"
        "def test_error(broken): pass\n"
    )
    report = tmp_path / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, f"--junit-xml={report}"]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path / "test_one.py")]
    quick = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, env=quick, capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    passed, failed = run.count(report)
    assert (passed, [name.partition("::")[2] for name in failed]) == (1, ["test_bad", "test_error"])


def test_what_is_not_here_is_a_row(tmp_path: Path) -> None:
    def find() -> Way:
        raise NotHere("no network")

    assert run.examine("ARM64", find, tmp_path) == Found("ARM64", "no network", ran=False)


def test_the_files_are_there() -> None:
    assert [n for n in run.LONG if not (ROOT / "tests" / f"test_{n}.py").is_file()] == []


CPUINFO = {
    "sapphire-rapids": ("avx2 avx512f avx512_vnni avx_vnni", "AVX-512, VNNI"),
    "skylake-server": ("avx2 avx512f", "AVX-512"),
    "alder-lake": ("avx2 avx_vnni", "AVX2, VNNI"),
    "zen-3": ("avx2", "AVX2"),
    "nehalem": ("sse4_2", "SSE4.2"),
}


@pytest.mark.parametrize(("flags", "name"), CPUINFO.values(), ids=CPUINFO)
def test_this_processor_comes_first(flags: str, name: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processors, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processors.platform, "machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {flags} sse\n")
    names = list(processors.ways(tmp_path))
    assert names[0] == name
    assert set(names) == {name, "AVX-512", "AVX2", "SSE4.2", "ARM64"}
    lesser: Callable[[], Way] | None = processors.ways(tmp_path).get("AVX-512")
    if "avx512f" not in flags and lesser:
        with pytest.raises(NotHere, match="this processor has no AVX-512"):
            lesser()


def test_requirements_are_those_of_the_runtime() -> None:
    names = {r.split(">")[0] for r in emulation.requirements()}
    assert {"numpy", "onnx", "onnxruntime", "pytest"} <= names
    assert "torch" not in names


def test_without_apt_emulation_is_not_here(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(emulation.shutil, "which", lambda _: None)
    with pytest.raises(NotHere, match="no apt"):
        emulation.qemu()
    assert not (tmp_path / "crelu-deploy/cpus/qemu/made").exists()
