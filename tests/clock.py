"""A simulated clock for races: what a form costs is stated, noise seeded, time passes as told."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Cost = Callable[[Mapping[str, str], int], float]
Noise = Callable[[np.random.Generator, int], np.ndarray]


def quiet(generator: np.random.Generator, calls: int) -> np.ndarray:
    """Half a percent of jitter."""
    return generator.uniform(0.995, 1.005, calls)


def busy(generator: np.random.Generator, calls: int) -> np.ndarray:
    """Two neighbours on two cores: bursts that lengthen most calls of some rounds many times."""
    share = 0.9 if generator.random() < 0.4 else 0.2
    return np.where(generator.random(calls) < share, generator.uniform(1.5, 20, calls), 1) * quiet(
        generator, calls
    )


def wandering(generator: np.random.Generator, calls: int) -> np.ndarray:
    """A clock rate that changes from round to round, and a little from call to call."""
    return generator.uniform(0.5, 2) * generator.uniform(0.9, 1.1, calls)


@dataclass
class Simulated:
    """A timer of ``racing``; every race's noise depends on its forms, its lane and the seed only.

    Attributes:
        cost: Choice and lane -> milliseconds.
        noise: Generator and number of calls -> a factor for each.
        lanes: Ways to call.
        seed: Of the noise.
        patience: Rounds until a ``KeyboardInterrupt``; none where None.
        measured: Rounds so far.
    """

    cost: Cost
    noise: Noise = quiet
    lanes: int = 1
    seed: int = 0
    patience: int | None = None
    measured: int = 0
    clock: float = 0.0
    seen: dict[str, int] = field(default_factory=dict)

    def rounds(
        self, choices: Mapping[str, Mapping[str, str]], lane: int
    ) -> Iterator[Sequence[float]]:
        """Yield what the calls of a round take; a race that is met again goes on where it was."""
        race = repr((choices, lane, self.seed))
        while True:
            number = self.seen.get(race, 0)
            if self.patience is not None and self.measured >= self.patience:
                raise KeyboardInterrupt
            generator = np.random.default_rng([zlib.crc32(race.encode()), number])
            factors = self.noise(generator, len(choices))
            times = [self.cost(c, lane) * f for c, f in zip(choices.values(), factors, strict=True)]
            self.clock += sum(times) / 1e3
            self.seen[race], self.measured = number + 1, self.measured + 1
            yield times

    def now(self) -> float:
        """Return the simulated time."""
        return self.clock
