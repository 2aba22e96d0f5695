"""Whether a target decides as PyTorch does: the class with the largest value, or the boxes found.

A classifier has one output of one row per sample. A detector of SSD's kind has ``loc`` of shape
``(N, anchors, 4)``, offsets from its anchors (centre, then logarithm of the size, with SSD's
variances 0.1 and 0.2), and ``conf`` of shape ``(N, anchors, classes)`` with the background first.
Overlap is the same whatever the anchor's size and place, so anchors need not be known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from crelu_deploy.samples import Array, Arrays

ENOUGH = 100
"""Rows from which on a share of them says something about other inputs."""

BOXES, SCORES = "loc", "conf"
SHARE, OVERLAP = 0.5, 0.9
"""Probability from which on an anchor is a detection, and overlap of equal boxes."""

CENTRE, SIZE = 0.1, 0.2
"""Variances of SSD (Liu et al., ECCV 2016, as its authors' code has them)."""


@dataclass(frozen=True)
class Agreement:
    """How many decisions are PyTorch's.

    Attributes:
        output: The output that holds the scores.
        equal: Rows whose largest value is at the same place, or equal detections.
        rows: All rows that were compared, or all detections of either side.
    """

    output: str
    equal: int
    rows: int

    @property
    def share(self) -> float:
        """The share of equal rows, 0 to 1."""
        return self.equal / self.rows

    def reaches(self, share: float) -> bool:
        """Whether the share is reached, or the rows are too few to tell."""
        return self.rows < ENOUGH or self.share >= share

    def __str__(self) -> str:
        return f"{self.equal}/{self.rows}"


def decisions(pairs: Sequence[tuple[Arrays, Arrays]]) -> Agreement | None:
    """Count equal decisions over ``(actual, expected)`` outputs; None where none are known."""
    return top_1(pairs) or detections(pairs)


def classifying_output(outputs: Arrays) -> str | None:
    """Return the name of the only output of shape ``(N, classes)``, two classes or more, or None.

    A detector has several outputs, or boxes along another axis: it has no such output.
    """
    names = [name for name, y in outputs.items() if y.ndim == 2 and y.shape[1] > 1]
    return names[0] if len(names) == len(outputs) == 1 else None


def top_1(pairs: Iterable[tuple[Arrays, Arrays]]) -> Agreement | None:
    """Count equal decisions over ``(actual, expected)`` outputs; None where there are no classes.

    A row with NaN on either side is not equal. Rows in which PyTorch's largest value occurs twice
    count as equal at either place.
    """
    equal = rows = 0
    output = None
    for actual, expected in pairs:
        output = classifying_output(expected)
        if output is None or actual[output].shape != expected[output].shape:
            return None
        equal += int(_same_decision(actual[output], expected[output]).sum())
        rows += len(expected[output])
    return Agreement(output, equal, rows) if output and rows else None


def _same_decision(actual: Array, expected: Array) -> Array:
    """Return for each row of ``(N, classes)`` whether the actual choice is among the best."""
    chosen = np.take_along_axis(expected, actual.argmax(axis=1)[:, None], axis=1)[:, 0]
    whole = ~(np.isnan(actual).any(axis=1) | np.isnan(expected).any(axis=1))
    same: Array = np.logical_and(whole, chosen == expected.max(axis=1))
    return same


def detections(pairs: Iterable[tuple[Arrays, Arrays]]) -> Agreement | None:
    """Count equal detections: the same class at the same anchor, boxes that overlap by 0.9.

    What one side finds and the other does not is not equal. None where nothing was found, or where
    the outputs are not those of such a detector.
    """
    equal = rows = 0
    for actual, expected in pairs:
        if not _is_detector(expected) or actual[BOXES].shape != expected[BOXES].shape:
            return None
        found, wanted = _classes(actual[SCORES]), _classes(expected[SCORES])
        overlap = _overlap(actual[BOXES].astype(np.float64), expected[BOXES].astype(np.float64))
        rows += int(((found > 0) | (wanted > 0)).sum())
        equal += int(((found > 0) & (found == wanted) & (overlap >= OVERLAP)).sum())
    return Agreement(SCORES, equal, rows) if rows else None


def _is_detector(outputs: Arrays) -> bool:
    if set(outputs) != {BOXES, SCORES}:
        return False
    boxes, scores = outputs[BOXES], outputs[SCORES]
    return boxes.ndim == scores.ndim == 3 and boxes.shape == (*scores.shape[:2], 4)


def _classes(scores: Array) -> Array:
    """Return the class of each anchor, 0 where it is the background or below ``SHARE``."""
    powers = np.exp(scores - scores.max(axis=2, keepdims=True), dtype=np.float64)
    shares = powers / powers.sum(axis=2, keepdims=True)
    sure = shares.max(axis=2) > SHARE
    return np.where(sure, shares.argmax(axis=2), 0)


def _overlap(one: Array, other: Array) -> Array:
    """Return intersection over union of boxes at the same anchor, from ``(..., 4)`` offsets."""
    low, high, area = [], [], []
    for offsets in (one, other):
        centre, size = CENTRE * offsets[..., :2], np.exp(SIZE * offsets[..., 2:])
        low.append(centre - size / 2)
        high.append(centre + size / 2)
        area.append(size.prod(axis=-1))
    sides = np.minimum(*high) - np.maximum(*low)
    shared = np.maximum(sides, 0).prod(axis=-1)
    result: Array = shared / (area[0] + area[1] - shared)
    return result
