"""Shards and the folder they are written to: exactly once, bit for bit, and resumable."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from scoring_data import batches, crelu_score, expected, noisy_digits, read_rows

from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BuildError, UnsupportedModel
from crelu_deploy.runner import Runner, TensorSpec
from crelu_deploy.scoring.inputs import Span, cut

pa = pytest.importorskip("pyarrow", reason="crelu score is not installed: crelu-deploy[ray]")
Image = pytest.importorskip("PIL.Image", reason="crelu score is not installed: crelu-deploy[ray]")
pytest.importorskip("onnxruntime")

from crelu_deploy.preprocessing import Preprocessing  # noqa: E402
from crelu_deploy.scoring import ledger, output  # noqa: E402
from crelu_deploy.scoring.shard import Job, Scorer, Shard, load_rows, run_rows  # noqa: E402

RUN = ledger.Run("bundle", "inputs", "ort-cpu:auto", {"batch": 8}, 10, 2)


def job_of(bundle: Path, out: Path, **choices) -> Job:
    out.mkdir()
    inputs = Bundle.open(bundle).inputs
    job = Job(bundle, "ort-cpu:auto", out, "run", inputs, 8, Preprocessing())
    return replace(job, **choices)


def save(path: Path, **named) -> Path:
    np.savez(path, **named)
    return path


@pytest.mark.parametrize("readers", [0, 2])
def test_a_shard_has_every_row_as_the_runner_gives_it(shared_bundle, tmp_path, readers):
    x = noisy_digits(50)
    path = str(save(tmp_path / "x.npz", input=x))
    scorer = Scorer(job_of(shared_bundle, tmp_path / "out", readers=readers))
    for number, spans in enumerate(cut([Span(path, 0, 50)], 20)):
        assert scorer.score(Shard(number, spans)).errors == 0
    rows = read_rows(tmp_path / "out")
    assert rows["path"] == [path] * 50
    assert rows["index"] == list(range(50))
    assert rows["error"] == [None] * 50
    assert rows["logits.shape"] == [[10]] * 50
    wanted = expected(shared_bundle, x, 8, 20)
    np.testing.assert_array_equal(np.array(rows["logits"], np.float32), wanted)


def test_rows_with_an_error_leave_their_neighbours_alone(shared_bundle, tmp_path):
    x = noisy_digits(3)
    good = str(save(tmp_path / "a.npz", input=x))
    double = str(save(tmp_path / "b.npz", input=x.astype(np.float64)))
    wide = str(save(tmp_path / "c.npz", input=np.zeros((1, 1, 30, 28), np.float32)))
    spans = (Span(good, 0, 2), Span(double, 0, 1), Span("/absent.png", 0, 1), Span(wide, 0, 1))
    scorer = Scorer(job_of(shared_bundle, tmp_path / "out"))
    scored = scorer.score(Shard(0, (*spans, Span(good, 2, 1))))
    assert (scored.rows, scored.errors) == (6, 3)
    assert scored.example.startswith(f"{double}[0]: input 'input': expected float32, got float64")
    rows = read_rows(tmp_path / "out")
    assert [error is None for error in rows["error"]] == [True, True, False, False, False, True]
    assert [one is None for one in rows["logits"]] == [False, False, True, True, True, False]
    assert "cannot be read: No such file" in rows["error"][3]
    assert "expected shape (1, 28, 28), got (1, 30, 28)" in rows["error"][4]
    logits = [one for one in rows["logits"] if one is not None]
    assert np.array_equal(np.array(logits, np.float32), expected(shared_bundle, x, 8, 6))


@pytest.mark.parametrize("readers", [0, 3])
@pytest.mark.parametrize("batch", [1, 3, 7, 50])
def test_batches_keep_the_order(shared_bundle, tmp_path, batch, readers):
    x = noisy_digits(7)
    path = str(save(tmp_path / "x.npz", input=x))
    job = job_of(shared_bundle, tmp_path / "out", batch=batch, readers=readers)
    found = list(load_rows([Span(path, 0, 3), Span(path, 3, 4)], job))
    assert [len(rows) for rows in found] == [len(part) for part in batches(x, batch, 7)]
    np.testing.assert_array_equal(np.stack([r["input"] for r in chain(*found)]), x)


class Doubler(Runner):
    """Returns x twice over, in one output; refuses rows that are 3 wide; sums where they are 4."""

    inputs = (TensorSpec("x", "float32", ("N", "W")),)
    outputs = ("y",)
    calls: tuple[tuple[int, ...], ...] = ()

    def _run(self, feeds):
        x = feeds["x"]
        self.calls += (x.shape,)
        if x.shape[1] == 3:
            raise BuildError("3 is refused")
        return [x.sum() if x.shape[1] == 4 else np.concatenate([x, x], 1)]


def test_rows_of_one_shape_are_run_together():
    rows = [{"x": np.full(w, i, np.float32)} for i, w in enumerate([2, 3, 2, 4, 3])]
    runner = Doubler()
    results = run_rows(runner, ["bad", *rows])
    assert runner.calls == ((2, 2), (2, 3), (1, 4))
    assert [r if isinstance(r, str) else r["y"].tolist() for r in results] == [
        *("bad", [0.0] * 4, "3 is refused", [2.0] * 4),
        "output 'y' has shape () for a batch of 1: its axis 0 is no batch",
        "3 is refused",
    ]


def shard_file(out: Path, number: int, tables=(), run: str = "run"):
    schema = output.schema_of({"y": np.dtype(np.float32)})
    return output.save_shard(out, number, run, schema, tables)


def one_table(error: str | None = None):
    schema = output.schema_of({"y": np.dtype(np.float32)})
    result = error or {"y": np.zeros((2, 3), np.float32)}
    return output.table_of(schema, [("p\udcff", 4)], [result])


def test_a_file_says_what_it_holds(tmp_path):
    saved = shard_file(tmp_path, 3, [one_table(), one_table("why"), one_table("other")])
    assert saved == output.Scored(3, 3, 2, "p\\xff[4]: why")
    file = tmp_path / "part-0000003.parquet"
    assert output.read_mark(file, "run") == saved
    assert output.read_mark(file, "another") is None
    assert [f.name for f in tmp_path.iterdir()] == [file.name]
    assert read_rows(tmp_path)["y.shape"] == [[2, 3], None, None]


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"", lambda b: b"x" * len(b)])
def test_a_damaged_file_is_not_finished(tmp_path, damage):
    shard_file(tmp_path, 0, [one_table()])
    file = tmp_path / "part-0000000.parquet"
    file.write_bytes(damage(file.read_bytes()))
    assert output.read_mark(file, "run") is None


def test_a_failure_leaves_no_file(tmp_path):
    def tables():
        yield one_table()
        raise OSError(28, "No space left on device")

    with pytest.raises(BuildError, match="cannot be written: No space left"):
        shard_file(tmp_path, 0, tables())
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_kills_its_processes_ends_the_run(tmp_path):
    for attempt in range(output.ATTEMPTS):
        (tmp_path / f".part-0000005.{attempt}.tmp").touch()
    shard_file(tmp_path, 4, [one_table()])
    with pytest.raises(BuildError, match=f"{output.ATTEMPTS} processes died of shard 5"):
        shard_file(tmp_path, 5, [one_table()])


def test_columns_have_one_name_each():
    with pytest.raises(BuildError, match="'index'"):
        output.schema_of({"index": np.dtype(np.float32)})


# --- the ledger -----------------------------------------------------------------------------------


def test_a_run_finds_its_finished_shards_again(tmp_path):
    assert ledger.claim(tmp_path, RUN) == {}
    saved = shard_file(tmp_path, 1, [one_table()], RUN.hash)
    shard_file(tmp_path, 0, [one_table()], "another")
    (tmp_path / ".part-0000002.0.tmp").touch()
    assert ledger.claim(tmp_path, RUN) == {1: saved}
    assert not (tmp_path / ".part-0000002.0.tmp").exists()


@pytest.mark.parametrize("field", ["bundle", "inputs", "target", "settings"])
def test_another_run_is_refused(tmp_path, field):
    ledger.claim(tmp_path, RUN)
    shard_file(tmp_path, 0, [one_table()], RUN.hash)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    value = {"batch": 9} if field == "settings" else "other"
    with pytest.raises(BuildError, match=f"holds another run: its {field} differ; nothing was"):
        ledger.claim(tmp_path, replace(RUN, **{field: value}))
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_a_claim_without_a_shard_does_not_last(tmp_path):
    ledger.claim(tmp_path, RUN)
    assert ledger.claim(tmp_path, replace(RUN, bundle="other")) == {}
    ledger.clean(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_claim_is_refused(tmp_path):
    ledger.claim(tmp_path, RUN)
    shard_file(tmp_path, 0, [one_table()], RUN.hash)
    (tmp_path / ledger.RUN).write_text("{")
    with pytest.raises(BuildError, match="damaged"):
        ledger.claim(tmp_path, RUN)


def test_a_foreign_folder_is_refused(tmp_path):
    ledger.check_folder(tmp_path / "absent")
    ledger.check_folder(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BuildError, match=r"holds 'thesis\.tex', which no run"):
        ledger.check_folder(tmp_path)
    with pytest.raises(BuildError, match="cannot be used"):
        ledger.check_folder(tmp_path / "thesis.tex")


# --- the whole command, on a Ray of this machine --------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """60 digits as PNG files, 40 as arrays, and a file that is no image."""
    folder = tmp_path_factory.mktemp("pictures")
    digits = np.round(noisy_digits(100).clip(0, 1) * 255).astype(np.uint8)
    for i, digit in enumerate(digits[:60]):
        Image.fromarray(digit[0]).save(folder / f"{i:02}.png")
    (folder / "99.jpg").write_text("no image")
    save(folder / "more.npz", input=digits[60:] / np.float32(255), label=np.zeros(40))
    return folder


def check_run(bundle: Path, pictures: Path, out: Path) -> None:
    """Every input is there once, with the runner's bits; one row is an error."""
    rows = read_rows(out)
    assert rows["path"] == [
        *(str(pictures / f"{i:02}.png") for i in range(60)),
        *(str(pictures / "99.jpg"), *[str(pictures / "more.npz")] * 40),
    ]
    assert rows["index"] == [0] * 61 + list(range(40))
    assert [i for i, error in enumerate(rows["error"]) if error] == [60]
    images = [np.asarray(Image.open(path)) for path in rows["path"][:60]]
    with np.load(pictures / "more.npz") as more:
        x = np.concatenate([np.stack(images)[:, None] / np.float32(255), more["input"]])
    logits = np.array([one for one in rows["logits"] if one is not None], np.float32)
    # One file is one batch here, and the bad row, the eleventh of the third, is in none.
    parts = np.split(x, [25, 50, 74, 99])
    wanted = np.concatenate([expected(bundle, part, 32, 32) for part in parts])
    np.testing.assert_array_equal(logits, wanted)


