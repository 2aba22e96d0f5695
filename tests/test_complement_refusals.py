from __future__ import annotations

import numpy as np
import pytest
from graphs import CONV, IMAGE, Case, check, image, model, run, values

from crelu_deploy.lowerings import lower

SITE = "[site] c = crelu_deploy.CReLU<axis=1>(z)"
POOL = "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>"
LINEAR = "Conv, ConvTranspose, Gemm or MatMul"
REFUSALS = {
    "output": ("y = Identity(c)", "'y' behind it is an output of the graph"),
    "sigmoid": ("[s] e = Sigmoid(c) y = Conv(e, v)", f"Sigmoid s reads it, which is no {LINEAR}"),
    "conv-and-sigmoid": (
        "e = Conv(c, v) [s] f = Sigmoid(c) y = Concat<axis=1>(e, f)",
        f"Sigmoid s reads it, which is no {LINEAR}",
    ),
    "gather": (
        "[g] e = Gather<axis=1>(c, i) y = Conv(e, v)",
        f"Gather g reads it, which is no {LINEAR}",
    ),
    "bias-added": ("[a] e = Add(c, k) y = Conv(e, v)", f"Add a reads it, which is no {LINEAR}"),
    "batch-norm": (
        "[n] e = BatchNormalization(c, m, m, m, m) y = Conv(e, v)",
        f"BatchNormalization n reads it, which is no {LINEAR}",
    ),
    "groups": ("[k] y = Conv<group=2>(c, u)", "Conv k behind it has groups"),
    "computed-weight": (
        "q = Tanh(v) [k] y = Conv(c, q)",
        "the weight of Conv k behind it is not constant",
    ),
    "matmul-over-width": (
        "[k] y = MatMul(c, h)",
        "MatMul k behind it sums over another axis than the channels",
    ),
    "matmul-by-a-vector": (
        "e = Transpose<perm=[0,2,3,1]>(c) [k] y = MatMul(e, m)",
        "MatMul k behind it sums over another axis than the channels",
    ),
    "as-a-weight": ("[k] y = MatMul(g, c)", "MatMul k reads it as its weight or bias"),
    "padded-with-a-value": (
        "[p] e = Pad(c, r, o) y = Conv(e, v)",
        "Pad p behind it does not keep the channels whole",
    ),
    "reshaped": (
        "[r] e = Reshape(c, s) y = MatMul(e, h)",
        "Reshape r behind it does not keep the channels whole",
    ),
    "joined-along-the-batch": (
        "f = Concat<axis=1>(z, z) [j] e = Concat<axis=0>(c, f) y = Conv(e, v)",
        "Concat j behind it joins along another axis than the channels",
    ),
    "joined-with-itself": (
        "e = Concat<axis=1>(c, c) [k] y = Conv(e, t)",
        "Conv k reads it twice",
    ),
    "pool-and-conv": (
        "e = MaxPool<kernel_shape=[1,1]>(c) [k] f = Conv(c, v) y = Concat<axis=1>(e, f)",
        "Conv k reads it beside a MaxPool",
    ),
    "indices": (
        "[p] e, j = MaxPool<kernel_shape=[2,2]>(c) f = Cast<to=1>(j) y = Add(e, f)",
        "the indices of MaxPool p behind it are read",
    ),
    "dilated": (
        "[p] y = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(c)",
        "MaxPool p behind it is dilated",
    ),
    "overflow": ("[k] y = Conv(c, big)", "the sums of weights of Conv k behind it overflow"),
}
CONSTANTS = {
    "v": (5, 12, 1, 1),
    "u": (4, 6, 1, 1),
    "t": (5, 24, 1, 1),
    "h": (7, 5),
    "g": (3, 5),
    "i": np.arange(12),
    "k": (12, 1, 1),
    "m": np.ones(12, np.float32),
    "r": np.array([0, 0, 1, 1, 0, 0, 0, 0]),
    "o": np.array(1, np.float32),
    "s": np.array([-1, 7]),
    "big": np.full((5, 12, 1, 1), 3e38, np.float32),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_has_its_reason(name: str) -> None:
    tail, reason = REFUSALS[name]
    used = {
        k: v for k, v in CONSTANTS.items() if k in tail.replace(",", " ").replace(")", " ").split()
    }
    used |= {k: v for k, v in CONSTANTS.items() if f"({k}" in tail}
    original = model(image(CONV, **used), f"{SITE} {tail}")
    lowered = lower(original, "complement")
    assert (lowered.applied, lowered.reasons) == ({"site": "primitive"}, {"site": reason})
    check(lowered.model)
    x = values("x", IMAGE)
    np.testing.assert_array_equal(run(lowered.model, x)[0], run(original, x)[0])


SITE_REFUSALS = {
    "graph-output": (
        "y = crelu_deploy.CReLU<axis=1>(z)",
        "'y' behind it is an output of the graph",
    ),
    "other-activation": ("y = crelu_deploy.CSigmoid<axis=1>(z)", "CSigmoid is no plain relu"),
    "affine": ("y = crelu_deploy.AffineCReLU<axis=1>(z, b, b)", "AffineCReLU is no plain relu"),
    "pooled-on-another-axis": (
        "c = crelu_deploy.CReLU<axis=2>(z) y = MaxPool<kernel_shape=[2,2]>(c)",
        "its axis 2 is not that of a pool's channels, 1",
    ),
    "conv-on-another-axis": (
        "c = crelu_deploy.CReLU<axis=2>(z) [k] y = Conv(c, v)",
        "Conv k behind it sums over another axis than the channels",
    ),
}


@pytest.mark.parametrize("name", SITE_REFUSALS)
def test_a_site_that_is_no_plain_relu_on_the_channels(name: str) -> None:
    site, reason = SITE_REFUSALS[name]
    case = Case("z = Conv(x, w)", IMAGE, {"w": (6, 4, 3, 3), "b": (1,), "v": (5, 6, 1, 1)})
    lowered = lower(model(case, f"[site] {site}"), "complement")
    assert lowered.reasons == {"site": reason}


def test_a_pooled_output_of_the_graph() -> None:
    original = model(image(CONV), f"{SITE} y = {POOL}(c)", outputs=["y", "c"])
    lowered = lower(original, "complement")
    assert lowered.reasons == {"site": "'c' behind it is an output of the graph"}


def test_unknown_shapes_are_refused() -> None:
    case = Case("z = Sigmoid(x)", IMAGE, {"v": (5, 8, 1, 1)})
    reason = "the extent of its axis is not known: its input comes from Sigmoid, which is no "
    reasons = lower(model(case, f"{SITE} y = Conv(c, v)", infer=False), "complement").reasons
    assert reasons["site"].startswith(reason)
