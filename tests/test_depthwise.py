from __future__ import annotations

import numpy as np
import pytest
from graphs import (
    AFFINE_SITE,
    ALL,
    CONV,
    IMAGE,
    OFF,
    Case,
    check,
    image,
    model,
    op_types,
    run,
    values,
)

from crelu_deploy import op
from crelu_deploy.lowerings import lower

LEVELS = pytest.mark.parametrize("level", [OFF, ALL], ids=["off", "all"])
EXTREMES = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 65504.0, -3e38]


def conv(x: tuple[int, ...], w: tuple[int, ...], axis: int = 1) -> Case:
    return Case("[conv] z = Conv(x, w, b)", x, {"w": w, "b": w[:1]}, axis)


PLAIN = {
    "6-channels": conv(IMAGE, (6, 4, 3, 3)),
    "1-channel": conv(IMAGE, (1, 4, 3, 3)),
    "16-channels": conv((2, 16, 9, 8), (16, 16, 3, 3)),
    "48-channels-to-one-pixel": conv((2, 16, 3, 3), (48, 16, 3, 3)),
    "axis-from-the-end": conv(IMAGE, (6, 4, 3, 3), -3),
    "1d": conv((2, 4, 11), (16, 4, 3)),
    "3d": conv((1, 4, 4, 5, 6), (16, 4, 2, 3, 1)),
    "no-conv": Case("z = Sigmoid(x)", IMAGE),
    "rows": Case("z = MatMul(x, w)", (3, 4, 5), {"w": (5, 7)}),
}


@LEVELS
@pytest.mark.parametrize("batch", [None, 0], ids=["batch", "empty-batch"])
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_site_has_the_same_bits(name: str, batch: int | None, level: object) -> None:
    case = PLAIN[name]
    original = model(case)
    lowered = lower(original, "depthwise")
    check(lowered.model)
    assert (lowered.applied, lowered.reasons) == ({"site": "depthwise"}, {})
    x = values("x", (case.x[0] if batch is None else batch, *case.x[1:]))
    actual = run(lowered.model, x, level)[0]
    np.testing.assert_array_equal(actual, run(original, x, level)[0])
    z = run(model(case, "", outputs=["z"]), x, level)[0]
    np.testing.assert_array_equal(actual, op.reference(z, case.axis))


