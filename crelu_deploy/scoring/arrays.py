"""``.npy`` and ``.npz`` files, read row by row: none is ever whole in memory.

A ``.npy`` file is the one input of a network. A ``.npz`` file has an array per input, by name;
others, such as labels, are left out. Axis 0 is the batch.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from crelu_deploy.runner import TensorSpec
from crelu_deploy.scoring.inputs import Raw, Span

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class _Rows:
    """An open array: the stream stands at its first element."""

    name: str
    stream: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def skip(self, rows: int) -> None:
        self.stream.seek(rows * self.row_bytes, 1)

    def next(self) -> np.ndarray[Any, Any]:
        content = self.stream.read(self.row_bytes)
        if len(content) != self.row_bytes:
            raise ValueError(f"array {self.name!r} ends early: the file is cut off")
        return np.frombuffer(content, self.dtype).reshape(self.shape[1:])


def count(path: str, inputs: tuple[TensorSpec, ...]) -> int:
    """Return the number of rows, 1 for a file that cannot be read."""
    try:
        with ExitStack() as stack:
            return _open(path, inputs, stack)[0].shape[0]
    except _DAMAGE:
        return 1


def read(span: Span, inputs: tuple[TensorSpec, ...]) -> Iterator[Raw]:
    """Yield the rows of a span; what cannot be read is a row with the reason."""
    done = 0
    try:
        with ExitStack() as stack:
            arrays = _open(span.path, inputs, stack)
            for array in arrays:
                array.skip(span.first)
            for _ in range(span.rows):
                row = {array.name: array.next() for array in arrays}
                done += 1
                yield row
    except _DAMAGE as error:
        yield from [f"cannot be read: {_said(error)}"] * (span.rows - done)


def _said(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _open(path: str, inputs: tuple[TensorSpec, ...], stack: ExitStack) -> tuple[_Rows, ...]:
    """Open every input's array.

    Raises:
        ValueError: One is missing or no array of plain numbers, or they differ in length.
        OSError, EOFError, BadZipFile: The file is damaged.
    """
    names = [spec.name for spec in inputs]
    if path.lower().endswith(".npz"):
        archive = stack.enter_context(zipfile.ZipFile(path))
        arrays = tuple(_header(name, _member(archive, name, stack)) for name in names)
    elif len(names) == 1:
        stream = stack.enter_context(Path(path).open("rb"))  # noqa: SIM115 - the stack closes it
        arrays = (_header(names[0], stream),)
    else:
        raise ValueError(f"one array; the network has the inputs {', '.join(names)}")
    lengths = [array.shape[0] for array in arrays]
    if len(set(lengths)) > 1:
        raise ValueError(f"the inputs {', '.join(names)} have {lengths} rows; expected the same")
    return arrays


def _member(archive: zipfile.ZipFile, name: str, stack: ExitStack) -> IO[bytes]:
    if f"{name}.npy" not in archive.namelist():
        found = ", ".join(entry.removesuffix(".npy") for entry in archive.namelist())
        raise ValueError(f"no array named {name!r}; the file has {found or 'none'}")
    return stack.enter_context(archive.open(f"{name}.npy"))


def _header(name: str, stream: IO[bytes]) -> _Rows:
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"array {name!r} is in the NPY format {version}; save it with numpy.save")
    shape, by_column, dtype = _HEADERS[version](stream)
    if not shape or dtype.hasobject:
        raise ValueError(f"array {name!r} has no rows of numbers: shape {shape}, type {dtype}")
    if by_column and len(shape) > 1:
        raise ValueError(f"array {name!r} is in Fortran order; save numpy.ascontiguousarray of it")
    return _Rows(name, stream, shape, dtype)
