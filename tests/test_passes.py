from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import Case, bytes_of, check, model, op_types, run, values

from crelu_deploy.lowerings import lower
from crelu_deploy.passes import clean
from crelu_deploy.sites import find_sites

IMAGE = (2, 4, 7, 9)
W, B = {"w": (6, 4, 3, 3)}, {"b": (6,)}
NORM = {"g": (6,), "h": (6,), "m": (6,), "v": np.linspace(0.5, 2, 6, dtype=np.float32)}
BN = "BatchNormalization(p, g, h, m, v)"


def image(body: str, **constants: object) -> Case:
    return Case(body, IMAGE, {**W, **B, **NORM, **constants})  # type: ignore[dict-item]


# body -> the operators that are left before the site
CLEANED = {
    "identity": (image("i = Identity(x) p = Conv(i, w, b) z = Identity(p)"), ["Conv"]),
    "dropout": (image("p = Conv(x, w, b) z = Dropout(p)"), ["Conv"]),
    "dead-code": (image("z = Conv(x, w, b) q = Sigmoid(z) r = Tanh(q)"), ["Conv"]),
    "batch-norm": (image(f"p = Conv(x, w, b) z = {BN}"), ["Conv"]),
    "batch-norm-without-bias": (image(f"p = Conv(x, w) z = {BN}"), ["Conv"]),
    "batch-norm-grouped": (image(f"p = Conv<group=2>(x, k, b) z = {BN}", k=(6, 2, 3, 3)), ["Conv"]),
    "batch-norm-transposed": (
        image(f"p = ConvTranspose(x, k, b) z = {BN}", k=(4, 6, 3, 3)),
        ["ConvTranspose"],
    ),
    "batch-norm-transposed-grouped": (
        image(f"p = ConvTranspose<group=2>(x, k) z = {BN}", k=(4, 3, 3, 3)),
        ["ConvTranspose"],
    ),
    "batch-norm-gemm": (
        Case(
            f"p = Gemm<alpha=0.5, beta=2.0>(x, k, b) z = {BN}", (3, 5), {"k": (5, 6), **B, **NORM}
        ),
        ["Gemm"],
    ),
    "batch-norm-matmul": (
        Case(f"p = MatMul(x, k) z = {BN}", (3, 5), {"k": (5, 6), **NORM}),
        ["MatMul", "Add"],
    ),
    "matmul-scaled": (
        Case("p = MatMul(x, k) z = Mul(p, g)", (3, 5), {"k": (5, 6), **NORM}),
        ["MatMul"],
    ),
    "matmul-add-scaled": (
        Case(
            "p = MatMul(x, k) q = Add(b, p) z = Div(q, v)", (3, 4, 5), {"k": (5, 6), **B, **NORM}, 2
        ),
        ["MatMul", "Add"],
    ),
    "matmul-add": (
        Case("p = MatMul(x, k) z = Add(p, b)", (3, 5), {"k": (5, 6), **B}),
        ["MatMul", "Add"],
    ),
    "affine": (
        image("p = Conv(x, w) q = Mul(k, p) r = Add(q, t) z = Sub(r, k)", k=(6, 1, 1), t=(1,)),
        ["Conv"],
    ),
    "subtracted-from": (image("p = Conv(x, w, b) z = Sub(k, p)", k=(1, 6, 1, 1)), ["Conv"]),
    "batch-norm-and-affine": (
        image(f"p = Conv(x, w, b) q = {BN} r = Mul(q, k) z = Add(r, k)", k=(6, 1, 1)),
        ["Conv"],
    ),
    "over-a-transpose": (
        Case(
            "p = Conv(x, w, b) q = Transpose<perm=[0,2,3,1]>(p) z = Mul(q, g)",
            IMAGE,
            {**W, **B, **NORM},
            -1,
        ),
        ["Conv", "Transpose"],
    ),
}
LEFT = {
    "read-elsewhere": image(
        "p = Conv(x, w, b) q = Mul(p, k) r = Tanh(p) z = Add(q, r)", k=(6, 1, 1)
    ),
    "not-per-channel": image("p = Conv(x, w, b) z = Mul(p, k)", k=(1, 6, 5, 7)),
    "along-the-width": image("p = Conv(x, w, b) z = Mul(p, k)", k=(7,)),
    "computed": image("p = Conv(x, w, b) k = Sigmoid(p) z = Mul(p, k)"),
    "no-producer": image("z = Mul(x, k)", k=(4, 1, 1)),
    "out-of-range": image("p = Conv(x, w, b) z = Mul(p, k)", k=np.full(1, 3e38, np.float32)),
    "division-by-zero": image(
        "p = Conv(x, l, b) z = Div(p, k)",
        k=np.zeros(1, np.float32),
        l=np.zeros((6, 4, 3, 3), np.float32),
    ),
    "over-a-pool": image("p = Conv(x, w, b) q = GlobalAveragePool(p) z = Mul(q, k)", k=(6, 1, 1)),
    "training": image(
        "p = Conv(x, w, b) z, rm, rv = BatchNormalization<training_mode=1>(p, g, h, m, v)"
    ),
    "dropout-in-training": image(
        "p = Conv(x, w, b) z = Dropout(p, r, t)", r=np.array(0.0, np.float32), t=np.array(True)
    ),
}


