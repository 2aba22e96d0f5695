from __future__ import annotations

import dataclasses
import json
import time

import numpy as np
import onnx_ir as ir
import pytest
from graphs import ALL, OFF, Case, bytes_of, check, model, op_types, run, values

from crelu_deploy import op
from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.lowerings import LOWERINGS, lower
from crelu_deploy.passes import clean
from crelu_deploy.sites import Site, find_sites

IMAGE = (2, 4, 7, 9)
CONV = Case("[conv] z = Conv(x, w, b)", IMAGE, {"w": (6, 4, 3, 3), "b": (6,)})
WIDE = Case("z = Conv(x, u)", IMAGE, {"u": (8, 4, 3, 3)})
NODE = Case("z = Identity(x)", IMAGE)
SHAPES = {
    "image": (NODE, IMAGE),
    "empty-batch": (NODE, (0, 4, 7, 9)),
    "one-element": (Case(NODE.body, (1, 1)), (1, 1)),
    "row": (Case(NODE.body, (3, 7)), (3, 7)),
    "odd-row-last-axis": (Case(NODE.body, (3, 1, 5), axis=-1), (3, 1, 5)),
    "batch-axis": (Case(NODE.body, (3, 5), axis=0), (3, 5)),
    "conv": (CONV, IMAGE),
    "conv-empty-batch": (CONV, (0, 4, 7, 9)),
}
EXTREMES = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 65504.0, -3e38]
ATTRIBUTES = {"alpha": 0.1, "min": -0.5, "max": 0.75}
KINDS = {
    np.float32: list(op.ACTIVATIONS),
    np.float16: list(op.ACTIVATIONS),
    np.float64: ["relu", "clip", "sigmoid", "tanh"],  # what ONNX Runtime has in float64
}


def site_text(name: str, *, affine: bool = False) -> str:
    kind = op.ACTIVATIONS[name]
    text = "".join(f", {k} = {ATTRIBUTES[k]}" for k in kind.fits)
    op_type, inputs = (kind.affine_op_type, "z, s, t") if affine else (kind.op_type, "z")
    return f"[site] y = crelu_deploy.{op_type}<axis={{axis}}{text}>({inputs})"


