"""Timing: alternating order, warm-up left out, limits kept, percentiles right."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from crelu_deploy.latency import MINIMUM, Effort, measure


def recorded(names: str) -> tuple[list[str], dict[str, Callable[[], object]]]:
    """Return a log and one callable per letter that writes its name there."""
    log: list[str] = []

    def call(name: str) -> Callable[[], object]:
        return lambda: log.append(name)

    return log, {name: call(name) for name in names}


@pytest.mark.parametrize(
    ("names", "runs", "rounds"),
    [
        ("a", 5, "a a a a a"),
        ("ab", 5, "ab ba ab ba ab"),
        ("abc", 6, "abc cba abc cba abc cba"),
    ],
)
def test_the_order_alternates(names, runs, rounds):
    log, calls = recorded(names)
    measure(calls, Effort(runs=runs, warmup=0))
    assert "".join(log) == rounds.replace(" ", "")


def test_the_warm_up_comes_first_and_is_not_counted():
    log, calls = recorded("ab")
    found = measure(calls, Effort(runs=6, warmup=3))
    assert "".join(log[:6]) == "aaabbb"
    assert len(log) == 2 * (3 + 6)
    assert [found[name].runs for name in "ab"] == [6, 6]


def test_a_slow_first_call_is_not_in_the_figures():
    waits = iter([0.2])
    found = measure({"a": lambda: time.sleep(next(waits, 0))}, Effort(runs=20, warmup=1))
    assert found["a"].p90 < 50


@pytest.mark.parametrize(
    ("effort", "runs"),
    [
        (Effort(runs=50, warmup=0, seconds=1e-9), MINIMUM),
        (Effort(runs=MINIMUM, warmup=0, seconds=1e-9), MINIMUM),
        (Effort(runs=3, warmup=0, seconds=1e-9), 3),
        (Effort(runs=50, warmup=0, seconds=60), 50),
    ],
    ids=["time-up", "equal", "fewer-wanted", "time-left"],
)
def test_how_many_runs_there_are(effort, runs):
    _, calls = recorded("abc")
    assert {latency.runs for latency in measure(calls, effort).values()} == {runs}


def test_the_time_limit_is_kept():
    start = time.perf_counter()
    calls = {name: lambda: time.sleep(0.01) for name in "ab"}
    found = measure(calls, Effort(runs=10_000, warmup=0, seconds=0.3))
    assert 0.3 <= time.perf_counter() - start < 2
    assert found["a"].runs == found["b"].runs
    assert MINIMUM <= found["a"].runs <= 15


def test_percentiles_in_milliseconds():
    # 11 calls: the 10th, 50th and 90th percentiles are the second, sixth and tenth by length.
    waits = np.arange(1, 12) * 4e-3
    order = iter(np.random.default_rng(0).permutation(waits))
    found = measure({"a": lambda: time.sleep(next(order))}, Effort(runs=11, warmup=0))["a"]
    for value, wait in ((found.p10, waits[1]), (found.median, waits[5]), (found.p90, waits[9])):
        assert wait * 1e3 <= value < wait * 1e3 + 3.9


def test_the_slower_of_two_is_the_slower_one():
    calls = {"slow": lambda: time.sleep(5e-3), "fast": lambda: time.sleep(1e-3)}
    found = measure(calls, Effort(runs=9, warmup=1))
    assert list(found) == ["slow", "fast"]
    assert found["fast"].median < 4 < found["slow"].median


def test_progress_grows_from_zero_towards_one():
    shares: list[float] = []
    _, calls = recorded("ab")
    measure(calls, Effort(runs=10, warmup=0, seconds=60), shares.append)
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0, abs=0.01)
    assert shares[-1] == pytest.approx(0.9, abs=0.01)


def test_an_error_of_a_call_is_not_hidden():
    def broken() -> object:
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        measure({"a": broken}, Effort(runs=1, warmup=0))
