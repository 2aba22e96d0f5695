from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import (
    AFFINE_SITE,
    ALL,
    CONV,
    IMAGE,
    OFF,
    Case,
    bytes_of,
    check,
    image,
    model,
    op_types,
    run,
    values,
)

from crelu_deploy import op
from crelu_deploy.lowerings import lower

W = {"w": (6, 4, 3, 3)}
PRODUCERS = {
    "conv": image(CONV),
    "conv-without-bias": Case("z = Conv(x, w)", IMAGE, W),
    "conv-stride-pad-dilation": image(
        "z = Conv<strides=[2,1], pads=[1,2,0,1], dilations=[1,2]>(x, w, b)"
    ),
    "conv-auto-pad": image('z = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w, b)'),
    "conv-1d": Case("z = Conv<pads=[1,1]>(x, w, b)", (2, 3, 11), {"w": (5, 3, 3), "b": (5,)}),
    "conv-3d": Case("z = Conv(x, w)", (1, 2, 4, 5, 6), {"w": (3, 2, 2, 3, 1)}),
    "conv-axis-from-the-end": image(CONV, axis=-3),
    "conv-16-channels": Case(
        "z = Conv<pads=[1,1,1,1]>(x, w, b)", (1, 16, 8, 8), {"w": (16, 16, 3, 3), "b": (16,)}
    ),
    "grouped": Case("z = Conv<group=2>(x, w, b)", IMAGE, {"w": (6, 2, 3, 3), "b": (6,)}),
    "depthwise-multiplier": Case("z = Conv<group=4>(x, w)", IMAGE, {"w": (8, 1, 3, 3)}),
    "transposed": Case(
        "z = ConvTranspose<strides=[2,2], output_padding=[1,0]>(x, w, b)",
        IMAGE,
        {"w": (4, 6, 3, 3), "b": (6,)},
    ),
    "transposed-grouped": Case("z = ConvTranspose<group=2>(x, w)", IMAGE, {"w": (4, 3, 3, 3)}),
    "gemm": Case("z = Gemm(x, w, b)", (3, 5), {"w": (5, 7), "b": (7,)}),
    "gemm-without-bias": Case("z = Gemm(x, w)", (3, 5), {"w": (5, 7)}),
    "gemm-transposed": Case(
        "z = Gemm<transB=1, alpha=0.3, beta=0.7>(x, w, b)",
        (3, 5),
        {"w": (7, 5), "b": (1, 7)},
        -1,
    ),
    "gemm-input-transposed": Case(
        "z = Gemm<transA=1>(x, w, b)", (5, 3), {"w": (5, 7), "b": ()}, fixed=True
    ),
    "gemm-bias-of-full-shape": Case("z = Gemm(x, w, b)", (3, 5), {"w": (5, 7), "b": (3, 7)}),
    "gemm-bias-by-row": Case("z = Gemm(x, w, b)", (3, 5), {"w": (5, 7), "b": (3, 1)}),
    "matmul": Case("z = MatMul(x, w)", (3, 5), {"w": (5, 7)}, -1),
    "matmul-3d": Case("z = MatMul(x, w)", (3, 4, 5), {"w": (5, 7)}, 2),
    "matmul-batched": Case("z = MatMul(x, w)", (3, 4, 5), {"w": (3, 5, 7)}, -1, fixed=True),
    "matmul-add": Case("p = MatMul(x, w) z = Add(p, b)", (3, 4, 5), {"w": (5, 7), "b": (7,)}, 2),
    "add-before-matmul": Case("p = MatMul(x, w) z = Add(b, p)", (3, 5), {"w": (5, 7), "b": (7,)}),
}
STEPS = {
    "identity-dropout": image("p = Conv(x, w, b) q = Identity(p) z = Dropout(q)"),
    "negated": image("p = Conv(x, w, b) z = Neg(p)"),
    "negated-twice": image("p = Conv(x, w, b) q = Neg(p) r = Mul(q, m) z = Neg(r)", m=(6, 1, 1)),
    "negated-in-between": image("p = Conv(x, w, b) q = Add(p, a) z = Neg(q)", a=(6, 1, 1)),
    "channels-last": image("p = Conv(x, w, b) z = Transpose<perm=[0,2,3,1]>(p)", 3),
    "channels-last-add": image(
        "p = Conv(x, w, b) q = Transpose<perm=[0,2,3,1]>(p) z = Add(q, a)", -1, a=(6,)
    ),
    "average-pool": image("p = Conv(x, w, b) z = AveragePool<kernel_shape=[2,2]>(p)"),
    "global-average-pool-flatten": image(
        "p = Conv(x, w, b) q = GlobalAveragePool(p) z = Flatten(q)"
    ),
    "flatten-with-space": image("p = Conv(x, w, b) z = Flatten(p)"),
    "reshape": image("p = Conv(x, w, b) z = Reshape(p, s)", s=np.array([0, 6, -1])),
    "reshape-with-space": image("p = Conv(x, w, b) z = Reshape(p, s)", s=np.array([0, -1])),
    "reshape-numbers": image("p = Conv(x, w, b) z = Reshape(p, s)", s=np.array([-1, 6, 35])),
    "reshape-channels-last": image(
        "p = Conv(x, w, b) q = Transpose<perm=[0,2,3,1]>(p) z = Reshape(q, s)",
        s=np.array([-1, 6]),
    ),
    "squeeze-unsqueeze": image(
        "p = Conv(x, w, b) q = Unsqueeze(p, s) r = Transpose<perm=[1,0,2,3,4]>(q)"
        " z = Squeeze(r, t)",
        s=np.array([0]),
        t=np.array([1]),
    ),
    "zero-pad": image("p = Conv(x, w, b) z = Pad(p, s)", s=np.array([0, 0, 1, 2, 0, 0, 0, 1])),
    "reflect-pad": image(
        'p = Conv(x, w, b) z = Pad<mode="reflect">(p, s)', s=np.array([0, 0, 1, 2, 0, 0, 0, 1])
    ),
    "scalar": image("p = Conv(x, w, b) q = Mul(m, p) z = Add(q, a)", m=(), a=(1,)),
    "subtracted": image("p = Conv(x, w, b) q = Sub(a, p) z = Sub(q, a)", a=(6, 1, 1)),
    "divided": image("p = Conv(x, w, b) z = Div(p, m)", m=(1, 6, 1, 1)),
    "add-of-full-shape": image("p = Conv(x, w, b) z = Add(p, a)", a=(1, 6, 5, 7)),
    "batch-norm": image(
        "p = Conv(x, w, b) z = BatchNormalization(p, g, h, m, v)",
        g=(6,),
        h=(6,),
        m=(6,),
        v=np.linspace(0.5, 2, 6, dtype=np.float32),
    ),
    "grouped-flattened": Case(
        "p = Conv<group=2>(x, w, b) z = Flatten(p)", IMAGE, {"w": (6, 2, 3, 3), "b": (6,)}
    ),
}
FOLDABLE = PRODUCERS | STEPS


