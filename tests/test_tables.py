"""The combinations that run by default hold every value; the others are marked."""

from __future__ import annotations

import pytest
from tables import crossed, mostly


def split(mark: pytest.MarkDecorator) -> tuple[list[tuple], list[tuple]]:
    rows = mark.args[1]
    return [r.values for r in rows if not r.marks], [r.values for r in rows if r.marks]


@pytest.mark.parametrize("sizes", [(3,), (3, 2), (2, 4, 3), (4, 4), (1, 5)])
def test_every_value_of_every_axis_runs_by_default(sizes):
    axes = {f"a{i}": list(range(size)) for i, size in enumerate(sizes)}
    fast, others = split(crossed(**axes))
    assert len(fast) == max(sizes)
    assert [set(column) for column in zip(*fast, strict=True)] == [set(a) for a in axes.values()]
    assert len({*fast, *others}) == len(fast) + len(others)
    product = 1
    for size in sizes:
        product *= size
    assert len(fast) + len(others) == product


def test_some_values_run_by_default():
    assert split(mostly("a", "xyz", fast=["y"])) == ([("y",)], [("x",), ("z",)])
    with pytest.raises(AssertionError, match="not all of"):
        mostly("a", "xyz", fast=["w"])
