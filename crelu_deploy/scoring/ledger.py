"""What a folder holds: which run its shards belong to, and which of them are finished.

``_run.json`` says what the run is. Each finished shard is one Parquet file, renamed to its place
when it was whole; there is no other record of it, so none can be out of step.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crelu_deploy.errors import BuildError
from crelu_deploy.scoring.output import TEMPORARY, Scored, read_mark
from crelu_deploy.staging import is_scratch, reason, write_text

RUN = "_run.json"
PARTS = "part-*.parquet"


@dataclass(frozen=True)
class Run:
    """What makes two runs the same: they give the same rows in the same files.

    Attributes:
        bundle: Hash of the network, as the target has it.
        inputs: Hash of names, sizes, times of change and rows of the inputs.
        target: As text.
        settings: All that is chosen: rows of a batch and of a shard, what becomes of pixels.
        rows: How many inputs there are.
        shards: How many files they become.
    """

    bundle: str
    inputs: str
    target: str
    settings: dict[str, Any]
    rows: int
    shards: int

    @property
    def hash(self) -> str:
        """The hash that each shard's file carries."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def check_folder(out: Path) -> None:
    """Refuse a folder with other content, before anything is written.

    Raises:
        BuildError: A file, a folder with something else in it, or one that cannot be read.
    """
    try:
        names = sorted(file.name for file in out.iterdir()) if out.exists() else []
    except OSError as error:
        raise BuildError(f"{out}: cannot be used: {reason(error)}") from error
    if RUN not in names and (foreign := [n for n in names if not is_scratch(n)]):
        raise BuildError(
            f"{out}: holds {foreign[0]!r}, which no run of crelu score wrote; nothing was touched, "
            "choose another folder with -o"
        )


def claim(out: Path, run: Run) -> dict[int, Scored]:
    """Make a folder that of a run, and return the shards that are finished there.

    What killed processes left half written is removed.

    Raises:
        BuildError: It holds another run, or cannot be written.
    """
    clean(out)
    file = out / RUN
    if file.exists():
        _check_same(file, run)
    else:
        write_text(file, f"{json.dumps(asdict(run), indent=2)}\n")
    found = (read_mark(part, run.hash) for part in sorted(out.glob(PARTS)))
    return {scored.number: scored for scored in found if scored is not None}


def clean(out: Path) -> None:
    """Remove what is half written, and the claim where no shard was finished.

    Raises:
        BuildError: It cannot be removed.
    """
    try:
        for leftover in out.glob(TEMPORARY):
            leftover.unlink(missing_ok=True)
        if not any(out.glob(PARTS)):
            (out / RUN).unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(f"{out}: cannot be written: {reason(error)}") from error


def _check_same(file: Path, run: Run) -> None:
    try:
        found = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BuildError(f"{file}: damaged ({error}); choose another folder with -o") from error
    wanted = json.loads(json.dumps(asdict(run)))
    different = [
        name
        for name in ("bundle", "inputs", "target", "settings")
        if found.get(name) != wanted[name]
    ]
    if different:
        raise BuildError(
            f"{file.parent}: holds another run: its {', '.join(different)} differ; "
            "nothing was touched, choose another folder with -o"
        )
