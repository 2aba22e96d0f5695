"""How far the build of an engine is: lines that the worker writes and its parent reads."""

from __future__ import annotations

import sys
import time
from typing import Any

TensorRT = Any
"""The module ``tensorrt`` or ``tensorrt_rtx``: neither has types."""

MARK = "progress: "
"""What such a line starts with; percent follow."""

PERIOD = 5.0
"""Seconds between two lines; a build that takes no longer says nothing."""


class Progress:
    """The share of a build that is done, told by phases that lie in one another."""

    def __init__(self) -> None:
        self.share = 0.0
        self._phases: dict[str, tuple[str | None, int]] = {}
        self._done: dict[str, int] = {}

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins within a step of its parent."""
        self._phases[phase], self._done[phase] = (parent, steps), 0

    def step(self, phase: str, step: int) -> None:
        """A step of a phase is done, counted from 0."""
        self._done[phase] = step + 1
        share, name = 0.0, phase
        while True:
            parent, steps = self._phases[name]
            share = (self._done[name] + share) / max(steps, 1)
            if parent not in self._phases:
                break
            name = parent
        self.share = max(self.share, min(share, 1.0))


def make_monitor(trt: TensorRT, *, period: float) -> Any:
    """Return the monitor for a builder, which writes a line to stderr every ``period`` seconds."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # its base has no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._progress, self._told = Progress(), time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._progress.step(phase_name, step)
            if time.monotonic() - self._told >= period:
                self._told = time.monotonic()
                print(f"{MARK}{self._progress.share:.0%}", file=sys.stderr, flush=True)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            """Nothing: the last step has said so."""

    return Monitor()
