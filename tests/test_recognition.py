"""Recognition on graphs written as text: opsets, axes, constants, dtypes, subgraphs, readers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from real_models import real_model
from spellings_onnx import (
    AFFINE,
    CONSTANTS,
    EIGHT,
    LOOKALIKE_CONSTANTS,
    LOOKALIKES,
    SPELLED,
)

from crelu_deploy.op import DOMAIN
from crelu_deploy.recognition import RecognizeCReLU, near_misses, recognize, spelling

HALVES = "n = Neg(x) p = Relu(x) q = Relu(n) y = Concat<axis=1>(p, q)"
MIRROR = "n = Neg(x) c = Concat<axis=1>(x, n) y = Relu(c)"
OPSETS = (7, 9, 11, 13, 17, 20, 21, 23, 25)


def parsed(
    body: str,
    opset: int = 17,
    shape: str = "[2,4,3,3]",
    *,
    dtype: str = "float",
    constants: str = "",
    outputs: str = "y",
    ir_version: int = 8,
) -> ir.Model:
    """Return the model of ``body``, which computes ``outputs`` of x."""
    stored = f"<{constants}>" if constants else ""
    typed = ", ".join(f"{dtype} {name}" for name in outputs.split())
    text = f"""<ir_version: {ir_version}, opset_import: ["": {opset}]>
        g ({dtype}{shape} x) => ({typed}) {stored} {{ {body} }}"""
    proto = onnx.parser.parse_model(text)
    rank = len(proto.graph.input[0].type.tensor_type.shape.dim)
    for output in proto.graph.output:  # of the rank of x, with unknown extents
        for _ in range(rank):
            output.type.tensor_type.shape.dim.add()
    for i, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{i}"
    return ir.from_proto(proto)


def feed(model: ir.Model) -> np.ndarray:
    x = model.graph.inputs[0]
    shape = [size if isinstance(size, int) else 3 for size in x.shape]
    values = np.random.default_rng(5).normal(0, 4, shape)
    values.reshape(-1)[:5] = [0.0, -1.0, 1.0, 3e4, -3e4][: values.size]
    return values.astype(x.dtype.numpy())


def evaluated(model: ir.Model, x: np.ndarray, **more: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run(None, {model.graph.inputs[0].name: x, **more})


def canonical(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.domain == DOMAIN]


def check(model: ir.Model, *op_types: str, rtol: float = 0) -> list[ir.Node]:
    """Recognise; the nodes, the outputs, the checker and a second run must be as they should."""
    x = feed(model)
    before = evaluated(model, x)
    assert RecognizeCReLU()(model).modified, near_misses(model)
    nodes = canonical(model)
    assert [node.op_type for node in nodes] == list(op_types)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for after, expected in zip(evaluated(model, x), before, strict=True):
        np.testing.assert_allclose(after, expected, rtol=rtol, atol=0)
    assert not RecognizeCReLU()(model).modified
    return nodes


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("body", [HALVES, MIRROR], ids=["halves", "mirror"])
def test_every_opset(body: str, opset: int) -> None:
    check(parsed(body, opset), "CReLU")


@pytest.mark.parametrize(("body", "opset", "op_type"), SPELLED.values(), ids=SPELLED)
def test_spellings_of_operators(body: str, opset: int, op_type: str) -> None:
    check(parsed(body, opset, constants=CONSTANTS), op_type)


@pytest.mark.parametrize(("constants", "tail"), AFFINE.values(), ids=AFFINE)
@pytest.mark.parametrize("order", ["x, n", "n, x"])
def test_scale_and_shift_behind_the_concat(constants: str, tail: str, order: str) -> None:
    body = f"n = Neg(x) c = Concat<axis=1>({order}) {tail}"
    kind = "AffineCLeakyRelu" if "Leaky" in tail else "AffineCReLU"
    (node,) = check(parsed(body, constants=constants), kind, rtol=1e-5)
    sizes = {value.const_value.size for value in node.inputs[1:]}
    assert sizes <= {1, 8}


def test_a_scale_of_one_and_a_shift_of_zero_are_none() -> None:
    body = "n = Neg(x) c = Concat<axis=1>(x, n) t = Mul(c, s) u = Add(t, b) y = Relu(u)"
    constants = "float[1,8,1,1] s = {1,1,1,1,1,1,1,1}, float b = {0}"
    check(parsed(body, constants=constants), "CReLU")


AXES = [
    ("[4]", 0),
    ("[2,4]", 1),
    ("[2,4]", -1),
    ("[2,3,4]", 1),
    ("[2,3,4]", 2),
    ("[2,4,3,3]", 1),
    ("[2,4,3,3]", -3),
    ("[2,4,3,3]", 3),
    ("[2,4,3,3]", -1),
    ("[1,4,2,2,2]", 1),
    ("[1,4,2,2,2,2]", -5),
    ("[N,4,H,W]", 1),
    ("[N,C]", 1),
]


@pytest.mark.parametrize(("shape", "axis"), AXES)
def test_axes_are_kept_as_written(shape: str, axis: int) -> None:
    (node,) = check(parsed(MIRROR.replace("axis=1", f"axis={axis}"), shape=shape), "CReLU")
    assert node.attributes["axis"].as_int() == axis


@pytest.mark.parametrize(
    ("shape", "axis", "reason"),
    [
        ("[2,4]", 0, "batch"),
        ("[2,4,3,3]", -4, "batch"),
        ("[2,4,3,3]", 2, "neither axis 1 nor the last"),
        ("[2,4,3,3,3]", 3, "neither axis 1 nor the last"),
    ],
)
def test_other_axes_are_near_misses(shape: str, axis: int, reason: str) -> None:
    model = parsed(MIRROR.replace("axis=1", f"axis={axis}"), shape=shape)
    result = recognize(model)
    assert not result.modified
    assert [(miss.name, reason in miss.reason) for miss in result.near_misses] == [
        ("Concat_1", True)
    ]


WEIGHT = "float[4,4,1,1] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}"


@pytest.mark.parametrize(
    ("steps", "axis", "recognised"),
    [
        ("v = Conv(x, w)", 1, True),
        ("v = Conv(x, w)", 2, False),
        ("v = Conv(x, w)", -1, False),
        ("u = Conv(x, w) v = Transpose<perm=[0,2,3,1]>(u)", 3, True),
        ("u = Conv(x, w) v = Transpose<perm=[0,2,3,1]>(u)", -1, True),
        ("u = Conv(x, w) v = Transpose<perm=[0,2,3,1]>(u)", 1, False),
        ("t = Conv(x, w) u = MaxPool<kernel_shape=[1,1]>(t) v = Sigmoid(u)", 3, False),
    ],
)
def test_the_producer_tells_the_channel_axis(steps: str, axis: int, recognised: bool) -> None:
    body = f"{steps} n = Neg(v) c = Concat<axis={axis}>(v, n) y = Relu(c)"
    model = parsed(body, shape="[N,4,H,W]", constants=WEIGHT)
    assert recognize(model).modified is recognised
    assert len(near_misses(model)) == (not recognised)


INTERLEAVED = {
    "halves": "p = Relu(x) n = Neg(x) q = Relu(n) a = Unsqueeze(p, two) b = Unsqueeze(q, two)"
    " k = Concat<axis=2>(a, b) y = Reshape(k, to)",
    "relu within": "n = Neg(x) a = Unsqueeze(x, two) b = Unsqueeze(n, two) k = Concat<axis=2>(a, b)"
    " r = Relu(k) y = Reshape(r, to)",
    "relu behind, shape copied": "n = Neg(x) a = Unsqueeze(x, two) b = Unsqueeze(n, two)"
    " k = Concat<axis=2>(a, b) r = Reshape(k, copied) y = Relu(r)",
}


@pytest.mark.parametrize("body", INTERLEAVED.values(), ids=INTERLEAVED)
def test_interleaved_halves_are_gathered(body: str) -> None:
    constants = "int64[1] two = {2}, int64[4] to = {2,8,3,3}, int64[4] copied = {0,8,3,3}"
    (node,) = check(parsed(body, constants=constants), "CReLU")
    (reader,) = node.outputs[0].consumers()
    assert reader.op_type == "Gather"
    assert spelling(node).find("interleave") >= 0


def test_a_stack_that_is_reshaped_otherwise_is_left_alone() -> None:
    body = INTERLEAVED["relu within"]
    constants = "int64[1] two = {2}, int64[4] to = {2,4,6,3}"
    assert not recognize(parsed(body, constants=constants)).modified


def test_a_scale_per_interleaved_channel_goes_to_its_half() -> None:
    body = "n = Neg(x) a = Unsqueeze(x, two) b = Unsqueeze(n, two) k = Concat<axis=2>(a, b)"
    body += " r = Reshape(k, to) t = Mul(r, s) y = Relu(t)"
    constants = f"int64[1] two = {{2}}, int64[4] to = {{2,8,3,3}}, float[8,1,1] s = {EIGHT}"
    (node,) = check(parsed(body, constants=constants), "AffineCReLU")
    assert node.inputs[1].const_value.numpy().reshape(-1).tolist() == [1, 3, 5, 7, -2, 4, 6, 8]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float", "double"])
@pytest.mark.parametrize("body", [HALVES, MIRROR], ids=["halves", "mirror"])
def test_every_float_dtype(body: str, dtype: str) -> None:
    model = parsed(body, shape="[2,4]", dtype=dtype)
    assert recognize(model).modified
    assert [node.op_type for node in canonical(model)] == ["CReLU"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_scale_and_shift_have_the_dtype_of_x() -> None:
    body = "n = Neg(x) c = Concat<axis=1>(x, n) t = Mul(c, s) y = Relu(t)"
    constants = "float16[8,1,1] s = {1, 2, 3, 4, 5, 6, 7, 8}"
    (node,) = check(parsed(body, dtype="float16", constants=constants), "AffineCReLU")
    assert {value.dtype for value in node.inputs} == {ir.DataType.FLOAT16}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_lookalikes_are_left_alone(name: str) -> None:
    dtype = "int32" if name == "integer" else "float"
    model = parsed(LOOKALIKES[name], dtype=dtype, constants=LOOKALIKE_CONSTANTS)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result = recognize(model)
    assert not result.modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_concat_in_another_domain_is_left_alone() -> None:
    model = parsed(MIRROR)
    model.graph[1].domain = "elsewhere"
    assert not recognize(model).modified


@pytest.mark.parametrize(
    ("body", "outputs", "kept"),
    [
        (HALVES, "y n", ["Neg"]),
        (HALVES, "y p", ["Relu"]),
        (MIRROR, "y c", ["Neg", "Concat"]),
        (MIRROR + " z = Sigmoid(n)", "y z", ["Neg", "Sigmoid"]),
        (MIRROR + " z = Softmax<axis=1>(c)", "y z", ["Neg", "Concat", "Softmax"]),
    ],
)
def test_what_others_read_stays(body: str, outputs: str, kept: list[str]) -> None:
    model = parsed(body, outputs=outputs)
    check(model, "CReLU")
    assert sorted(node.op_type for node in model.graph if not node.domain) == sorted(kept)
    assert [value.name for value in model.graph.outputs] == outputs.split()


def test_two_activations_behind_one_concat_are_two_sites() -> None:
    body = "n = Neg(x) c = Concat<axis=1>(x, n) y = Relu(c) z = Elu(c)"
    check(parsed(body, outputs="y z"), "CReLU", "CElu")


def test_a_dead_reader_hides_no_activation() -> None:
    body = "n = Neg(x) c = Concat<axis=1>(x, n) d = Mul(c, two) dead = Softplus(d) y = Min(c, d)"
    check(parsed(body, constants="float two = {2}"), "CLeakyRelu")


def test_a_site_behind_a_site_reads_the_new_node() -> None:
    body = MIRROR.replace("y =", "v =") + " m = Neg(v) d = Concat<axis=1>(v, m) y = Relu(d)"
    first, second = check(parsed(body), "CReLU", "CReLU")
    assert second.inputs[0] is first.outputs[0]


def test_unread_constants_go_and_names_stay_unique() -> None:
    body = "n = Mul(x, minus) c = Concat<axis=1>(x, n) y = Relu(c)"
    model = parsed(body, constants="float minus = {-1}")
    (node,) = check(model, "CReLU")
    assert not model.graph.initializers
    assert node.name == "Concat_1_CReLU"
    assert node.outputs[0].name == "y"


def subgraph() -> ir.Model:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2,4] x, bool b) => (float[2,8] y) {
      v = Tanh(x)
      y = If (b) <
        then_branch = t () => (float[2,8] p)
          { n = Neg(v) c = Concat<axis=1>(v, n) s = Constant<value = float {2.0}>()
            d = Mul(c, s) p = Relu(d) },
        else_branch = e () => (float[2,8] q) { m = Neg(v) d = Concat<axis=1>(m, v) q = Relu(d) }
      >
    }"""
    return ir.from_proto(onnx.parser.parse_model(text))


