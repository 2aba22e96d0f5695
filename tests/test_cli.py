"""The command line: exit codes, one clear line per failure, results on stdout and nothing else."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from tables import mostly

from crelu_deploy.cli import run

# What a script runs in the background ignores Ctrl-C, and would hand that down.
HEEDING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
PROGRAM = [sys.executable, "-c", f"{HEEDING}; from crelu_deploy.cli import main; main()"]
QUICK = ("--runs", "5", "--seconds", "1", "--threads", "1")
VERBS = ("export", "inspect", "optimize", "build", "verify", "bench", "deploy", "doctor")
MODEL = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,3,8,8] x) => (float[N,4,6,6] y)
<float[2,3,3,3] w = {WEIGHTS}>
{ z = Conv(x, w) n = Neg(z) c = Concat<axis=1>(z, n) y = Relu(c) }"""


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """An ONNX file with one site."""
    path = tmp_path / "network.onnx"
    text = MODEL.replace("WEIGHTS", ", ".join(str(i / 50) for i in range(54)))
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_one_line(text: str, message: str) -> None:
    """Progress, then one line that starts with ``error:`` and holds the message."""
    lines = [line for line in text.splitlines() if line and not line.startswith("... ")]
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]


USAGE: dict[str, tuple[str, str]] = {
    "no-verb": ("depoly", "No such command 'depoly'"),
    "target": ("build b -t ort-cpuu", "unknown target 'ort-cpuu'; did you mean 'ort-cpu'"),
    "target-2": ("verify b -t gpu", "unknown target 'gpu'; known: ort-cpu, "),
    "lowering": ("bench b -t ort-cpu:miror", "unknown lowering 'miror'; did you mean 'mirror'"),
    "lowering-2": ("optimize a -o b --lowering flod", "'flod'; did you mean 'fold'"),
    "lowered-torch": ("build b -t torch:fold", "torch runs the PyTorch module, no lowering"),
    "input": ("export m --input 1x3xA", "input '1x3xA': expected .NAME:.SIZES"),
    "input-0": ("export m --input 1x0x3", "expected .NAME:.SIZES with positive sizes"),
    "input-huge": ("optimize a -o b --input 9x999999999999", r"fewer than 2\^31"),
    "input-name": ("export m --input :1x3", "expected .NAME:.SIZES"),
    "dynamic": ("export m --dynamic high", "dynamic 'high': expected .NAME:.AXES"),
    "batch": ("bench b --batch 1,0", "batch '1,0': expected positive numbers"),
    "batch-text": ("deploy m --batch one", "batch 'one': expected positive numbers"),
    "samples": ("export m --samples 0", "samples '0': expected 1 to 10000, or an NPZ"),
    "seed": ("export m --seed -1", "Invalid value for '--seed'"),
    "runs": ("bench b --runs 0", "Invalid value for '--runs'"),
    "threads": ("verify b --threads 0", "Invalid value for '--threads'"),
    "tolerance": ("verify b --atol -1", "Invalid value for '--atol'"),
    "option": ("export m --inputs 1x3", "No such option.* '?--inputs'?"),
    "no-model": ("export", "Missing argument 'MODEL'"),
    "no-out": ("optimize a", "Missing option '-o'"),
}


