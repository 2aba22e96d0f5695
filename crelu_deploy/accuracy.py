"""How far outputs are from PyTorch's: one score, whose limit is 1, failed by NaN."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crelu_deploy.runner import Runner
from crelu_deploy.samples import Arrays, Sample

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tolerance:
    """What counts as equal.

    Attributes:
        atol: Relative to the root mean square of the expected output.
        rtol: Relative to each expected element.
    """

    atol: float
    rtol: float


TOLERANCES: Mapping[str, Tolerance] = {
    "float64": Tolerance(1e-12, 1e-12),
    "float32": Tolerance(5e-5, 5e-5),
    "float16": Tolerance(1e-2, 1e-2),
}
"""By the element type of PyTorch's output; every other type must be equal in every element."""

SMALLEST_RMS = 1e-3
"""Where an output is nearly zero everywhere, errors are judged against this size."""


@dataclass(frozen=True)
class Comparison:
    """The distance between a target's outputs and PyTorch's, over all samples and outputs.

    Attributes:
        score: Largest ``|actual - expected| / (atol * rms(expected) + rtol * |expected|)``;
            infinite where only one side is NaN or infinite, or shapes or types differ.
        max_abs: Largest ``|actual - expected|``.
        worst: The element with the largest score, in words.
    """

    score: float
    max_abs: float
    worst: str

    @property
    def passed(self) -> bool:
        """Whether every element is within tolerance."""
        return self.score <= 1


def compare(actual: Array, expected: Array, name: str, tolerance: Tolerance | None) -> Comparison:
    """Compare one output; ``tolerance`` None takes the one of the expected element type.

    Equal elements, equal infinities and NaN on both sides score 0; NaN on one side fails.
    """
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        found, wanted = (f"{a.dtype.name}{list(a.shape)}" for a in (actual, expected))
        return Comparison(math.inf, math.inf, f"{name}: expected {wanted}, got {found}")
    if expected.size == 0:
        return Comparison(0.0, 0.0, f"{name} is empty")
    error, score = _scores(actual, expected, tolerance)
    if not score.any():
        return Comparison(0.0, 0.0, f"{name}: every element is equal")
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(score)), score.shape))
    place = f"{name}[{', '.join(map(str, index))}]"
    worst = f"{place}: expected {expected[index]!s}, got {actual[index]!s}"
    return Comparison(float(score[index]), float(error.max()), worst)


def _scores(actual: Array, expected: Array, tolerance: Tolerance | None) -> tuple[Array, Array]:
    """Return absolute errors and scores of every element, in float64, with no NaN in them."""
    allowed = tolerance or TOLERANCES.get(expected.dtype.name, Tolerance(0.0, 0.0))
    a, e = (np.asarray(v, np.float64) for v in (actual, expected))
    same = (actual == expected) | (np.isnan(a) & np.isnan(e))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        error = np.abs(a - e)
        score = error / (allowed.atol * _rms(e) + allowed.rtol * np.abs(e))
    lost = ~same & ~(np.isfinite(a) & np.isfinite(e))
    error = np.where(same, 0.0, np.where(lost, np.inf, error))
    # 0/0: integers that differ beyond the 53 bits of a float64
    return error, np.where(same, 0.0, np.where(lost | np.isnan(score), np.inf, score))


def _rms(expected: Array) -> float:
    """Return the root mean square of the finite elements, at least ``SMALLEST_RMS``."""
    sizes = np.abs(expected[np.isfinite(expected)])
    if sizes.size == 0:
        return SMALLEST_RMS
    # No mean is above the largest element; a square may be, by overflow.
    return max(min(float(np.sqrt(np.mean(sizes**2))), float(sizes.max())), SMALLEST_RMS)


def compare_outputs(
    actual: Arrays, expected: Arrays, where: str = "", tolerance: Tolerance | None = None
) -> Comparison:
    """Compare all outputs of one call; ``where`` is put before the names in ``worst``."""
    if actual.keys() != expected.keys():
        missing = sorted(expected.keys() ^ actual.keys())
        return Comparison(math.inf, math.inf, f"{where}outputs differ: {', '.join(missing)}")
    return worst_of(
        compare(actual[name], expected[name], f"{where}{name}", tolerance) for name in expected
    )


def worst_of(comparisons: Iterable[Comparison]) -> Comparison:
    """Merge comparisons: the largest error, and the element with the largest score."""
    found = list(comparisons)
    worst = max(found, key=lambda c: c.score)
    return Comparison(worst.score, max(c.max_abs for c in found), worst.worst)


def check(
    runner: Runner, samples: tuple[Sample, ...], tolerance: Tolerance | None = None
) -> Comparison:
    """Run every sample and compare the outputs with the recorded ones."""
    return worst_of(
        compare_outputs(runner(sample.inputs), sample.outputs, f"sample {i} ", tolerance)
        for i, sample in enumerate(samples)
    )
