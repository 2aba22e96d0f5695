"""What is scored: files, their rows, and pixels."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from crelu_deploy.cli import run as crelu
from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.runner import TensorSpec
from crelu_deploy.scoring import arrays
from crelu_deploy.scoring.inputs import Source, Span, cut, find_sources, fingerprint

X = TensorSpec("x", "float32", ("N", 1, 2, 2))
U8 = TensorSpec("x", "uint8", ("N", 3, 2, 2))
VALUES = np.arange(24, dtype=np.float32).reshape(6, 1, 2, 2)


def rows_of(spans):
    return [[(s.path, s.first, s.rows) for s in part] for part in spans]


# rows of the files, rows of a part -> the parts
CUTS = {
    "even": ([4], 2, [[("0", 0, 2)], [("0", 2, 2)]]),
    "rest": ([3], 2, [[("0", 0, 2)], [("0", 2, 1)]]),
    "across": ([1, 4], 3, [[("0", 0, 1), ("1", 0, 2)], [("1", 2, 2)]]),
    "empty file": ([2, 0, 1], 2, [[("0", 0, 2)], [("2", 0, 1)]]),
    "large part": ([1, 1], 9, [[("0", 0, 1), ("1", 0, 1)]]),
    "nothing": ([], 3, []),
}


@pytest.mark.parametrize(("sizes", "rows", "parts"), CUTS.values(), ids=CUTS)
def test_spans_are_cut_into_parts(sizes, rows, parts):
    spans = [Span(str(i), 0, size) for i, size in enumerate(sizes)]
    assert rows_of(cut(spans, rows)) == parts


def test_files_are_found_in_one_order_and_once(tmp_path):
    for name in ("b/2.png", "a.PNG", "b/1.jpg", "c.npy", "notes.txt", "d/e.png", ".b/z.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_sources([tmp_path / "b", tmp_path], [X])
    names = [os.path.relpath(source.path, tmp_path) for source in found]
    assert names == ["b/1.jpg", "b/2.png", "a.PNG", "c.npy", ".b/z.bmp", "d/e.png"]
    assert {source.rows for source in found} == {1}


@pytest.mark.parametrize(
    ("name", "message"),
    {"absent": "no such file", "notes.txt": "cannot be scored", "": "nothing to score"}.items(),
)
def test_what_cannot_be_scored_is_refused(tmp_path, name, message):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UnsupportedModel, match=message):
        find_sources([tmp_path / name], [X])


@pytest.mark.parametrize("change", [{"rows": 2}, {"size": 2}, {"modified": 2}, {"path": "b"}])
def test_the_fingerprint_notices_a_change(change):
    before = {"path": "a\udcff", "rows": 1, "size": 1, "modified": 1}
    found = fingerprint([Source(**before)])
    assert found == fingerprint([Source(**before)])
    assert found != fingerprint([Source(**{**before, **change})])


def write_npy(path: Path, array, version=(1, 0)) -> Path:
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, version=version)
    return path


def write_npz(path: Path, save=np.savez, **named) -> Path:
    save(path, **named)
    return path


ARRAYS = {
    "npy": lambda d: write_npy(d / "a.npy", VALUES),
    "npy 2.0": lambda d: write_npy(d / "a.npy", VALUES, (2, 0)),
    "npz": lambda d: write_npz(d / "a.npz", x=VALUES, label=np.arange(6)),
    "compressed": lambda d: write_npz(d / "a.npz", np.savez_compressed, x=VALUES),
}


@pytest.mark.parametrize("write", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize(("first", "rows"), [(0, 6), (2, 3), (5, 1), (3, 0)])
def test_arrays_are_read_from_any_row(tmp_path, write, first, rows):
    path = str(write(tmp_path))
    assert arrays.count(path, (X,)) == 6
    read = [row["x"] for row in arrays.read(Span(path, first, rows), (X,))]
    np.testing.assert_array_equal(np.array(read).reshape(-1, 1, 2, 2), VALUES[first : first + rows])


def cut_off(path: Path, by: int) -> Path:
    path.write_bytes(path.read_bytes()[:-by])
    return path


DAMAGED = {
    "empty": (lambda d: cut_off(write_npy(d / "a.npy", VALUES), 224), "ends early|EOF|magic"),
    "no zip": (lambda d: write_npy(d / "a.npz", VALUES), "not a zip file"),
    "name": (lambda d: write_npz(d / "a.npz", y=VALUES, z=VALUES), "no array named 'x'.*y, z"),
    "scalar": (lambda d: write_npy(d / "a.npy", np.float32(1)), "has no rows"),
    "objects": (lambda d: write_npy(d / "a.npy", np.array([{}])), "has no rows of numbers"),
    "fortran": (lambda d: write_npy(d / "a.npy", np.asfortranarray(VALUES[:, 0])), "Fortran"),
    "3.0": (lambda d: write_npy(d / "a.npy", VALUES, (3, 0)), r"format \(3, 0\)"),
    "absent": (lambda d: d / "a.npy", "No such file"),
}


@pytest.mark.parametrize(("write", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_array_is_one_row_with_the_reason(tmp_path, write, message):
    path = str(write(tmp_path))
    assert arrays.count(path, (X,)) == 1
    (row,) = arrays.read(Span(path, 0, 1), (X,))
    assert isinstance(row, str)
    assert re.search(message, row)


def test_an_array_that_ends_early_loses_only_its_last_rows(tmp_path):
    path = cut_off(write_npy(tmp_path / "a.npy", VALUES), 20)
    rows = list(arrays.read(Span(str(path), 0, 6), (X,)))
    assert [isinstance(row, str) for row in rows] == [False] * 4 + [True] * 2


def test_one_array_is_no_two_inputs(tmp_path):
    path = write_npy(tmp_path / "a.npy", VALUES)
    (row,) = arrays.read(Span(str(path), 0, 1), (X, TensorSpec("y", "float32", ("N",))))
    assert "the network has the inputs x, y" in row


# --- pixels ---------------------------------------------------------------------------------------

COLOURS = np.array([[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [100, 110, 120]]], np.uint8)


def encoded(pixels, kind="PNG", mode=None) -> bytes:
    image = pytest.importorskip("PIL.Image").fromarray(pixels)
    stream = io.BytesIO()
    (image.convert(mode) if mode else image).save(stream, kind)
    return stream.getvalue()


def preprocessing(**choices):
    pytest.importorskip("PIL")
    from crelu_deploy.preprocessing import Preprocessing

    return Preprocessing(**choices)


def decode(content, spec, **choices):
    from crelu_deploy.scoring.pixels import decode

    return decode(content, spec, preprocessing(**choices))


PLANES = COLOURS.transpose(2, 0, 1)
F32 = TensorSpec("x", "float32", ("N", 3, "H", "W"))
DECODED = {
    "0 to 1": (F32, {}, PLANES / np.float32(255)),
    "bytes": (U8, {}, PLANES),
    "bgr": (U8, {"bgr": True}, PLANES[::-1]),
    "faceboxes": (
        F32,
        {"mean": (104.0, 117.0, 123.0), "scale": (1.0,), "bgr": True},
        PLANES[::-1] - np.array([104, 117, 123], np.float32).reshape(3, 1, 1),
    ),
    "per channel": (
        F32,
        {"mean": (1.0,), "scale": (2.0, 4.0, 8.0)},
        (PLANES - np.float32(1)) / np.array([2, 4, 8], np.float32).reshape(3, 1, 1),
    ),
    "float16": (
        TensorSpec("x", "float16", (1, 3, 2, 2)),
        {"scale": (1.0,)},
        PLANES + np.float16(0),
    ),
}


@pytest.mark.parametrize(("spec", "choices", "planes"), DECODED.values(), ids=DECODED)
def test_pixels_become_planes(spec, choices, planes):
    found = decode(encoded(COLOURS), spec, **choices)
    np.testing.assert_array_equal(found, planes)
    assert found.dtype == spec.dtype


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_8_bit_mode_becomes_what_the_network_reads(mode):
    grey = TensorSpec("x", "uint8", ("N", 1, "H", "W"))
    content = encoded(COLOURS, "TIFF", mode)
    assert decode(content, grey).shape == (1, 2, 2)
    assert decode(content, U8).shape == (3, 2, 2)


def noise():
    return np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)


BAD_IMAGES = {
    "text": (lambda: b"no image", "no image of a format"),
    "empty": (lambda: b"", "no image of a format"),
    "cut off": (lambda: encoded(noise())[:2000], "no image that can be dec"),
    "16 bits": (lambda: encoded(np.full((2, 2), 999, np.uint16)), "more than 8 bits"),
}


@pytest.mark.parametrize(("content", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_bad_image_has_a_reason(content, message):
    made = content()
    with pytest.raises(ValueError, match=message):
        decode(made, U8)


REFUSED = {
    "rank": (TensorSpec("x", "float32", ("N", 4)), {}, "give arrays instead"),
    "channels": (TensorSpec("x", "float32", ("N", 2, 8, 8)), {}, "give arrays instead"),
    "type": (TensorSpec("x", "int8", ("N", 3, 8, 8)), {}, "does not hold 0 to 255"),
    "mean": (F32, {"mean": (1.0, 2.0)}, "--mean: 2 numbers for 3 channels"),
    "bgr": (TensorSpec("x", "float32", ("N", 1, 8, 8)), {"bgr": True}, "--bgr"),
}


@pytest.mark.parametrize(("spec", "choices", "message"), REFUSED.values(), ids=REFUSED)
def test_pixels_that_do_not_fit_are_refused(spec, choices, message):
    with pytest.raises(ValueError, match=message):
        preprocessing(**choices).check(spec)


# --- Parquet in -----------------------------------------------------------------------------------


def write_table(path: Path, column, **settings) -> str:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": column, "label": list(range(len(column)))}), path, **settings)
    return str(path)


def tensors(values):
    pa = pytest.importorskip("pyarrow")
    return pa.FixedShapeTensorArray.from_numpy_ndarray(values)


def floats(values, kind=None):
    pa = pytest.importorskip("pyarrow")
    return pa.array(values, pa.list_(pa.float32()) if kind is None else kind(pa))


COLUMNS = {
    "flat lists": lambda: floats(VALUES.reshape(6, 4).tolist()),
    "nested lists": lambda: floats(
        VALUES[:, 0].tolist(), lambda pa: pa.list_(pa.list_(pa.float32()))
    ),
    "tensors": lambda: tensors(VALUES),
}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
@pytest.mark.parametrize(("first", "rows"), [(0, 6), (1, 4), (4, 2)])
def test_numbers_in_parquet_are_read_from_any_row(tmp_path, column, first, rows):
    path = write_table(tmp_path / "a.parquet", column(), row_group_size=3)
    from crelu_deploy.scoring import tables

    assert tables.count(path, (X,)) == 6
    read = [row["x"] for row in tables.read(Span(path, first, rows), (X,))]
    np.testing.assert_array_equal(np.array(read), VALUES[first : first + rows])
    assert read[0].dtype == np.float32


BAD_CELLS = {
    "text": (["a"], "neither an encoded image nor a list"),
    "null": ([None], "neither|empty"),
    "short": ([[1.0]], "1 numbers; expected 4"),
    "hole": ([[1.0, None, 2.0, 3.0]], "neither"),
}


@pytest.mark.parametrize(("column", "message"), BAD_CELLS.values(), ids=BAD_CELLS)
def test_a_cell_that_is_no_input_has_a_reason(tmp_path, column, message):
    path = write_table(tmp_path / "a.parquet", column)
    from crelu_deploy.scoring import tables

    (row,) = tables.read(Span(path, 0, 1), (X,))
    assert re.search(message, row)


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: {"bytes": b, "path": "a.png"}])
def test_images_in_parquet_are_bytes(tmp_path, wrap):
    path = write_table(tmp_path / "a.parquet", [wrap(b"one"), wrap(b"two")])
    from crelu_deploy.scoring import tables

    assert list(tables.read(Span(path, 0, 2), (U8,))) == [{"x": b"one"}, {"x": b"two"}]


def test_no_parquet_is_one_row_with_the_reason(tmp_path):
    pytest.importorskip("pyarrow")
    from crelu_deploy.scoring import tables

    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    span = Span(str(tmp_path / "a.parquet"), 0, 1)
    assert tables.count(span.path, (X,)) == 1
    assert [isinstance(row, str) for row in tables.read(span, (X,))] == [True]


# --- without Ray ----------------------------------------------------------------------------------


def test_a_missing_package_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "crelu_deploy.scoring.cluster", raising=False)
    monkeypatch.delitem(sys.modules, "crelu_deploy.scoring.run", raising=False)
    assert crelu(["score", "b", "data", "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: crelu score needs the package ")
    assert error.endswith("run: pip install 'crelu-deploy[ray]'\n")


@pytest.mark.parametrize("option", ["--mean=x", "--scale=0", "--mean=nan", "--batch=0", "-tfoo"])
def test_wrong_usage(option, capsys):
    assert crelu(["score", "b", "data", "-o", "out", option]) == 2
    assert capsys.readouterr().err.count("\n") == 1
