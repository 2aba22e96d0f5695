"""``split``: convolutions of a site become two and an Add, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import ALL, CONV, IMAGE, OFF, Case, bytes_of, check, image, model, op_types, run, values

from crelu_deploy.lowerings import lower
from crelu_deploy.passes import clean
from crelu_deploy.recognition import recognize

SITE = "[site] c = crelu_deploy.CReLU<axis=1>(z)"
POOL = "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>"
FORMS = {
    "bias": (image(CONV, v=(5, 12, 3, 3), d=(5,)), "[next] y = Conv(c, v, d)"),
    "padded": (image(CONV, v=(5, 12, 3, 3)), "y = Conv<pads=[1,2,0,1]>(c, v)"),
    "strided": (image(CONV, v=(5, 12, 3, 3)), "y = Conv<strides=[2,1], dilations=[1,2]>(c, v)"),
    "auto-pad": (image(CONV, v=(5, 12, 3, 3)), 'y = Conv<auto_pad="SAME_LOWER">(c, v)'),
    "1d": (
        Case("z = Conv(x, w)", (2, 3, 11), {"w": (5, 3, 3), "v": (4, 10, 3)}),
        "y = Conv<pads=[1,1]>(c, v)",
    ),
    "3d": (
        Case("z = Conv(x, w)", (1, 2, 4, 5, 6), {"w": (3, 2, 2, 3, 1), "v": (4, 6, 1, 2, 2)}),
        "y = Conv(c, v)",
    ),
    "blocked": (
        Case("z = Conv(x, w)", (2, 16, 8, 8), {"w": (16, 16, 3, 3), "v": (32, 32, 3, 3)}),
        "e = Conv<pads=[1,1,1,1]>(c, v) y = Relu(e)",
    ),
    "no-conv-before": (Case("z = Sigmoid(x)", IMAGE, {"v": (5, 8, 1, 1)}), "y = Conv(c, v)"),
    "two-consumers": (
        image(CONV, v=(5, 12, 1, 1), u=(5, 12, 1, 1)),
        "e = Conv(c, v) f = Conv(c, u) y = Sub(e, f)",
    ),
    "one-weight": (image(CONV, v=(5, 12, 1, 1)), "e = Conv(c, v) f = Conv(c, v) y = Add(e, f)"),
    "in-a-subgraph": (
        image(CONV, v=(5, 12, 1, 1), u=(5, 12, 1, 1), k=np.array(True)),
        "y = If(k) <then_branch = g1 () => (float[] a) {{ a = Conv(c, v) }},"
        "else_branch = g2 () => (float[] b2) {{ b2 = Conv(c, u) }}>",
    ),
    "input-read-elsewhere": (image(CONV, v=(6, 12, 1, 1)), "e = Conv(c, v) y = Add(e, z)"),
    "pooled": (image(CONV, v=(5, 12, 1, 1)), f"e = {POOL}(c) y = Conv(e, v)"),
    "pooled, blocked": (
        Case("z = Conv(x, w)", (2, 16, 8, 8), {"w": (16, 16, 3, 3), "v": (32, 32, 3, 3)}),
        f"e = {POOL}(c) y = Conv(e, v)",
    ),
    "two-pools": (
        image(CONV, v=(5, 12, 1, 1), u=(5, 12, 2, 2)),
        f"e = {POOL}(c) f = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c) g = Conv(e, v)"
        " h = Conv(f, u) i = Flatten(g) j = Flatten(h) y = Concat<axis=1>(i, j)",
    ),
    "pool-read-twice": (
        image(CONV, v=(5, 12, 1, 1), u=(5, 12, 1, 1)),
        f"e = {POOL}(c) f = Conv(e, v) g = Conv(e, u) y = Sub(f, g)",
    ),
}


def assert_close(actual: np.ndarray, expected: np.ndarray, eps: float = 2e-6) -> None:
    """Within rounding, relative to the largest value of the output."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    scale = float(np.abs(expected.astype(np.float64)).max(initial=1))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=eps * scale)


@pytest.mark.parametrize("level", [OFF, ALL], ids=["off", "all"])
@pytest.mark.parametrize("name", FORMS)
def test_the_halves_are_never_joined(name: str, level: object) -> None:
    case, behind = FORMS[name]
    original = model(case, f"{SITE} {behind}")
    before = bytes_of(original)
    lowered = lower(original, "split")
    check(lowered.model)
    assert (lowered.applied, lowered.reasons) == ({"site": "split"}, {})
    assert bytes_of(original) == before
    joined = op_types(original).count("Concat")  # those that were there before
    assert op_types(lowered.model).count("Concat") == joined
    x = values("x", case.x)
    assert_close(run(lowered.model, x, level)[0], run(original, x, level)[0])


GRAPHS = {
    "bias": ["Conv", "Relu", "Conv", "Conv", "Add"],
    "pooled": ["Conv", "Neg", *2 * ["MaxPool", "Relu"], "Conv", "Conv", "Add"],
    "pooled, blocked": ["Conv", "Conv", *2 * ["MaxPool", "Relu"], "Conv", "Conv", "Add"],
}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_form_in_the_graph(name: str) -> None:
    case, behind = FORMS[name]
    lowered = lower(model(case, f"{SITE} {behind}"), "split").model
    assert op_types(lowered) == GRAPHS[name]
    first, second, add = list(lowered.graph)[-3:]
    assert list(add.inputs) == [first.outputs[0], second.outputs[0]]
    assert len(first.inputs) == 2
    assert len(second.inputs) == 2 + (name == "bias")  # the bias is added once
    assert lowered.graph.outputs[0].name == "y"
    if name == "bias":
        assert [node.name for node in (first, second, add)] == [
            "next/Conv",
            "next/Conv_1",
            "next/Add",
        ]


