"""The bundle on disk: whole or not at all, checked on opening, never over other files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from bundles import SPEC, write_bundle
from graphs import Case, model

from crelu_deploy import staging, writing
from crelu_deploy.bundle import Bundle, check_destination, contents
from crelu_deploy.errors import BuildError, UnsupportedModel
from crelu_deploy.manifest import FORMAT
from crelu_deploy.staging import staged_file, staged_folder, write_text
from crelu_deploy.targets import Target
from crelu_deploy.writing import save_model

PRIMITIVE = Target("ort-cpu", "primitive")


def tree(path: Path) -> dict[str, bytes]:
    """Return every file below a folder, temporary ones included, with its content."""
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def everything(path: Path) -> set[str]:
    """Return every name below a folder."""
    return {str(f.relative_to(path)) for f in path.rglob("*")}


# -- staged files and folders ------------------------------------------------------------------


@pytest.mark.parametrize("earlier", ["", "before"])
def test_a_staged_file_appears_when_the_block_ends(tmp_path, earlier):
    path = tmp_path / "a.json"
    if earlier:
        path.write_text(earlier)
    with staged_file(path) as temporary:
        temporary.write_text("now")
        assert path.exists() == bool(earlier)
        assert not earlier or path.read_text() == earlier
    assert tree(tmp_path) == {"a.json": b"now"}


def fill_with_weights(model: Path) -> None:
    model.write_text("model")
    (model.parent / "m.onnx.data").write_text("weights")


def test_files_beside_the_staged_one_go_along(tmp_path):
    with staged_file(tmp_path / "m.onnx") as temporary:
        fill_with_weights(temporary)
    assert tree(tmp_path) == {"m.onnx": b"model", "m.onnx.data": b"weights"}
    assert everything(tmp_path) == {"m.onnx", "m.onnx.data"}


def test_the_staged_file_comes_after_those_beside_it(tmp_path):
    (tmp_path / "m.onnx").write_text("before")
    (tmp_path / "m.onnx.data").mkdir()
    with (
        pytest.raises(BuildError, match="Is a directory"),
        staged_file(tmp_path / "m.onnx") as temporary,
    ):
        fill_with_weights(temporary)
    assert tree(tmp_path) == {"m.onnx": b"before"}


def write_file(stage: Path) -> None:
    stage.write_text("now")


def fill_folder(stage: Path) -> None:
    (stage / "new").write_text("now")


STAGED = {"file": (staged_file, write_file), "folder": (staged_folder, fill_folder)}


def interrupted(
    staged: AbstractContextManager[Path], write: Callable[[Path], None], error: BaseException
) -> None:
    with staged as stage:
        write(stage)
        raise error


RAISED = [ValueError("a mistake"), KeyboardInterrupt(), UnsupportedModel("refused"), SystemExit(3)]


@pytest.mark.parametrize("error", RAISED, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("earlier", [False, True], ids=["new", "earlier"])
@pytest.mark.parametrize(("staged", "write"), STAGED.values(), ids=STAGED)
def test_an_exception_keeps_what_was_there(tmp_path, staged, write, earlier, error):
    path = tmp_path / "out"
    if earlier and staged is staged_file:
        path.write_text("before")
    elif earlier:
        path.mkdir()
        (path / "old").write_text("before")
    before, names = tree(tmp_path), everything(tmp_path)
    with pytest.raises(type(error)) as caught:
        interrupted(staged(path), write, error)
    assert caught.value is error
    assert (tree(tmp_path), everything(tmp_path)) == (before, names)


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "no-exchange"])
def test_a_staged_folder_takes_the_place_of_an_earlier_one(tmp_path, monkeypatch, exchange):
    if not exchange:  # as on a system without the call
        monkeypatch.setattr(staging, "_exchange", lambda first, second: False)
    path = tmp_path / "out"
    for content in ("first", "second"):
        with staged_folder(path) as stage:
            (stage / "sub").mkdir()
            (stage / "sub" / content).write_text(content)
            assert content == "first" or tree(path) == {"sub/first": b"first"}
        assert tree(tmp_path) == {f"out/sub/{content}": content.encode()}
    assert everything(tmp_path) == {"out", "out/sub", "out/sub/second"}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="renameat2 is Linux's")
def test_folders_are_exchanged_in_one_step(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / folder.name).touch()
    if not staging._exchange(first, second):
        pytest.skip("the file system of the temporary folder cannot exchange")
    assert everything(tmp_path) == {"first", "second", "first/second", "second/first"}
    assert not staging._exchange(first, tmp_path / "missing")
    assert everything(first) == {"second"}


def test_an_earlier_folder_survives_a_stage_that_is_lost(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").write_text("before")
    with pytest.raises(BuildError, match="cannot be written"), staged_folder(path) as stage:
        shutil.rmtree(stage)
    assert tree(tmp_path) == {"out/old": b"before"}
    assert everything(tmp_path) == {"out", "out/old"}


UNWRITABLE = {
    "proc": ("/proc/out", "No such file or directory"),
    "sys": ("/sys/out", "Operation not permitted|Permission denied|Read-only file system"),
    "no-parent": ("missing/out", "No such file or directory"),
    "below-a-file": ("file/out", "Not a directory"),
    "long-name": ("a" * 300, "File name too long"),
}


@pytest.mark.parametrize(("place", "message"), UNWRITABLE.values(), ids=UNWRITABLE)
@pytest.mark.parametrize(("staged", "write"), STAGED.values(), ids=STAGED)
def test_unwritable_places(tmp_path, staged, write, place, message):
    (tmp_path / "file").touch()
    path = tmp_path / place
    match = re.escape(f"{path}: cannot be written: ") + f"({message})"
    with pytest.raises(BuildError, match=match), staged(path) as stage:
        write(stage)
    assert everything(tmp_path) == {"file"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(("staged", "write"), STAGED.values(), ids=STAGED)
def test_a_full_disk_keeps_the_earlier_one(small_disk, staged, write):
    path = small_disk / "out"
    with staged(path) as stage:
        write(stage)
    before = tree(small_disk)
    full = re.escape(f"{path}: cannot be written: No space left on device")
    with pytest.raises(BuildError, match=full), staged(path) as stage:
        (stage if staged is staged_file else stage / "big").write_bytes(bytes(100_000))
    assert tree(small_disk) == before
    with staged(path) as stage:
        write(stage)
    assert tree(small_disk) == before


def test_a_bundle_on_a_full_disk_stays_whole(small_disk):
    bundle = write_bundle(small_disk / "bundle")
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free))
    before = tree(bundle.path)
    with pytest.raises(BuildError, match=r"manifest\.json: cannot be written: No space left"):
        bundle.record((), extra="x" * 10_000)
    with pytest.raises(BuildError, match=r"ort-cpu-primitive\.onnx: cannot be written: No space"):
        bundle.write(bundle.model, PRIMITIVE)
    assert tree(bundle.path) == before
    assert "extra" not in Bundle.open(bundle.path).manifest


def test_a_mount_point_is_refused_before_any_work(small_disk):
    with pytest.raises(BuildError, match="is a mount point"):
        check_destination(small_disk)
    check_destination(small_disk / "inside")


def test_text_is_written_as_utf8(tmp_path):
    write_text(tmp_path / "t", "é\n")
    assert (tmp_path / "t").read_bytes() == b"\xc3\xa9\n"


# -- the bundle --------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "made")


def test_a_bundle_is_read_as_it_was_written(made):
    opened = Bundle.open(str(made.path))
    assert opened.manifest == json.loads(json.dumps(made.manifest))
    assert opened.inputs == (SPEC,)
    assert opened.outputs == ("y",)
    assert [node.op_type for node in opened.model.graph] == ["Conv", "CReLU"]
    assert [sample.inputs["x"].shape[0] for sample in opened.samples] == [1, 2]
    assert contents(made.path) == {"manifest.json", "model.onnx", "samples.npz"}
    assert everything(made.path) == contents(made.path)


@pytest.mark.parametrize(
    ("target", "file"),
    [
        (Target("ort-cpu", "function"), "model.onnx"),
        (Target("ort-cpu", "auto"), "targets/ort-cpu-auto.onnx"),
        (PRIMITIVE, "targets/ort-cpu-primitive.onnx"),
    ],
)
def test_where_a_target_is(made, target, file):
    assert made.artifact(target) == made.path / file


def test_a_target_is_written_beside_the_model_and_recorded(made):
    files = made.write(made.model, PRIMITIVE)
    entry = {"lowerings": {}, "reasons": {}}
    made.record(files, targets={str(PRIMITIVE): entry})
    assert files == (made.path / "targets" / "ort-cpu-primitive.onnx",)
    opened = Bundle.open(made.path)
    assert "targets/ort-cpu-primitive.onnx" in opened.manifest["files"]
    assert opened.manifest["targets"] == {"ort-cpu:primitive": entry}
    assert opened.inputs == made.inputs


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def turn_into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "one-bit": (change, "changed since it was written; export it again"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "changed since it was written"),
    "emptied": (lambda p: p.write_bytes(b""), "changed since it was written"),
    "missing": (Path.unlink, "missing from the bundle; export it again"),
    "folder": (turn_into_a_folder, "missing from the bundle"),
}


@pytest.mark.parametrize("name", ["model.onnx", "samples.npz", "targets/ort-cpu-primitive.onnx"])
@pytest.mark.parametrize(("harm", "message"), HARM.values(), ids=HARM)
def test_a_changed_file_is_named(made, harm, message, name):
    made.record(made.write(made.model, PRIMITIVE))
    harm(made.path / name)
    with pytest.raises(UnsupportedModel, match=re.escape(f"{made.path / name}: {message}")):
        Bundle.open(made.path)


MISSING: Any = object()

# field -> value, and the message
FIELDS = {
    "newer": ({"format": FORMAT + 1}, f"format {FORMAT + 1} is not {FORMAT}; update crelu-deploy"),
    "newer-and-different": ({"format": 9, "files": MISSING, "inputs": 3}, "update crelu-deploy"),
    "format-nan": ({"format": float("nan")}, "format nan is not 1"),
    "format-infinite": ({"format": float("inf")}, "format inf is not 1"),
    "format-text": ({"format": "1"}, "damaged"),
    "format-null": ({"format": None}, "damaged"),
    "no-format": ({"format": MISSING}, "damaged (KeyError('format'))"),
    "no-files": ({"files": MISSING}, "damaged (KeyError('files'))"),
    "files-list": ({"files": ["model.onnx"]}, "damaged"),
    "files-null": ({"files": None}, "damaged"),
    "no-inputs": ({"inputs": []}, "damaged"),
    "inputs-null": ({"inputs": None}, "damaged"),
    "inputs-text": ({"inputs": ["x"]}, "damaged"),
    "input-without-shape": ({"inputs": [{"name": "x", "dtype": "float32"}]}, "damaged"),
    "outputs-null": ({"outputs": None}, "damaged"),
    "no-outputs": ({"outputs": MISSING}, "damaged (KeyError('outputs'))"),
    "no-sites": ({"sites": MISSING}, "damaged (KeyError('sites'))"),
    "preprocessing": ({"preprocessing": {"mean": [0]}}, "has no mean, scale and bgr"),
    "no-targets": ({"targets": MISSING}, "damaged (KeyError('targets'))"),
    "targets-list": ({"targets": ["ort-cpu:auto"]}, "damaged"),
    "parent": ({"files": {"../secret": "0"}}, "'../secret' lies outside the bundle"),
    "inner-parent": ({"files": {"a/../../secret": "0"}}, "lies outside the bundle"),
    "absolute": ({"files": {"/etc/passwd": "0"}}, "'/etc/passwd' lies outside the bundle"),
}


@pytest.mark.parametrize(("fields", "message"), FIELDS.values(), ids=FIELDS)
def test_a_manifest_that_is_not_one_of_ours(made, fields, message):
    (made.path.parent / "secret").write_text("")
    merged = {**made.manifest, **fields}
    manifest = {key: value for key, value in merged.items() if value is not MISSING}
    (made.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UnsupportedModel, match=r"manifest\.json: ") as caught:
        Bundle.open(made.path)
    assert message in str(caught.value)
    assert "export" in str(caught.value) or "update" in str(caught.value) or "lies" in message


DAMAGED_JSON = {
    "empty": b"",
    "cut": b'{"format": 1, "files": {"model.onnx": "0',
    "text": b"hello",
    "number": b"5",
    "null": b"null",
    "list": b"[1, 2]",
    "binary": b"\xff\xfe\x00{}",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", DAMAGED_JSON.values(), ids=DAMAGED_JSON)
def test_damaged_json(made, content):
    (made.path / "manifest.json").write_bytes(content)
    with pytest.raises(UnsupportedModel, match=r"manifest\.json: damaged \(.+\); export again"):
        Bundle.open(made.path)


@pytest.mark.parametrize("place", ["missing", "empty", "file", "made/targets"])
def test_no_bundle(made, place):
    root = made.path.parent
    (root / "empty").mkdir()
    (root / "file").touch()
    with pytest.raises(UnsupportedModel, match=r"not a bundle, it has no manifest\.json; run"):
        Bundle.open(root / place)


def test_recording_keeps_other_entries_and_leaves_no_temporaries(made):
    made.record((), verification={"ort-cpu:auto": {"passed": True}})
    made.record((), notes=["a"])
    opened = Bundle.open(made.path).manifest
    assert opened["verification"] == {"ort-cpu:auto": {"passed": True}}
    assert opened["notes"] == ["a"]
    assert everything(made.path) == {"manifest.json", "model.onnx", "samples.npz"}


# -- where a bundle may be written -------------------------------------------------------------


def test_free_places(made, tmp_path):
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    made.record(made.write(made.model, PRIMITIVE))
    before = tree(tmp_path)
    for place in (made.path, tmp_path / "empty", tmp_path / "new", tmp_path / "a" / "b" / "c"):
        check_destination(place)
    assert tree(tmp_path) == before
    assert not [name for name in everything(tmp_path) if name.startswith(".")]


def turn_into_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.touch()


def add_a_target(path: Path) -> None:
    (path / "targets").mkdir()
    (path / "targets" / "x").touch()


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a-file": (turn_into_a_file, "holds 'made'"),
    "a-file-beside": (lambda p: (p / "notes.txt").touch(), "holds 'notes.txt'"),
    "a-hidden-file": (lambda p: (p / ".git").touch(), "holds '.git'"),
    "deeper": (add_a_target, "'targets/x'"),
    "no-manifest": (lambda p: (p / "manifest.json").unlink(), "holds 'model.onnx'"),
    "damaged-manifest": (lambda p: (p / "manifest.json").write_text("{"), "'manifest.json'"),
}


@pytest.mark.parametrize(("harm", "message"), FOREIGN.values(), ids=FOREIGN)
def test_foreign_files_are_never_replaced(made, harm, message):
    harm(made.path)
    before = tree(made.path.parent)
    with pytest.raises(BuildError, match="nothing was touched, choose another folder") as caught:
        check_destination(made.path)
    assert message in str(caught.value)
    assert tree(made.path.parent) == before


@pytest.mark.parametrize("place", ["/proc/x", "/proc/no/folder/x", "file/x"])
def test_unwritable_destinations(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match=re.escape(f"{tmp_path / place}: cannot be written: ")):
        check_destination(tmp_path / place)


# -- weights beside the model ------------------------------------------------------------------


@pytest.fixture
def large() -> ir.Model:
    """A model with a weight of 640 bytes, which is over the limit that the tests set."""
    return model(Case("z = Conv(x, w, b)", (1, 8, 3, 3), {"w": (20, 8, 1, 1), "b": (20,)}))


def weight_of(model: ir.Model) -> ir.TensorProtocol:
    found = model.graph.initializers["w"].const_value
    assert found is not None
    return found


def test_weights_over_the_limit_go_to_a_file_of_their_own(large, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "INLINE_LIMIT", 500)
    files = save_model(large, tmp_path / "m.onnx")
    assert [file.name for file in files] == ["m.onnx", "m.onnx.data"]
    assert everything(tmp_path) == {"m.onnx", "m.onnx.data"}
    weight = weight_of(ir.load(files[0]))
    assert isinstance(weight, ir.ExternalTensor)
    assert np.array_equal(weight.numpy(), weight_of(large).numpy())


def test_weights_read_from_beside_a_model_are_written_into_it(large, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(writing, "INLINE_LIMIT", 500)
        first, _ = save_model(large, tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()
    (copy,) = save_model(ir.load(first), tmp_path / "out" / "m.onnx")
    weight = weight_of(ir.load(copy))
    assert not isinstance(weight, ir.ExternalTensor)
    assert np.array_equal(weight.numpy(), weight_of(large).numpy())
    assert everything(tmp_path / "out") == {"m.onnx"}


def test_weights_that_do_not_fit_keep_the_earlier_ones(large, small_disk, monkeypatch):
    monkeypatch.setattr(writing, "INLINE_LIMIT", 500)
    save_model(large, small_disk / "m.onnx")
    before = tree(small_disk)
    huge = model(Case("z = Conv(x, w, b)", (1, 8, 3, 3), {"w": (4000, 8, 1, 1), "b": (4000,)}))
    with pytest.raises(BuildError, match=r"m\.onnx: cannot be written: .*[Nn]o space"):
        save_model(huge, small_disk / "m.onnx")
    assert tree(small_disk) == before
