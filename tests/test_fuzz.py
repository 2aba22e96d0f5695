"""Random networks: what is a site is recognised, what is none stays, and the outputs are the same.

``FUZZ_EXAMPLES=10000 pytest tests/test_fuzz.py --hypothesis-seed=1`` runs it long.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from fuzz_networks import LOOKALIKE, Network, networks
from hypothesis import HealthCheck, given, settings
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator
from tables import thorough

from crelu_deploy.lowerings import Lowered, lower
from crelu_deploy.op import DOMAIN
from crelu_deploy.passes import clean
from crelu_deploy.recognition import recognize
from crelu_deploy.sites import find_sites

LONG = "FUZZ_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "250"))
FUZZ = settings(
    max_examples=EXAMPLES,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TOLERANCE = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-11}
"""Largest difference, relative to the largest value of an output."""
Level = ort.GraphOptimizationLevel
OFF, ALL = Level.ORT_DISABLE_ALL, Level.ORT_ENABLE_ALL


def _recognised(network: Network) -> ir.Model:
    """Return the network with its sites recognised: all that were planted, and no others."""
    recognised = ir.from_proto(network.model)
    found = recognize(recognised)
    graphs = [recognised.graph, *recognised.functions.values()]
    sites = Counter(node.op_type for g in graphs for node in g if node.domain == DOMAIN)
    if network.shapes_known:
        assert sites == network.sites, found
        assert len(found.opaque) == network.opaque, found
    assert sites <= network.sites, found
    assert _lookalikes(ir.to_proto(recognised)) == _lookalikes(network.model)
    assert not recognize(recognised).modified
    return recognised


def _lowered(network: Network) -> Lowered:
    """Return the network with its sites lowered, each in the way that was drawn for it."""
    cleaned = clean(_recognised(network))
    assert _bytes(clean(cleaned)) == _bytes(cleaned)
    names = [site.name for site in find_sites(cleaned)]
    drawn = network.lowerings * len(names)
    return lower(cleaned, dict(zip(names, drawn, strict=False)))


def _bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def _lookalikes(model: onnx.ModelProto) -> list[bytes]:
    graphs = [model.graph, *model.functions]
    nodes = [node for graph in graphs for node in graph.node if node.name.startswith(LOOKALIKE)]
    return [node.SerializeToString(deterministic=True) for node in nodes]


def _interface(model: onnx.ModelProto) -> list[bytes]:
    values = [*model.graph.input, *model.graph.output]
    return [value.SerializeToString(deterministic=True) for value in values]


def _by_runtime(model: onnx.ModelProto, x: np.ndarray, level: Level) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level
    options.log_severity_level = 4
    data = model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def _by_reference(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(inline_local_functions(model)).run(None, {"x": x})


Outputs = Sequence[np.ndarray]


def _assert_close(actual: Outputs, expected: Outputs, where: str, *, exact: bool = False) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype), where
        if exact or other.dtype.kind != "f":
            np.testing.assert_array_equal(one, other, err_msg=where)
            continue
        finite = other[np.isfinite(other)].astype(np.float64)
        bound = TOLERANCE[other.dtype.name] * np.abs(finite).max(initial=1)
        np.testing.assert_allclose(one, other, rtol=0, atol=bound, err_msg=where)


def _compare(network: Network, result: Lowered) -> None:
    """Compare the outputs; ``complement`` and ``split`` round, and make NaN of an infinity."""
    after = ir.to_proto(result.model)
    rounds = not {"complement", "split"}.isdisjoint(result.applied.values())
    x = np.nan_to_num(network.x, posinf=2, neginf=-2) if rounds else network.x
    for level in (OFF, ALL) if network.dtype != np.float64 else ():  # it lacks many kernels
        exact = network.exact and not rounds and not (network.blocked and level == ALL)
        expected = _by_runtime(network.model, x, level)
        actual = _by_runtime(after, x, level)
        _assert_close(actual, expected, f"ONNX Runtime, {level.name}", exact=exact)
    if network.referable and np.isfinite(x).all():  # it cannot pool what is all NaN
        expected = _by_reference(network.model, x)
        _assert_close(_by_reference(after, x), expected, "reference evaluator")


def _check(network: Network) -> None:
    result = _lowered(network)
    after = ir.to_proto(result.model)
    assert _interface(after) == _interface(network.model)
    onnx.checker.check_model(after, full_check=True)
    _compare(network, result)


@settings(FUZZ, max_examples=EXAMPLES if LONG else EXAMPLES // 4)
@given(networks())
def test_lowered_networks_compute_the_same(network: Network) -> None:
    _check(network)


@thorough
@FUZZ
@given(networks())
def test_four_times_as_many_networks_compute_the_same(network: Network) -> None:
    _check(network)


@settings(FUZZ, max_examples=EXAMPLES // 5)
@given(networks(sites=False))
def test_lookalikes_stay_byte_for_byte(network: Network) -> None:
    model = ir.from_proto(network.model)
    before = _bytes(model)
    assert not recognize(model).modified
    assert _bytes(model) == before


FOUND = {
    "a second survey needs the bodies": (
        "double[N,4] x",
        "n = Neg(x) c = Concat<axis=1>(x, n) y = Relu(c) t = Add(c, rows) p = Relu(t)",
        ["CReLU"],
    ),
    "constants have the dtype that no annotation tells": (
        "double[N,4] x",
        "v = Sigmoid(x) n = Neg(v) c = Concat<axis=1>(v, n) t = Mul(c, of8) y = Relu(t)",
        ["AffineCReLU"],
    ),
    "limits have the dtype that no annotation tells": (
        "double[N,4] x",
        "i = Sigmoid(x) v = Identity(i) n = Neg(v) c = Concat<axis=1>(v, n) y = Clip(c, low, high)",
        ["CClip"],
    ),
    "the weight of a MatMul is a node": (
        "double[N,4] x",
        "w = Constant<value = double[4,2] {1, 2, 3, 4, 5, 6, 7, 8}>() v = MatMul(x, w) n = Neg(v)"
        " a = Unsqueeze(v, two) b = Unsqueeze(n, two) c = Concat<axis=2>(a, b)"
        " r = Reshape(c, to4) t = Mul(r, of4) y = Relu(t)",
        ["AffineCReLU"],
    ),
    "the shape of a tensor less itself": (
        "double[N,4] x",
        "s = Shape(x) z = Expand(zero, s) v = Sub(z, x) n = Sub(zeros, v)"
        " c = Concat<axis=1>(v, n) y = Relu(c)",
        ["CReLU"],
    ),
    "a batch norm keeps the shape": (
        "double[N,4,3,2] x",
        "v = BatchNormalization(x, of4, of4, of4, of4) n = Neg(v) a = Unsqueeze(v, one)"
        " b = Unsqueeze(n, one) c = Concat<axis=1>(a, b) r = Reshape(c, to8) y = Relu(r)",
        ["CReLU"],
    ),
    "a gain is taken back": (
        "double[N,4] x",
        "n = Neg(x) c = Concat<axis=1>(x, n) a = Abs(c) s = Add(a, c) y = Mul(s, half)",
        ["CReLU"],
    ),
    "two activations of several nodes behind a concat that is an output": (
        "double[N,4] x",
        "n = Neg(x) y = Concat<axis=1>(x, n) m = Mul(y, half) p = Max(y, m)"
        " g = Greater(y, zero) q = Where(g, y, zero)",
        ["CLeakyRelu", "CReLU"],
    ),
    "the terms of a batch norm cancel": (
        "double[N,1,3] x",
        "n = Neg(x) c = Concat<axis=1>(x, n) b = BatchNormalization(c, three, cancel, mean, var)"
        " y = Relu(b)",
        ["AffineCReLU"],
    ),
    "the rank is not annotated, and the axis is counted from the back": (
        "double[N,4,3] x",
        "s = Shape(x) z = ConstantOfShape<value = double[1] {0}>(s) v = Sub(z, x) n = Neg(v)"
        " c = Concat<axis=-2>(v, n) y = Relu(c)",
        ["CReLU"],
    ),
    "channels that were put in another order are still channels": (
        "double[N,4,3,2] x",
        "v = BatchNormalization(x, of4, of4, of4, of4) n = Neg(v) a = Unsqueeze(v, two)"
        " b = Unsqueeze(n, two) c = Concat<axis=2>(a, b) r = Reshape(c, to8) s = Relu(r)"
        " t = Transpose<perm=[3,2,1,0]>(s) m = Neg(t) d = Concat<axis=2>(t, m) y = Relu(d)",
        ["CReLU", "CReLU"],
    ),
    "an attribute is a float32": (
        "double[N,4] x",
        "n = Neg(x) c = Concat<axis=1>(x, n) m = Mul(c, slope) y = Max(c, m)",
        [],
    ),
}
"""Shrunken failures: the input, the body, and the sites in order."""
CONSTANTS = """
    double zero = {0}, double[1] half = {0.5}, double slope = {0.01}, double[4] zeros = {0,0,0,0},
    double low = {-0.5}, double high = {0.75}, double[4] of4 = {1,2,3,4}, int64[1] one = {1},
    double[8] of8 = {1,2,3,4,5,6,7,8}, int64[1] two = {2}, int64[2] to4 = {0,4},
    double[2] three = {3,3}, double[2] cancel = {1.49999250005625, 1},
    double[2] mean = {0.5,0.5}, double[2] var = {1,1}, double[3,1] rows = {1,2,3},
    int64[4] to8 = {0,8,3,2}"""


def test_rows_are_no_channels_once_another_site_is_rewritten() -> None:
    """What refuses a lookalike at first must refuse it when there is nothing else left to do."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[2,3,6,5] x, float[3,3,1,1] w) => (float[2,3,6,10] rows, float[2,6,6,5] y) {
          k = Shape(x) z = ConstantOfShape<value = float[1] {0}>(k)
          v = Conv(x, w) s = Sub(z, v) n = Neg(s) r = Concat<axis=3>(s, n) rows = Relu(r)
          q = Identity(v) m = Neg(q) one = Constant<value = int64[1] {1}>()
          a = Unsqueeze(q, one) b = Unsqueeze(m, one) c = Concat<axis=1>(a, b)
          to = Constant<value = int64[4] {2, 6, 6, 5}>() f = Reshape(c, to) y = Relu(f) }
        """)
    network = ir.from_proto(model)
    found = recognize(network)
    assert [node.op_type for node in network.graph if node.domain == DOMAIN] == ["CReLU"]
    assert [miss.reason for miss in found.near_misses] == [
        "concat on axis 3, but the channels are on axis 1"
    ]


def test_a_scale_is_not_placed_without_a_rank() -> None:
    """In a function, which has no shapes, axis 1 tells nothing of where a constant lies."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "own": 1]>
        g (float[2,4,3,8] x) => (float[2,8,3,8] y) { y = own.site(x) }
        <domain: "own", opset_import: ["": 17]> site (x) => (y) {
          k = Constant<value = float[8] {1, 2, 3, 4, 5, 6, 7, 8}>()
          n = Neg(x) c = Concat<axis=1>(x, n) b = BatchNormalization(c, k, k, k, k) y = Relu(b) }
        """)
    found = recognize(ir.from_proto(model))
    assert not found.modified
    assert "rank is unknown" in found.near_misses[0].reason


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(name: str, caplog: pytest.LogCaptureFixture) -> None:
    declared, body, sites = FOUND[name]
    ends = ", ".join(f"double[] {end}" for end in ("y", "p", "q") if f" {end} =" in body)
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g ({declared}) => ({ends}) <{CONSTANTS}> {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    shape = [d.dim_value or 3 for d in model.graph.input[0].type.tensor_type.shape.dim]
    for output in model.graph.output:
        for _ in shape:
            output.type.tensor_type.shape.dim.add()
    x = np.random.default_rng(6).standard_normal(shape)
    network = Network(
        model,
        x,
        Counter(sites),
        opaque=not sites,
        shapes_known=True,
        blocked=False,
        exact=False,
        referable=True,
        lowerings=("fold", "mirror"),
    )
    _check(network)
    assert not caplog.records
