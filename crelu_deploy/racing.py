"""Forms of one network, timed against each other, with every round kept on the disk.

A race ends when its share of the time is used up, counted in the rounds that were kept. So a search
that was killed goes on where it was: what was measured is read, not measured again, and leads to
the same decisions.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from crelu_deploy.backends.onnxruntime import SessionRunner, open_session
from crelu_deploy.environment import cache_folder
from crelu_deploy.latency import MINIMUM, Paired, paired, rounds
from crelu_deploy.lowerings import lower
from crelu_deploy.samples import Arrays
from crelu_deploy.targets import Options
from crelu_deploy.writing import save_model

Choice = Mapping[str, str]
"""Site -> lowering."""

MARGIN = 0.01
"""A form counts as faster when it saves more than this share of the time."""


ENOUGH = 400
"""Rounds after which more of them would not make a comparison any surer that matters."""


@dataclass(frozen=True)
class Verdict:
    """How one form fared against the first of its race.

    Attributes:
        lanes: The comparison in each way of calling it: batch size and threads.
    """

    lanes: tuple[Paired, ...]

    @property
    def ratio(self) -> float:
        """The geometric mean over the lanes of its time over that of the first."""
        return math.exp(sum(math.log(lane.ratio) for lane in self.lanes) / len(self.lanes))

    @property
    def wins(self) -> bool:
        """Whether it is faster by the margin, beyond chance, and in no lane slower than that."""
        surely = any(lane.faster for lane in self.lanes)
        never_slower = all(lane.high <= 1 + MARGIN for lane in self.lanes)
        return surely and never_slower and self.ratio <= 1 - MARGIN


class Timer(Protocol):
    """Times forms of a network."""

    @property
    def lanes(self) -> int:
        """The number of ways to call it."""

    def rounds(self, choices: Mapping[str, Choice], lane: int) -> Iterator[Sequence[float]]:
        """Yield, for ever, the milliseconds of one call of each form, called in turn."""

    def now(self) -> float:
        """Return the time in seconds."""


@dataclass(frozen=True)
class Lane:
    """One way of calling a network that counts: what with, and on how many threads."""

    feeds: Arrays
    options: Options


@dataclass(frozen=True)
class Sessions:
    """A timer that runs the forms on ONNX Runtime.

    Attributes:
        model: The network with its canonical nodes.
        ways: How it is called.
        files: Forms that are files: name of the form -> the file, in place of its choice.
    """

    model: ir.Model
    ways: Sequence[Lane]
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def lanes(self) -> int:
        """The number of ways to call it."""
        return len(self.ways)

    def rounds(self, choices: Mapping[str, Choice], lane: int) -> Iterator[Sequence[float]]:
        """Open a session for each form, call each once, then time them in turn, for ever.

        Raises:
            BuildError: ONNX Runtime refuses a form.
        """
        way = self.ways[lane]
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            calls = {}
            for i, (name, choice) in enumerate(choices.items()):
                path = Path(folder) / f"{i}.onnx"
                runner = stack.enter_context(self._open(name, choice, path, way.options))
                runner(way.feeds)
                calls[name] = partial(runner, way.feeds)
            for found in rounds(calls):
                yield [found[name][0] for name in choices]

    def _open(self, name: str, choice: Choice, path: Path, options: Options) -> SessionRunner:
        if name in self.files:
            return open_session(self.files[name], options)
        save_model(lower(self.model, choice).model, path)
        return open_session(path, options)

    def now(self) -> float:
        """Return the time of a clock that never goes back, in seconds."""
        return time.perf_counter()


class Journal:
    """What was measured of one network in one place: a line of JSON for each round.

    It is a cache: what cannot be kept on the disk, or read from it, is measured again.

    Attributes:
        path: The file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._races: dict[str, list[list[float]]] = {}
        text = ""
        try:
            if path is not None and path.exists():
                text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
                self.path = path if path.is_file() else None
        except OSError:
            self.path = None
        for line in text.splitlines():
            self._read(line)
        self._end = "\n" if text and not text.endswith("\n") else ""  # cut off while it was written

    def _read(self, line: str) -> None:
        """Take one line; the last one may be cut off by whatever ended the process."""
        try:
            race, *numbers = json.loads(line)
            found = [float(number) for number in numbers]
        except (ValueError, TypeError, OverflowError, RecursionError):
            return
        if isinstance(race, str) and len(found) > 1 and all(0 < n < math.inf for n in found):
            self._races.setdefault(race, []).append(found)

    def rounds(self, race: str, forms: int) -> list[list[float]]:
        """Return the rounds of a race: seconds in all, then each form's milliseconds."""
        return [found for found in self._races.get(race, []) if len(found) == forms + 1]

    def add(self, race: str, numbers: Sequence[float]) -> None:
        """Keep one round."""
        self._races.setdefault(race, []).append(list(numbers))
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self._end + json.dumps([race, *numbers]) + "\n")
            self._end = ""
        except OSError:
            self.path = None

    def forget(self) -> None:
        """Forget what was measured before."""
        self._races.clear()
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()


def journal(key: Mapping[str, Any]) -> Journal:
    """Return the journal of what ``key`` names, in the user's cache.

    Args:
        key: The model's hash, runtime, device, and what else the times depend on.
    """
    cache = cache_folder()
    return Journal(None if cache is None else cache / "races" / f"{_digest(key)}.jsonl")


def _digest(data: object) -> str:
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass
class Arena:
    """Where forms of one network race.

    Attributes:
        timer: Calls them.
        journal: Keeps what it told.
        spent: Seconds that the races took so far, those of earlier processes included.
    """

    timer: Timer
    journal: Journal
    spent: float = 0.0

    def race(
        self, choices: Mapping[str, Choice], seconds: float, minimum: int = MINIMUM
    ) -> dict[str, Verdict]:
        """Time some forms, interleaved; return how each fared against the first.

        Args:
            choices: The forms, by name.
            seconds: How long, for all lanes together.
            minimum: Rounds that no time limit takes away.
        """
        lanes = range(self.timer.lanes)
        times = [self._lane(choices, lane, seconds / len(lanes), minimum) for lane in lanes]
        return {
            name: Verdict(tuple(paired(list(lane[:, i]), list(lane[:, 0])) for lane in times))
            for i, name in enumerate(choices)
        }

    def _lane(
        self, choices: Mapping[str, Choice], lane: int, seconds: float, minimum: int
    ) -> np.ndarray[Any, Any]:
        """Return milliseconds of shape (rounds, forms), measuring what is not in the journal."""
        race = _digest([[dict(choice) for choice in choices.values()], lane, list(choices)])
        kept = self.journal.rounds(race, len(choices))
        used = 0.0
        found: list[list[float]] = []
        for spent, *milliseconds in self._all(kept, race, choices, lane):
            found.append(milliseconds)
            used += spent
            if len(found) >= minimum and (used >= seconds or len(found) >= ENOUGH):
                break
        self.spent += used
        return np.array(found)

    def _all(
        self, kept: list[list[float]], race: str, choices: Mapping[str, Choice], lane: int
    ) -> Iterator[list[float]]:
        """Yield the rounds that were kept, then measure, and keep, more of them."""
        yield from kept
        last = self.timer.now()
        with closing(self.timer.rounds(choices, lane)) as measured:  # type: ignore[type-var]
            for milliseconds in measured:
                now = self.timer.now()
                numbers = [now - last, *milliseconds]
                last = now
                self.journal.add(race, numbers)
                yield numbers
