"""Whether a target decides as PyTorch does: the class with the largest value, sample by sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from crelu_deploy.samples import Array, Arrays

ENOUGH = 100
"""Rows from which on a share of them says something about other inputs."""


@dataclass(frozen=True)
class Agreement:
    """How often the largest value of a row is at the same place as in PyTorch's output.

    Attributes:
        output: The output that holds one row of scores, one per class, for each sample.
        equal: Rows with the same place.
        rows: All rows that were compared.
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