@pytest.mark.parametrize("level", [OFF, ALL], ids=["off", "all"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOWERINGS)
def test_lowerings_agree_bit_for_bit(name: str, shape: str, level: object) -> None:
    case, extents = SHAPES[shape]
    original = model(case)
    before = bytes_of(original)
    lowered = lower(original, name)
    check(lowered.model)
    assert bytes_of(original) == before
    x = values("x", extents)
    z = run(model(case, "", outputs=["z"]), x, level)[0]
    actual = run(lowered.model, x, level)[0]
    np.testing.assert_array_equal(actual, op.reference(z, case.axis))


@pytest.mark.parametrize(("dtype", "activation"), [(d, name) for d in KINDS for name in KINDS[d]])
@pytest.mark.parametrize("name", ["function", "primitive", "mirror"])
def test_lowerings_agree_with_the_reference(name: str, dtype: type, activation: str) -> None:
    original = model(NODE, site_text(activation), dtype=dtype)
    lowered = lower(original, name)
    check(lowered.model)
    x = values("x", IMAGE, dtype)
    chosen = {k: ATTRIBUTES[k] for k in op.ACTIVATIONS[activation].fits}
    expected = op.reference(x, 1, activation, **chosen)
    tolerance = 2e-3 if dtype == np.float16 else 2e-6
    np.testing.assert_allclose(run(lowered.model, x)[0], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["function", "primitive", "mirror"])
def test_extremes(name: str) -> None:
    x = np.resize(np.array(EXTREMES, np.float32), (2, 9, 3))
    lowered = lower(model(Case(NODE.body, x.shape)), name).model
    np.testing.assert_array_equal(run(lowered, x)[0], op.reference(x))


@pytest.mark.parametrize("level", [OFF, ALL], ids=["off", "all"])
@pytest.mark.parametrize("name", LOWERINGS)
def test_extremes_behind_a_conv(name: str, level: object) -> None:
    x = np.resize(np.array(EXTREMES, np.float32), IMAGE)
    x[0] = values("x", x.shape[1:])
    original = model(CONV)
    actual, expected = run(lower(original, name).model, x, level)[0], run(original, x, level)[0]
    if np.isnan(run(model(WIDE, "y = Relu(z)"), x, level)[0]).any():
        np.testing.assert_array_equal(actual, expected)
    else:  # with SSE alone, a Relu that ONNX Runtime fuses into a conv makes NaN 0
        np.testing.assert_array_equal(np.nan_to_num(actual, nan=0), np.nan_to_num(expected, nan=0))


@pytest.mark.parametrize("activation", op.ACTIVATIONS)
@pytest.mark.parametrize("name", ["function", "primitive", "mirror"])
def test_scale_and_shift(name: str, activation: str) -> None:
    scale, shift = values("scale", (1, 8, 1, 1)), values("shift", (8, 1, 1))
    case = Case(NODE.body, IMAGE, {"s": scale, "t": shift})
    lowered = lower(model(case, site_text(activation, affine=True)), name).model
    check(lowered)
    x = values("x", IMAGE)
    chosen = {k: ATTRIBUTES[k] for k in op.ACTIVATIONS[activation].fits}
    expected = op.reference(x, 1, activation, scale=scale, shift=shift, **chosen)
    np.testing.assert_allclose(run(lowered, x)[0], expected, rtol=2e-6, atol=2e-6)


FORMS = {
    "depthwise": ["Conv", "Relu", "Conv", "Relu", "Concat"],
    "function": ["Conv", "CReLU"],
    "primitive": ["Conv", "Relu", "Neg", "Relu", "Concat"],
    "mirror": ["Conv", "Neg", "Concat", "Relu"],
    "fold": ["Conv", "Relu"],
}


@pytest.mark.parametrize("name", FORMS)
def test_the_form_in_the_graph(name: str) -> None:
    lowered = lower(model(CONV), name)
    assert op_types(lowered.model) == FORMS[name]
    assert (lowered.applied, lowered.reasons) == ({"site": name}, {})
    kept = name == "function"
    assert bool(lowered.model.functions) == ("crelu_deploy" in lowered.model.opset_imports) == kept
    names = [node.name for node in lowered.model.graph][1:]
    assert names[-1] == ("site" if kept else f"site/{FORMS[name][-1]}")
    (y,) = lowered.model.graph.outputs
    assert (y.name, y.dtype) == ("y", ir.DataType.FLOAT)
    assert str(y.shape) == "[N,12,5,7]"


ROUNDING = ("split", "complement")
"""They rewrite the consumers' weights."""


@pytest.mark.parametrize("opset", [7, 10, 11, 13, 15, 18, 21, 25])
@pytest.mark.parametrize("name", [name for name in LOWERINGS if name not in (*ROUNDING, "pooled")])
def test_opsets(name: str, opset: int) -> None:
    original = model(CONV, site_text("clip" if opset >= 15 else "elu"), opset=opset)
    lowered = lower(original, name)
    check(lowered.model)
    assert lowered.applied == {"site": name}
    if opset < 23:
        x = values("x", IMAGE)
        np.testing.assert_array_equal(run(lowered.model, x)[0], run(original, x)[0])


@pytest.mark.parametrize("opset", [7, 10, 11, 14])
def test_a_clip_below_opset_15_has_no_body(opset: int) -> None:
    original = model(CONV, "", outputs=["z"], opset=opset)
    z = original.graph.outputs[0]
    attributes = {"axis": 1, "min": -0.5, "max": 0.75}
    node = ir.node("CClip", [z], attributes, domain=op.DOMAIN, name="site")
    original.graph.append(node)
    node.outputs[0].name, node.outputs[0].type = "y", z.type
    original.graph.outputs[0] = node.outputs[0]
    original.opset_imports[op.DOMAIN] = op.VERSION
    lowered = lower(original, "function")
    assert lowered.applied == {"site": "primitive"}
    assert lowered.reasons["site"].startswith("CClip has no function body in opset")
    x = values("x", IMAGE)
    z_values = run(model(CONV, "", outputs=["z"], opset=opset), x)[0]
    expected = op.reference(z_values, 1, "clip", min=-0.5, max=0.75)
    np.testing.assert_array_equal(run(lowered.model, x)[0], expected)
    folded = lower(original, "fold")
    np.testing.assert_array_equal(run(folded.model, x)[0], expected)


TWO = Case(
    "[conv1] p = Conv<pads=[1,1,1,1]>(x, w, b) [first] q = crelu_deploy.CReLU<axis=1>(p)"
    " [conv2] z = Conv(q, v)",
    IMAGE,
    {"w": (6, 4, 3, 3), "b": (6,), "v": (5, 12, 1, 1)},
)


@pytest.mark.parametrize("first", LOWERINGS)
@pytest.mark.parametrize("second", LOWERINGS)
def test_each_site_has_its_own_lowering(first: str, second: str) -> None:
    original = model(TWO)
    lowered = lower(original, {"first": first, "site": second})
    check(lowered.model)
    before = "primitive" if first == "pooled" else first  # no pool reads it
    behind = "primitive" if second in (*ROUNDING, "pooled") else second  # an output of the graph
    assert lowered.applied == {"first": before, "site": behind}
    assert bool(lowered.model.functions) == ("function" in (first, second))
    x = values("x", IMAGE)
    actual, expected = run(lowered.model, x)[0], run(original, x)[0]
    atol = 1e-5 if first in ROUNDING else 0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def test_a_site_that_is_not_named_keeps_its_node() -> None:
    lowered = lower(model(TWO), {"site": "mirror"})
    assert lowered.applied == {"first": "function", "site": "mirror"}
    assert "CReLU" in op_types(lowered.model)


WRONG = {
    "lowering": ("folded", "no lowering is called 'folded'; the lowerings here are fold, "),
    "lowering-of-a-site": ({"site": "none"}, "no lowering is called 'none'"),
    "site": ({"conv3": "fold"}, "no site is called 'conv3'; the sites here are first, site"),
}


@pytest.mark.parametrize("name", WRONG)
def test_unknown_names(name: str) -> None:
    choice, message = WRONG[name]
    with pytest.raises(UnsupportedModel) as caught:
        lower(model(TWO), choice)
    assert str(caught.value).startswith(message)


def test_a_model_without_sites_is_copied() -> None:
    original = model(CONV, "", outputs=["z"])
    lowered = lower(original, "fold")
    assert (lowered.applied, lowered.reasons) == ({}, {})
    assert lowered.model is not original
    assert op_types(lowered.model) == ["Conv"]


def test_sites_are_described() -> None:
    original = model(TWO)
    original.graph.node("first").metadata_props["crelu_deploy.spelling"] = "relu-of-halves"
    first, second = find_sites(original)
    assert first == Site(
        name="first",
        op_type="CReLU",
        spelling="relu-of-halves",
        activation="relu",
        axis=1,
        affine=False,
        producer="Conv conv1",
        consumers=("Conv conv2",),
        foldable=True,
        reason="",
    )
    assert (second.spelling, second.consumers) == ("node", ("output y",))
    assert json.loads(json.dumps(dataclasses.asdict(first)))["consumers"] == ["Conv conv2"]


@pytest.mark.parametrize(("axis", "expected"), [(1, 1), (-1, 3), (-4, 0), (3, 3)])
def test_axes_count_from_the_front(axis: int, expected: int) -> None:
    (site,) = find_sites(model(Case(NODE.body, IMAGE, axis=axis)))
    assert site.axis == expected


def test_an_axis_outside_the_rank() -> None:
    original = model(NODE)
    original.graph.node("site").attributes["axis"] = ir.AttrInt64("axis", 4)
    with pytest.raises(UnsupportedModel, match="'site': axis 4 is outside rank 4 of input 'z'"):
        find_sites(original)


def test_names_are_made_unique() -> None:
    site = "y = crelu_deploy.CReLU<axis=1>(q)"
    original = model(Case("q = crelu_deploy.CReLU<axis=1>(x)", IMAGE), site)
    assert [s.name for s in find_sites(original)] == ["CReLU", "CReLU_1"]
    lowered = lower(original, {"CReLU": "mirror", "CReLU_1": "primitive"}).model
    check(lowered)
    names = [node.name for node in lowered.graph]
    assert len(set(names)) == len(names) == 7


SUBGRAPH = Case(
    "c = ReduceSum<keepdims=0>(x) d = Greater(c, k) z = If(d) <"
    "then_branch = a () => (float[] p) { m = Conv(x, w, b) p = crelu_deploy.CReLU<axis=1>(m) },"
    "else_branch = e () => (float[] q) { n = Conv(x, u) q = crelu_deploy.CReLU<axis=1>(n) }>",
    IMAGE,
    {"w": (6, 4, 3, 3), "b": (6,), "u": (6, 4, 3, 3), "k": np.zeros((), np.float32)},
)


@pytest.mark.parametrize("name", LOWERINGS)
def test_subgraphs(name: str) -> None:
    original = model(SUBGRAPH, "", outputs=["z"])
    assert [site.foldable for site in find_sites(original)] == [True, True]
    lowered = lower(original, name)
    check(lowered.model)
    for x in (np.abs(values("x", IMAGE)), -np.abs(values("x", IMAGE))):
        np.testing.assert_array_equal(run(lowered.model, x)[0], run(original, x)[0])


def test_a_producer_outside_the_subgraph_is_refused() -> None:
    body = SUBGRAPH.body.replace("m = Conv(x, w, b) ", "")
    case = Case(f"[out] m = Conv(x, w, b) {body}", IMAGE, SUBGRAPH.constants)
    original = model(case, "", outputs=["z"])
    reason = "its producer Conv out is outside the subgraph that it is in"
    assert [site.reason for site in find_sites(original)] == [reason, ""]
    check(lower(original, "fold").model)


def with_function(inner: ir.Model | None = None) -> ir.Model:
    """A model whose site lies in a model-local function, with its weights as Constant nodes."""
    inner = model(CONV) if inner is None else inner
    graph = inner.graph.clone()
    for value in list(graph.initializers.values()):
        node = ir.node("Constant", [], {"value": value.const_value})
        graph.insert_before(graph.node("conv"), node)
        value.replace_all_uses_with(node.outputs[0])
        del graph.initializers[value.name]
    function = ir.Function("local", "Block", graph=graph, attributes=[])
    outer = model(Case("z = Identity(x)", IMAGE), "", outputs=["z"])
    block = ir.node("Block", [outer.graph.inputs[0]], domain="local")
    block.outputs[0].name = "y"
    block.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    block.outputs[0].shape = inner.graph.outputs[0].shape
    outer.graph.append(block)
    outer.graph.outputs[0] = block.outputs[0]
    outer.opset_imports["local"] = 1
    outer.functions[function.identifier()] = function
    outer.functions.update(inner.functions)
    outer.opset_imports[op.DOMAIN] = op.VERSION
    return outer


@pytest.mark.parametrize("name", LOWERINGS)
def test_functions(name: str) -> None:
    original = with_function()
    assert [site.foldable for site in find_sites(original)] == [True]
    lowered = lower(original, name)
    check(lowered.model)
    assert ("crelu_deploy" in lowered.model.opset_imports) == (name == "function")
    x = values("x", IMAGE)
    expected = run(model(CONV), x)[0]
    np.testing.assert_array_equal(run(lowered.model, x)[0], expected)


@pytest.mark.parametrize("sites", [50, 500])
def test_the_cost_grows_with_the_nodes(sites: int) -> None:
    """10 nodes for each site; the limit is several times what one core needs."""
    lines, constants, value = [], {}, "x"
    for i in range(sites):
        constants |= {f"w{i}": (4, 8, 1, 1), f"k{i}": (4, 1, 1)}
        lines.append(
            f"p{i} = Conv({value}, w{i}) q{i} = Mul(p{i}, k{i}) d{i} = Dropout(q{i})"
            f" i{i} = Identity(d{i}) y{i} = crelu_deploy.CReLU<axis=1>(i{i}) a{i} = Sigmoid(y{i})"
            f" e{i} = Tanh(a{i}) f{i} = Abs(e{i}) g{i} = Sqrt(f{i}) h{i} = Exp(g{i})"
        )
        value = f"h{i}"
    case = Case(" ".join(lines), (1, 8, 4, 4), constants)
    original = model(case, f"y = Identity({value})")
    start = time.process_time()
    assert sum(site.foldable for site in find_sites(original)) == sites
    lowered = lower(clean(original), "fold")
    assert set(lowered.applied.values()) == {"fold"}
    assert time.process_time() - start < 0.01 * sites + 0.5
