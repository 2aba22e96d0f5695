"""Half precision inside the graph: what is converted, what stays, and that the result is right."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import ALL, CONV, IMAGE, OFF, Case, bytes_of, check, image, model, run, values

from crelu_deploy.accuracy import Tolerance, compare
from crelu_deploy.errors import BuildError
from crelu_deploy.lowerings import LOWERINGS, lower
from crelu_deploy.precision import TYPES, in_precision, reduce_precision
from crelu_deploy.targets import BACKENDS

HALF = ir.DataType.FLOAT16
CLOSE = Tolerance(2e-3, 2e-3)

CASES = {
    "conv": image(CONV),
    "constant node": image(
        "[conv] a = Conv(x, w, b) c = Constant<value_float=0.5>() z = Mul(a, c)"
    ),
    "constant list": image(
        "[conv] a = Conv(x, w, b) c = Constant<value_floats=[0.5]>() z = Mul(a, c)"
    ),
    "constant tensor": image(
        "[conv] a = Conv(x, w, b) c = Constant<value=float {0.5}>() z = Mul(a, c)"
    ),
    "batch norm": image(
        "[conv] a = Conv(x, w, b) z = BatchNormalization(a, s, t, m, v)",
        **dict.fromkeys("stm", (6,)),
        v=np.full(6, 2, np.float32),
    ),
    "resize": image(
        "[conv] a = Conv(x, w, b) z = Resize<mode=\"nearest\">(a, , scales)",
        scales=np.array([1, 1, 2, 2], np.float32),
    ),
    "float cast": image("i = Cast<to=7>(x) f = Cast<to=1>(i) a = Conv(f, w, b) z = Neg(a)"),
    "shape arithmetic": image(
        "[conv] a = Conv(x, w, b) s = Shape(a) z = Reshape(a, s)",
    ),
    "input read twice": Case("a = Conv(x, w) z = Add(a, x)", IMAGE, {"w": (4, 4, 1, 1)}),
    "filled": image(
        "[conv] a = Conv(x, w, b) s = Shape(a) o = ConstantOfShape<value=float[1] {1.5}>(s) "
        "z = Add(a, o)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ["function", "primitive", "mirror", "fold"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_float16_computes_the_same_within_its_rounding(case, form):
    source = lower(model(case), form).model
    before = bytes_of(source)
    half = reduce_precision(source, "float16")
    assert bytes_of(source) == before
    check(half)
    x = values("x", case.x)
    for level in (OFF, ALL):
        for got, want in zip(run(half, x, level), run(source, x, level), strict=True):
            found = compare(got, want, "y", CLOSE)
            assert found.passed, found.worst
            assert found.max_abs > 0


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_everything_between_the_casts_is_float16(case):
    half = reduce_precision(lower(model(case), "mirror").model, "float16")
    assert [value.dtype for value in half.graph.inputs] == [ir.DataType.FLOAT]
    assert [value.dtype for value in half.graph.outputs] == [ir.DataType.FLOAT]
    assert [(v.name, v.shape) for v in half.graph.outputs] == [
        ("y", model(case).graph.outputs[0].shape)
    ]
    left = [
        value.name
        for value in half.graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT and value.name != "scales"
    ]
    assert left == []
    convolutions = [node for node in half.graph if node.op_type == "Conv"]
    assert {value.dtype for node in convolutions for value in node.inputs} == {HALF}


@pytest.mark.parametrize("form", LOWERINGS)
def test_bfloat16_halves_the_weights(form):
    source = lower(model(CASES["conv"]), form)
    reduced = reduce_precision(source.model, "bfloat16")
    weights = [v.const_value for v in reduced.graph.initializers.values()]
    assert {tensor.dtype for tensor in weights} <= {ir.DataType.BFLOAT16, ir.DataType.INT64}
    convolution = next(node for node in reduced.graph if node.op_type == "Conv")
    weight = convolution.inputs[1].const_value.numpy().astype(np.float32)
    original = next(n for n in source.model.graph if n.op_type == "Conv").inputs[1].const_value
    np.testing.assert_allclose(weight, original.numpy(), rtol=2**-8, atol=0)


def test_the_range_of_float16():
    extremes = np.array([1e6, -1e6, 1e-9, np.inf, np.nan, 65504], np.float32)
    case = Case("z = Add(x, c)", (2, 6), {"c": extremes})
    half = reduce_precision(model(case), "float16")
    (found,) = (v.const_value.numpy() for v in half.graph.initializers.values())
    np.testing.assert_array_equal(found, np.array([65504, -65504, 0, np.inf, np.nan, 65504], "f2"))


REFUSED = {
    "no float32": (Case("z = Neg(x)", (2, 4)), np.float64, "has no float32 input, which float16"),
    "computed scales": (
        image("[conv] a = Conv(x, w, b) s = Abs(r) [up] z = Resize(a, , s)", r=(4,)),
        np.float32,
        "Resize node 'up' needs float32, which a network in float16 does not compute",
    ),
    "quantised": (
        image(
            "[q] a = QuantizeLinear(x, s, o) [d] f = DequantizeLinear(a, s, o) z = Conv(f, w, b)",
            s=np.array(0.1, np.float32),
            o=np.array(0, np.int8),
        ),
        np.float32,
        "DequantizeLinear node 'd' needs float32",
    ),
}


@pytest.mark.parametrize(("case", "dtype", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_reduced(case, dtype, message):
    with pytest.raises(BuildError, match=message):
        reduce_precision(model(case, dtype=dtype, infer=False), "float16")


@pytest.mark.parametrize("name", BACKENDS)
def test_the_graph_has_the_precision_of_a_backend_that_reads_it_there(name):
    source, backend = model(CASES["conv"]), BACKENDS[name]
    found = in_precision(source, backend)
    weight = next(iter(found.graph.initializers.values())).dtype
    reduced = backend.typed and backend.precision in TYPES
    assert weight == (TYPES[backend.precision] if reduced else ir.DataType.FLOAT)
