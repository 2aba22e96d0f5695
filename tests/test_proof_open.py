"""What the prover does not understand is neither proved nor refuted."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import onnx_ir as ir
import pytest
from graphs import IMAGE, Case, model
from proof_faults import half, lowering, numbers

from crelu_deploy.lowerings import lower
from crelu_deploy.proof import linear, prove


def unreadable(*_: object) -> None:
    raise ValueError("not understood")


def test_a_right_file_that_cannot_be_followed_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    given = lowering("fold")
    monkeypatch.setattr(linear, "match", unreadable)
    proof = prove(given.canonical, given.lowered)
    assert (proof.refuted, proof.proved) == (False, False)
    assert proof.open == "outside the sites: it cannot be followed: ValueError not understood"
    assert {site.proved for site in proof.sites.values()} == {False}


def test_a_damaged_file_that_cannot_be_followed_is_refuted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = lowering("fold")
    monkeypatch.setattr(linear, "match", unreadable)
    given.lowered.graph.node("next").attributes["strides"] = ir.AttrFloat32("strides", 1.0)
    proof = prove(given.canonical, given.lowered)
    assert (proof.refuted, proof.open) == (True, "")


def test_a_fault_whose_place_cannot_be_found_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    given = lowering("fold")
    numbers("conv", 1, half(7))(given.lowered)
    monkeypatch.setattr(import_module("crelu_deploy.proof.prove"), "fault_behind", unreadable)
    (fault,) = prove(given.canonical, given.lowered).faults
    assert fault.startswith("outside the sites: output 'y': it is another value, and where ")


INSIDE = Case(
    "c = ReduceSum<keepdims=0>(x) d = Greater(c, k) y = If(d) <"
    "then_branch = a () => (float[] p, float[] v) { v = MatMul(x, w) m = Neg(v) "
    "p = crelu_deploy.CReLU<axis=1>(m) },"
    "else_branch = e () => (float[] q, float[] u) { u = MatMul(x, w) q = Concat<axis=1>(u, u) }>",
    IMAGE,
    {"w": (9, 5), "k": np.zeros((), np.float32)},
)


def test_without_extents_nothing_is_refuted() -> None:
    """A site on one axis behind a layer on another, the shape of which is not declared."""
    text = INSIDE.body.replace("y = If", "y, r = If")
    canonical = model(Case(text, INSIDE.x, INSIDE.constants), "", outputs=["y"])
    for node in ir.traversal.RecursiveGraphIterator(canonical.graph):
        if node.op_type == "MatMul":
            node.outputs[0].shape = ir.Shape([None] * 4)
    proof = prove(canonical, lower(canonical, "depthwise").model)
    assert (proof.refuted, proof.proved) == (False, False)
    assert "its extents are not known" in proof.open
