from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import AFFINE_SITE, CONV, IMAGE, Case, check, image, model, op_types, run, values

from crelu_deploy.lowerings import lower
from crelu_deploy.sites import find_sites

REFUSALS = {
    "no-producer": (
        "z = Sigmoid(x)",
        "its input comes from Sigmoid, which is no Conv, ConvTranspose, Gemm or MatMul",
    ),
    "input": ("z = Neg(x)", "no Conv, ConvTranspose, Gemm or MatMul lies before its input 'z'"),
    "max-pool": (
        "p = Conv(x, w, b) [pool] z = MaxPool<kernel_shape=[2,2]>(p)",
        "its input comes from MaxPool pool, which is no Conv, ConvTranspose, Gemm or MatMul",
    ),
    "computed-weights": (
        "[v] v = Tanh(w) [conv] z = Conv(x, v, b)",
        "the weight 'v' of its producer Conv conv is computed by Tanh v",
    ),
    "computed-bias": (
        "[v] v = Tanh(b) [conv] z = Conv(x, w, v)",
        "the bias 'v' of its producer Conv conv is computed by Tanh v",
    ),
    "depthwise": (
        "[conv] z = Conv<group=4>(x, d)",
        "its producer Conv conv computes one channel in each group",
    ),
    "reshape-across-channels": (
        "p = Conv(x, w, b) [r] z = Reshape(p, s)",
        "Reshape r before it does not keep the channels whole",
    ),
    "computed-shape": (
        "p = Conv(x, w, b) i = Shape(x) q = Shape(p) [r] z = Reshape(p, q)",
        "the shape of Reshape r before it is computed",
    ),
    "channels-padded": (
        "p = Conv(x, w, b) [pad] z = Pad(p, e)",
        "Pad pad before it pads the channels",
    ),
    "padded-with-a-value": (
        "p = Conv(x, w, b) [pad] z = Pad(p, f, o)",
        "Pad pad before it pads with 1.0, not with zero",
    ),
    "two-tensors-added": (
        "p = Conv(x, w, b) q = Tanh(p) [add] z = Add(p, q)",
        "its input comes from Add add, which is no Conv, ConvTranspose, Gemm or MatMul",
    ),
    "quantised-weights": (
        "[dq] v = DequantizeLinear(u8, sc) [conv] z = Conv(x, v, b)",
        "the weight 'v' of its producer Conv conv is computed by DequantizeLinear dq",
    ),
    "quantised-output": (
        "p = Conv(x, w, b) q = QuantizeLinear(p, sc) [dq] z = DequantizeLinear(q, sc)",
        "its input comes from DequantizeLinear dq, which is no Conv, ConvTranspose, Gemm or MatMul",
    ),
    "pool-across-channels": (
        "p = Conv(x, w, b) q = Transpose<perm=[0,2,3,1]>(p)"
        " [pool] a = AveragePool<kernel_shape=[2,2]>(q) z = Transpose<perm=[0,3,1,2]>(a)",
        "AveragePool pool before it mixes the channels",
    ),
    "training": (
        "p = Conv(x, w, b) [drop] z = Dropout(p, r, t)",
        "Dropout drop before it may drop values, or its mask is read",
    ),
}
REFUSAL_CONSTANTS = {
    "d": (4, 1, 3, 3),
    "u8": np.arange(216, dtype=np.uint8).reshape(6, 4, 3, 3),
    "sc": np.array(0.1, np.float32),
    "s": np.array([0, 3, 2, 5, 7]),
    "e": np.array([0, 1, 0, 0, 0, 1, 0, 0]),
    "f": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "o": np.array(1, np.float32),
    "r": np.array(0.5, np.float32),
    "t": np.array(True),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_has_its_reason(name: str) -> None:
    body, reason = REFUSALS[name]
    original = model(image(body, **REFUSAL_CONSTANTS))
    (site,) = find_sites(original)
    assert (site.foldable, site.reason) == (False, reason)
    lowered = lower(original, "fold")
    assert (lowered.applied, lowered.reasons) == ({"site": "primitive"}, {"site": reason})
    check(lowered.model)
    assert op_types(lowered.model)[-4:] == ["Relu", "Neg", "Relu", "Concat"]


def reason_of(original: ir.Model) -> str:
    return find_sites(original)[0].reason


def test_another_axis_than_the_channels_is_refused() -> None:
    reason = reason_of(model(image(CONV, axis=2)))
    assert reason == "its axis 2 is not that of the channels of Conv conv"


def test_weights_that_the_caller_may_replace_are_refused() -> None:
    original = model(image(CONV))
    original.graph.inputs.append(original.graph.initializers["w"])
    expected = "the weight 'w' of its producer Conv conv is an input that the caller may replace"
    assert reason_of(original) == expected


def test_unknown_shapes_are_refused() -> None:
    body = "p = Conv(x, w, b) [r] z = Reshape(p, s)"
    original = model(image(body, s=np.array([0, 6, -1])), infer=False)
    assert reason_of(original) == "the shapes around Reshape r before it are not known"


def test_an_unknown_rank_is_refused_where_it_is_needed() -> None:
    case = Case("z = MatMul(x, w)", (3, 5), {"w": (5, 7)}, 1)
    reason = reason_of(model(case, infer=False))
    assert reason == "the rank of its input 'z' is not known"
    assert not reason_of(model(Case(case.body, case.x, case.constants, -1), infer=False))


def test_one_producer_is_doubled_for_one_site() -> None:
    second = "[again] u = crelu_deploy.CElu<axis=1, alpha=1.0>(z)"
    original = model(image(f"{CONV} {second}"), outputs=["y", "u"])
    reason = "its producer Conv conv is doubled for site again"
    assert [s.reason for s in find_sites(original)] == ["", reason]
    lowered = lower(original, "fold")
    assert lowered.applied == {"again": "fold", "site": "primitive"}
    assert lowered.reasons == {"site": reason}
    x = values("x", IMAGE)
    for actual, expected in zip(run(lowered.model, x), run(original, x), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_computed_scale_behind_groups_is_refused() -> None:
    case = image(
        "[conv] z = Conv<group=2>(x, g, b) s = Sigmoid(k)",
        k=(12, 1, 1),
        t=(12, 1, 1),
        g=(6, 2, 1, 1),
    )
    reason = "its scale or shift is computed and Conv conv has groups"
    assert reason_of(model(case, AFFINE_SITE)) == reason
