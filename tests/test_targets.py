"""Targets as text, backends that are missing, and what ``doctor`` says about this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap

import pytest
from tables import thorough

from crelu_deploy.doctor import diagnose
from crelu_deploy.environment import cpu_name, environment, versions
from crelu_deploy.errors import BackendUnavailable
from crelu_deploy.lowerings import LOWERINGS
from crelu_deploy.targets import BACKENDS, BASELINE, TORCH, Options, Target, unknown

PARSED = {
    "ort-cpu": Target("ort-cpu", "auto"),
    "ort-cpu:auto": Target("ort-cpu", "auto"),
    "torch": Target("torch", ""),
    "torch-compile": Target("torch-compile", ""),
    **{f"ort-cpu:{name}": Target("ort-cpu", name) for name in LOWERINGS},
}


@pytest.mark.parametrize(("text", "target"), PARSED.items(), ids=PARSED)
def test_parse(text, target):
    assert Target.parse(text) == target
    assert str(target) == ("ort-cpu:auto" if text == "ort-cpu" else text)
    assert Target.parse(str(target)) == target


REFUSED = {
    "": "unknown target ''; known: ort-cpu, ort-cpu-int8, ",
    "ort-gpu": "unknown target 'ort-gpu'; did you mean 'ort-cpu'? known: ort-cpu, ",
    "ortcpu": "unknown target 'ortcpu'; did you mean 'ort-cpu'?",
    "ORT-CPU": "unknown target 'ORT-CPU'; known: ort-cpu",
    "torch-compiled": "did you mean 'torch-compile'?",
    "tensorflow": "unknown target 'tensorflow'; known: ort-cpu",
    " ort-cpu": "unknown target ' ort-cpu'; did you mean 'ort-cpu'?",
    ":fold": "unknown target ''; known:",
    "ort-cpu:": "unknown lowering ''; known: auto, ",
    "ort-cpu:fld": "unknown lowering 'fld'; did you mean 'fold'? known: auto, ",
    "ort-cpu:mirrored": "unknown lowering 'mirrored'; did you mean 'mirror'?",
    "ort-cpu:fold:mirror": "unknown lowering 'fold:mirror'; ",
    "ort-cpu:zzz": "unknown lowering 'zzz'; known: auto, ",
    "torch:fold": "target 'torch:fold': torch runs the PyTorch module, no lowering",
    "torch:": "target 'torch:': torch runs the PyTorch module, no lowering",
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items(), ids=REFUSED)
def test_unknown_names(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Target.parse(text)


def test_a_hint_names_something_that_is_known():
    assert unknown("colour", "gren", ("red", "green")) == (
        "unknown colour 'gren'; did you mean 'green'? known: red, green"
    )


def test_the_named_targets_are_targets():
    assert Target.parse(str(BASELINE)) == BASELINE
    assert Target.parse(str(TORCH)) == TORCH


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_every_backend_builds_and_loads(backend):
    if backend.extra == "torch":
        pytest.importorskip("torch")
    try:
        module = backend.implementation()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    assert module.__name__ == f"crelu_deploy.backends.{backend.module}"
    assert callable(module.build)
    assert callable(module.load)


def python(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter."""
    code = textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


BLOCKED = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {missing}:
            raise {error}

sys.meta_path.insert(0, Blocker())
"""
NOT_FOUND = "ModuleNotFoundError(f'No module named {name!r}', name=name)"
BROKEN = "ImportError('libcudart.so.13: cannot open shared object file')"


@pytest.mark.parametrize(
    ("backend", "missing", "extra"),
    [
        ("ort-cpu", "onnxruntime", "ort"),
        ("torch", "torch", "torch"),
        pytest.param("torch-compile", "torch", "torch", marks=thorough),
    ],
)
def test_a_missing_runtime_is_named_with_the_command_that_brings_it(backend, missing, extra):
    blocker = BLOCKED.format(missing={missing}, error=NOT_FOUND)
    done = python(
        blocker
        + "from crelu_deploy.targets import BACKENDS\n"
        + "from crelu_deploy.errors import BackendUnavailable\n"
        + f"try: BACKENDS[{backend!r}].implementation()\n"
        + "except BackendUnavailable as error: print(error)\n"
    )
    assert done.stdout == (
        f"{backend} needs the package {missing}, which is not installed; "
        f"run: pip install 'crelu-deploy[{extra}]'\n"
    )
    assert done.stderr == ""


DOCTOR = """
from crelu_deploy.doctor import diagnose
for health in diagnose(): print(health.backend, health.works, health.summary)
"""


RUNTIMES = {"onnxruntime", "torch", "openvino", "tensorrt", "tensorrt_rtx"}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NOT_FOUND, "ort-cpu needs the package onnxruntime, which is not installed; run: pip"),
        (BROKEN, "installed but broken: libcudart.so.13: cannot open shared object file"),
    ],
    ids=["missing", "broken"],
)
def test_doctor_goes_on_past_a_runtime_that_does_not_load(error, said):
    blocker = BLOCKED.format(missing=RUNTIMES, error=error)
    done = python(blocker + DOCTOR)
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [[name, "False"] for name in BACKENDS]
    assert lines[0].startswith(f"ort-cpu False {said}")
    assert done.stderr == ""


def test_doctor_reports_every_backend():
    found = {health.backend: health for health in diagnose()}
    assert list(found) == list(BACKENDS)
    assert found["ort-cpu"].works
    assert found["ort-cpu"].summary == BACKENDS["ort-cpu"].summary


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux confines a process")
def test_threads():
    assert Options(threads=3).cores == 3
    assert Options().cores == len(os.sched_getaffinity(0))
    confined = python(
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from crelu_deploy.targets import Options; print(Options().cores)"
    )
    assert confined.stdout == "1\n"


def test_where_a_figure_was_measured():
    found = environment(threads=2)
    assert found["threads"] == 2
    assert found["cpu"] == cpu_name() != ""
    assert re.fullmatch(r"3\.\d+\.\d+.*", str(found["python"]))
    assert found["versions"] == versions()
    assert {"numpy", "onnx", "onnx-ir", "crelu-deploy"} <= versions().keys()
    assert all(re.match(r"\d+\.\d+", number) for number in versions().values())
