"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crelu_deploy.errors import BuildError


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step.

    Raises:
        BuildError: The file cannot be written; what was there is kept.
    """
    with staged_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file's name, which takes the place of ``path`` when the block succeeds.

    Files that the block puts beside the temporary one, in its folder, go along, before it.

    Raises:
        BuildError: The file cannot be written; what was there is kept.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            temporary = Path(folder) / path.name
            yield temporary
            for file in sorted(Path(folder).iterdir(), key=lambda file: file == temporary):
                file.replace(path.with_name(file.name))
    except OSError as error:
        raise BuildError(f"{path}: cannot be written: {reason(error)}") from error


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of ``path`` in one step when the block succeeds.

    Whatever goes wrong, what was at ``path`` stays whole and the new folder is removed.

    Raises:
        BuildError: The folder cannot be written, for example because the disk is full.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            stage = Path(folder) / path.name
            stage.mkdir()
            yield stage
            if not path.exists():
                stage.rename(path)
            elif not _exchange(stage, path):
                _replace(stage, path, Path(folder) / "earlier")
    except OSError as error:
        raise BuildError(f"{path}: cannot be written: {reason(error)}") from error


def reason(error: OSError) -> str:
    """Return what the operating system says, without the path."""
    return error.strerror or str(error)


def _replace(stage: Path, path: Path, earlier: Path) -> None:
    """Move ``path`` out of the way and ``stage`` there, or ``path`` back where that fails."""
    path.rename(earlier)
    try:
        stage.rename(path)
    except OSError:
        earlier.rename(path)
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step; False where the system has no call for it (only Linux has)."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fs.h
    return bool(swap(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0)
