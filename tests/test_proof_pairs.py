"""Graphs that differ are never proved, however little it is; graphs that do not are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from proof_drawn import INPUTS, Drawn, Pool
from proof_pairs import DIFFERENT, SAME, Pair
from proof_terms import compared
from test_proof import check_proved

from crelu_deploy.proof import prove


def computed(model: ir.Model, pair: Pair) -> np.ndarray:
    """Return what ONNX Runtime computes."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feeds = {i.name: pair.feeds()[i.name] for i in session.get_inputs()}
    return np.asarray(session.run(None, feeds)[0])


@pytest.mark.parametrize("name", DIFFERENT)
def test_graphs_that_differ_are_not_proved(name: str) -> None:
    pair = DIFFERENT[name]
    one, two = pair.models()
    assert not prove(one, two).proved
    assert not prove(two, one).proved
    if pair.runs:
        with np.errstate(all="ignore"):
            assert not np.array_equal(computed(one, pair), computed(two, pair))


@pytest.mark.parametrize("name", SAME)
def test_graphs_that_do_not_differ_are_proved(name: str) -> None:
    check_proved(*SAME[name].models())


def compare_drawn(seed: int) -> int:
    """Draw two graphs over the same inputs and constants, and compare what is one term."""
    random = np.random.default_rng(seed)
    shapes = INPUTS[int(random.integers(len(INPUTS)))]
    inputs = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    pool: Pool = {}
    drawn = [Drawn(random, inputs, pool) for _ in range(2)]
    for one in drawn:
        one.grow(60)
    declared, symbolic = random.random(2) < 0.5
    models = [one.model(declared=bool(declared), symbolic=bool(symbolic)) for one in drawn]
    return compared([(m, one.known) for m, one in zip(models, drawn, strict=True)])


def test_values_that_are_one_term_are_equal() -> None:
    assert sum(map(compare_drawn, range(12))) > 400
