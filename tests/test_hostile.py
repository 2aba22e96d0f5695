"""Hostile files through the command line: success or one clear line, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bundles import write_bundle
from hostile_files import ESCAPES, MANIFESTS, MODELS, PLANS, SAMPLES, crelu, proto
from tables import mostly

from crelu_deploy import cli
from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import CheckpointError, UnsupportedModel
from crelu_deploy.modelfile import blaming
from crelu_deploy.runner import TensorSpec
from crelu_deploy.samples import load_samples, read_inputs

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 60
"""Of processor time."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a secret outside and a link to it inside."""
    (tmp_path / "secret").write_bytes(bytes(32))
    here = tmp_path / "here"
    here.mkdir()
    (here / "link").symlink_to(tmp_path / "secret")
    (here / "data").write_bytes(bytes(32))
    monkeypatch.chdir(here)
    return here


def said(capfd: pytest.CaptureFixture[str], *command: str) -> str:
    """Run a command; return its one line on stderr, or nothing after a success."""
    start = time.process_time()
    code = cli.run(command)
    out, err = capfd.readouterr()
    assert time.process_time() - start < SECONDS
    assert code in (0, 1), err
    assert (code == 1) == bool(err), err
    if code == 1:
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert err[:-1].isprintable(), err
        assert out == ""
    assert "\x1b" not in out
    assert len(err) < 1000
    return err


@pytest.mark.parametrize(("make", "refusal"), MODELS.values(), ids=MODELS)
def test_inspecting_a_hostile_model(folder, capfd, make, refusal):
    (folder / "m.onnx").write_bytes(make())
    line = said(capfd, "inspect", "m.onnx", "-q")
    assert re.search(refusal, line) if refusal else line == ""


RUNNABLE = ("escapes", "nodes-10000", "sites-200")
"""Models of the corpus that are valid and that a machine can run."""


@pytest.mark.parametrize("name", MODELS)
def test_optimizing_a_hostile_model(folder, capfd, name):
    (folder / "m.onnx").write_bytes(MODELS[name][0]())
    kept = {f: f.read_bytes() for f in folder.parent.rglob("*") if f.is_file()}
    line = said(capfd, "optimize", "m.onnx", "-q", "-o", "out.onnx")
    assert (line == "") == (folder / "out.onnx").exists()
    assert line == "" or name not in RUNNABLE, line
    assert {f: f.read_bytes() for f in kept} == kept
    assert {f for f in folder.parent.rglob("*") if f.is_file()} - {folder / "out.onnx"} == set(kept)


def test_a_mistake_of_this_program_is_no_fault_of_the_file(folder):
    path = folder / "m.onnx"
    path.write_bytes(proto(crelu("x", "y", axis=0)))
    text = onnx_text()
    path.write_bytes(text)
    with pytest.raises(ZeroDivisionError), blaming(path):
        raise ZeroDivisionError
    path.write_bytes(text[:-3])
    with pytest.raises(UnsupportedModel, match=r"m\.onnx: not valid ONNX: "), blaming(path):
        raise ZeroDivisionError


def onnx_text() -> bytes:
    import onnx

    text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    data: bytes = onnx.parser.parse_model(text).SerializeToString()
    return data


SPECS = (TensorSpec("input", "float32", ("batch", 1, 28, 28)),)


@pytest.mark.parametrize(("make", "refusal"), SAMPLES.values(), ids=SAMPLES)
def test_hostile_samples(folder, capfd, make, refusal):
    path = folder / "s.npz"
    path.write_bytes(make())
    with pytest.raises(UnsupportedModel, match=refusal) as caught:
        read_inputs(path, SPECS, 1)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < len(str(path)) + 400
    with pytest.raises(UnsupportedModel):
        load_samples(path)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def made(folder: Path) -> Bundle:
    return write_bundle(folder / "bundle")


@pytest.mark.parametrize(("text", "refusal"), PLANS.values(), ids=PLANS)
def test_hostile_plans(made, capfd, text, refusal):
    Path("plan.json").write_text(text)
    before = (made.path / "manifest.json").read_bytes()
    assert re.search(refusal, said(capfd, "plan", "bundle", "-q", "--plan", "plan.json"))
    assert (made.path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(("fields", "refusal"), MANIFESTS.values(), ids=MANIFESTS)
@pytest.mark.parametrize("verb", ["verify", "inspect"])
def test_hostile_manifests(made, capfd, fields, refusal, verb):
    manifest = {**made.manifest, **fields}
    (made.path / "manifest.json").write_text(json.dumps(manifest))
    line = said(capfd, verb, "bundle", "-q")
    assert re.search(refusal, line) or (verb == "inspect" and "targets" in fields), line


def test_targets_that_lead_out_of_the_bundle_are_refused(made, capfd):
    Path("elsewhere").mkdir()
    (made.path / "targets").symlink_to(Path("elsewhere").resolve())
    assert cli.run(["build", "bundle", "-q", "-t", "ort-cpu:mirror"]) == 1
    assert "is a link, which could lead out of the bundle" in capfd.readouterr().err
    assert not list(Path("elsewhere").iterdir())


@pytest.mark.torch
def test_a_bundle_cannot_name_code_to_run(bundle, digits):
    pytest.importorskip("torch")
    from crelu_deploy.backends import pytorch
    from crelu_deploy.targets import Options, Target

    opened = Bundle.open(bundle)
    source = {**opened.manifest["source"], "path": str(digits), "arch": "antigravity:fly"}
    opened.record((), source=source)
    with pytest.raises(CheckpointError, match=r"names the code 'antigravity:fly'.*pass --trust"):
        pytorch.load(opened, Target("torch", ""), Options())
    assert "antigravity" not in sys.modules
    with pytest.raises(CheckpointError, match="--arch antigravity:fly failed"):
        pytorch.load(opened, Target("torch", ""), Options(trust=True))


def test_libraries_say_nothing_beside_the_one_line(tmp_path):
    (tmp_path / "m.onnx").write_bytes(MODELS["no-nodes"][0]())
    crelu_ = shutil.which("crelu", path=str(Path(sys.executable).parent))
    if crelu_ is None:
        pytest.skip("the package is not installed beside this Python")
    command = [crelu_, "optimize", "m.onnx", "-q", "-o", "o.onnx"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: m\.onnx: .*\n", done.stderr), done.stderr


@pytest.mark.slow
@pytest.mark.torch
@mostly("files", ["4 --only safetensors", "64"], fast=["4 --only safetensors"])
def test_mutation_fuzz(files):
    """Damaged files, of eight kinds in turn or of one."""
    pytest.importorskip("torch")
    command = [sys.executable, ROOT / "scripts" / "fuzz_files.py", *files.split(), "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    said = re.search(rf"^{files.split()[0]} files, 0 faults", done.stdout, re.MULTILINE)
    assert said, done.stdout + done.stderr
    assert done.returncode == 0


def test_names_with_escapes_are_shown_without_them(folder, capfd):
    (folder / "m.onnx").write_bytes(MODELS["escapes"][0]())
    assert cli.run(["inspect", "m.onnx", "-q"]) == 0
    out = capfd.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert ESCAPES not in out
