"""Tables of parameters: all combinations for ``make test-all``, and a few that have every value."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import product
from typing import Any

import pytest

thorough = pytest.mark.thorough


def crossed(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Return the parameters of all combinations of the axes' values.

    As many of them as the longest axis has values run by default; every value of every axis is in
    one. The others are marked ``thorough``.
    """
    values = [list(axis) for axis in axes.values()]
    sizes = [len(axis) for axis in values]
    kept = {tuple(row % size for size in sizes) for row in range(max(sizes))}
    rows = [
        pytest.param(
            *(axis[i] for axis, i in zip(values, place, strict=True)),
            marks=[] if place in kept else [thorough],
        )
        for place in product(*map(range, sizes))
    ]
    return pytest.mark.parametrize(tuple(axes), rows)


def mostly(name: str, values: Iterable[Any], fast: Collection[Any]) -> pytest.MarkDecorator:
    """Return parameters of which those in ``fast`` run by default."""
    rows = [pytest.param(v, marks=[] if v in fast else [thorough]) for v in values]
    assert len(fast) == sum(not row.marks for row in rows), f"not all of {fast} are values"
    return pytest.mark.parametrize(name, rows)
