"""Wall-clock latency of several callables, interleaved in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Latency:
    """Wall-clock latency of one call, in milliseconds.

    Attributes:
        median: The 50th percentile.
        p10: The 10th percentile.
        p90: The 90th percentile.
        runs: The number of timed calls.
        times: Every timed call in order, so that what ran in the same rounds can be paired.
        gpu: The 50th percentile of the GPU's own time; None where none was told.
    """

    median: float
    p10: float
    p90: float
    runs: int
    times: tuple[float, ...] = field(default=(), repr=False)
    gpu: float | None = None


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        runs: Timed calls of each callable, unless the time is up.
        warmup: Calls of each before, not timed.
        seconds: Limit for all callables together, which leaves each ``MINIMUM`` timed calls.
    """

    runs: int = 200
    warmup: int = 10
    seconds: float = 20.0


MINIMUM = 5
"""Timed calls that no time limit takes away."""


def measure(
    calls: Mapping[str, Callable[[], object]],
    effort: Effort,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Latency]:
    """Time the calls round by round, in alternating order, so that drift hits all alike.

    Args:
        calls: What to time, by name; a call returns when its result is complete. One that returns
            a float tells the milliseconds that its GPU took.
        effort: How often, and for how long.
        progress: Told the finished share, 0 to 1.
    """
    for call in calls.values():
        for _ in range(effort.warmup):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    gpu: dict[str, list[float]] = {name: [] for name in calls}
    for share in _rounds(effort):
        order = list(calls) if len(times[next(iter(calls))]) % 2 == 0 else list(calls)[::-1]
        for name in order:
            start = time.perf_counter()
            told = calls[name]()
            times[name].append((time.perf_counter() - start) * 1e3)
            if isinstance(told, float):
                gpu[name].append(told)
        progress(share)
    return {name: _summary(values, gpu[name]) for name, values in times.items()}


def _rounds(effort: Effort) -> Iterator[float]:
    """Count rounds until the runs or the seconds are used up, giving the finished share."""
    start = time.perf_counter()
    for done in range(effort.runs):
        spent = (time.perf_counter() - start) / effort.seconds
        if done >= MINIMUM and spent >= 1:
            return
        yield max(done / effort.runs, min(spent, 1.0))


def _summary(milliseconds: list[float], gpu: list[float]) -> Latency:
    p10, median, p90 = (float(v) for v in np.percentile(milliseconds, (10, 50, 90)))
    device = float(np.median(gpu)) if gpu else None
    return Latency(median, p10, p90, len(milliseconds), tuple(milliseconds), device)


def differ(one: Latency, other: Latency) -> bool:
    """Whether one of two, timed in the same rounds, was the faster in nine rounds of ten.

    A difference that is not is smaller than the spread, and cannot be called one.
    """
    low, high = np.percentile(np.log(np.divide(one.times, other.times)), (10, 90))
    return bool(low > 0 or high < 0)
