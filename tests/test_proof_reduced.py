"""Lowered graphs in a reduced precision are proved, and faults in them refuted."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Case, image, model
from proof_faults import NETWORKS, lowering
from test_proof import FAULTS, SCALES, ZEROS

from crelu_deploy.lowerings import LOWERINGS, lower
from crelu_deploy.precision import TYPES, reduce_precision
from crelu_deploy.proof import prove


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in ("function", "plugin")])
def test_a_reduced_precision_is_proved(name: str, precision: str) -> None:
    given = lowering(name)
    reduced = reduce_precision(given.lowered, precision)
    proof = prove(given.canonical, reduced, TYPES[precision])
    assert proof.faults == ()
    whole = prove(given.canonical, reduced)
    assert whole.refuted  # as float32 it is another network


GEMM = "Gemm<alpha = 0.3, beta = 0.7, transB = 1>"
HALVED = {
    "factors": model(
        Case(f"z = {GEMM}(x, w, b)", (3, 10), {"w": (6, 10), "b": (6,), "k": (5, 12), "e": (5,)}),
        f"[site] c = crelu_deploy.CReLU<axis=1>(z) y = {GEMM}(c, k, e)",
    ),
    "rows of zeros": model(
        image("z = Conv(x, w, b)", w=ZEROS, k=(5, 12, 3, 3), **SCALES),
        "[site] q = crelu_deploy.AffineCReLU<axis=1>(z, s, t) y = Conv(q, k)",
    ),
    "region": model(
        image(
            "p = Conv(x, w, b) z = Resize(p, roi, k)",
            roi=np.zeros(8, np.float32),
            k=np.float32([1, 1, 2, 2]),
        )
    ),
}


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("name", HALVED)
def test_what_is_rounded_in_a_reduced_precision_is_proved(name: str, precision: str) -> None:
    for form in LOWERINGS:
        if form not in ("function", "plugin"):
            reduced = reduce_precision(lower(HALVED[name], form).model, precision)
            assert prove(HALVED[name], reduced, TYPES[precision]).faults == ()


REDUCED = ("a dead half", "a wrong sign", "a neighbour's bias", "a dead channel", "one leaky half")


@pytest.mark.parametrize("name", REDUCED)
def test_a_fault_in_a_reduced_precision_is_refuted(name: str) -> None:
    network, fault, _ = FAULTS[name]
    given = lowering(network)
    fault(given.lowered)
    reduced = reduce_precision(given.lowered, "float16")
    assert prove(given.canonical, reduced, TYPES["float16"]).refuted
