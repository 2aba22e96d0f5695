"""Equal decisions: what counts, what does not, and when there are enough to judge."""

from __future__ import annotations

import numpy as np
import pytest

from crelu_deploy.accuracy import REDUCED, Comparison, Limits, Tolerance, compare
from crelu_deploy.agreement import (
    ENOUGH,
    Agreement,
    classifying_output,
    decisions,
    detections,
    top_1,
)
from crelu_deploy.results import Verification
from crelu_deploy.targets import BFLOAT16, INT8, Target

NAN = np.nan

# actual rows, expected rows -> how many decide alike
DECISIONS = {
    "same": ([[1, 2, 0], [3, 0, 0]], [[1, 2, 0], [3, 0, 0]], 2),
    "other-values": ([[0, 9, 0], [1, 0, 0]], [[1, 2, 0], [3, 2, 2.9]], 2),
    "one-differs": ([[1, 2, 0], [0, 0, 3]], [[1, 2, 0], [3, 0, 0]], 1),
    "all-differ": ([[1, 2, 0], [0, 0, 3]], [[2, 1, 0], [3, 0, 0]], 0),
    "tie-in-the-reference": ([[0, 1, 0], [0, 0, 1]], [[2, 2, 0], [0, 2, 2]], 2),
    "not-among-the-tied": ([[0, 0, 1]], [[2, 2, 0]], 0),
    "nan-in-the-target": ([[NAN, 2, 0]], [[1, 2, 0]], 0),
    "nan-in-both": ([[NAN, 2, 0]], [[NAN, 2, 0]], 0),
    "infinite": ([[np.inf, 2, 0]], [[np.inf, 2, 0]], 1),
    "all-equal": ([[0, 0, 0]], [[0, 0, 0]], 1),
}


@pytest.mark.parametrize(("actual", "expected", "equal"), DECISIONS.values(), ids=DECISIONS)
def test_top_1(actual, expected, equal):
    pair = ({"y": np.array(actual, np.float32)}, {"y": np.array(expected, np.float32)})
    assert top_1([pair]) == Agreement("y", equal, len(expected))


def test_rows_of_all_samples_count():
    expected = np.eye(4, dtype=np.float32)
    pairs = [({"y": expected[:1]}, {"y": expected[:1]}), ({"y": expected[::-1]}, {"y": expected})]
    found = top_1(pairs)
    assert found == Agreement("y", 1, 5)
    assert (found.share, str(found)) == (0.2, "1/5")


