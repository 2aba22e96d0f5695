"""Wall-clock latency of several callables, interleaved in one process."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Call = Callable[[], object]


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


MINIMUM = 8
"""Timed calls that no time limit takes away: the fewest that ``paired`` can be sure of."""


def measure(
    calls: Mapping[str, Call],
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
    for share, found in zip(_shares(effort), rounds(calls), strict=False):
        for name, (milliseconds, told) in found.items():
            times[name].append(milliseconds)
            if isinstance(told, float):
                gpu[name].append(told)
        progress(share)
    return {name: _summary(values, gpu[name]) for name, values in times.items()}


def rounds(calls: Mapping[str, Call]) -> Iterator[dict[str, tuple[float, object]]]:
    """Call all once in each round, for ever; in every second round in the opposite order.

    Yields:
        For each name the milliseconds of its call and what it returned.
    """
    for number in itertools.count():
        found = {}
        for name in list(calls)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            told = calls[name]()
            found[name] = ((time.perf_counter() - start) * 1e3, told)
        yield found


def _shares(effort: Effort) -> Iterator[float]:
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


CONFIDENCE = 0.99
"""How sure an interval of ``Paired`` is."""

CLEAR = 1.2
"""The widest interval, its upper over its lower end, that still tells how large a ratio is."""


@dataclass(frozen=True)
class Paired:
    """The times of one callable over those of another in the same rounds: below 1 is faster.

    What slows the machine for a while slows both calls of a round, so ratios of pairs are steadier
    than ratios of medians.

    Attributes:
        ratio: The median over the rounds.
        low: The lower end of its confidence interval; 0 where the rounds are too few for one.
        high: The upper end; infinite where the rounds are too few.
        minima: The shortest time over the other's shortest: what a quiet machine would show.
    """

    ratio: float
    low: float
    high: float
    minima: float

    @property
    def faster(self) -> bool:
        """Whether the first is the faster one, beyond chance."""
        return self.high < 1

    @property
    def slower(self) -> bool:
        """Whether the first is the slower one, beyond chance."""
        return self.low > 1

    @property
    def clear(self) -> bool:
        """Whether the interval is narrow enough to tell how large the ratio is.

        It is not where the rounds are few, or where the machine is busy with something else.
        """
        return self.low > 0 and self.high <= CLEAR * self.low


def paired(times: Sequence[float], others: Sequence[float]) -> Paired:
    """Compare times with those of another callable, round by round.

    The interval is that of the sign test: the k-th smallest and k-th largest ratio, where fewer
    than k of n fair coins fall one way with a probability of at most (1 - ``CONFIDENCE``) / 2. It
    holds whatever the distribution of the times.

    Raises:
        ValueError: The rounds differ in number, or there are none.
    """
    if len(times) != len(others) or not times:
        raise ValueError(f"expected as many times, got {len(times)} and {len(others)}")
    ratios = np.sort(np.divide(times, others))
    k = _rank(len(ratios))
    low, high = (float(ratios[k - 1]), float(ratios[-k])) if k else (0.0, math.inf)
    return Paired(float(np.median(ratios)), low, high, min(times) / min(others))


@functools.cache
def _rank(rounds: int) -> int:
    """Return the largest k of ``paired``; 0 where even the extremes are too likely."""
    logs = [
        math.lgamma(rounds + 1) - math.lgamma(i + 1) - math.lgamma(rounds - i + 1)
        for i in range(rounds // 2)
    ]
    below = np.cumsum(np.exp(np.array(logs) - rounds * math.log(2)))
    return int(np.searchsorted(below, (1 - CONFIDENCE) / 2, side="right"))