def test_a_folder_is_scored_and_resumed(bundle, pictures, tmp_path):
    pytest.importorskip("ray", reason="crelu score is not installed: crelu-deploy[ray]")
    out = tmp_path / "deep" / "out"
    arguments = (bundle, pictures, "-o", out, "--shard", 25)
    done = crelu_score(*arguments, "--json", "--max-errors", 1)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["errors"], summary["shards"]) == (101, 1, 5)
    check_run(bundle, pictures, out)
    times = {f.name: f.stat().st_mtime_ns for f in out.iterdir()}
    again = crelu_score(*arguments)
    assert "101 rows in 5 files, 5 of them were there" in again.stdout
    assert {f.name: f.stat().st_mtime_ns for f in out.iterdir()} == times
    limited = crelu_score(*arguments, "--max-errors", 0)
    assert limited.returncode == 1
    assert "error: 1 rows failed, more than --max-errors 0; the first: " in limited.stderr
    os.utime(pictures / "00.png", ns=(0, 0))
    other = crelu_score(*arguments, "-q")
    assert other.returncode == 1
    assert other.stderr.count("\n") == 1
    assert "holds another run: its inputs differ" in other.stderr


REFUSED = {
    "bundle": (["{tmp}", "{data}", "-o", "{tmp}/out"], "not a bundle"),
    "changed": (["{changed}", "{data}", "-o", "{tmp}/out"], "changed since it was written"),
    "target": (["{bundle}", "{data}", "-o", "{tmp}/out", "-tort-cpu:mirror"], "is not built; run"),
    "data": (["{bundle}", "{tmp}/absent", "-o", "{tmp}/out"], "no such file or folder"),
    "mean": (["{bundle}", "{data}", "-o", "{tmp}/out", "--mean=1,2"], "2 numbers for 1 channels"),
    "foreign": (["{bundle}", "{data}", "-o", "{data}"], "holds '00.png', which no run"),
    "unwritable": (["{bundle}", "{data}", "-o", "/proc/out"], "/proc/out: cannot be made"),
    "address": (["{bundle}", "{data}", "-o", "{tmp}/out", "--address=x"], "expected HOST:PORT"),
    "nobody": (
        ["{bundle}", "{data}", "-o", "{tmp}/out", "--address=127.0.0.1:1"],
        "nobody answers there",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_costs_one_line(shared_bundle, pictures, tmp_path, capsys, arguments, message):
    pytest.importorskip("ray", reason="crelu score is not installed: crelu-deploy[ray]")
    from crelu_deploy.cli import run

    changed = shutil.copytree(shared_bundle, tmp_path / "changed.crelu")
    (changed / "model.onnx").write_bytes(b"")
    names = {"bundle": shared_bundle, "data": pictures, "tmp": tmp_path, "changed": changed}
    assert run(["score", "-q", *(text.format(**names) for text in arguments)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_batch_axis_is_refused(shared_bundle):
    pytest.importorskip("ray", reason="crelu score is not installed: crelu-deploy[ray]")
    from crelu_deploy.scoring.run import _batch

    assert _batch([TensorSpec("x", "float32", (1, 4))], 32) == 1
    assert _batch([TensorSpec("x", "float32", ("N", 4))], 32) == 32
    for shape in ((), (8, 4)):
        with pytest.raises(UnsupportedModel, match="its batch is not free"):
            _batch([TensorSpec("x", "float32", shape)], 32)
