"""Where a repository goes, and what it may replace: an earlier one that nobody has changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from crelu_deploy.bundle import sha256
from crelu_deploy.errors import BuildError
from crelu_deploy.serving.models import Model
from crelu_deploy.staging import is_scratch, reason, scratch

MARKER = "crelu.json"
FORMAT = 1
"""Version of the marker."""

_CACHE = "__pycache__"
"""What Python leaves beside a model.py that a server has loaded."""


def write_marker(folder: Path, models: Sequence[Model]) -> None:
    """Write the models and the hash of every file of a repository."""
    hashes = {name: sha256(folder / name) for name in _files(folder)}
    data = {"format": FORMAT, "models": [asdict(model) for model in models], "files": hashes}
    (folder / MARKER).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def check_destination(path: Path) -> None:
    """Refuse a destination that a repository must not replace, before any work is done.

    Raises:
        BuildError: A file, a mount point, a folder with other content or with files that were
            changed since they were written, or a place that cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(path):
            foreign = _foreign(path)
    except OSError as error:
        raise BuildError(f"{path}: cannot be written: {reason(error)}") from error
    if path.is_mount():
        raise BuildError(f"{path}: is a mount point, which stays; choose a folder in it")
    if foreign:
        raise BuildError(
            f"{path}: {foreign!r} is not as crelu package wrote it; nothing was touched, choose "
            "another folder"
        )


def _foreign(path: Path) -> str:
    """Return a file that would be lost if a new repository took its place; empty where none."""
    if not (path.exists() or path.is_symlink()):
        return ""
    if not path.is_dir() or path.is_symlink():
        return path.name
    known, found = _known(path), _files(path)
    return next((n for n in found if n != MARKER and known.get(n) != sha256(path / n)), "")


def _known(path: Path) -> dict[str, str]:
    """Return file -> hash as the marker has them; nothing where there is no marker of ours."""
    try:
        files = json.loads((path / MARKER).read_text(encoding="utf-8"))["files"]
        return {str(name): str(hash_) for name, hash_ in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # whatever is there is then not ours


def _files(folder: Path) -> list[str]:
    """Return the relative names of all files, sorted."""
    found = (f.relative_to(folder) for f in folder.rglob("*") if not f.is_dir() or f.is_symlink())
    kept = (f for f in found if _CACHE not in f.parts and not any(map(is_scratch, f.parts)))
    return sorted(str(f) for f in kept)
