"""Timing: alternating order, warm-up left out, limits kept, percentiles right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace

import numpy as np
import pytest

from crelu_deploy import latency
from crelu_deploy.latency import MINIMUM, Effort, Latency, measure, paired


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


DRIFT = [float(2**i) for i in range(10)]

# a callable's times, another one's in the same rounds -> whether the first is faster or slower
DIFFERENCES = {
    "the-same": ([1.0] * 10, [1.0] * 10, (False, False)),
    "always-faster": ([0.99] * 10, [1.0] * 10, (True, False)),
    "always-slower": ([1.01] * 10, [1.0] * 10, (False, True)),
    "faster-under-drift": ([0.99 * t for t in DRIFT], DRIFT, (True, False)),
    "seven-rounds-are-too-few": ([0.5] * 7, [1.0] * 7, (False, False)),
    "eight-rounds-are-enough": ([0.5] * 8, [1.0] * 8, (True, False)),
    "slower-in-one-round-of-ten": ([0.9] * 9 + [5.0], [1.0] * 10, (False, False)),
    "slower-in-three-rounds-of-twenty": ([0.9] * 17 + [5.0] * 3, [1.0] * 20, (True, False)),
    "slower-in-four-rounds-of-twenty": ([0.9] * 16 + [5.0] * 4, [1.0] * 20, (False, False)),
    "faster-and-slower": ([0.5, 2.0] * 5, [1.0] * 10, (False, False)),
}


@pytest.mark.parametrize(("one", "other", "expected"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_a_difference_is_one_beyond_chance(one, other, expected):
    found, inverse = paired(one, other), paired(other, one)
    assert (found.faster, found.slower) == expected
    assert (inverse.slower, inverse.faster) == expected


def test_the_interval_is_that_of_the_sign_test():
    """Of 20 fair coins fewer than 4 fall one way with a probability of .0013, than 5 of .0059."""
    found = paired([float(i) for i in range(1, 21)], [1.0] * 20)
    assert (found.low, found.ratio, found.high) == (4.0, 10.5, 17.0)


def test_ratios_of_pairs_survive_what_ratios_of_medians_do_not():
    """A machine that is five times slower from the second half on, for whichever comes first."""
    one = [0.8] * 5 + [4.0] * 6
    other = [1.0] * 6 + [5.0] * 5
    assert np.median(one) / np.median(other) == 4.0
    assert paired(one, other).ratio == pytest.approx(0.8)


# times over the other's -> whether the ratio is told well enough to be shown as it is
CLARITY = {
    "steady": ([1.0, 1.1] * 50, True),
    "few": ([1.0] * 7, False),
    "busy": ([0.1, 12.8, 1.0, 5.0] * 10, False),
    "some spikes": ([1.0] * 90 + [20.0] * 10, True),
}


@pytest.mark.parametrize(("ratios", "clear"), CLARITY.values(), ids=CLARITY)
def test_a_ratio_is_clear_where_its_interval_is_narrow(ratios, clear):
    assert paired(ratios, [1.0] * len(ratios)).clear is clear


def test_the_shortest_times_are_compared_too():
    assert paired([2.0, 9.0, 9.0], [5.0, 4.0, 5.0]).minima == 0.5


@pytest.mark.parametrize(("one", "other"), [([], []), ([1.0], [1.0, 2.0])])
def test_unequal_rounds_are_a_mistake(one, other):
    with pytest.raises(ValueError, match="as many times"):
        paired(one, other)


@pytest.mark.parametrize("share", [0.5, 0.6])
def test_no_difference_is_seen_in_noise_more_often_than_promised(share):
    """One call in two, or more, lasts ten times as long: what two busy neighbours do."""
    generator = np.random.default_rng(7)
    seen = 0
    for _ in range(400):
        one, other = np.where(generator.random((2, 40)) < share, 10.0, 1.0) * generator.uniform(
            0.95, 1.05, (2, 40)
        )
        seen += paired(list(one), list(other)).faster
    assert seen <= 6  # of 400, where a twohundredth may be


def test_times_are_kept_in_their_order(clock):
    call = clock.waiting([9.0, 0.003, 0.001, 0.002])
    found = measure({"a": call}, Effort(runs=3, warmup=1, seconds=60))["a"]
    assert found.times == pytest.approx((3.0, 1.0, 2.0))