@pytest.mark.parametrize("name", CLEANED)
def test_what_is_cleaned(name: str) -> None:
    case, left = CLEANED[name]
    original = model(case)
    before = bytes_of(original)
    cleaned = clean(original)
    check(cleaned)
    assert bytes_of(original) == before
    assert op_types(cleaned) == [*left, "CReLU"]
    x = values("x", case.x)
    np.testing.assert_allclose(run(cleaned, x)[0], run(original, x)[0], rtol=1e-5, atol=2e-5)
    assert [site.foldable for site in find_sites(cleaned)] == [True]


@pytest.mark.parametrize("name", LEFT)
def test_what_stays(name: str) -> None:
    original = model(LEFT[name])
    assert op_types(clean(original)) == op_types(original)


@pytest.mark.parametrize("name", [*CLEANED, *LEFT])
def test_a_second_time_changes_nothing(name: str) -> None:
    case = LEFT[name] if name in LEFT else CLEANED[name][0]
    once = clean(model(case))
    assert bytes_of(clean(once)) == bytes_of(once)
    folded = clean(lower(once, "fold").model)
    assert bytes_of(clean(folded)) == bytes_of(folded)


@pytest.mark.parametrize(("factor", "left"), [(1e-6, 2), (1e-2, 1), (1e3, 1), (6e4, 2)])
def test_half_precision_keeps_its_precision(factor: float, left: int) -> None:
    constants = {"w": (6, 4, 3, 3), "k": np.full(1, factor, np.float32).astype(np.float16)}
    case = Case("p = Conv(x, w) z = Mul(p, k)", IMAGE, constants)
    original = model(case, "", outputs=["z"], dtype=np.float16)
    assert len(op_types(clean(original))) == left


def test_all_behind_a_conv_is_rounded_once() -> None:
    constants = {"w": (3, 2, 1, 1), "k": (3, 1, 1), "t": (3, 1, 1)}
    case = Case("p = Conv(x, w) q = Mul(p, k) r = Mul(q, k) z = Add(r, t)", (1, 2, 4, 4), constants)
    cleaned = clean(model(case, "", outputs=["z"]))
    w, k, t = (values(n, s).astype(np.float64).squeeze() for n, s in constants.items())
    rows, bias = (v.const_value.numpy() for v in cleaned.graph.initializers.values())
    np.testing.assert_array_equal(rows[:, :, 0, 0], (w * (k * k)[:, None]).astype(np.float32))
    np.testing.assert_array_equal(bias, t.astype(np.float32))


def test_the_interface_stays() -> None:
    case = image("i = Identity(x) p = Conv(i, w, b) z = Mul(p, g2)", g2=(6, 1, 1))
    original = model(case, "[last] y = Identity(z)", outputs=["y", "z"])
    original.metadata_props["owner"] = "tests"
    original.graph.node("last").metadata_props["kept"] = "yes"
    cleaned = clean(original)
    check(cleaned)
    assert [v.name for v in cleaned.graph.outputs] == ["y", "z"]
    assert [str(v.shape) for v in cleaned.graph.outputs] == ["[N,6,5,7]"] * 2
    assert [str(v.shape) for v in cleaned.graph.inputs] == ["[N,4,7,9]"]
    assert cleaned.metadata_props == {"owner": "tests"}
    assert cleaned.graph.node("last").metadata_props == {"kept": "yes"}
    x = values("x", IMAGE)
    for actual, expected in zip(run(cleaned, x), run(original, x), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_bodies_stay() -> None:
    original = model(image("z = Conv(x, w, b)"))
    cleaned = clean(original)
    (body,), (expected,) = cleaned.functions.values(), original.functions.values()
    assert ir.serde.serialize_function(body) == ir.serde.serialize_function(expected)


def test_equal_small_constants_are_merged() -> None:
    k = values("k", (6,))
    case = image(
        "p = Conv(x, w, k) q = Tanh(p) r = Conv(x, w, l) s = Tanh(r) z = Add(q, s)", k=k, l=k
    )
    cleaned = clean(model(case))
    assert {"k", "l"} - set(cleaned.graph.initializers) == {"l"}


def test_large_weights_stay_in_external_data(tmp_path: object) -> None:
    path = f"{tmp_path}/m.onnx"
    original = model(image("i = Identity(x) z = Conv(i, w, b)"))
    ir.save(original, path, external_data="m.data", size_threshold_bytes=64)
    cleaned = clean(ir.load(path))
    assert isinstance(cleaned.graph.initializers["w"].const_value, ir.ExternalTensor)


def test_an_arithmetic_in_a_branch_stays_there() -> None:
    body = (
        "p = Conv(x, w, b) c = Constant<value = bool {1}>() "
        "z = If(c) <then_branch = g1 () => (float[] s) { s = Mul(p, g2) },"
        " else_branch = g2_ () => (float[] e) { e = Identity(x2) }>"
    )
    case = image(body, g2=(6, 1, 1), x2=(1, 6, 5, 7))
    original = model(case, "", outputs=["z"])
    cleaned = clean(original)
    check(cleaned)
    x = values("x", IMAGE)
    np.testing.assert_array_equal(run(cleaned, x)[0], run(original, x)[0])