# ONNX Runtime multiplies this constant into the conv's weights once the Neg is gone.
ROUNDED_BY_THE_RUNTIME = {"negated-twice"}


OPSETS = {
    "pads-as-attribute": (7, image("p = Conv(x, w, b) z = Pad<pads=[0,0,1,2,0,0,0,1]>(p)")),
    "pads-with-a-value": (
        10,
        image("p = Conv(x, w, b) z = Pad<pads=[0,0,1,2,0,0,0,1], value=0.0>(p)"),
    ),
    "pads-with-axes": (
        18,
        image("p = Conv(x, w, b) z = Pad(p, s,, a)", s=np.array([1, 2, 0, 1]), a=np.array([-1, 2])),
    ),
    "dropout": (9, image("p = Conv(x, w, b) z = Dropout<ratio=0.5>(p)")),
    "squeeze": (
        11,
        image("p = Conv(x, w, b) q = Unsqueeze<axes=[4]>(p) z = Squeeze<axes=[4]>(q)"),
    ),
    "batch-norm": (
        8,
        image(
            "p = Conv(x, w, b) z = BatchNormalization(p, g, h, m, v)",
            g=(6,),
            h=(6,),
            m=(6,),
            v=np.linspace(0.5, 2, 6, dtype=np.float32),
        ),
    ),
    "original-gathered": (7, image("p = Conv(x, w, b) o = Tanh(p) z = Neg(p)")),
}


