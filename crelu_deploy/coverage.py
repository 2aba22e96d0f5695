"""Which halves of which channels fire: what is counted while inputs are searched."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FIRES = 1e-2
"""A half fires where it is above this share of the root mean square of its site's input."""

BUDGET, LAST_FEW = 4e9, 20e9
"""Multiplications of a search, and of one for the last few halves."""

FEW = 0.05
"""The share of all halves up to which they are the last few."""


@dataclass
class Coverage:
    """What fired so far.

    Attributes:
        peaks: Site -> the largest value of each half of each channel, over the site's root mean
            square: an array of shape ``(2, channels)``.
    """

    peaks: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    def add(self, site: str, peaks: np.ndarray[Any, Any]) -> int:
        """Take in a row's peaks; return how many halves fire that did not before."""
        known = self.peaks.setdefault(site, np.full_like(peaks, -math.inf))
        new = int(((peaks > FIRES) & (known <= FIRES)).sum())
        np.maximum(known, peaks, out=known)
        return new

    def silent(self, site: str) -> np.ndarray[Any, Any]:
        """Return which halves have not fired, ``(2, channels)``."""
        result: np.ndarray[Any, Any] = self.peaks[site] <= FIRES
        return result

    @property
    def complete(self) -> bool:
        """Whether every half fires."""
        return not any(self.silent(site).any() for site in self.peaks)

    @property
    def missing(self) -> tuple[int, int]:
        """How many halves are silent, and how many there are."""
        sizes = ((int(self.silent(site).sum()), self.peaks[site].size) for site in self.peaks)
        silent, halves = zip(*sizes, strict=True) if self.peaks else ((), ())
        return sum(silent), sum(halves)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return per site: its channels, those of which both halves fire, and those of none."""
        silent = {site: self.silent(site) for site in self.peaks}
        return {
            site: {
                "channels": missing.shape[1],
                "both": int((~missing.any(0)).sum()),
                "none": int(missing.all(0).sum()),
            }
            for site, missing in silent.items()
        }

    @property
    def budget(self) -> float:
        """Multiplications that a search may spend: more where little is missing."""
        silent, halves = self.missing
        return LAST_FEW if silent <= FEW * halves else BUDGET
