"""How far outputs are from PyTorch's: one score, whose limit is 1, failed by NaN."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crelu_deploy.rounding import channel_axis, channels, scales, units
from crelu_deploy.samples import Arrays, Sample
from crelu_deploy.targets import BFLOAT16, FLOAT16, INT8

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tolerance:
    """What counts as equal.

    Attributes:
        atol: Relative to the root mean square of the expected output.
        rtol: Relative to each expected element.
        noise: For the root mean square of an output's errors, relative to that of the expected
            output; infinity sets no such limit.
    """

    atol: float
    rtol: float
    noise: float = math.inf


TOLERANCES: Mapping[str, Tolerance] = {
    "float64": Tolerance(1e-12, 1e-12),
    "float32": Tolerance(5e-5, 5e-5),
    "float16": Tolerance(1e-2, 1e-2),
}
"""By the element type of PyTorch's output; every other type must be equal in every element."""


@dataclass(frozen=True)
class Limits:
    """What a target must keep to.

    Attributes:
        tolerance: For each element; None takes the one of the output's element type.
        agreement: The share of decisions that must be PyTorch's, where there are enough.
    """

    tolerance: Tolerance | None = None
    agreement: float = 0.0


REDUCED: Mapping[str, Limits] = {
    # 11 bits of significand, 3 more than bfloat16 has.
    FLOAT16: Limits(Tolerance(0.025, 0.025, 2.5e-3), 0.99),
    # 8 bits of significand: one rounding errs by up to 2^-9, and a network rounds at every layer.
    BFLOAT16: Limits(Tolerance(0.2, 0.2, 2e-2), 0.99),
    # 256 levels between the extremes of a tensor: 16.5 dB of signal to noise are left.
    INT8: Limits(Tolerance(1.5, 1.5, 0.15), 0.99),
}
"""By the precision of the backend, where it is less than the network's own.

Rounding errors of this size have a wide spread: the largest of 100 000 is ten times their root mean
square. That is what is judged, then, and each element ten times as loosely, to find what is out of
place. Decisions are compared beside it.
"""

GPU_ROUNDING = 4.0
"""Noise of a GPU over that of PyTorch on the CPU: fast convolutions round their sums more often."""

SMALLEST_RMS = 1e-3
"""Where an output is nearly zero everywhere, errors are judged against this size."""


@dataclass(frozen=True)
class Comparison:
    """The distance between a target's outputs and PyTorch's, over all samples and outputs.

    Attributes:
        score: Largest ``|actual - expected| / (atol * scale + rtol * |expected|)``, or
            ``rms(actual - expected) / (noise * rms(expected))`` where that is larger; infinite
            where only one side is NaN or infinite, or shapes or types differ.
        max_abs: Largest ``|actual - expected|``.
        worst: The element with the largest score, in words, or the output with the largest noise.
    """

    score: float
    max_abs: float
    worst: str

    @property
    def passed(self) -> bool:
        """Whether every element is within tolerance."""
        return self.score <= 1


PEAK, TYPICAL, TIMES = 64.0, 16.0, 8.0
"""How many times its noise an element may be off, and the root mean square of a channel.

An element may be off by ``TIMES`` PyTorch's own largest error in the channel, if that is more.

Over trained networks, those of the tables, every lowering and every runtime of the CPU, the largest
are 16 and 4. A weight that is rounded to float16 gives 250 and 80.
"""


def compare(
    actual: Array,
    expected: Array,
    name: str,
    tolerance: Tolerance | None,
    floor: Array | None = None,
) -> Comparison:
    """Compare one output.

    Args:
        actual: What a target computed.
        expected: What PyTorch did.
        name: Of the output.
        tolerance: What counts as equal; None takes the noise, or else that of the element type.
        floor: The noise of each channel of ``expected``; see ``rounding``.

    Equal elements, equal infinities and NaN on both sides score 0; NaN on one side fails.
    """
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        found, wanted = (f"{a.dtype.name}{list(a.shape)}" for a in (actual, expected))
        return Comparison(math.inf, math.inf, f"{name}: expected {wanted}, got {found}")
    if expected.size == 0:
        return Comparison(0.0, 0.0, f"{name} is empty")
    if floor is not None and tolerance is None:
        return _against_noise(actual, expected, name, floor)
    error, score = scores(actual, expected, tolerance)
    if not score.any():
        return Comparison(0.0, 0.0, f"{name}: every element is equal")
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(score)), score.shape))
    noise = _noise(error, expected)
    if tolerance and noise / tolerance.noise > score[index]:
        worst = f"{name}: rms of the error is {noise:.1%} of the output's"
        return Comparison(noise / tolerance.noise, float(error.max()), worst)
    place = f"{name}[{', '.join(map(str, index))}]"
    worst = f"{place}: expected {expected[index]!s}, got {actual[index]!s}"
    return Comparison(float(score[index]), float(error.max()), worst)


