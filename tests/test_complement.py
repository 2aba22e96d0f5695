from __future__ import annotations

import time

import numpy as np
import onnx_ir as ir
import pytest
from graphs import (
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
from real_models import real_model

from crelu_deploy import op
from crelu_deploy.lowerings import LOWERINGS, lower
from crelu_deploy.passes import clean
from crelu_deploy.recognition import recognize

LEVELS = pytest.mark.parametrize("level", [OFF, ALL], ids=["off", "all"])
SITE = "[site] c = crelu_deploy.CReLU<axis=1>(z)"


def assert_close(actual: np.ndarray, expected: np.ndarray, eps: float = 2e-6) -> None:
    """Within rounding, relative to the largest value of the output."""
    scale = float(np.abs(expected.astype(np.float64)).max(initial=1))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=eps * scale)


def behind(tail: str, **constants: tuple[int, ...] | np.ndarray) -> tuple[Case, str]:
    """Return a conv to 6 channels of 5x7 and a site with this behind it."""
    return image(CONV, **constants), f"{SITE} {tail}"


CONSUMERS = {
    "conv": behind("y = Conv(c, v, d)", v=(5, 12, 3, 3), d=(5,)),
    "conv-padded": behind("y = Conv<pads=[1,2,0,1]>(c, v)", v=(5, 12, 3, 3)),
    "conv-strided": behind("y = Conv<strides=[2,1], dilations=[1,2]>(c, v)", v=(5, 12, 3, 3)),
    "1d": (
        Case("z = Conv(x, w)", (2, 3, 11), {"w": (5, 3, 3), "v": (4, 10, 3)}),
        f"{SITE} y = Conv<pads=[1,1]>(c, v)",
    ),
    "3d": (
        Case("z = Conv(x, w)", (1, 2, 4, 5, 6), {"w": (3, 2, 2, 3, 1), "v": (4, 6, 1, 2, 2)}),
        f"{SITE} y = Conv(c, v)",
    ),
    "16-channels": (
        Case("z = Conv(x, w)", (2, 16, 8, 8), {"w": (16, 16, 3, 3), "v": (32, 32, 3, 3)}),
        f"{SITE} y = Conv<pads=[1,1,1,1]>(c, v)",
    ),
    "transposed": behind("y = ConvTranspose<strides=[2,2]>(c, v)", v=(12, 5, 3, 3)),
    "gemm": (
        Case("z = Gemm(x, w)", (3, 5), {"w": (5, 7), "v": (14, 4), "d": (4,)}),
        f"{SITE} y = Gemm<alpha=0.3, beta=0.7>(c, v, d)",
    ),
    "gemm-transposed": (
        Case("z = Gemm(x, w)", (3, 5), {"w": (5, 7), "v": (4, 14)}),
        f"{SITE} y = Gemm<transB=1>(c, v)",
    ),
    "matmul": (
        Case("z = MatMul(x, w)", (3, 4, 5), {"w": (5, 7), "v": (14, 4)}, 2),
        "[site] c = crelu_deploy.CReLU<axis=-1>(z) y = MatMul(c, v)",
    ),
    "matmul-batched": (
        Case("z = MatMul(x, w)", (3, 4, 5), {"w": (5, 7), "v": (3, 14, 4)}, 2, fixed=True),
        "[site] c = crelu_deploy.CReLU<axis=2>(z) y = MatMul(c, v)",
    ),
    "no-conv-before": (
        Case("z = Sigmoid(x)", IMAGE, {"v": (5, 8, 1, 1)}),
        f"{SITE} y = Conv(c, v)",
    ),
    "identity-dropout": behind("e = Identity(c) f = Dropout(e) y = Conv(f, v)", v=(5, 12, 1, 1)),
    "average-pool": behind(
        "e = AveragePool<kernel_shape=[2,2], pads=[1,1,0,0]>(c) y = Conv(e, v)", v=(5, 12, 1, 1)
    ),
    "zero-pad": behind(
        "e = Pad(c, p) y = Conv(e, v)", v=(5, 12, 3, 3), p=np.array([0, 0, 1, 1, 0, 0, 0, 2])
    ),
    "global-average-pool-gemm": behind(
        "e = GlobalAveragePool(c) f = Flatten(e) y = Gemm(f, v)", v=(12, 4)
    ),
    "flatten-gemm": behind("e = Flatten(c) y = Gemm(e, v)", v=(12 * 35, 4)),
    "channels-last": behind("e = Transpose<perm=[0,2,3,1]>(c) y = MatMul(e, v)", v=(12, 4)),
    "concat": behind("r = Sigmoid(z) e = Concat<axis=1>(r, c, z) y = Conv(e, v)", v=(5, 24, 1, 1)),
    "concat-in-a-concat": behind(
        "r = Sigmoid(z) d = Concat<axis=1>(r, c) e = Concat<axis=1>(z, d) y = Conv(e, v)",
        v=(5, 24, 1, 1),
    ),
    "concat-flatten": behind(
        "r = Sigmoid(z) e = Concat<axis=-3>(r, c) f = Flatten(e) y = Gemm(f, v)", v=(18 * 35, 4)
    ),
    "two-consumers": behind(
        "e = Conv(c, v) f = Conv(c, u) y = Sub(e, f)", v=(5, 12, 1, 1), u=(5, 12, 1, 1)
    ),
    "two-consumers-one-weight": behind(
        "e = Conv(c, v) f = Conv(c, v) y = Add(e, f)", v=(5, 12, 1, 1)
    ),
    "in-a-subgraph": behind(
        "y = If(k) <"
        "then_branch = g1 () => (float[] a) {{ a = Conv(c, v) }},"
        "else_branch = g2 () => (float[] b2) {{ b2 = Conv(c, u) }}>",
        v=(5, 12, 1, 1),
        u=(5, 12, 1, 1),
        k=np.array(True),
    ),
    "input-read-elsewhere": behind("e = Conv(c, v) y = Add(e, z)", v=(6, 12, 1, 1)),
}


