"""Graphs that differ are never proved, however little it is; graphs that do not are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from proof_pairs import DIFFERENT, SAME, Pair
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
