"""Killed, crowded and starved: what was there stays whole, and the next run goes on from it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from bundles import write_bundle
from tables import mostly, thorough

from crelu_deploy import cli, pipeline
from crelu_deploy.bundle import Bundle, check_destination
from crelu_deploy.errors import BuildError, UnsupportedModel
from crelu_deploy.locking import lock, locked, reserved
from crelu_deploy.plan import Plan
from crelu_deploy.planner import use
from crelu_deploy.staging import is_scratch, scratch, staged_folder, write_text
from crelu_deploy.targets import Target

ROOT = Path(__file__).resolve().parent.parent
MIRROR = Target("ort-cpu", "mirror")


@pytest.fixture
def made(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "made")


def names(path: Path) -> set[str]:
    return {str(f.relative_to(path)) for f in path.rglob("*")}


# -- locks -------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_while_the_first_one_writes(made):
    refusal = rf"^{made.path}: another process is writing to it; wait until it has ended"
    with locked(made.path):
        with pytest.raises(BuildError, match=refusal):
            pipeline.build(made.path, [MIRROR])
        with pytest.raises(BuildError, match=refusal):
            use(Bundle.open(made.path), Plan("ort-cpu", "rule", {}))
        with pytest.raises(BuildError, match=refusal), reserved(made.path):
            pytest.fail("the folder was reserved twice")
        assert Bundle.open(made.path).manifest["targets"] == {}
    assert not pipeline.build(made.path, [MIRROR])[0].error


def test_a_lock_ends_with_its_process(made):
    code = "import sys, time; from crelu_deploy.locking import lock; lock(__import__('pathlib')"
    code += ".Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(made.path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(BuildError, match="another process is writing"):
        pipeline.build(made.path, [MIRROR])
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert not pipeline.build(made.path, [MIRROR])[0].error


def test_a_folder_that_takes_the_place_of_a_locked_one_can_be_locked(tmp_path):
    path = tmp_path / "out"
    with reserved(path):
        with staged_folder(path) as stage:
            (stage / "new").touch()
        descriptor = lock(path)
        assert descriptor is not None
        os.close(descriptor)
    assert names(tmp_path) == {"out", "out/new"}


@pytest.mark.parametrize("content", ["", "new"])
def test_a_reserved_folder_that_stays_empty_is_removed(tmp_path, content):
    with reserved(tmp_path / "out"):
        if content:
            (tmp_path / "out" / content).touch()
    assert names(tmp_path) == ({"out", "out/new"} if content else set())


def test_what_another_process_has_built_meanwhile_is_kept(made):
    earlier = Bundle.open(made.path)
    pipeline.build(made.path, [MIRROR])
    pipeline.build(earlier, [Target("ort-cpu", "fold")])
    assert set(Bundle.open(made.path).manifest["targets"]) == {"ort-cpu:mirror", "ort-cpu:fold"}


# -- kills -------------------------------------------------------------------------------------


def killed(code: Callable[[], object]) -> None:
    """Run code in a forked process that it kills."""
    child = os.fork()
    if child == 0:
        code()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("replaced", [False, True], ids=["before", "after"])
def test_a_build_killed_around_its_replacement_leaves_a_whole_bundle(made, monkeypatch, replaced):
    pipeline.build(made.path, [MIRROR])
    model = made.model
    model.producer_name = "another"
    opened = Bundle.open(made.path)
    artifact = opened.artifact(MIRROR)
    before = artifact.read_bytes()
    replace = Path.replace

    def replacing(self: Path, place: Path) -> None:
        if place == artifact:
            replace(self, place) if replaced else None
            die()
        replace(self, place)

    monkeypatch.setattr(Path, "replace", replacing)
    killed(lambda: opened.write(model, MIRROR))
    monkeypatch.undo()
    assert (artifact.read_bytes() != before) == replaced
    assert Bundle.open(made.path).manifest["targets"].keys() == {"ort-cpu:mirror"}
    assert pipeline.verify(made.path)[0].passed
    assert not pipeline.build(made.path, [MIRROR])[0].error
    assert not [name for name in names(made.path) if ".tmp" in name]


def test_an_announced_file_may_not_be_a_third_one(made):
    pipeline.build(made.path, [MIRROR])
    opened = Bundle.open(made.path)
    name = "targets/ort-cpu-mirror.onnx"
    opened.record((), announced={name: "0" * 64})
    assert Bundle.open(made.path).manifest["files"] == opened.manifest["files"]
    with (made.path / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(UnsupportedModel, match=rf"{name}: changed since it was written"):
        Bundle.open(made.path)


def test_what_killed_processes_left_is_removed_and_never_foreign(made):
    def leave() -> None:
        with scratch(made.path / "manifest.json") as inner, scratch(made.path) as outer:
            (inner / "manifest.json").touch()
            (outer / "model.onnx").touch()
            die()

    killed(leave)
    left = [p for p in made.path.parent.rglob("*") if is_scratch(p.name)]
    assert len(left) == 2
    check_destination(made.path)
    write_text(made.path / "manifest.json", (made.path / "manifest.json").read_text())
    assert not any(p.exists() for p in left)
    Bundle.open(made.path)


def test_folders_in_use_and_of_others_are_left_alone(tmp_path):
    others = [tmp_path / name for name in (".out.bak", ".out.12345678.TMP", ".in.abcdefgh.tmp")]
    for other in others:
        other.mkdir()
    with scratch(tmp_path / "out") as first, scratch(tmp_path / "out") as second:
        assert first.is_dir()
        assert first != second
    assert {p.name for p in tmp_path.iterdir()} == {other.name for other in others}


def test_what_was_left_for_a_long_name_is_removed_too(tmp_path):
    def leave() -> None:
        with scratch(tmp_path / ("a" * 200)):
            die()

    killed(leave)
    assert len(names(tmp_path)) == 1
    write_text(tmp_path / ("a" * 200), "x")
    assert names(tmp_path) == {"a" * 200}


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, "b" * 241])
def test_long_names_have_room_for_their_hidden_folder(tmp_path, name):
    write_text(tmp_path / name, "x")
    assert names(tmp_path) == {name}


@thorough
@pytest.mark.slow
@pytest.mark.torch
def test_random_kills():
    """At random moments; the tests above kill at those that matter."""
    pytest.importorskip("torch")
    script = ROOT / "scripts" / "kill_test.py"
    done = subprocess.run(
        [sys.executable, script, "4"], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.stdout.endswith("4 kills, 0 faults\n"), done.stdout + done.stderr
    assert done.returncode == 0


# -- no memory, no room ------------------------------------------------------------------------

STARVED = """
import resource, sys
from pathlib import Path
import onnx, onnxruntime, crelu_deploy.optimizer, crelu_deploy.pipeline
onnx.defs.get_schema("Relu")  # it makes the table of all operators
from crelu_deploy import cli
from crelu_deploy.cli import commands, completion, paper, planning, reporting, scoring, serving
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
sys.exit(cli.run(sys.argv[2:]))
"""


def starved(room: int, *command: str) -> tuple[int, str]:
    """Run a command with so many bytes of address space beyond its imports."""
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(room), *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.fixture
def heavy(tmp_path: Path) -> Path:
    """A model with 64 MiB of weights."""
    import numpy as np
    from graphs import Case, model

    weight = np.ones((4096, 4096, 1, 1), np.float32)
    path = tmp_path / "heavy.onnx"
    ir.save(model(Case("z = Conv(x, w)", (1, 4096, 1, 1), {"w": weight}), infer=False), path)
    return path


@mostly("room", [1 << 24, 150 << 20, 230 << 20], fast=[1 << 24, 150 << 20])
def test_too_little_memory_is_one_line(tmp_path, heavy, room):
    before = names(tmp_path)
    out = tmp_path / "out.onnx"
    code, said = starved(room, "optimize", str(heavy), "-q", "-o", str(out), "--lowering", "mirror")
    assert code == 1, said
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    assert "memory" in said or "alloc" in said, said
    assert names(tmp_path) == before


@pytest.mark.parametrize("verb", ["build", "plan"])
def test_a_folder_that_cannot_be_written_is_one_line(made, capfd, verb):
    if os.geteuid() == 0 and shutil.which("chattr") is None:
        pytest.skip("root may write everywhere, and there is no chattr here")
    made.path.chmod(0o500)
    frozen = subprocess.run(["chattr", "+i", made.path], capture_output=True, check=False)
    if os.geteuid() == 0 and frozen.returncode:
        pytest.skip("root may write everywhere, and this file system has no immutable folders")
    try:
        more = ["-t", "ort-cpu:mirror"] if verb == "build" else ["--budget", "0"]
        assert cli.run([verb, str(made.path), "-q", *more]) == 1
    finally:
        subprocess.run(["chattr", "-i", made.path], capture_output=True, check=False)
        made.path.chmod(0o700)
    assert "error: " in capfd.readouterr().err
    assert Bundle.open(made.path).manifest["targets"] == {}