@pytest.mark.parametrize(("arguments", "message"), USAGE.values(), ids=USAGE)
def test_wrong_usage(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert_one_line(err, message)
    assert re.search(r"\(see crelu.*--help\)", err)
    assert list(tmp_path.iterdir()) == []


FAILED: dict[str, tuple[str, str]] = {
    "no-model": ("export none.pt", "none.pt: no such file"),
    "no-onnx": ("inspect none.onnx", "none.onnx: no such file"),
    "long": (
        f"inspect {'long/' * 500}none.onnx",
        r"^error: .{750} \.\.\. .{727}none.onnx: no such file$",
    ),
    "no-original": ("optimize none.onnx -o out.onnx", "none.onnx: no such file"),
    "no-bundle": ("verify none", "none: not a bundle, it has no manifest.json; run: crelu export"),
    "no-bundle-2": ("bench folder", "folder: not a bundle"),
    "no-bundle-3": ("build network.onnx", "network.onnx: not a bundle"),
    "folder": ("export folder", "folder"),
    "no-deploy": ("deploy none.pt", "none.pt: no such file"),
    "folder-2": ("inspect folder", "folder: not a bundle"),
    "text": ("inspect text.txt", "text.txt: not a"),
    "not-a-model": ("export text.txt", "text.txt"),
    "npz": ("export DIGITS --samples none.npz -o out", "none.npz: no such file"),
    "channels": ("export DIGITS --input 1x3x28x28 -o out", "input 1x3x28x28: RuntimeError"),
    "input-name": ("export DIGITS --input image:1x1x28x28 -o out", "no input 'image'"),
    "opset": ("export DIGITS --opset 17 -o out", "opset 18 to 25, not 17"),
    "arch": ("export DIGITS --arch digits-creluu -o out", "digits-creluu.*digits-crelu"),
    "original": ("optimize network.onnx -o network.onnx", "is the original itself"),
    "axes": ("optimize network.onnx -o out.onnx --input 1x3x1x1", "does not run on random"),
    "onnx-input": (
        "optimize network.onnx -o o.onnx --input i:1x3x8x8",
        "no input 'i'; the inputs are: x",
    ),
    "nowhere": ("optimize network.onnx -o no/out.onnx", "no/out.onnx: cannot be written"),
    "below-a-file": ("export DIGITS -o text.txt/out", "cannot be written: (Not a dir|File exists)"),
    "a-file": ("export DIGITS -o text.txt", "text.txt: holds 'text.txt', which is no part"),
    "foreign": ("export DIGITS -o folder", "folder: holds 'notes.txt'.*nothing was touched"),
}


@pytest.mark.torch
@pytest.mark.parametrize(("arguments", "message"), FAILED.values(), ids=FAILED)
def test_failures(
    arguments: str,
    message: str,
    network: Path,
    digits: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = network.parent
    monkeypatch.chdir(folder)
    (folder / "text.txt").write_text("no model\n")
    (folder / "folder").mkdir()
    (folder / "folder" / "notes.txt").write_text("mine\n")
    before = contents(folder)
    assert run([str(digits) if a == "DIGITS" else a for a in arguments.split()]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert_one_line(err, message)
    assert contents(folder) == before
    assert {path.name for path in folder.iterdir()} == {"network.onnx", "text.txt", "folder"}


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: crelu {verb} [OPTIONS]")
    assert err == ""


def test_help_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    listed = re.findall(r"^  (\w+) ", capsys.readouterr().out, re.MULTILINE)
    assert set(VERBS) <= set(listed)
    assert run(["--version"]) == 0


@pytest.mark.torch
def test_export_then_everything(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["export", str(digits), "-o", str(out), "--samples", "1"]) == 0
    text, progress = capsys.readouterr()
    assert "6 CReLU" in text
    assert all(line.startswith("... ") for line in progress.splitlines())
    assert "... export to ONNX" in progress.splitlines()
    for verb in (["build"], ["verify"], ["bench", *QUICK], ["inspect"]):
        target = ["-t", "ort-cpu:mirror"] if verb[0] != "inspect" else []
        assert run([*verb[:1], str(out), *target, *verb[1:], "-q"]) == 0
        text, err = capsys.readouterr()
        assert err == ""
        assert text.endswith("\n")
        assert ("ort-cpu:mirror" in text) == bool(target)
        assert "... " not in text


SITE = {"name", "spelling", "activation", "axis", "producer", "consumers", "foldable", "reason"}


def read(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict:
    assert run([*arguments, "--json", "-q"]) == code
    out, err = capsys.readouterr()
    assert not err or code
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_inspect_json(network: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = read(["inspect", str(network)], capsys)
    assert found.keys() == {"sites", "near_misses"}
    (site,) = found["sites"]
    assert site.keys() >= SITE
    assert {key: site[key] for key in SITE - {"name", "producer", "spelling"}} == {
        "activation": "relu",
        "axis": 1,
        "consumers": ["output y"],
        "foldable": True,
        "reason": "",
    }
    model = onnx.load(network)
    model.graph.node[1].CopyFrom(onnx.helper.make_node("Neg", ["p"], ["n"]))
    model.graph.node.insert(1, onnx.helper.make_node("Relu", ["z"], ["p"]))  # relu(x), -relu(x)
    onnx.save(model, network)
    found = read(["inspect", str(network)], capsys)
    assert found["sites"] == []
    assert all(miss.keys() >= {"name", "reason"} for miss in found["near_misses"])


@pytest.mark.torch
def test_verify_and_bench_json(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = read(["verify", str(bundle), "-t", "torch", "-t", "ort-cpu"], capsys)
    assert found.keys() == {"passed", "targets"}
    assert found["passed"] is True
    texts = ["worst", "agreement", "proof", "behind", "note", "extremes"]
    fields = ["target", "passed", "skipped", "score", "max_abs", *texts]
    assert [list(target) for target in found["targets"]] == [fields] * 2
    assert [target["target"] for target in found["targets"]] == ["torch", "ort-cpu:auto"]
    found = read(["bench", str(bundle), "-t", "ort-cpu", *QUICK, "--batch", "1,2"], capsys)
    assert found.keys() >= {"environment", "rows"}
    assert found["environment"]["threads"] == 1
    fields = ["target", "batch", "median_ms", "p10_ms", "p90_ms", "runs", "ratio"]
    fields += ["significant", "clear", "ratio_low", "ratio_high", "ratio_of_minima", "opening_s"]
    assert [list(row) for row in found["rows"]] == [fields] * 4
    assert [row["batch"] for row in found["rows"]] == [1, 1, 2, 2]
    assert found["rows"][0]["ratio"] == 1


@pytest.mark.torch
def test_a_failed_target_is_a_result_and_exit_1(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = ["-t", "ort-cpu:fold", "-t", "ort-cpu:mirror"]
    assert run(["build", str(bundle), *targets, "-q"]) == 0
    capsys.readouterr()
    strict = ["--atol", "1e-12"]
    found = read(["verify", str(bundle), *targets, *strict], capsys, 1)
    assert found["passed"] is False
    assert run(["verify", str(bundle), *targets, *strict, "-q"]) == 1
    out, err = capsys.readouterr()
    assert out.partition("behind ")[0].count("FAILED") == 2
    assert_one_line(err, r"2 of 2 targets failed \(ort-cpu:fold, ort-cpu:mirror\)")
    found = read(["bench", str(bundle), *targets, *strict, *QUICK], capsys, 1)
    assert found["rows"] == []


@pytest.mark.torch
def test_a_changed_byte(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = bundle / "model.onnx"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    for verb in ("build", "verify", "bench", "inspect"):
        assert run([verb, str(bundle)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert_one_line(err, re.escape(f"{file}: changed since it was written"))


HARMLESS = "a[red]b\x1b[31mc\nd\x07\u202ee"


def test_names_from_files_are_shown_harmlessly(
    network: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    model = onnx.load(network)
    for node in model.graph.node:
        node.name = HARMLESS + node.op_type
    odd = network.with_name("odd[bold]\x1b[31m\n.onnx")
    onnx.save(model, odd)
    out_file = network.with_name("out[bold]\x1b[2J.onnx")
    assert run(["inspect", str(odd), "-q"]) == 0
    assert run(["optimize", str(odd), "-o", str(out_file), "-q"]) == 0
    assert run(["inspect", str(odd) + "x", "-q"]) == 1
    out, err = capsys.readouterr()
    assert out_file.exists()
    assert "a[red]b\\x1b[31mc\\nd" in out
    assert "out[bold]\\x1b[2J.onnx" in out
    for text in (out, err):
        assert [c for c in text if not c.isprintable() and c != "\n"] == []
    assert len(err.splitlines()) == 1


def process(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*PROGRAM, *arguments], stdout=pipe, stderr=pipe, text=True, env=environment
    )


@pytest.mark.torch
@mostly("step", ["start PyTorch", "export to ONNX"], fast=["export to ONNX"])
def test_ctrl_c_leaves_the_earlier_bundle(step: str, bundle: Path, digits: Path) -> None:
    before = contents(bundle)
    running = process("export", str(digits), "-o", str(bundle), "--seed", "5")
    assert running.stderr is not None
    for line in running.stderr:
        if line == f"... {step}\n":
            break
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert out == ""
    assert_one_line(err, "interrupted; what was there before is unchanged")
    assert contents(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here: that takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.torch
def test_a_full_disk(small_disk: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small_disk / "notes").write_bytes(bytes(150_000))
    assert run(["export", str(digits), "-o", str(small_disk / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert_one_line(err, r"cannot be written: No space left on device")
    assert [path.name for path in small_disk.iterdir()] == ["notes"]


@pytest.mark.torch
def test_an_unwritable_folder(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/proc takes no new folder, not even from root."""
    assert run(["export", str(digits), "-o", "/proc/nothing/out"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert_one_line(err, "/proc/nothing/out: cannot be written: ")


def test_results_alone_are_on_stdout(network: Path) -> None:
    running = process("inspect", str(network), "--json")
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0
    assert json.loads(out)["sites"]
    assert [line[:4] for line in err.splitlines()] == ["... "]


def test_a_closed_pipe_is_no_traceback(network: Path) -> None:
    with process("inspect", str(network), "-q") as running:
        assert running.stdout is not None
        running.stdout.close()
        assert running.stderr is not None
        assert running.stderr.read() == ""
    assert running.returncode == 1


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    found = read(["doctor"], capsys)
    states = {state["backend"]: state["works"] for state in found["backends"]}
    assert states["ort-cpu"] is True
    assert run(["doctor", "-q"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in states)


@pytest.mark.parametrize(
    "arguments",
    [["export", "m.pt"], ["deploy", "m.pt"], ["zoo"], ["analyze", "pairing", "m.pt"]],
    ids=lambda arguments: arguments[0],
)
def test_without_pytorch_the_way_out_is_said(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.pt").write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(arguments) == 1
    assert capsys.readouterr().err == (
        "error: this needs the package torch, which is not installed; "
        "run: pip install 'crelu-deploy[torch]'\n"
    )