@LEVELS
@pytest.mark.parametrize("name", CONSUMERS)
def test_the_consumers_compute_the_second_half(name: str, level: object) -> None:
    case, site = CONSUMERS[name]
    original = model(case, site)
    before = bytes_of(original)
    lowered = lower(original, "complement")
    check(lowered.model)
    assert (lowered.applied, lowered.reasons) == ({"site": "complement"}, {})
    assert bytes_of(original) == before
    assert "Neg" not in op_types(lowered.model)
    x = values("x", case.x)
    assert_close(run(lowered.model, x, level)[0], run(original, x, level)[0])


def test_against_the_reference() -> None:
    case, site = CONSUMERS["matmul"]
    x, v = values("x", case.x), values("v", (14, 4))
    z = run(model(case, "", outputs=["z"]), x)[0]
    expected = op.reference(z, 2).astype(np.float64) @ v
    assert_close(run(lower(model(case, site), "complement").model, x)[0], expected)


def test_the_form_in_the_graph() -> None:
    case, site = CONSUMERS["conv"]
    lowered = lower(model(case, site), "complement").model
    assert op_types(lowered) == ["Conv", "Relu", "Concat", "Conv"]
    assert [node.name for node in lowered.graph][1:3] == ["site/Relu", "site/Concat"]
    assert "c" not in {v.name for node in lowered.graph for v in node.outputs}
    assert set(lowered.graph.initializers) == {"w", "b", "v_1", "d"}


@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"])
def test_the_columns_are_computed_in_float64_and_rounded_once(dtype: str) -> None:
    kind = ir.DataType[dtype].numpy()
    original = model(*CONSUMERS["conv"])
    array = values("v", (5, 12, 3, 3)).astype(kind)
    original.graph.initializers["v"].const_value = ir.tensor(array)
    consumer = list(lower(original, "complement").model.graph)[-1]
    columns = consumer.inputs[1].const_value.numpy()
    wide = array.astype(np.float64)
    np.testing.assert_array_equal(columns[:, :6], -array[:, 6:])
    np.testing.assert_array_equal(columns[:, 6:], (wide[:, :6] + wide[:, 6:]).astype(kind))


@LEVELS
@pytest.mark.parametrize(("dtype", "eps"), [(np.float16, 2e-3), (np.float64, 4e-15)])
def test_other_dtypes(dtype: type, eps: float, level: object) -> None:
    case, site = CONSUMERS["gemm"]
    original = model(case, site, dtype=dtype)
    lowered = lower(original, "complement")
    assert lowered.applied == {"site": "complement"}
    x = values("x", case.x, dtype)
    assert_close(run(lowered.model, x, level)[0], run(original, x, level)[0], eps)


