from __future__ import annotations

import numpy as np
import pytest
from graphs import IMAGE, Case, check, model, op_types, run, values

from crelu_deploy.lowerings.concats import JoinConcats

JOINED = {
    "first": ("a = Concat<axis=1>(x, p) y = Concat<axis=1>(a, q)", 1),
    "second": ("a = Concat<axis=1>(x, p) y = Concat<axis=1>(q, a)", 1),
    "both": ("a = Concat<axis=1>(x, p) b = Concat<axis=1>(q, x) y = Concat<axis=1>(a, b)", 1),
    "three-deep": (
        "a = Concat<axis=1>(x, p) b = Concat<axis=1>(a, q) y = Concat<axis=1>(p, b)",
        1,
    ),
    "axis-from-the-end": ("a = Concat<axis=-3>(x, p) y = Concat<axis=1>(a, q)", 1),
    "other-axis": ("a = Concat<axis=2>(x, p) b = Concat<axis=2>(q, q) y = Concat<axis=1>(a, b)", 3),
    "read-twice": ("a = Concat<axis=1>(x, p) y = Concat<axis=1>(a, a)", 2),
    "read-elsewhere": ("a = Concat<axis=1>(x, p) b = Abs(a) y = Concat<axis=1>(a, b)", 2),
    "not-adjacent": ("a = Concat<axis=1>(x, p) b = Abs(a) y = Concat<axis=1>(b, q)", 2),
}


@pytest.mark.parametrize("name", JOINED)
def test_nested_concats_become_one(name: str) -> None:
    body, left = JOINED[name]
    result = model(Case("p = Tanh(x) q = Sigmoid(x)", IMAGE), body)
    x = values("x", IMAGE)
    expected, before = run(result, x)[0], op_types(result).count("Concat")
    assert JoinConcats()(result).modified == (left < before)
    check(result)
    assert op_types(result).count("Concat") == left
    np.testing.assert_array_equal(run(result, x)[0], expected)
    assert not JoinConcats()(result).modified


def test_an_output_of_the_graph_stays() -> None:
    body = "a = Concat<axis=1>(x, p) y = Concat<axis=1>(a, p)"
    result = model(Case("p = Tanh(x)", IMAGE), body, outputs=["y", "a"])
    assert not JoinConcats()(result).modified


def test_subgraphs() -> None:
    body = (
        "y = If(k) <then_branch = g () => (float[] t)"
        " {{ a = Concat<axis=1>(x, p) t = Concat<axis=1>(a, p) }},"
        " else_branch = h () => (float[] e)"
        " {{ e = Concat<axis=1>(o, x) }}>"
    )
    case = Case("p = Tanh(x) o = Concat<axis=1>(p, p)", IMAGE, {"k": np.array(True)})
    result = model(case, body)
    expected = run(result, values("x", IMAGE))[0]
    assert JoinConcats()(result).modified
    check(result)
    assert sum(node.op_type == "Concat" for node in result.graph.all_nodes()) == 3
    np.testing.assert_array_equal(run(result, values("x", IMAGE))[0], expected)
