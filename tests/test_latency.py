"""Timing: alternating order, warm-up left out, limits kept, percentiles right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace

import numpy as np
import pytest

from crelu_deploy import latency
from crelu_deploy.latency import MINIMUM, Effort, Latency, differ, measure


def recorded(names: str) -> tuple[list[str], dict[str, Callable[[], object]]]:
    """Return a log and one callable per letter that writes its name there."""
    log: list[str] = []

    def call(name: str) -> Callable[[], object]:
        return lambda: log.append(name)

    return log, {name: call(name) for name in names}


class Clock:
    """A clock that stands still but for the calls that it is told to lengthen."""

    now = 100.0

    def waiting(self, seconds: Iterable[float]) -> Callable[[], object]:
        """Return a callable whose calls take these seconds, then none."""
        left = iter(seconds)

        def call() -> None:
            self.now += next(left, 0.0)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


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


def test_a_slow_first_call_is_not_in_the_figures(clock):
    call = clock.waiting([9.0, 0.001, 0.001, 0.001])
    found = measure({"a": call}, Effort(runs=3, warmup=1, seconds=60))
    assert (found["a"].p10, found["a"].p90) == pytest.approx((1.0, 1.0))


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


def test_the_time_limit_is_for_all_together(clock):
    calls = {name: clock.waiting([0.5] * 100) for name in "ab"}
    found = measure(calls, Effort(runs=100, warmup=1, seconds=10.0))
    assert [found[name].runs for name in "ab"] == [10, 10]
    assert clock.now == 100 + 2 * (1 + 10) * 0.5


def test_percentiles_in_milliseconds(clock):
    # Of 11 calls the 10th, 50th and 90th percentiles are the second, sixth and tenth by length.
    waits = np.random.default_rng(0).permutation(np.arange(1, 12) ** 2 / 1000)
    found = measure({"a": clock.waiting(waits)}, Effort(runs=11, warmup=0))["a"]
    assert (found.p10, found.median, found.p90) == pytest.approx((4, 36, 100))
    assert found.runs == 11


def test_every_call_gets_its_own_figures(clock):
    calls = {"slow": clock.waiting([0.005] * 9), "fast": clock.waiting([0.001] * 9)}
    found = measure(calls, Effort(runs=8, warmup=1))
    assert list(found) == ["slow", "fast"]
    for name, milliseconds in (("slow", 5.0), ("fast", 1.0)):
        one = found[name]
        assert (one.p10, one.median, one.p90) == pytest.approx((milliseconds,) * 3)


def test_the_real_clock_runs():
    found = measure({"a": lambda: sum(range(10_000))}, Effort(runs=5, warmup=1))["a"]
    assert isinstance(found, Latency)
    assert 0 < found.p10 <= found.median <= found.p90


def test_a_call_may_tell_the_time_of_its_gpu():
    told = iter([9.0, 1.0, 5.0, 2.0])
    found = measure({"gpu": lambda: next(told), "cpu": lambda: {"y": 1.0}}, Effort(3, 1))
    assert found["gpu"].gpu == 2.0  # the median, without the warm-up
    assert found["cpu"].gpu is None


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


def of(*milliseconds: float) -> Latency:
    return Latency(0.0, 0.0, 0.0, len(milliseconds), milliseconds)


DRIFT = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]

# a target's times, a second one's in the same rounds -> whether there is a difference
DIFFERENCES = {
    "the-same": ([1.0] * 10, [1.0] * 10, False),
    "always-faster": ([0.99] * 10, [1.0] * 10, True),
    "always-slower": ([1.01] * 10, [1.0] * 10, True),
    "faster-under-drift": ([0.99 * t for t in DRIFT], DRIFT, True),
    "slower-in-one-round-of-ten": ([0.9] * 9 + [5.0], [1.0] * 10, False),
    "slower-in-one-round-of-twenty": ([0.9] * 19 + [5.0], [1.0] * 20, True),
    "slower-in-three-rounds-of-ten": ([0.9] * 7 + [1.1] * 3, [1.0] * 10, False),
    "faster-and-slower": ([0.5, 2.0] * 5, [1.0] * 10, False),
}


@pytest.mark.parametrize(("one", "other", "expected"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_a_difference_within_the_spread_is_none(one, other, expected):
    assert differ(of(*one), of(*other)) is expected
    assert differ(of(*other), of(*one)) is expected


def test_times_are_kept_in_their_order(clock):
    call = clock.waiting([9.0, 0.003, 0.001, 0.002])
    found = measure({"a": call}, Effort(runs=3, warmup=1, seconds=60))["a"]
    assert found.times == pytest.approx((3.0, 1.0, 2.0))
