"""What is to be scored: files and their rows, in an order that does not change between runs."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from crelu_deploy.errors import BackendUnavailable, UnsupportedModel
from crelu_deploy.runner import TensorSpec
from crelu_deploy.staging import reason

Array = np.ndarray[Any, Any]

Raw = Mapping[str, Array | bytes] | str
"""One row of a file: an array or an encoded image by input name; or why it cannot be read."""

IMAGES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

FORMATS: Mapping[str, str] = {
    **dict.fromkeys(IMAGES, "images"),
    ".npy": "arrays",
    ".npz": "arrays",
    ".parquet": "tables",
}
"""Suffix to the module that reads it: ``count(path, inputs)`` and ``read(span, inputs)``."""


@dataclass(frozen=True)
class Span:
    """Consecutive rows of one file, from ``first`` on."""

    path: str
    first: int
    rows: int


@dataclass(frozen=True)
class Source:
    """One file.

    Attributes:
        path: Absolute.
        rows: Inputs in it; 1 where it cannot be read, for the row that says so.
        size: Bytes.
        modified: Nanoseconds, as the file system has it.
    """

    path: str
    rows: int
    size: int
    modified: int


def reader(path: str) -> ModuleType:
    """Import the module that reads a file.

    Raises:
        BackendUnavailable: What it needs is not installed.
    """
    module = FORMATS[Path(path).suffix.lower()]
    try:
        return importlib.import_module(f"crelu_deploy.scoring.{module}")
    except ModuleNotFoundError as error:
        raise missing(error) from error


def missing(error: ModuleNotFoundError) -> BackendUnavailable:
    """Return what to say where a package is not installed."""
    return BackendUnavailable(
        f"crelu score needs the package {error.name}, which is not installed; "
        "run: pip install 'crelu-deploy[ray]'"
    )


def find_sources(data: Sequence[Path], inputs: Sequence[TensorSpec]) -> tuple[Source, ...]:
    """Return the files that are meant: those named, and those in folders and their subfolders.

    In a folder, files of other formats are left out. A file that is reached twice counts once.

    Raises:
        UnsupportedModel: Nothing there, a file of another format, or no file at all.
    """
    files = dict.fromkeys(file for path in data for file in _files(path))
    if not files:
        raise UnsupportedModel(
            f"{', '.join(map(str, data))}: nothing to score; expected {', '.join(FORMATS)}"
        )
    return tuple(_source(file, tuple(inputs)) for file in files)


def _files(path: Path) -> Iterator[str]:
    if path.is_dir():
        yield from _walk(path.resolve())
    elif not path.exists():
        raise UnsupportedModel(f"{path}: no such file or folder")
    elif path.suffix.lower() not in FORMATS:
        raise UnsupportedModel(f"{path}: cannot be scored; expected {', '.join(FORMATS)}")
    else:
        yield str(path.resolve())


def _walk(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise UnsupportedModel(f"{error.filename}: cannot be read: {reason(error)}") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in FORMATS:
                yield os.path.join(place, name)


def _source(path: str, inputs: tuple[TensorSpec, ...]) -> Source:
    try:
        status = os.stat(path)
    except OSError:  # A link to nowhere: its row says so.
        return Source(path, 1, 0, 0)
    return Source(path, reader(path).count(path, inputs), status.st_size, status.st_mtime_ns)


def fingerprint(sources: Iterable[Source]) -> str:
    """Return a hash of names, sizes, times of change and rows."""
    hasher = hashlib.sha256()
    for source in sources:
        fields = source.path, source.rows, source.size, source.modified
        hasher.update(repr(fields).encode("utf-8", "surrogateescape"))
    return hasher.hexdigest()


def cut(spans: Iterable[Span], rows: int) -> Iterator[tuple[Span, ...]]:
    """Divide spans, in their order, into parts of ``rows`` rows; the last may have fewer."""
    part: list[Span] = []
    room = rows
    for span in spans:
        first, end = span.first, span.first + span.rows
        while first < end:
            taken = min(room, end - first)
            part.append(Span(span.path, first, taken))
            first, room = first + taken, room - taken
            if not room:
                yield tuple(part)
                part, room = [], rows
    if part:
        yield tuple(part)
