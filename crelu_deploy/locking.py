"""One writer at a time: a folder is locked as a whole, by a lock that ends with its process.

Nothing is left on the disk. Reading needs no lock, since files and folders are replaced in one
step. On a file system that has no such locks (some network ones) nothing is locked.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crelu_deploy.errors import BuildError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let no other process, nor another part of this one, lock the folder inside the block.

    Raises:
        BuildError: It is locked already.
    """
    try:
        descriptor = lock(folder)
    except BlockingIOError as error:
        raise BuildError(
            f"{folder}: another process is writing to it; wait until it has ended, "
            "then run this again"
        ) from error
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Lock a folder that is to be written; it is made where it is missing.

    A folder that was made here, and is still empty in the end, is removed.

    Raises:
        BuildError: It is locked already, or cannot be made.
    """
    made = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise BuildError(f"{folder}: cannot be made: {error.strerror}") from error
    try:
        with locked(folder):
            yield
    finally:
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def lock(folder: Path) -> int | None:
    """Return an open descriptor that locks a folder until it is closed; None without locks.

    Raises:
        BlockingIOError: Another descriptor locks it, or another folder has just taken its place.
        OSError: It cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = folder.is_dir() and os.path.samestat(os.fstat(descriptor), folder.stat())
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # The file system cannot lock a folder.
        os.close(descriptor)
        return None
    if not same:
        os.close(descriptor)
        raise BlockingIOError(f"{folder} was replaced")
    return descriptor