POOL = "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>"
WIDE = Case("z = Conv(x, w)", IMAGE, {"w": (16, 4, 3, 3)})
POOLED = {
    "pool": (image(CONV), f"{SITE} y = {POOL}(c)", 1),
    "pool-then-conv": (image(CONV, v=(5, 12, 1, 1)), f"{SITE} e = {POOL}(c) y = Conv(e, v)", 1),
    "pool-then-sigmoid": (image(CONV), f"{SITE} e = {POOL}(c) y = Sigmoid(e)", 1),
    "pool-twice": (image(CONV), f"{SITE} e = {POOL}(c) y = {POOL}(e)", 1),
    "two-pools": (
        image(CONV),
        f"{SITE} e = {POOL}(c) f = MaxPool<kernel_shape=[2,2]>(c) g = Flatten(e) h = Flatten(f)"
        " y = Concat<axis=1>(g, h)",
        1,
    ),
    "ceil": (
        image(CONV),
        f"{SITE} y = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(c)",
        1,
    ),
    "auto-pad": (
        image(CONV),
        f'{SITE} y = MaxPool<kernel_shape=[2,2], auto_pad="SAME_UPPER">(c)',
        1,
    ),
    "axis-from-the-end": (
        image(CONV),
        f"[site] c = crelu_deploy.CReLU<axis=-3>(z) y = {POOL}(c)",
        1,
    ),
    "blocked": (WIDE, f"{SITE} y = {POOL}(c)", 0),
    "1d": (
        Case("z = Conv(x, w)", (2, 3, 11), {"w": (5, 3, 3)}),
        f"{SITE} y = MaxPool<kernel_shape=[3]>(c)",
        1,
    ),
    "3d": (
        Case("z = Conv(x, w)", (1, 2, 4, 5, 6), {"w": (3, 2, 2, 3, 1)}),
        f"{SITE} y = MaxPool<kernel_shape=[2,2,2]>(c)",
        1,
    ),
    "input-read-elsewhere": (
        WIDE,
        f"{SITE} e = {POOL}(c) f = {POOL}(z) y = Concat<axis=1>(e, f)",
        0,
    ),
}


@LEVELS
@pytest.mark.parametrize("name", POOLED)
def test_a_pooled_site_has_the_same_bits(name: str, level: object) -> None:
    case, site, negs = POOLED[name]
    original = model(case, site)
    lowered = lower(original, "complement")
    check(lowered.model)
    assert (lowered.applied, lowered.reasons) == ({"site": "complement"}, {})
    assert op_types(lowered.model).count("Neg") == negs
    x = values("x", case.x)
    np.testing.assert_array_equal(run(lowered.model, x, level)[0], run(original, x, level)[0])


@pytest.mark.parametrize(("channels", "negation"), [(6, "Neg"), (16, "Conv")])
def test_the_pooled_form_in_the_graph(channels: int, negation: str) -> None:
    case = Case("z = Conv(x, w)", IMAGE, {"w": (channels, 4, 3, 3)})
    lowered = lower(model(case, f"{SITE} [pool] y = {POOL}(c)"), "complement").model
    half = ["MaxPool", "Relu"]
    assert op_types(lowered) == ["Conv", negation, *half, *half, "Concat"]
    assert [n.name for n in lowered.graph][-2:] == ["pool/Relu_1", "pool/Concat"]
    assert str(lowered.graph.outputs[0].shape) == f"[N,{2 * channels},3,4]"


def test_an_infinity_survives_the_pooled_form() -> None:
    x = values("x", (2, 5, 6, 6))
    x[0, 0, 2, 2], x[1, 2, 3, 3] = np.inf, -np.inf
    original = model(Case("z = Identity(x)", x.shape), f"{SITE} y = {POOL}(c)")
    actual = run(lower(original, "complement").model, x)[0]
    np.testing.assert_array_equal(actual, run(original, x)[0])
    assert np.isinf(actual).any()


def test_what_the_shapes_do_not_tell_the_producer_does() -> None:
    case, site = CONSUMERS["conv"]
    original = model(case, site, infer=False)
    lowered = lower(original, "complement")
    assert lowered.applied == {"site": "complement"}
    x = values("x", IMAGE)
    assert_close(run(lowered.model, x)[0], run(original, x)[0])


def test_shared_weights_are_copied() -> None:
    case = image(f"{CONV} r = Concat<axis=1>(z, z)", v=(5, 12, 1, 1))
    site = f"{SITE} y = Conv(c, v) k = Conv(r, v)"
    original = model(case, site, outputs=["y", "k"])
    lowered = lower(original, "complement").model
    x = values("x", IMAGE)
    (y, k), (expected, same) = run(lowered, x), run(original, x)
    assert_close(y, expected)
    np.testing.assert_array_equal(k, same)


@pytest.mark.parametrize("opset", [11, 13, 18, 21])
@pytest.mark.parametrize("name", ["conv", "gemm"])
def test_opsets(name: str, opset: int) -> None:
    case, site = CONSUMERS[name]
    original = model(case, site, opset=opset)
    lowered = lower(original, "complement")
    check(lowered.model)
    assert lowered.applied == {"site": "complement"}
    x = values("x", case.x)
    assert_close(run(lowered.model, x)[0], run(original, x)[0])


