"""Samples on disk: what is written is read back bit for bit; damaged files are refused."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.runner import TensorSpec
from crelu_deploy.samples import (
    Arrays,
    Sample,
    load_samples,
    random_inputs,
    read_inputs,
    save_samples,
    wrapped,
)

X = np.array([[1.5, -0.0, math.nan], [math.inf, -1e-45, 3.0]], np.float32)
EVERY_TYPE = {
    np.dtype(name).name: np.array([[0, 1]], name)
    for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
}


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    """Whether two mappings hold the same names in the same order, types, shapes and bits."""
    return [(k, v.dtype, v.shape, v.tobytes()) for k, v in first.items()] == [
        (k, v.dtype, v.shape, v.tobytes()) for k, v in second.items()
    ]


STORED = {
    "one": (Sample({"x": X}, {"y": -X}),),
    "order-of-names": (Sample({"b": X, "a": X[:1]}, {"z": X, "y": X[0]}),),
    "eleven": tuple(Sample({"x": X + i}, {"y": X - i}) for i in range(11)),
    "slash-dot-colon": (Sample({"in/put.1": X, "serve:0": X}, {"out/a/b": X}),),
    "npy": (Sample({"x.npy": X}, {"file": X, "allow_pickle": X, "args": X}),),
    "unicode": (Sample({"eingäng 输入": X}, {"y": X}),),
    "every-type": (Sample(EVERY_TYPE, EVERY_TYPE),),
    "empty-and-scalar": (Sample({"e": X[:0], "s": np.array(2.5)}, {"y": X[:, :0]}),),
    "strided": (Sample({"x": np.ascontiguousarray(X.T)}, {"y": np.ascontiguousarray(X[:, ::2])}),),
}


@pytest.mark.parametrize("samples", STORED.values(), ids=STORED)
def test_samples_come_back_bit_for_bit(tmp_path, samples):
    save_samples(tmp_path / "samples.npz", samples)
    loaded = load_samples(tmp_path / "samples.npz")
    assert len(loaded) == len(samples)
    for one, other in zip(loaded, samples, strict=True):
        assert same(one.inputs, other.inputs)
        assert same(one.outputs, other.outputs)


def npz(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    return arrays


FOREIGN = {
    "no-samples": ({}, "no samples inside"),
    "plain-name": ({"x": X}, "'x' is not an array of a sample"),
    "no-name": ({"0/input/": X}, "'0/input/' is not an array of a sample"),
    "unknown-kind": ({"0/weight/x": X}, "'0/weight/x' is not an array of a sample"),
    "negative": ({"-1/input/x": X}, "'-1/input/x' is not an array of a sample"),
    "word": ({"first/input/x": X}, "'first/input/x' is not an array of a sample"),
    "one-among-good": ({"0/input/x": X, "label": X}, "'label' is not an array of a sample"),
}


@pytest.mark.parametrize(("arrays", "message"), FOREIGN.values(), ids=FOREIGN)
def test_arrays_of_something_else_are_refused(tmp_path, arrays, message):
    path = tmp_path / "samples.npz"
    np.savez(path, **arrays)
    with pytest.raises(UnsupportedModel, match=re.escape(f"{path}: {message}")):
        load_samples(path)


def written(save: Callable[..., None], **arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


PLAIN = written(np.savez, x=X)
PACKED = written(np.savez_compressed, x=np.zeros((50, 3), np.float32))
OBJECTS = written(np.savez, x=np.array([{"a": 1}], object))


def read_x(path: Path) -> tuple[Arrays, ...]:
    return read_inputs(path, (TensorSpec("x", "float32", ("N", 3)),), 1)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


DAMAGED = {
    "empty": (b"", "not a readable NPZ file"),
    "text": (b"1,2,3\n" * 20, "not a readable NPZ file"),
    "cut": (PLAIN[:-30], "not a readable NPZ file"),
    "half": (PLAIN[: len(PLAIN) // 2], "not a readable NPZ file"),
    "head-only": (PLAIN[:10], "not a readable NPZ file"),
    "data-changed": (flipped(PLAIN, PLAIN.index(X.tobytes()) + 3), "not a readable NPZ file"),
    "compressed-data-changed": (flipped(PACKED, len(PACKED) // 3), "not a readable NPZ file"),
    "unknown-compression": (flipped(PLAIN, PLAIN.index(b"PK\x01\x02") + 10), "not a readable NPZ"),
    "objects": (OBJECTS, "not a readable NPZ file: Object arrays cannot be loaded"),
    "one-array": (written(np.save, arr=X), "one array; expected an NPZ file with named arrays"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("read", [load_samples, read_x], ids=["samples", "inputs"])
def test_damaged_files_are_refused(tmp_path, read, content, message):
    path = tmp_path / "samples.npz"
    path.write_bytes(content)
    with pytest.raises(UnsupportedModel, match=re.escape(f"{path}: {message}")):
        read(path)


def test_random_damage_never_ends_in_another_error(tmp_path):
    path = tmp_path / "samples.npz"
    generator = np.random.default_rng(0)
    refused = 0
    for data in (PLAIN, PACKED) * 150:
        damaged = bytearray(data)
        for _ in range(3):
            damaged[generator.integers(len(data))] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            read_x(path)
        except UnsupportedModel:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("place", ["missing.npz", "folder", "no/such/folder.npz"])
def test_files_that_are_not_there(tmp_path, place):
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        UnsupportedModel, match=r"no such file|not a readable NPZ file: .*directory"
    ):
        load_samples(tmp_path / place)


SPECS = (TensorSpec("x", "float32", ("N", 3)), TensorSpec("m", "int64", ("N",)))
ROWS, MASK = np.arange(21, dtype=np.float32).reshape(7, 3), np.arange(7)


@pytest.mark.parametrize(("batch", "calls"), [(1, 7), (2, 3), (3, 2), (7, 1)])
def test_a_users_inputs_become_calls(tmp_path, batch, calls):
    path = tmp_path / "inputs.npz"
    np.savez(path, x=ROWS, m=MASK, label=np.zeros(99))
    found = read_inputs(path, SPECS, batch)
    assert len(found) == calls
    for i, call in enumerate(found):
        rows = slice(i * batch, (i + 1) * batch)
        assert same(dict(call), {"x": ROWS[rows], "m": MASK[rows]})


UNFIT = {
    "missing": (npz(x=ROWS, mask=MASK), 1, "no array named 'm'; the file has x, mask"),
    "none": (npz(), 1, "no array named 'x'; the file has none"),
    "rows-differ": (npz(x=ROWS, m=MASK[:5]), 1, "one equal number of rows, at least 1; got [5, 7]"),
    "too-few": (npz(x=ROWS, m=MASK), 8, "one equal number of rows, at least 8; got [7]"),
    "no-rows": (npz(x=ROWS[:0], m=MASK[:0]), 1, "at least 1; got [0]"),
    "scalar": (npz(x=np.float32(1), m=MASK), 1, "at least 1; got [0, 7]"),
    "type": (npz(x=ROWS.astype(float), m=MASK), 1, "input 'x': expected float32, got float64"),
    "shape": (npz(x=ROWS[:, :2], m=MASK), 1, "input 'x': expected shape (N, 3), got (1, 2)"),
    "rank": (npz(x=ROWS, m=MASK[:, None]), 1, "input 'm': expected shape (N), got (1, 1)"),
}


@pytest.mark.parametrize(("arrays", "batch", "message"), UNFIT.values(), ids=UNFIT)
def test_inputs_that_do_not_fit_are_refused(tmp_path, arrays, batch, message):
    path = tmp_path / "inputs.npz"
    np.savez(path, **arrays)
    with pytest.raises(UnsupportedModel, match=re.escape(message)) as caught:
        read_inputs(path, SPECS, batch)
    assert str(caught.value).startswith(f"{path}: ")


def test_an_unwritable_place_is_an_error():
    with pytest.raises(OSError, match="No such file"):
        save_samples(Path("/proc/samples.npz"), STORED["one"])


@pytest.mark.parametrize("dtype", [*EVERY_TYPE])
def test_random_inputs_have_the_type_and_are_seeded(dtype):
    specs = (TensorSpec("a", dtype, (50, 40)), TensorSpec("b", dtype, (50, 40)))
    shapes = {"a": (50, 40), "b": (50, 40)}
    first, again, other = (random_inputs(specs, shapes, seed) for seed in (7, 7, 8))
    assert same(first, again)
    assert not same(first, other)
    assert not np.array_equal(first["a"], first["b"])
    assert first["a"].dtype == dtype
    if first["a"].dtype.kind == "f":
        assert abs(first["a"].astype(float).mean()) < 0.1
        assert abs(first["a"].astype(float).std() - 1) < 0.1
    else:
        assert set(np.unique(first["a"])) == {0, 1}


def test_random_inputs_take_the_given_shapes():
    found = random_inputs(SPECS, {"x": (0, 3), "m": (5,)}, 0)
    assert {name: array.shape for name, array in found.items()} == {"x": (0, 3), "m": (5,)}


# shape before, shape after -> which elements of 0, 1, 2, ... there are
WRAPPED = {
    "the same": ((2, 3), (2, 3), [[0, 1, 2], [3, 4, 5]]),
    "cut": ((2, 3), (1, 2), [[0, 1]]),
    "repeated": ((1, 2), (3, 3), [[0, 1, 0]] * 3),
    "both": ((2, 3), (3, 2), [[0, 1], [3, 4], [0, 1]]),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_an_array_is_cut_or_repeated(name):
    before, after, expected = WRAPPED[name]
    array = np.arange(np.prod(before)).reshape(before)
    np.testing.assert_array_equal(wrapped(array, after), expected)