def _against_noise(actual: Array, expected: Array, name: str, floor: Array) -> Comparison:
    """Compare one output with float32 elements in units of its noise."""
    same, lost = _same_and_lost(actual, expected)
    found = units(actual, expected, floor)
    found = np.where(same, 0.0, np.where(lost | np.isnan(found), np.inf, found))
    with np.errstate(invalid="ignore"):
        error = np.abs(np.asarray(actual, np.float64) - np.asarray(expected, np.float64))
    largest = float(np.where(same, 0.0, np.where(lost, np.inf, error)).max())
    rows = channels(found, channel_axis(expected.shape))
    relative = rows / np.maximum(PEAK, TIMES * floor[:, 1:])
    with np.errstate(over="ignore", invalid="ignore"):
        typical = np.sqrt(np.mean(rows**2, axis=1))
    channel = int(np.argmax(typical))
    peak, broad = float(relative.max()), float(typical[channel]) / TYPICAL
    row = relative if peak >= broad else np.where(np.arange(len(rows))[:, None] == channel, rows, 0)
    index = _place(int(np.argmax(row)), found, channel_axis(expected.shape))
    place = f"{name}[{', '.join(map(str, index))}]"
    worst = f"{place}: expected {expected[index]!s}, got {actual[index]!s}"
    if peak >= broad:
        limit = max(PEAK, TIMES * float(floor[int(np.argmax(relative)) // rows.shape[1], 1]))
        off = f"{found[index]:.3g} times PyTorch's rounding, of {limit:.3g} allowed"
        return Comparison(peak, largest, f"{worst}, off by {off}")
    where = f"channel {channel}" if len(rows) > 1 else "all of it"
    off = f"{typical[channel]:.3g} times PyTorch's rounding on average, of {TYPICAL:g} allowed"
    return Comparison(broad, largest, f"{worst}; {where} is off by {off}")


def _place(number: int, array: Array, axis: int | None) -> tuple[int, ...]:
    """Return the index of an element that is counted channel by channel."""
    numbers = np.arange(array.size).reshape(array.shape)
    flat = channels(numbers, axis).reshape(-1)
    return tuple(int(i) for i in np.unravel_index(int(flat[number]), array.shape))


def _same_and_lost(actual: Array, expected: Array) -> tuple[Array, Array]:
    """Return which elements are equal, and which are not and finite on one side at most."""
    a, e = (np.asarray(v, np.float64) for v in (actual, expected))
    same = (actual == expected) | (np.isnan(a) & np.isnan(e))
    lost = ~same & ~(np.isfinite(a) & np.isfinite(e))
    return same, lost


def scores(actual: Array, expected: Array, tolerance: Tolerance | None) -> tuple[Array, Array]:
    """Return the absolute error and the score of every element, in float64, with no NaN in them.

    The arrays have one shape and one element type; ``tolerance`` None takes that type's.
    """
    allowed = tolerance or TOLERANCES.get(expected.dtype.name, Tolerance(0.0, 0.0))
    a, e = (np.asarray(v, np.float64) for v in (actual, expected))
    same, lost = _same_and_lost(actual, expected)
    scale = np.maximum(scales(e), SMALLEST_RMS)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        error = np.abs(a - e)
        score = error / (allowed.atol * scale + allowed.rtol * np.abs(e))
    error = np.where(same, 0.0, np.where(lost, np.inf, error))
    # 0/0: integers that differ beyond the 53 bits of a float64
    return error, np.where(same, 0.0, np.where(lost | np.isnan(score), np.inf, score))


def not_finite(array: Array) -> int:
    """Return how many elements are NaN or infinite."""
    return int((~np.isfinite(array)).sum()) if array.dtype.kind in "fc" else 0


def _noise(error: Array, expected: Array) -> float:
    """Return the root mean square of the errors over that of the expected elements."""
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.mean((error / rms(np.asarray(expected, np.float64))) ** 2)))


def rms(expected: Array) -> float:
    """Return the root mean square of the finite elements, at least ``SMALLEST_RMS``."""
    sizes = np.abs(expected[np.isfinite(expected)])
    if sizes.size == 0:
        return SMALLEST_RMS
    # No mean is above the largest element; a square may be, by overflow.
    return max(min(float(np.sqrt(np.mean(sizes**2))), float(sizes.max())), SMALLEST_RMS)


def compare_outputs(
    actual: Arrays,
    expected: Arrays,
    where: str = "",
    tolerance: Tolerance | None = None,
    floors: Arrays | None = None,
) -> Comparison:
    """Compare all outputs of one call; ``where`` is put before the names in ``worst``."""
    if actual.keys() != expected.keys():
        missing = sorted(expected.keys() ^ actual.keys())
        return Comparison(math.inf, math.inf, f"{where}outputs differ: {', '.join(missing)}")
    known = floors or {}
    return worst_of(
        compare(actual[name], expected[name], f"{where}{name}", tolerance, known.get(name))
        for name in expected
    )


def worst_of(comparisons: Iterable[Comparison]) -> Comparison:
    """Merge comparisons: the largest error, and the element with the largest score."""
    found = list(comparisons)
    worst = max(found, key=lambda c: c.score)
    return Comparison(worst.score, max(c.max_abs for c in found), worst.worst)


def check(
    outputs: Sequence[Arrays],
    samples: Sequence[Sample],
    tolerance: Tolerance | None = None,
    allowance: float = 1.0,
) -> Comparison:
    """Compare a target's outputs for every sample with the recorded ones.

    ``allowance`` is for runtimes that round more often than PyTorch: their noise is that many times
    as large.
    """
    factors = np.array([allowance, 1.0])
    floors = [{name: factors * f for name, f in s.floors.items()} for s in samples]
    return worst_of(
        compare_outputs(actual, sample.outputs, f"sample {i} ", tolerance, floors[i])
        for i, (actual, sample) in enumerate(zip(outputs, samples, strict=True))
    )