def in_a_function(case: Case, site: str) -> ir.Model:
    """Return the model as a function, with its weights as Constant nodes, and one call of it."""
    inner = model(case, site)
    graph = inner.graph
    for value in list(graph.initializers.values()):
        node = ir.node("Constant", [], {"value": value.const_value})
        node.outputs[0].name = value.name
        graph.insert_before(next(iter(graph)), node)
        value.replace_all_uses_with(node.outputs[0])
        del graph.initializers[value.name]
    outer = model(Case("y = Identity(x)", case.x), "")
    outer.functions.update(inner.functions)
    outer.functions[("local", "Block", "")] = ir.Function(
        "local", "Block", graph=graph, attributes=[]
    )
    outer.graph.node(0).domain, outer.graph.node(0).op_type = "local", "Block"
    outer.graph.outputs[0].shape = graph.outputs[0].shape
    outer.opset_imports["local"] = 1
    outer.functions[("local", "Block", "")].opset_imports["crelu_deploy"] = 1
    return outer


@pytest.mark.parametrize("name", ["conv", "pooled"])
def test_functions(name: str) -> None:
    case, site = CONSUMERS["conv"] if name == "conv" else POOLED["blocked"][:2]
    lowered = lower(in_a_function(case, site), "complement")
    check(lowered.model)
    assert (lowered.applied, lowered.reasons) == ({"site": "complement"}, {})
    x = values("x", case.x)
    assert_close(run(lowered.model, x)[0], run(model(case, site), x)[0])


NET = Case(
    "p = Conv<pads=[1,1,1,1]>(x, w1) [s1] q = crelu_deploy.CReLU<axis=1>(p)"
    " r = Conv(q, w2) [s2] s = crelu_deploy.CReLU<axis=1>(r)"
    f" m = {POOL}(s) t = Conv(m, w3) [s3] u = crelu_deploy.CReLU<axis=1>(t) f = Flatten(u)"
    " g = Gemm(f, w4) [s4] h = crelu_deploy.CReLU<axis=1>(g)",
    (2, 4, 8, 8),
    {"w1": (6, 4, 3, 3), "w2": (16, 12, 3, 3), "w3": (8, 32, 1, 1), "w4": (144, 9), "w5": (18, 3)},
)


@pytest.mark.parametrize("seed", range(12))
def test_mixed_plans(seed: int) -> None:
    original = model(NET, "y = MatMul(h, w5)")
    choice = dict(
        zip(
            ["s1", "s2", "s3", "s4"],
            np.random.default_rng(seed).choice(list(LOWERINGS), 4),
            strict=True,
        )
    )
    lowered = lower(original, choice)
    check(lowered.model)
    unable = {  # only s2 is pooled, and no convolution is behind s3 and s4
        "s1": {"pooled"},
        "s3": {"split", "pooled"},
        "s4": {"split", "depthwise", "pooled"},
    }
    refused = {site: "primitive" for site, names in unable.items() if choice[site] in names}
    assert lowered.applied == {**choice, **refused}
    x = values("x", NET.x)
    for level in (OFF, ALL):
        assert_close(run(lowered.model, x, level)[0], run(original, x, level)[0], 4e-6)


@pytest.mark.parametrize("name", ["depthwise", "complement", "fold", "mixed"])
def test_faceboxes(name: str) -> None:
    original = ir.load(real_model("faceboxes-3ddfa/FaceBoxesProd.onnx"))
    recognize(original)
    cleaned = clean(original)
    sites = list(lower(cleaned, "function").applied)
    assert len(sites) == 2
    choice = dict(zip(sites, ["fold", "complement"], strict=True)) if name == "mixed" else name
    lowered = lower(cleaned, choice)
    assert lowered.reasons == {}
    check(lowered.model)
    shape = [d if isinstance(d, int) else 1 for d in cleaned.graph.inputs[0].shape]
    x = values("x", shape)
    for actual, expected in zip(run_first(lowered.model, x), run_first(cleaned, x), strict=True):
        np.testing.assert_array_equal(actual, expected)


def run_first(result: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    """Run a model whose only input has a name of its own."""
    copy = result.clone()
    copy.graph.inputs[0].name = "x"
    return run(copy, x, ALL)


@pytest.mark.parametrize("sites", [50, 500])
def test_the_cost_grows_with_the_nodes(sites: int) -> None:
    """The limit is several times what one core needs."""
    lines, constants, value = [], {}, "x"
    for i in range(sites):
        constants |= {f"w{i}": (4, 8, 1, 1)}
        lines.append(f"p{i} = Conv({value}, w{i}) y{i} = crelu_deploy.CReLU<axis=1>(p{i})")
        value = f"y{i}"
    case = Case(" ".join(lines), (1, 8, 4, 4), {**constants, "v": (4, 8, 1, 1)})
    original = model(case, f"y = Conv({value}, v)")
    start = time.process_time()
    assert set(lower(original, "complement").applied.values()) == {"complement"}
    assert time.process_time() - start < 0.01 * sites + 0.5
