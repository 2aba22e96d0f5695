"""The score: equal outputs pass, every seeded fault fails and is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from crelu_deploy.accuracy import (
    SMALLEST_RMS,
    TOLERANCES,
    Comparison,
    Tolerance,
    check,
    compare,
    compare_outputs,
    worst_of,
)
from crelu_deploy.runner import Runner, TensorSpec
from crelu_deploy.samples import Sample

SHAPE = (2, 3, 4)
AT = (1, 2, 0)
FLOATS = tuple(TOLERANCES)
INTEGERS = ("int64", "int32", "uint8", "bool")
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-7, 7.0])


def expected(dtype: str) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)


def allowed(array: np.ndarray, at: tuple[int, ...] = AT) -> float:
    """The error that scores 1 at one element: the definition, spelled out once more."""
    tolerance = TOLERANCES[array.dtype.name]
    wide = array.astype(np.float64)
    rms = math.sqrt(float((wide**2).sum()) / wide.size)
    return tolerance.atol * rms + tolerance.rtol * abs(float(wide[at]))


def put(value: float) -> Callable[[np.ndarray], None]:
    def fault(array: np.ndarray) -> None:
        array[AT] = value

    return fault


def swap(array: np.ndarray) -> None:
    array[AT], array[0, 0, 0] = array[0, 0, 0], array[AT]


def shift(factor: float) -> Callable[[np.ndarray], None]:
    """Move one element by ``factor`` times the tolerance."""

    def fault(array: np.ndarray) -> None:
        array[AT] += array.dtype.type(factor * allowed(array))

    return fault


FAULTS: Mapping[str, Callable[[np.ndarray], None]] = {
    "nan": put(math.nan),
    "inf": put(math.inf),
    "negative-inf": put(-math.inf),
    "zero": put(0.0),
    "swapped": swap,
    "twice-the-tolerance": shift(2.0),
    "minus-twice-the-tolerance": shift(-2.0),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_in_one_element_fails_and_is_named(fault, dtype):
    wanted = expected(dtype)
    actual = wanted.copy()
    fault(actual)
    result = compare(actual, wanted, "y", None)
    assert not result.passed
    assert result.worst.startswith(("y[1, 2, 0]: expected ", "y[0, 0, 0]: expected "))
    assert ", got " in result.worst


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("side", ["actual", "expected"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_or_infinity_on_one_side_scores_infinity(value, side, dtype):
    arrays = {"actual": expected(dtype), "expected": expected(dtype)}
    arrays[side][AT] = value
    result = compare(arrays["actual"], arrays["expected"], "y", None)
    assert result.score == math.inf
    assert result.max_abs == math.inf
    assert result.worst.startswith("y[1, 2, 0]")


def test_infinities_of_opposite_sign_fail():
    assert not compare(np.array([np.inf]), np.array([-np.inf]), "y", None).passed


@pytest.mark.parametrize("dtype", FLOATS)
def test_half_the_tolerance_passes_with_its_score(dtype):
    wanted = expected(dtype)
    actual = wanted.copy()
    shift(0.5)(actual)
    result = compare(actual, wanted, "y", None)
    error = abs(float(actual[AT]) - float(wanted[AT]))
    assert result.passed
    assert result.score == pytest.approx(error / allowed(wanted), rel=1e-12)
    assert result.max_abs == pytest.approx(error, rel=1e-12)


EQUAL = {
    "normal": expected("float32"),
    "special": SPECIAL,
    "nan-everywhere": np.full(3, np.nan),
    "infinite-everywhere": np.full(3, np.inf),
    "zeros": np.zeros((2, 2), np.float16),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(2.5),
    "integers": np.array([2**62, -3]),
    "booleans": np.array([True, False]),
    "bytes": np.array([1, 2, 3], np.uint8),
    "huge": np.array([1e300, 2.0]),
}


@pytest.mark.parametrize("array", EQUAL.values(), ids=EQUAL)
def test_equal_arrays_score_zero(array):
    result = compare(array.copy(), array, "y", None)
    assert (result.score, result.max_abs, result.passed) == (0.0, 0.0, True)


def test_both_zeros_are_equal():
    assert compare(np.array([-0.0]), np.array([0.0]), "y", None).score == 0


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_must_be_equal_in_every_element(dtype):
    wanted = np.zeros(5, dtype)
    actual = wanted.copy()
    actual[3] = 1
    result = compare(actual, wanted, "y", None)
    assert result.score == math.inf
    assert result.max_abs == 1
    assert result.worst.startswith("y[3]: expected ")


@pytest.mark.parametrize(("low", "high"), [(2**53, 2**53 + 1), (2**63 - 2, 2**63 - 1)])
def test_integers_beyond_the_precision_of_a_float_differ(low, high):
    result = compare(np.array([5, high]), np.array([5, low]), "y", None)
    assert result.score == math.inf
    assert result.worst == f"y[1]: expected {low}, got {high}"


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        (np.zeros((2, 3), np.float64), r"expected float32\[2, 3\], got float64\[2, 3\]"),
        (np.zeros((2, 3), np.float16), r"expected float32\[2, 3\], got float16\[2, 3\]"),
        (np.zeros((3, 2), np.float32), r"expected float32\[2, 3\], got float32\[3, 2\]"),
        (np.zeros((1, 3), np.float32), r"expected float32\[2, 3\], got float32\[1, 3\]"),
        (np.zeros((6,), np.float32), r"expected float32\[2, 3\], got float32\[6\]"),
        (np.zeros((), np.float32), r"expected float32\[2, 3\], got float32\[\]"),
        (np.zeros((0, 3), np.float32), r"expected float32\[2, 3\], got float32\[0, 3\]"),
    ],
)
def test_another_type_or_shape_fails(actual, message):
    result = compare(actual, np.zeros((2, 3), np.float32), "y", None)
    assert result.score == math.inf
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(result.worst)


def test_an_output_that_is_nearly_zero_is_judged_against_a_fixed_size():
    wanted = np.zeros(4, np.float32)
    atol = TOLERANCES["float32"].atol
    for factor, passed in ((0.9, True), (1.1, False)):
        actual = np.full(4, factor * atol * SMALLEST_RMS, np.float32)
        assert compare(actual, wanted, "y", None).passed is passed


def test_infinite_elements_do_not_widen_the_tolerance():
    wanted = np.array([np.inf, 1.0, 1.0], np.float32)
    actual = wanted + np.array([0, 0, 1e-3], np.float32)
    assert not compare(actual, wanted, "y", None).passed


def test_squares_that_overflow_do_not_widen_the_tolerance():
    wanted = np.array([1e200, 1e200])
    assert not compare(wanted * [1, 1.001], wanted, "y", None).passed
    assert compare(wanted * [1, 1 + 1e-15], wanted, "y", None).passed


def test_a_given_tolerance_replaces_the_one_of_the_type():
    wanted = np.ones(4, np.float32)
    actual = wanted + np.float32(0.05)
    assert not compare(actual, wanted, "y", None).passed
    assert compare(actual, wanted, "y", Tolerance(0.1, 0)).score == pytest.approx(0.5, rel=1e-5)
    assert compare(actual, wanted, "y", Tolerance(0, 0.1)).score == pytest.approx(0.5, rel=1e-5)
    assert not compare(actual, wanted, "y", Tolerance(0, 0)).passed
    assert not compare(actual, wanted, "y", Tolerance(math.nan, 0)).passed


def test_a_score_that_is_no_number_fails():
    assert not Comparison(math.nan, 0.0, "y").passed
    assert Comparison(1.0, 0.0, "y").passed


ONES = np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("actual", "named"),
    [({"a": ONES}, "b"), ({"a": ONES, "b": ONES, "c": ONES}, "c"), ({}, "a, b")],
    ids=["missing", "extra", "none"],
)
def test_other_output_names_fail(actual, named):
    result = compare_outputs(actual, {"a": ONES, "b": ONES}, "sample 3 ")
    assert result.score == math.inf
    assert result.worst == f"sample 3 outputs differ: {named}"


def test_the_worst_output_is_named_and_the_largest_error_kept():
    wanted = {"small": ONES, "large": 1000 * ONES}
    actual = {"small": ONES * np.float32(1.01), "large": wanted["large"] + np.float32(0.02)}
    result = compare_outputs(actual, wanted)
    assert result.worst.startswith("small[0]: expected 1.0, got 1.01")
    assert result.max_abs == pytest.approx(0.02, rel=1e-2)


@pytest.mark.parametrize("order", [1, -1])
def test_one_failure_among_many_is_the_result(order):
    good, bad = compare(ONES, ONES, "a", None), compare(2 * ONES, ONES, "b", None)
    merged = worst_of([good, bad, good][::order])
    assert merged == bad
    assert not merged.passed


class Doubler(Runner):
    """Computes ``y = 2 x``, and ``y = 2 x + 1`` for the batch size ``wrong``."""

    inputs = (TensorSpec("x", "float32", ("N",)),)
    outputs = ("y",)

    def __init__(self, wrong: int) -> None:
        self.wrong = wrong

    def _run(self, feeds):
        x = feeds["x"]
        return [2 * x + np.float32(len(x) == self.wrong)]


def outputs(runner: Runner, samples: Sequence[Sample]) -> list[dict[str, np.ndarray]]:
    return [runner(sample.inputs) for sample in samples]


def test_every_sample_is_checked_and_the_failing_one_is_named():
    inputs = [np.ones(n, np.float32) for n in (1, 2, 3)]
    samples = tuple(Sample({"x": x}, {"y": 2 * x}) for x in inputs)
    assert check(outputs(Doubler(0), samples), samples).score == 0
    for i in range(3):
        result = check(outputs(Doubler(i + 1), samples), samples)
        assert not result.passed
        assert result.worst == f"sample {i} y[0]: expected 2.0, got 3.0"
    assert check(outputs(Doubler(2), samples), samples, Tolerance(1, 0)).passed


def test_the_limit_of_the_score_is_one() -> None:
    scores = (1.0, math.nextafter(1.0, 2.0), math.inf)
    assert [Comparison(s, 0.0, "y").passed for s in scores] == [True, False, False]
