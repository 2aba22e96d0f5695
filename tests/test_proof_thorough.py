"""Proofs of much: random networks, random changes, trained networks in every form and precision."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from fuzz_networks import Network, networks
from graphs import run
from hypothesis import given, settings
from hypothesis import strategies as st
from proof_terms import Arrays, all_values, compared
from test_fuzz import FUZZ
from test_proof import FORMS, REAL, check_lowered_ways, check_proved, real
from test_proof_pairs import compare_drawn

from crelu_deploy.auditing.editing import Graph
from crelu_deploy.auditing.faults import KINDS
from crelu_deploy.lowerings import LOWERINGS, lower
from crelu_deploy.passes import clean
from crelu_deploy.precision import TYPES, reduce_precision
from crelu_deploy.proof import prove
from crelu_deploy.pruning import prune
from crelu_deploy.recognition import recognize

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", REAL)
def test_trained_networks_are_proved_in_every_form(name: str, form: str) -> None:
    canonical = real(name)
    lowered = lower(canonical, form).model
    check_proved(canonical, lowered)
    check_proved(
        canonical, lower(prune(canonical).model, form if form in LOWERINGS else "fold").model
    )
    for precision, dtype in TYPES.items():
        assert prove(canonical, reduce_precision(lowered, precision), dtype).faults == ()


@settings(FUZZ, max_examples=300)
@given(networks())
def test_many_random_networks_are_proved(network: Network) -> None:
    check_lowered_ways(network)


def outputs(result: ir.Model, x: np.ndarray) -> list[np.ndarray] | None:
    """Return what ONNX Runtime computes; None where it refuses the model."""
    try:
        return run(result, x)
    except Exception:  # what ONNX Runtime raises shares no base class
        return None


def with_a_fault(network: Network, seed: int) -> tuple[ir.Model, ir.Model, str | None]:
    """Return a network, a lowered one with a drawn fault, and form and kind; None for no place."""
    recognised = ir.from_proto(network.model)
    recognize(recognised)
    canonical = clean(recognised)
    random = np.random.default_rng(seed)
    form = str(random.choice(list(LOWERINGS)))
    changed = lower(canonical, form).model
    kind = str(random.choice(list(KINDS)))
    planted = KINDS[kind](Graph(changed, random))
    return canonical, changed, None if planted is None else f"{form}, {kind}"


@settings(FUZZ, max_examples=500)
@given(networks(), st.integers(0, 2**16))
def test_what_is_proved_computes_the_same(network: Network, seed: int) -> None:
    """A random change that is not refuted is none: no value of the network is another."""
    canonical, changed, what = with_a_fault(network, seed)
    if what is None or prove(canonical, changed).refuted:
        return
    x = np.nan_to_num(network.x, posinf=2, neginf=-2)
    before, after = outputs(canonical, x), outputs(changed, x)
    if before is None or after is None:
        return
    for one, two in zip(after, before, strict=True):
        limit = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-11}.get(two.dtype.name, 0)
        bound = limit * float(np.abs(two).max(initial=1))
        np.testing.assert_allclose(one, two, rtol=0, atol=bound, err_msg=what)


@pytest.mark.parametrize("start", range(1000, 1400, 100))
def test_many_values_that_are_one_term_are_equal(start: int) -> None:
    assert sum(map(compare_drawn, range(start, start + 100))) > 4000


def values_of(result: ir.Model, x: np.ndarray) -> Arrays:
    """Return what ONNX Runtime computes for every value; nothing where it refuses the model."""
    try:
        return all_values(result, {"x": x})
    except Exception:  # what ONNX Runtime raises shares no base class
        return {}


@settings(FUZZ, max_examples=300)
@given(networks(), st.integers(0, 2**16))
def test_one_term_in_a_lowered_network_is_one_value(network: Network, seed: int) -> None:
    """Whatever is changed: also what is read as part of a network that is refuted as a whole."""
    canonical, changed, _ = with_a_fault(network, seed)
    x = np.nan_to_num(network.x, posinf=2, neginf=-2)
    assert compared([(model, values_of(model, x)) for model in (canonical, changed)]) >= 0