# shapes of the outputs -> the one that holds decisions
OUTPUTS = {
    "classifier": ({"logits": (3, 10)}, "logits"),
    "two-classes": ({"p": (1, 2)}, "p"),
    "regression": ({"y": (3, 1)}, None),
    "detector": ({"loc": (1, 50, 4), "conf": (1, 50, 2)}, None),
    "boxes-beside-scores": ({"y": (3, 10), "boxes": (3, 4)}, None),
    "maps": ({"y": (1, 8, 3, 3)}, None),
    "vector": ({"y": (10,)}, None),
    "scalar": ({"y": ()}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize(("shapes", "name"), OUTPUTS.values(), ids=OUTPUTS)
def test_which_output_holds_decisions(shapes, name):
    outputs = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    assert classifying_output(outputs) == name
    found = top_1([(outputs, outputs)])
    assert (found.output if found else None) == name


@pytest.mark.parametrize("shape", [(0, 10), (2, 9)], ids=["no-rows", "another-shape"])
def test_nothing_to_compare(shape):
    expected = np.zeros((0, 10) if shape[0] == 0 else (2, 10), np.float32)
    assert top_1([({"y": np.zeros(shape, np.float32)}, {"y": expected})]) is None
    assert top_1([]) is None


FACE, NOTHING, OTHER = (-3, 3, 0), (3, -3, 0), (-3, 0, 3)
HERE = (0.5, -0.5, 1, 2)
# scores and offsets of two anchors: actual, expected -> equal detections of all
DETECTIONS = {
    "same": ([FACE, NOTHING], [HERE, HERE], [FACE, NOTHING], [HERE, HERE], (1, 1)),
    "both": ([FACE, OTHER], [HERE, HERE], [FACE, OTHER], [HERE, HERE], (2, 2)),
    "missed": ([NOTHING, FACE], [HERE, HERE], [FACE, FACE], [HERE, HERE], (1, 2)),
    "invented": ([FACE, FACE], [HERE, HERE], [FACE, NOTHING], [HERE, HERE], (1, 2)),
    "another-class": ([OTHER, NOTHING], [HERE, HERE], [FACE, NOTHING], [HERE, HERE], (0, 1)),
    "unsure": ([FACE, (0, 0.4, 0)], [HERE] * 2, [FACE, NOTHING], [HERE] * 2, (1, 1)),
    # a box of size e^0.2 by e^0.4 moved by 0.01: 0.984 of the union is shared
    "moved-a-little": ([FACE] * 2, [HERE, (0.6, -0.5, 1, 2)], [FACE] * 2, [HERE] * 2, (2, 2)),
    # moved by 0.1: 0.849 of the union
    "moved-too-far": ([FACE] * 2, [HERE, (1.5, -0.5, 1, 2)], [FACE] * 2, [HERE] * 2, (1, 2)),
    # wider by e^0.1: 0.905; by e^0.12: 0.887
    "grown-a-little": ([FACE] * 2, [HERE, (0.5, -0.5, 1.5, 2)], [FACE] * 2, [HERE] * 2, (2, 2)),
    "grown-too-far": ([FACE] * 2, [HERE, (0.5, -0.5, 1.6, 2)], [FACE] * 2, [HERE] * 2, (1, 2)),
    "apart": ([FACE] * 2, [HERE, (99, 0, 1, 2)], [FACE] * 2, [HERE] * 2, (1, 2)),
    "nan-box": ([FACE] * 2, [HERE, (NAN, 0, 1, 2)], [FACE] * 2, [HERE] * 2, (1, 2)),
}


def detected(scores, boxes):
    found = {"conf": scores, "loc": boxes}
    return {name: np.array([rows], np.float32) for name, rows in found.items()}


@pytest.mark.parametrize("name", DETECTIONS)
def test_detections(name):
    *outputs, (equal, rows) = DETECTIONS[name]
    pair = detected(*outputs[:2]), detected(*outputs[2:])
    assert detections([pair]) == decisions([pair]) == Agreement("conf", equal, rows)
    assert detections([pair, pair]) == Agreement("conf", 2 * equal, 2 * rows)


# outputs in which no decisions are known
UNKNOWN = {
    "nothing-found": {"loc": (1, 2, 4), "conf": (1, 2, 3)},
    "other-names": {"boxes": (1, 2, 4), "scores": (1, 2, 3)},
    "other-anchors": {"loc": (1, 3, 4), "conf": (1, 2, 3)},
    "corners-and-more": {"loc": (1, 2, 5), "conf": (1, 2, 3)},
    "one-more-output": {"loc": (1, 2, 4), "conf": (1, 2, 3), "mask": (1, 2)},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_no_detections(name):
    outputs = {key: np.zeros(shape, np.float32) for key, shape in UNKNOWN[name].items()}
    assert decisions([(outputs, outputs)]) is None


CLOSE, FAR = Comparison(0.5, 0.1, "y[0]"), Comparison(1.5, 0.1, "y[0]")
VERDICTS = {
    "no-decisions": (CLOSE, None, 0.99, True),
    "enough": (CLOSE, Agreement("y", 99, 100), 0.99, True),
    "not-enough": (CLOSE, Agreement("y", 98, 100), 0.99, False),
    "too-few-to-tell": (CLOSE, Agreement("y", 1, ENOUGH - 1), 0.99, True),
    "not-demanded": (CLOSE, Agreement("y", 0, 100), 0.0, True),
    "far-but-agreeing": (FAR, Agreement("y", 100, 100), 0.99, False),
    "did-not-run": (None, None, 0.0, False),
}


@pytest.mark.parametrize(
    ("comparison", "agreement", "demanded", "passed"), VERDICTS.values(), ids=VERDICTS
)
def test_the_verdict(comparison, agreement, demanded, passed):
    target = Target.parse("ort-cpu-int8")
    found = Verification(target, comparison, agreement=agreement, demanded=demanded)
    assert found.passed is passed


# relative noise on every element -> which reduced precisions accept it
NOISE = {0.0: {BFLOAT16, INT8}, 0.015: {BFLOAT16, INT8}, 0.03: {INT8}, 0.14: {INT8}, 0.2: set()}


@pytest.mark.parametrize(("noise", "accepted"), NOISE.items())
def test_noise_is_judged_as_a_whole(noise, accepted):
    generator = np.random.default_rng(0)
    expected = generator.standard_normal((50, 100)).astype(np.float32)
    actual = expected + noise * generator.standard_normal(expected.shape).astype(np.float32)
    found = {p: compare(actual, expected, "y", REDUCED[p].tolerance) for p in (BFLOAT16, INT8)}
    assert {p for p, comparison in found.items() if comparison.passed} == accepted
    if noise > 0.1:
        assert "y: rms of the error is" in found[INT8].worst


@pytest.mark.parametrize("precision", [BFLOAT16, INT8])
@pytest.mark.parametrize("fault", [5.0, np.nan, np.inf, -np.inf])
def test_one_misplaced_element_is_found(precision, fault):
    expected = np.random.default_rng(0).standard_normal((50, 100)).astype(np.float32)
    expected[3, 4] = 0.5
    actual = expected.copy()
    actual[3, 4] += fault
    found = compare(actual, expected, "y", REDUCED[precision].tolerance)
    assert not found.passed
    assert found.worst.startswith("y[3, 4]: expected 0.5")


def test_limits_that_are_not_set():
    assert Limits() == Limits(None, 0.0)
    assert Tolerance(1, 1).noise == np.inf
