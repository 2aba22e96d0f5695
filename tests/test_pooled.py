"""Max pools before the activation, on x and on -x made by a depthwise convolution."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import ALL, CONV, OFF, Case, bytes_of, check, image, model, op_types, run, values
from real_models import real_model
from test_complement import POOL, POOLED, SITE, WIDE, in_a_function, run_first

from crelu_deploy.lowerings import lower
from crelu_deploy.passes import clean
from crelu_deploy.recognition import recognize

LEVELS = pytest.mark.parametrize("level", [OFF, ALL], ids=["off", "all"])


def behind(kind: str, attributes: str, **constants: np.ndarray) -> tuple[Case, str]:
    """Return a conv, a site of another kind and a max pool."""
    inputs = ", ".join(["z", *constants])
    case = Case(WIDE.body, WIDE.x, {**WIDE.constants, **constants})
    return case, f"[site] c = crelu_deploy.{kind}<{attributes}>({inputs}) y = {POOL}(c)"


SCALE = np.linspace(-2, 2, 32, dtype=np.float32).reshape(32, 1, 1)
SHIFT = np.linspace(1, -1, 32, dtype=np.float32).reshape(32, 1, 1)
KINDS = {
    "clip": behind("CClip", "axis=1, min=-0.5, max=6."),
    "leaky": behind("CLeakyRelu", "axis=1, alpha=0.1"),
    "constant": behind("CLeakyRelu", "axis=1, alpha=0."),
    "scaled": behind("AffineCReLU", "axis=1", s=SCALE, t=SHIFT),
    "scaled-clip": behind("AffineCClip", "axis=1, min=0., max=1.", s=SCALE, t=SHIFT),
}


@LEVELS
@pytest.mark.parametrize("name", [*POOLED, *KINDS])
def test_a_pooled_site_has_the_same_bits(name: str, level: object) -> None:
    case, site = {**POOLED, **KINDS}[name][:2]
    original = model(case, site)
    before = bytes_of(original)
    lowered = lower(original, "pooled")
    check(lowered.model)
    assert (lowered.applied, lowered.reasons) == ({"site": "pooled"}, {})
    assert bytes_of(original) == before
    assert "Neg" not in op_types(lowered.model)
    x = values("x", case.x)
    # The form of a scale and a shift is that of a convolution, which may fuse product and sum.
    expected = run(lower(original, "depthwise").model, x, level)[0]
    np.testing.assert_array_equal(run(lowered.model, x, level)[0], expected)
    if name not in KINDS:
        np.testing.assert_array_equal(expected, run(original, x, level)[0])


def test_the_form_in_the_graph() -> None:
    lowered = lower(model(WIDE, f"{SITE} [pool] y = {POOL}(c)"), "pooled").model
    half = ["MaxPool", "Relu"]
    assert op_types(lowered) == ["Conv", "Conv", *half, *half, "Concat"]
    assert [n.name for n in lowered.graph][1:] == [
        *("site/Conv", "pool/MaxPool", "pool/Relu", "pool/MaxPool_1", "pool/Relu_1", "pool/Concat"),
    ]
    assert str(lowered.graph.outputs[0].shape) == "[N,32,3,4]"


def test_a_scale_and_a_shift_go_into_two_convolutions() -> None:
    case, site = KINDS["scaled"]
    lowered = lower(model(case, site), "pooled").model
    half = ["MaxPool", "Relu"]
    assert op_types(lowered) == ["Conv", "Conv", "Conv", *half, *half, "Concat"]


REFUSALS = {
    "no pool": (f"{SITE} y = Sigmoid(c)", "no MaxPool reads it"),
    "also read": (f"{SITE} e = {POOL}(c) y = Sigmoid(c)", "Sigmoid reads it beside a MaxPool"),
    "dilated": (
        f"{SITE} [p] y = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(c)",
        "MaxPool p behind it is dilated",
    ),
    "indices": (
        f"{SITE} [p] e, i = MaxPool<kernel_shape=[2,2]>(c) y = Cast<to=1>(i)",
        "the indices of MaxPool p behind it are read",
    ),
    "axis": (
        f"[site] c = crelu_deploy.CReLU<axis=2>(z) y = {POOL}(c)",
        "its axis 2 is not that of a pool's channels, 1",
    ),
    "falling": (
        f"[site] c = crelu_deploy.CLeakyRelu<axis=1, alpha=-0.1>(z) y = {POOL}(c)",
        "the activation of CLeakyRelu site is not surely monotonic",
    ),
    "approximated": (
        f"[site] c = crelu_deploy.CElu<axis=1, alpha=1.>(z) y = {POOL}(c)",
        "the activation of CElu site is not surely monotonic",
    ),
    "computed scale": (
        f"[site] c = crelu_deploy.AffineCReLU<axis=1>(z, k, k) y = {POOL}(c)",
        "its scale of shape [5, 7] differs within a channel",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    site, reason = REFUSALS[name]
    case = image(CONV, k=np.ones((5, 7), np.float32))
    lowered = lower(model(case, site), "pooled")
    assert (lowered.applied, lowered.reasons) == ({"site": "primitive"}, {"site": reason})


def test_a_graph_output_is_refused() -> None:
    lowered = lower(model(WIDE, f"{SITE} y = {POOL}(c)", outputs=["y", "c"]), "pooled")
    assert lowered.reasons == {"site": "'c' behind it is an output of the graph"}


def test_an_infinity_survives() -> None:
    x = values("x", (2, 5, 6, 6))
    x[0, 0, 2, 2], x[1, 2, 3, 3] = np.inf, -np.inf
    original = model(Case("z = Identity(x)", x.shape), f"{SITE} y = {POOL}(c)")
    actual = run(lower(original, "pooled").model, x)[0]
    np.testing.assert_array_equal(actual, run(original, x)[0])
    assert np.isinf(actual).any()


def test_in_a_function() -> None:
    case, site = POOLED["blocked"][:2]
    lowered = lower(in_a_function(case, site), "pooled")
    check(lowered.model)
    assert (lowered.applied, lowered.reasons) == ({"site": "pooled"}, {})
    x = values("x", case.x)
    np.testing.assert_array_equal(run(lowered.model, x)[0], run(model(case, site), x)[0])


def test_faceboxes_has_the_same_bits() -> None:
    original = ir.load(real_model("faceboxes-3ddfa/FaceBoxesProd.onnx"))
    recognize(original)
    cleaned = clean(original)
    lowered = lower(cleaned, "pooled")
    assert lowered.reasons == {}
    check(lowered.model)
    shape = [d if isinstance(d, int) else 1 for d in cleaned.graph.inputs[0].shape]
    x = values("x", shape)
    for actual, expected in zip(run_first(lowered.model, x), run_first(cleaned, x), strict=True):
        np.testing.assert_array_equal(actual, expected)
