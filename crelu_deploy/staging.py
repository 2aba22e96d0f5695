"""Files and folders that appear whole or not at all.

What is written first lies in a hidden folder beside its place, ``.<name>.<8 characters>.tmp``,
which is locked as long as its process lives. One that a killed process left is therefore told from
one in use, and is removed when the same place is written again.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crelu_deploy.errors import BuildError
from crelu_deploy.locking import lock

_SCRATCH = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)
_KEPT = 60
"""Characters of a place's name in that of its hidden folder: at most 240 of 255 bytes."""


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
        with scratch(path) as folder:
            temporary = folder / path.name
            yield temporary
            for file in sorted(folder.iterdir(), key=lambda file: file == temporary):
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
        with scratch(path) as folder:
            stage = folder / path.name
            stage.mkdir()
            yield stage
            if not path.exists():
                stage.rename(path)
            elif not _exchange(stage, path):
                _replace(stage, path, folder / "earlier")
    except OSError as error:
        raise BuildError(f"{path}: cannot be written: {reason(error)}") from error


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside ``path``, which is removed in the end.

    Those that killed processes left for the same ``path`` are removed too.

    Raises:
        OSError: No folder can be made there.
    """
    for folder in path.parent.iterdir():
        if is_scratch(folder.name, path.name):
            _remove_abandoned(folder)
    folder, descriptor = _new_scratch(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        if descriptor is not None:
            os.close(descriptor)


def is_scratch(name: str, place: str | None = None) -> bool:
    """Whether a name is that of a hidden folder, for one place or for any."""
    match = _SCRATCH.fullmatch(name)
    return match is not None and (place is None or match[1] == place[:_KEPT])


def reason(error: OSError) -> str:
    """Return what the operating system says, without the path."""
    return error.strerror or str(error)


def _new_scratch(path: Path) -> tuple[Path, int | None]:
    while True:
        name = tempfile.mkdtemp(".tmp", f".{path.name[:_KEPT]}.", path.parent)
        try:
            return Path(name), lock(Path(name))
        except (BlockingIOError, FileNotFoundError):
            continue  # Another process took it for an abandoned one before it was locked.


def _remove_abandoned(folder: Path) -> None:
    try:
        descriptor = lock(folder)
    except OSError:  # In use, or just removed.
        return
    if descriptor is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


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