@pytest.mark.parametrize("name", OPSETS)
def test_steps_in_other_opsets(name: str) -> None:
    opset, case = OPSETS[name]
    original = model(case, opset=opset, outputs=["y", "o"] if " o =" in case.body else ["y"])
    folded = lower(original, "fold")
    check(folded.model)
    assert folded.reasons == {}
    x = values("x", case.x)
    for actual, expected in zip(run(folded.model, x), run(original, x), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("level", [OFF, ALL], ids=["off", "all"])
@pytest.mark.parametrize("name", FOLDABLE)
def test_a_plain_site_folds_to_the_same_bits(name: str, level: object) -> None:
    case = FOLDABLE[name]
    original = model(case)
    folded = lower(original, "fold")
    check(folded.model)
    assert (folded.applied, folded.reasons) == ({"site": "fold"}, {})
    assert not {"Concat", "CReLU"} & set(op_types(folded.model))
    x = values("x", case.x)
    actual = run(folded.model, x, level)[0]
    if level == OFF or name not in ROUNDED_BY_THE_RUNTIME:
        np.testing.assert_array_equal(actual, run(original, x, level)[0])
    z = run(model(case, "", outputs=["z"]), x)[0]
    np.testing.assert_allclose(actual, op.reference(z, case.axis), rtol=1e-5, atol=1e-5)


SCALE, SHIFT = values("scale", (1, 12, 1, 1)), values("shift", (12, 1, 1))
AFFINES = {
    "conv": (image(CONV, s=SCALE, t=SHIFT), 0),
    "conv-without-bias": (Case("z = Conv(x, w)", IMAGE, {**W, "s": SCALE, "t": SHIFT}), 0),
    "scalars": (image(CONV, s=(), t=(1,)), 0),
    "grouped": (
        Case("z = Conv<group=2>(x, w)", IMAGE, {"w": (6, 2, 3, 3), "s": SCALE, "t": SHIFT}),
        0,
    ),
    "transposed": (
        Case("z = ConvTranspose(x, w)", IMAGE, {"w": (4, 6, 3, 3), "s": SCALE, "t": SHIFT}),
        0,
    ),
    "gemm": (
        Case(
            "z = Gemm<alpha=0.3, beta=0.7>(x, w, b)",
            (3, 5),
            {"w": (5, 7), "b": (7,), "s": (14,), "t": (1, 14)},
        ),
        0,
    ),
    "matmul": (Case("z = MatMul(x, w)", (3, 5), {"w": (5, 7), "s": (14,), "t": (14,)}), 1),
    "matmul-add": (
        Case(
            "p = MatMul(x, w) z = Add(p, b)",
            (3, 4, 5),
            {"w": (5, 7), "b": (7,), "s": (14,), "t": (14,)},
            2,
        ),
        1,
    ),
    "channels-last": (
        image("p = Conv(x, w, b) z = Transpose<perm=[0,2,3,1]>(p)", 3, s=(12,), t=(12,)),
        0,
    ),
    "after-a-pool": (
        image("p = Conv(x, w, b) z = GlobalAveragePool(p)", s=SCALE, t=SHIFT),
        2,
    ),
    "of-full-shape": (image(CONV, s=SCALE, t=(1, 12, 5, 7)), 2),
    "negated": (image("p = Conv(x, w, b) z = Neg(p)", s=SCALE, t=SHIFT), 0),
}


@pytest.mark.parametrize("name", AFFINES)
def test_scale_and_shift_go_into_the_weights(name: str) -> None:
    case, left = AFFINES[name]
    original = model(case, AFFINE_SITE)
    folded = lower(original, "fold")
    check(folded.model)
    assert folded.reasons == {}
    bias = 1 if case.body.count("Add(") else 0
    arithmetic = [t for t in op_types(folded.model) if t in {"Mul", "Add"}]
    assert len(arithmetic) == left, (arithmetic, bias)
    x = values("x", case.x)
    expected = run(original, x)[0]
    np.testing.assert_allclose(run(folded.model, x)[0], expected, rtol=1e-5, atol=1e-5)


def weights_of(result: ir.Model) -> list[np.ndarray]:
    tensors = result.graph.initializers.values()
    return [v.const_value.numpy() for v in tensors if v.const_value is not None]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_an_affine_is_computed_in_float64_and_rounded_once(dtype: str) -> None:
    kind = ir.DataType[{"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())].numpy()
    constants = {"w": (3, 2, 1, 1), "b": (3,), "s": (1, 6, 1, 1), "t": (1, 6, 1, 1)}
    arrays = {name: values(name, shape).astype(kind) for name, shape in constants.items()}
    original = model(Case("z = Conv(x, w, b)", (1, 2, 4, 4), constants), AFFINE_SITE)
    for name, array in arrays.items():
        original.graph.initializers[name].const_value = ir.tensor(array)
    rows, bias = weights_of(lower(original, "fold").model)
    w, b, s, t = (arrays[name].astype(np.float64).squeeze() for name in "wbst")
    expected = np.concatenate([w, -w]) * s[:, None]
    np.testing.assert_array_equal(rows[:, :, 0, 0], expected.astype(kind))
    np.testing.assert_array_equal(bias, (np.concatenate([b, -b]) * s + t).astype(kind))


KINDS = {
    np.float32: ["relu", "leaky_relu", "elu", "clip", "selu", "softplus", "sigmoid", "softsign"],
    np.float16: ["relu", "leaky_relu", "elu", "clip", "selu", "softplus", "sigmoid", "tanh"],
    np.float64: ["relu", "clip", "sigmoid", "tanh"],  # what ONNX Runtime has in float64
}


@pytest.mark.parametrize(("dtype", "name"), [(d, name) for d in KINDS for name in KINDS[d]])
def test_every_activation_and_dtype(dtype: type, name: str) -> None:
    kind, attributes = op.ACTIVATIONS[name], {"alpha": 0.1, "min": -0.5, "max": 0.75}
    chosen = {k: attributes[k] for k in kind.fits}
    text = "".join(f", {k} = {v}" for k, v in chosen.items())
    case = Case("z = MatMul(x, w)", (3, 5), {"w": (5, 7)}, -1)
    site = f"[site] y = crelu_deploy.{kind.op_type}<axis=-1{text}>(z)"
    original = model(case, site, dtype=dtype)
    folded = lower(original, "fold")
    check(folded.model)
    x = values("x", case.x, dtype)
    actual = run(folded.model, x)[0]
    np.testing.assert_array_equal(actual, run(original, x)[0])
    z = run(model(case, "", outputs=["z"], dtype=dtype), x)[0]
    tolerance = 1e-3 if dtype == np.float16 else 1e-6
    expected = op.reference(z, -1, name, **chosen)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


ORDERS = {
    "interleaved": (np.arange(12).reshape(2, 6).T.ravel(), W, "", 0),
    "swapped": (np.roll(np.arange(12), 6), W, "", 0),
    "shuffled": (np.random.default_rng(3).permutation(12), W, "", 0),
    "grouped-shuffled": (
        np.random.default_rng(4).permutation(12),
        {"w": (6, 2, 3, 3)},
        "<group=2>",
        1,
    ),
    "grouped-and-interleaved": (
        np.arange(12).reshape(2, 2, 3).swapaxes(0, 1).ravel(),
        {"w": (6, 2, 3, 3)},
        "<group=2>",
        0,
    ),
    "picked": (np.arange(4), W, "", 1),
}


@pytest.mark.parametrize("site", ["CReLU<axis=1>(z)", "AffineCReLU<axis=1>(z, s, t)"])
@pytest.mark.parametrize("negate", [False, True])
@pytest.mark.parametrize("name", ORDERS)
def test_the_weights_take_the_order_of_a_gather(name: str, negate: bool, site: str) -> None:
    order, weight, attributes, left = ORDERS[name]
    body = f"p = Conv{attributes}(x, w) z = {'Neg' if negate else 'Identity'}(p)"
    constants = {**weight, "i": order.astype(np.int64), "s": SCALE, "t": SHIFT}
    case = Case(body, IMAGE, constants)
    original = model(case, f"[site] q = crelu_deploy.{site} y = Gather<axis=1>(q, i)")
    folded = lower(original, "fold")
    check(folded.model)
    assert op_types(folded.model).count("Gather") == left
    assert "Neg" not in op_types(folded.model)
    x = values("x", case.x)
    actual, expected = run(folded.model, x)[0], run(original, x)[0]
    tolerance = 1e-5 if "Affine" in site else 0
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


READ_ELSEWHERE = {
    "producer-is-an-output": ("z = Conv(x, w, b)", ["y", "z"]),
    "producer-is-read": ("z = Conv(x, w, b) r = Sigmoid(z)", ["y", "r"]),
    "producer-is-read-and-an-output": ("z = Conv(x, w, b) r = Sigmoid(z)", ["z", "y", "r"]),
    "step-is-read": ("p = Conv(x, w, b) z = AveragePool<kernel_shape=[2,2]>(p) r = Abs(z)", "yr"),
    "before-a-negation": ("p = Conv(x, w, b) r = Sigmoid(p) z = Neg(p)", ["y", "r"]),
    "negation-is-an-output": ("p = Conv(x, w, b) z = Neg(p)", ["y", "z", "p"]),
    "in-a-subgraph": (
        "z = Conv(x, w, b) c = Constant<value = bool {1}>() "
        "r = If(c) <then_branch = g1 () => (float[] t) { t = Abs(z) },"
        " else_branch = g2 () => (float[] e) { e = Neg(z) }>",
        ["y", "r"],
    ),
}


@pytest.mark.parametrize("name", READ_ELSEWHERE)
def test_other_readers_keep_the_original(name: str) -> None:
    body, outputs = READ_ELSEWHERE[name]
    original = model(image(body), outputs=list(outputs))
    folded = lower(original, "fold")
    check(folded.model)
    assert folded.applied == {"site": "fold"}
    assert [v.name for v in folded.model.graph.outputs] == list(outputs)
    x = values("x", IMAGE)
    for actual, expected in zip(run(folded.model, x), run(original, x), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_shared_weights_are_copied() -> None:
    body = "z = Conv(x, w, b) k = Conv<pads=[1,1,1,1]>(x, w, b)"
    original = model(image(body), outputs=["y", "k"])
    before = bytes_of(original)
    folded = lower(original, "fold").model
    assert bytes_of(original) == before
    x = values("x", IMAGE)
    for actual, expected in zip(run(folded, x), run(original, x), strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert sorted(len(w) for w in weights_of(folded)) == [6, 6, 12, 12]


def test_weights_in_external_data(tmp_path: object) -> None:
    original = model(image(CONV))
    ir.save(original, f"{tmp_path}/m.onnx", external_data="m.data", size_threshold_bytes=0)
    loaded = ir.load(f"{tmp_path}/m.onnx")
    folded = lower(loaded, "fold").model
    assert isinstance(loaded.graph.initializers["w"].const_value, ir.ExternalTensor)
    x = values("x", IMAGE)
    np.testing.assert_array_equal(run(folded, x)[0], run(original, x)[0])


CONSTANTS = {
    "identity": "k = Identity(w) z = Conv(x, k, b)",
    "cast": "h = Cast<to=10>(w) k = Cast<to=1>(h) z = Conv(x, k, b)",
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_weights_behind_identity_and_cast(name: str) -> None:
    original = model(image(CONSTANTS[name]))
    folded = lower(original, "fold")
    assert op_types(folded.model) == ["Conv", "Relu"]
    x = values("x", IMAGE)
    np.testing.assert_array_equal(run(folded.model, x)[0], run(original, x)[0])


def test_a_computed_scale_stays_a_node() -> None:
    case = image(f"{CONV} s = Sigmoid(k)", k=SCALE, t=SHIFT)
    original = model(case, AFFINE_SITE)
    folded = lower(original, "fold")
    assert op_types(folded.model) == ["Conv", "Sigmoid", "Mul", "Add", "Relu"]
    x = values("x", IMAGE)
    np.testing.assert_array_equal(run(folded.model, x)[0], run(original, x)[0])