def test_the_weights_are_those_of_complement() -> None:
    case, behind = FORMS["bias"]
    first, second, _ = list(lower(model(case, f"{SITE} {behind}"), "split").model.graph)[-3:]
    v = values("v", (5, 12, 3, 3)).astype(np.float64)
    np.testing.assert_array_equal(first.inputs[1].const_value.numpy(), -v[:, 6:])
    wide = (v[:, :6] + v[:, 6:]).astype(np.float32)
    np.testing.assert_array_equal(second.inputs[1].const_value.numpy(), wide)


def test_float16() -> None:
    case, behind = FORMS["bias"]
    original = model(case, f"{SITE} {behind}", dtype=np.float16)
    lowered = lower(original, "split")
    assert lowered.applied == {"site": "split"}
    check(lowered.model)
    x = values("x", case.x, np.float16)  # ARM64 adds up in float16, x86-64 in float32
    assert_close(run(lowered.model, x)[0], run(original, x)[0], 5e-3)


REFUSALS = {
    "identity": ("y = Identity(c)", "Identity reads it, which is no Conv"),
    "sigmoid": (
        "[s] e = Sigmoid(c) y = Conv(e, v)",
        "Sigmoid s reads it, which is no Conv, ConvTranspose, Gemm or MatMul",
    ),
    "transposed": ("[t] y = ConvTranspose(c, u)", "ConvTranspose t behind it is no Conv"),
    "gemm": ("e = Flatten(c) y = Gemm(e, g)", "Flatten reads it, which is no"),
    "matmul": (
        "[m] y = MatMul(c, h)",
        "MatMul m behind it sums over another axis than the channels",
    ),
    "groups": ("[k] y = Conv<group=2>(c, r)", "Conv k behind it has groups"),
    "computed": ("q = Tanh(v) [k] y = Conv(c, q)", "the weight of Conv k behind it is not"),
    "pool-and-conv": (
        "e = MaxPool<kernel_shape=[1,1]>(c) f = Conv(e, v) [k] d = Conv(c, v) y = Sub(f, d)",
        "Conv k reads it beside a MaxPool",
    ),
    "two-in-a-row": (
        f"e = {POOL}(c) [p] f = {POOL}(e) [k] y = Conv(f, v)",
        "MaxPool p is not the only pool before Conv k",
    ),
    "pool-is-an-output": (f"y = {POOL}(c) e = Conv(y, v)", "'y' behind it is an output"),
    "unread": ("y = Sigmoid(z)", "nothing reads it"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_it_cannot_split_it_leaves_with_the_reason(name: str) -> None:
    behind, reason = REFUSALS[name]
    weights = {"v": (5, 12, 1, 1), "u": (12, 5, 1, 1), "g": (12 * 35, 4), "h": (7, 3)}
    original = model(image(CONV, **weights, r=(4, 6, 1, 1)), f"{SITE} {behind}")
    lowered = lower(original, "split")
    assert lowered.applied == {"site": "primitive"}
    assert reason in lowered.reasons["site"]
    x = values("x", IMAGE)
    np.testing.assert_array_equal(run(lowered.model, x)[0], run(original, x)[0])


def test_other_activations_are_refused() -> None:
    behind = "[site] c = crelu_deploy.CElu<axis=1>(z) y = Conv(c, v)"
    lowered = lower(model(image(CONV, v=(5, 12, 1, 1)), behind), "split")
    assert lowered.reasons == {"site": "CElu is no plain relu"}


CHAIN = Case(
    "p = Conv<pads=[1,1,1,1]>(x, w1) [s1] q = crelu_deploy.CReLU<axis=1>(p)"
    " r = Conv(q, w2) [s2] s = crelu_deploy.CReLU<axis=1>(r)"
    f" m = {POOL}(s) t = Conv(m, w3) [s3] u = crelu_deploy.CReLU<axis=1>(t)",
    (2, 4, 8, 8),
    {"w1": (6, 4, 3, 3), "w2": (16, 12, 3, 3), "w3": (8, 32, 1, 1), "w4": (16, 16, 1, 1)},
)


@pytest.mark.parametrize("third", ["fold", "split", "complement", "depthwise", "mirror"])
@pytest.mark.parametrize("second", ["fold", "split", "complement", "depthwise", "mirror"])
@pytest.mark.parametrize("first", ["fold", "split"])
def test_beside_every_other_lowering(first: str, second: str, third: str) -> None:
    original = model(CHAIN, "y = Conv(u, w4)")
    choice = {"s1": first, "s2": second, "s3": third}
    lowered = lower(original, choice)
    check(lowered.model)
    assert lowered.applied == choice
    x = values("x", CHAIN.x)
    assert_close(run(lowered.model, x, ALL)[0], run(original, x, ALL)[0], 1e-5)


def test_a_recognised_network_is_split() -> None:
    spelled = "n = Neg(z) a = Relu(z) b2 = Relu(n) c = Concat<axis=1>(a, b2) y = Conv(c, v)"
    original = model(image(CONV, v=(5, 12, 3, 3)), spelled)
    recognised = ir.from_proto(ir.to_proto(original))
    recognize(recognised)
    lowered = lower(clean(recognised), "split")
    assert set(lowered.applied.values()) == {"split"}
    x = values("x", IMAGE)
    assert_close(run(lowered.model, x, ALL)[0], run(original, x, ALL)[0])
