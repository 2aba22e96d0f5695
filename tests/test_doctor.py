"""What ``doctor`` says of backends that work, are missing or broken, and of the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from crelu_deploy import machine
from crelu_deploy.cli import run
from crelu_deploy.doctor import BROKEN, MISSING, OK, Health, diagnose
from crelu_deploy.machine import FEATURES, examine, features
from crelu_deploy.render.health import health_json, health_parts
from crelu_deploy.targets import BACKENDS


def test_every_backend_has_a_state_and_what_fails_a_reason():
    found = {health.backend: health for health in diagnose()}
    assert list(found) == list(BACKENDS)
    for health in found.values():
        assert health.state in (OK, MISSING, BROKEN)
        assert (
            health.works
            == (health.state == OK)
            == (health.summary == BACKENDS[health.backend].summary)
        )
        assert "\n" not in health.summary + health.fix
    assert found["ort-cpu"].works
    assert found["ort-cpu"].version.count(".") >= 1


WRONG = """
import sys
import numpy, onnxruntime
{fault}
from crelu_deploy import doctor
doctor.BACKENDS = {{"ort-cpu": doctor.BACKENDS["ort-cpu"]}}
for health in doctor.diagnose():
    print(health.state, health.fix, health.summary, sep="|")
"""
FAULTS = {
    "refuses": (
        "def fail(*a, **k): raise RuntimeError('no memory')\nonnxruntime.InferenceSession = fail",
        "broken|pip install --force-reinstall 'crelu-deploy[ort]'|cannot run a network of one site",
    ),
    "computes": (
        "Session = onnxruntime.InferenceSession\n"
        "class Wrong(Session):\n"
        "    def run(self, *a, **k): return [y + 1 for y in super().run(*a, **k)]\n"
        "onnxruntime.InferenceSession = Wrong",
        "broken||computes something else: y[",
    ),
    "missing": (
        "sys.modules.pop('onnxruntime')\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'onnxruntime': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Finder())",
        "missing|pip install 'crelu-deploy[ort]'|ort-cpu needs the package onnxruntime",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_runtime_that_is_not_well(name):
    fault, expected = FAULTS[name]
    done = subprocess.run(
        [sys.executable, "-c", WRONG.format(fault=fault)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.startswith(expected), done.stdout + done.stderr


CPUS = {
    "amx": (
        "flags\t\t: fpu avx2 avx512f amx_bf16 amx_int8",
        ("AVX2", "AVX-512", "AMX BF16", "AMX INT8"),
    ),
    "old": ("processor: 0\nflags : fpu sse2", ()),
    "arm": ("Features\t: fp asimd", ("NEON",)),
    "part of a word": ("flags : xavx2 avx512fp16", ()),
    "silent": ("processor : 0\nmodel name : flags avx2", None),
    "nothing": ("", None),
}


@pytest.mark.parametrize("name", CPUS)
def test_features_of_a_processor(name):
    text, expected = CPUS[name]
    assert features(text) == expected


SMI = {
    "one": ("echo 'NVIDIA H100, 580.1, 81559 MiB'", ("NVIDIA H100, driver 580.1, 81559 MiB",)),
    "two": ("printf 'A, 1, 2 MiB\\nB, 1, 3 MiB\\n'", ("A, driver 1, 2 MiB", "B, driver 1, 3 MiB")),
    "short": ("echo 'A'", ("A, driver ?, ?",)),
    "broken driver": ("echo 'NVIDIA-SMI has failed'; exit 9", ()),
}


@pytest.mark.parametrize("name", SMI)
def test_gpus(name, tmp_path: Path, monkeypatch):
    script, expected = SMI[name]
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == expected


def test_no_driver(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == ()


def test_libraries_are_found_or_say_how(tmp_path: Path, monkeypatch):
    (tmp_path / "libcrelu_onnxruntime.so").write_bytes(b"")
    monkeypatch.setenv("CRELU_LIBRARY_PATH", str(tmp_path))
    found = machine.libraries()
    assert found["onnxruntime"] == str(tmp_path / "libcrelu_onnxruntime.so")
    assert set(found) == {"onnxruntime", "tensorrt"}
    assert found["tensorrt"].endswith(".so") or "make plugins" in found["tensorrt"]


def test_this_machine():
    found = examine()
    assert found.cpu
    assert found.cores >= 1
    assert found.memory is None or found.memory > 2**28
    assert found.features is None or set(found.features) <= FEATURES.keys()
    assert json.loads(json.dumps(health_json((), found)))["machine"]["cores"] == found.cores


def text_of(parts: list[object]) -> list[str]:
    return [part for part in parts if isinstance(part, str)]


def test_backends_with_one_command_or_one_reason_share_a_line():
    health = [
        Health("a", OK, "fine", "1.0"),
        Health("b", MISSING, "b is not there; run: get b", fix="get b"),
        Health("c", MISSING, "c is not there; run: get b", fix="get b"),
        Health("d", BROKEN, "no \x1b driver"),
        Health("e", MISSING, "no such instructions"),
        Health("f", MISSING, "no device"),
        Health("g", MISSING, "no device"),
    ]
    assert text_of(health_parts(health, examine())) == [
        "missing  b, c: b is not there",
        "         run: get b",
        r"broken   d: no \x1b driver",
        "missing  e: no such instructions",
        "missing  f, g: no device",
    ]


def test_the_command_line(capsys: pytest.CaptureFixture[str]):
    assert run(["doctor", "--json", "-q"]) == 0
    data = json.loads(capsys.readouterr().out)
    (state,) = [state for state in data["backends"] if state["backend"] == "ort-cpu"]
    assert (state["state"], state["works"], state["fix"]) == (OK, True, "")
    assert data["machine"]["cores"] >= 1