@pytest.mark.parametrize("branch", [True, False])
def test_subgraphs(branch: bool) -> None:
    model, x = subgraph(), np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    (before,) = evaluated(model, x, b=np.array(branch))
    assert recognize(model).modified
    assert [node.op_type for node in canonical(model)] == ["AffineCReLU", "CReLU"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_array_equal(evaluated(model, x, b=np.array(branch))[0], before)
    assert not recognize(model).modified


def test_functions_of_the_model() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "local": 1]>
    g (float[2,4,3,3] x) => (float[2,8,3,3] y) { y = local.act(x) }
    <domain: "local", opset_import: ["": 17]> act (x) => (y)
    { n = Neg(x) c = Concat<axis=1>(x, n) y = Relu(c) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    x = feed(model)
    (before,) = evaluated(model, x)
    assert recognize(model).modified
    inner = model.functions["local", "act", ""]
    assert [(node.domain, node.op_type) for node in inner] == [(DOMAIN, "CReLU")]
    assert inner.opset_imports[DOMAIN] == 1
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_array_equal(evaluated(model, x)[0], before)
    assert not recognize(model).modified
    body = model.functions[DOMAIN, "CReLU", ""]
    assert [node.op_type for node in body] == ["Neg", "Concat", "Relu"]


def test_a_node_without_a_body_gets_one() -> None:
    model = parsed(MIRROR)
    recognize(model)
    model.functions.clear()
    assert recognize(model).modified
    assert (DOMAIN, "CReLU", "") in model.functions
    canonical(model)[0].attributes["plugin_namespace"] = ir.AttrString("plugin_namespace", DOMAIN)
    model.functions.clear()
    assert not recognize(model).modified


def test_a_clip_that_has_no_body_is_reported() -> None:
    body = "n = Neg(x) c = Concat<axis=1>(x, n) y = Clip<min=0.0, max=6.0>(c)"
    result = recognize(parsed(body, 9))
    assert not result.modified
    (opaque,) = result.opaque
    assert (opaque.name, opaque.spelling) == ("Concat_1", "clip(cat(x, -x))")
    assert "opset 9" in opaque.reason


@pytest.mark.parametrize(("ir_version", "recognised"), [(3, True), (8, False)])
def test_initializers_that_are_inputs(ir_version: int, recognised: bool) -> None:
    """Before IR version 4 every initializer is an input, and a constant; then a default."""
    text = f"""<ir_version: {ir_version}, opset_import: ["": 8]>
        g (float[2,4] x, float m = {{-1.0}}) => (float[2,8] y)
        {{ n = Mul(x, m) c = Concat<axis=1>(x, n) y = Relu(c) }}"""
    proto = onnx.parser.parse_model(text)
    model = ir.from_proto(proto)
    assert recognize(model).modified is recognised
    assert len(model.graph.inputs) == (1 if recognised else 2)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_spellings_are_kept_with_the_node() -> None:
    cases = {
        HALVES: "cat(relu(x), relu(-x))",
        MIRROR: "relu(cat(x, -x))",
        MIRROR.replace("x, n", "n, x"): "relu(cat(-x, x))",
        MIRROR.replace("Relu", "Elu"): "elu(cat(x, -x))",
    }
    for body, expected in cases.items():
        model = parsed(body)
        recognize(model)
        assert spelling(canonical(model)[0]) == expected


@pytest.mark.parametrize(
    "path", ["faceboxes-3ddfa/FaceBoxesProd.onnx", "faceboxes-tf/model.tf2onnx.opset17.onnx"]
)
def test_real_models_have_two_sites(path: str) -> None:
    model = ir.load(real_model(path))
    result = recognize(model)
    assert [spelling(node) for node in canonical(model)] == ["relu(cat(x, -x))"] * 2
    assert (result.near_misses, result.opaque) == ((), ())
    assert not recognize(model).modified


def test_a_long_elementwise_chain_is_no_obstacle() -> None:
    chain = " ".join(f"v{i + 1} = Relu(v{i})" for i in range(2000))
    body = f"v0 = Neg(x) {chain} c = Concat<axis=1>(x, v2000) y = Relu(c)"
    assert not recognize(parsed(body)).modified
    check(parsed(f"v0 = Tanh(x) {chain} " + MIRROR.replace("(x", "(v2000")), "CReLU")