@LEVELS
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("channels", [9, 16])
def test_extremes(channels: int, dtype: type, level: object) -> None:
    with np.errstate(over="ignore"):
        x = np.resize(np.array(EXTREMES, np.float32), (2, channels, 5)).astype(dtype)
    lowered = lower(model(Case("z = Identity(x)", x.shape), dtype=dtype), "depthwise")
    assert lowered.applied == {"site": "depthwise"}
    np.testing.assert_array_equal(run(lowered.model, x, level)[0], op.reference(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("activation", op.ACTIVATIONS)
def test_every_activation(activation: str, dtype: type) -> None:
    kind, attributes = op.ACTIVATIONS[activation], {"alpha": 0.1, "min": -0.5, "max": 0.75}
    chosen = {k: attributes[k] for k in kind.fits}
    text = "".join(f", {k} = {v}" for k, v in chosen.items())
    site = f"[site] y = crelu_deploy.{kind.op_type}<axis=1{text}>(z)"
    case = Case("z = Identity(x)", IMAGE)
    lowered = lower(model(case, site, dtype=dtype), "depthwise")
    check(lowered.model)
    x = values("x", IMAGE, dtype)
    actual = run(lowered.model, x)[0]
    np.testing.assert_array_equal(actual, run(model(case, site, dtype=dtype), x)[0])
    tolerance = 2e-3 if dtype == np.float16 else 2e-6
    expected = op.reference(x, 1, activation, **chosen)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


CHANNELS = {"s": (1, 12, 1, 1), "t": (12, 1, 1)}
AFFINES = {
    "per-channel": (IMAGE, CHANNELS),
    "scalars": (IMAGE, {"s": (), "t": (1,)}),
    "mixed": (IMAGE, {"s": (1, 1, 1), "t": (12, 1, 1)}),
    "blocked": ((2, 16, 5, 5), {"s": (32, 1, 1), "t": (32, 1, 1)}),
    "1d": ((2, 5, 7), {"s": (10, 1), "t": (1, 10, 1)}),
}


@LEVELS
@pytest.mark.parametrize("name", AFFINES)
def test_scale_and_shift_go_into_the_convs(name: str, level: object) -> None:
    extents, constants = AFFINES[name]
    extents = (extents[0], 6, *extents[2:]) if extents is IMAGE else extents
    original = model(Case("z = Identity(x)", extents, constants), AFFINE_SITE)
    lowered = lower(original, "depthwise")
    check(lowered.model)
    assert lowered.applied == {"site": "depthwise"}
    assert op_types(lowered.model) == ["Identity", "Conv", "Relu", "Conv", "Relu", "Concat"]
    x = values("x", extents)
    s, t = (values(name, shape) for name, shape in constants.items())
    actual = run(lowered.model, x, level)[0]
    np.testing.assert_allclose(actual, run(original, x, level)[0], rtol=1e-5, atol=1e-6)
    expected = op.reference(x, 1, scale=s, shift=t)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_the_form_in_the_graph() -> None:
    lowered = lower(model(image(CONV)), "depthwise").model
    assert op_types(lowered) == ["Conv", "Relu", "Conv", "Relu", "Concat"]
    negation = list(lowered.graph)[2]
    assert (negation.name, negation.attributes["group"].as_int()) == ("site/Conv", 6)
    (weight,) = negation.inputs[1:]
    np.testing.assert_array_equal(weight.const_value.numpy(), np.full((6, 1, 1, 1), -1, np.float32))
    assert [str(v.shape) for v in lowered.graph.outputs] == ["[N,12,5,7]"]


REFUSALS = {
    "rank-2": (
        Case("z = Gemm(x, w)", (3, 5), {"w": (5, 7)}),
        "its input 'z' has rank 2, and a conv has 3 to 5",
    ),
    "rank-6": (
        Case("z = Identity(x)", (1, 2, 1, 2, 1, 2)),
        "its input 'z' has rank 6, and a conv has 3 to 5",
    ),
    "another-axis": (image(CONV, 3), "its axis 3 is not that of a conv's channels, 1"),
    "batch-axis": (image(CONV, 0), "its axis 0 is not that of a conv's channels, 1"),
    "unknown-channels": (
        Case("z = Transpose<perm=[1,0,2,3]>(x)", IMAGE),
        "the extent of its axis is not known: no Conv, ConvTranspose, Gemm or MatMul lies before"
        " its input 'z'",
    ),
}
AFFINE_REFUSALS = {
    "computed-scale": ("s = Sigmoid(k)", "its scale is computed"),
    "shift-of-full-shape": (
        "s = Identity(k) t = Identity(f)",
        "its shift of shape [1, 12, 5, 7] differs within a channel",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_has_its_reason(name: str) -> None:
    case, reason = REFUSALS[name]
    original = model(case)
    lowered = lower(original, "depthwise")
    assert (lowered.applied, lowered.reasons) == ({"site": "primitive"}, {"site": reason})
    check(lowered.model)
    x = values("x", case.x)
    np.testing.assert_array_equal(run(lowered.model, x)[0], run(original, x)[0])


@pytest.mark.parametrize("name", AFFINE_REFUSALS)
def test_an_affine_refusal_has_its_reason(name: str) -> None:
    body, reason = AFFINE_REFUSALS[name]
    constants = {"k": (12, 1, 1), "f": (1, 12, 5, 7)}
    constants |= {} if " t =" in body else {"t": (12, 1, 1)}
    original = model(image(f"{CONV} {body}", **constants), AFFINE_SITE)
    lowered = lower(original, "depthwise")
    assert (lowered.applied, lowered.reasons) == ({"site": "primitive"}, {"site": reason})
    x = values("x", IMAGE)
    np.testing.assert_array_equal(run(lowered.model, x)[0], run(original, x)[0])


def test_float64_is_refused() -> None:
    case = Case("z = MatMul(x, w)", (3, 4, 5), {"w": (5, 7)})
    lowered = lower(model(case, dtype=np.float64), "depthwise")
    reason = "its input 'z' is DOUBLE, in which ONNX Runtime has no convolution"
    assert lowered.reasons == {"site": reason}
    x = values("x", case.x, np.float64)
    z = run(model(case, "", outputs=["z"], dtype=np.float64), x)[0]
    np.testing.assert_array_equal(run(lowered.model, x)[0], op.reference(z))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_the_shapes_do_not_tell_the_producer_does(dtype: type) -> None:
    original = model(image(CONV), dtype=dtype, infer=False)
    lowered = lower(original, "depthwise")
    assert lowered.applied == {"site": "depthwise"}
    x = values("x", IMAGE, dtype)
    np.testing.assert_array_equal(run(lowered.model, x)[0], run(original, x)[0])


UNKNOWN = {
    "rank": (image("z = Sigmoid(x)"), "the rank of its input 'z' is not known"),
    "type": (
        image(
            "h = Cast<to=10>(x) v = Cast<to=10>(w) p = Conv(h, v) c = Cast<to=1>(p)"
            " z = Transpose<perm=[0,1,2,3]>(c)"
        ),
        "the element type of its input 'z' is not known",
    ),
    "channels": (
        image("p = Conv(x, w) z = Transpose<perm=[0,2,1,3]>(p)"),
        "the extent of axis 1 of its input 'z' is not known",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_nothing_tells_is_refused(name: str) -> None:
    case, reason = UNKNOWN[name]
    assert lower(model(case, infer=False), "depthwise").reasons == {"site": reason}
