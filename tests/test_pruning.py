from __future__ import annotations

import time

import numpy as np
import onnx_ir as ir
import pytest
from graphs import ALL, IMAGE, OFF, Case, bytes_of, check, image, model, op_types, run, values
from real_models import real_model

from crelu_deploy.lowerings import LOWERINGS, lower
from crelu_deploy.passes import clean
from crelu_deploy.pruning import Removal, prune
from crelu_deploy.recognition import recognize

SITE = "[site] c = crelu_deploy.CReLU<axis=1>(z)"
CONV = "[conv] z = Conv(x, w, b)"
PLUS, MINUS, GONE = (1, 4), (2,), (5,)
"""Of 6 filters: those with only one half, and one with none; 0 and 3 have both."""


def columns(*extents: int, axis: int = 1, block: int = 1, halves: int = 12) -> np.ndarray:
    """Return a weight whose columns on this axis are zero where a half is dead."""
    weight = values("v", extents)
    channels = halves // 2
    dead = [c + channels for c in PLUS + GONE] + list(MINUS + GONE)
    for half in dead:
        index = [slice(None)] * weight.ndim
        index[axis] = slice(half * block, (half + 1) * block)
        weight[tuple(index)] = 0
    return weight


def assert_close(actual: np.ndarray, expected: np.ndarray, eps: float = 1e-6) -> None:
    scale = float(np.abs(expected.astype(np.float64)).max(initial=1))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=eps * scale)


def conv(tail: str, **constants: np.ndarray) -> tuple[Case, str]:
    return image(CONV, **constants), f"{SITE} {tail}"


V = columns(5, 12, 3, 3)
SITES = {
    "conv": conv("y = Conv(c, v)", v=V),
    "conv-padded": conv("y = Conv<pads=[1,1,1,1]>(c, v)", v=V),
    "no-bias": (
        Case("[conv] z = Conv(x, w)", IMAGE, {"w": (6, 4, 3, 3), "v": V}),
        f"{SITE} y = Conv(c, v)",
    ),
    "1d": (
        Case("z = Conv(x, w)", (2, 3, 11), {"w": (6, 3, 3), "v": columns(4, 12, 3)}),
        f"{SITE} y = Conv(c, v)",
    ),
    "transposed": (
        Case(
            "z = ConvTranspose(x, w, b)",
            IMAGE,
            {"w": (4, 6, 3, 3), "b": (6,), "v": columns(12, 5, 3, 3, axis=0)},
        ),
        f"{SITE} y = ConvTranspose(c, v)",
    ),
    "gemm": (
        Case(
            "z = Gemm<alpha=0.3, beta=0.7>(x, w, b)",
            (3, 5),
            {"w": (5, 6), "b": (1, 6), "v": columns(12, 4, axis=0)},
        ),
        f"{SITE} y = Gemm(c, v)",
    ),
    "gemm-transposed": (
        Case("z = Gemm<transB=1>(x, w, b)", (3, 5), {"w": (6, 5), "b": (), "v": columns(4, 12)}),
        f"{SITE} y = Gemm<transB=1>(c, v)",
    ),
    "matmul": (
        Case("z = MatMul(x, w)", (3, 4, 5), {"w": (5, 6), "v": columns(12, 4, axis=0)}),
        "[site] c = crelu_deploy.CReLU<axis=-1>(z) y = MatMul(c, v)",
    ),
    "max-pool": conv("e = MaxPool<kernel_shape=[2,2]>(c) y = Conv(e, v)", v=V),
    "average-pool": conv("e = AveragePool<kernel_shape=[2,2]>(c) y = Conv(e, v)", v=V),
    "global-pool-gemm": conv(
        "e = GlobalMaxPool(c) f = Flatten(e) y = Gemm(f, v)", v=columns(12, 4, axis=0)
    ),
    "flatten-gemm": conv("e = Flatten(c) y = Gemm(e, v)", v=columns(420, 4, axis=0, block=35)),
    "channels-last": conv(
        "e = Transpose<perm=[0,2,3,1]>(c) y = MatMul(e, v)", v=columns(12, 4, axis=0)
    ),
    "two-consumers": conv(
        "e = Conv(c, v) f = Conv(c, u) y = Sub(e, f)", v=V, u=columns(5, 12, 3, 3)
    ),
    "one-weight-twice": conv("e = Conv(c, v) f = Conv(c, v) y = Add(e, f)", v=V),
    "other-activation": (
        image(CONV, v=V),
        "[site] c = crelu_deploy.CElu<axis=1, alpha=0.5>(z) y = Conv(c, v)",
    ),
    "clip": (
        image(CONV, v=V),
        "[site] c = crelu_deploy.CClip<axis=1, min=-0.5, max=0.5>(z) y = Conv(c, v)",
    ),
}


@pytest.mark.parametrize("level", [OFF, ALL], ids=["off", "all"])
@pytest.mark.parametrize("name", SITES)
def test_dead_halves_are_removed(name: str, level: object) -> None:
    case, site = SITES[name]
    original = model(case, site)
    before = bytes_of(original)
    pruned = prune(original)
    check(pruned.model)
    assert bytes_of(original) == before
    assert pruned.reasons == {}
    assert pruned.removed == {"site": Removal(6, PLUS, MINUS, GONE)}
    assert pruned.removed["site"].both == 2
    x = values("x", case.x)
    assert_close(run(pruned.model, x, level)[0], run(original, x, level)[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes(dtype: type) -> None:
    case, site = SITES["gemm"]
    case = Case(case.body, case.x, {**case.constants, "v": case.constants["v"].astype(dtype)})
    original = model(case, site, dtype=dtype)
    pruned = prune(original)
    assert pruned.removed == {"site": Removal(6, PLUS, MINUS, GONE)}
    x = values("x", case.x, dtype)
    eps = 2e-3 if dtype == np.float16 else 1e-15
    assert_close(run(pruned.model, x)[0], run(original, x)[0], eps)


def shapes(result: ir.Model) -> dict[str, str]:
    return {node.name: f"{node.op_type} {node.outputs[0].shape}" for node in result.graph}


def test_the_form_in_the_graph() -> None:
    case, site = conv("[pool] e = MaxPool<kernel_shape=[2,2]>(c) [next] y = Conv(e, v)", v=V)
    result = prune(model(case, site)).model
    assert shapes(result) == {
        "conv": "Conv [N,2,5,7]",
        "site/Conv": "Conv [N,3,5,7]",
        "site": "CReLU [N,4,5,7]",
        "site/Relu": "Relu [N,3,5,7]",
        "site/Concat": "Concat [N,7,5,7]",
        "pool": "MaxPool [N,7,4,6]",
        "next": "Conv [N,5,2,4]",
    }
    weights = [v.const_value.numpy() for v in result.graph.initializers.values()]
    assert sorted(w.shape for w in weights) == [
        (2,),
        (2, 4, 3, 3),
        (3,),
        (3, 4, 3, 3),
        (5, 7, 3, 3),
    ]


def test_a_filter_of_which_only_the_second_half_lives_is_negated() -> None:
    result = prune(model(*SITES["conv"])).model
    single = result.graph.node("site/Conv")
    weight, bias = (v.const_value.numpy() for v in single.inputs[1:])
    w, b = values("w", (6, 4, 3, 3)), values("b", (6,))
    np.testing.assert_array_equal(weight, np.concatenate([w[[1, 4]], -w[[2]]]))
    np.testing.assert_array_equal(bias, np.concatenate([b[[1, 4]], -b[[2]]]))


def halves(*dead: int) -> np.ndarray:
    weight = values("v", (5, 12, 1, 1))
    weight[:, list(dead)] = 0
    return weight


FIRST, SECOND = tuple(range(6)), tuple(range(6, 12))
DEAD = {
    "nothing": (halves(), None, ["Conv", "CReLU", "Conv"]),
    "first-halves": (halves(*FIRST), Removal(6, (), FIRST, ()), ["Conv", "Relu", "Conv"]),
    "second-halves": (halves(*SECOND), Removal(6, FIRST, (), ()), ["Conv", "Relu", "Conv"]),
    "one-each": (
        halves(0, 1, 2, 9, 10, 11),
        Removal(6, (3, 4, 5), (0, 1, 2), ()),
        ["Conv", "Relu", "Conv"],
    ),
    "filters": (halves(1, 7, 2, 8), Removal(6, (), (), (1, 2)), ["Conv", "CReLU", "Conv"]),
    "everything": (halves(*FIRST, *SECOND), Removal(6, (), (), FIRST), ["Conv", "Relu", "Conv"]),
}


@pytest.mark.parametrize("name", DEAD)
def test_what_is_left(name: str) -> None:
    weight, removal, form = DEAD[name]
    original = model(*conv("y = Conv(c, v, d)", v=weight, d=(5,)))
    pruned = prune(original)
    check(pruned.model)
    assert pruned.removed == ({} if removal is None else {"site": removal})
    assert op_types(pruned.model) == form
    x = values("x", IMAGE)
    assert_close(run(pruned.model, x)[0], run(original, x)[0])


def filled(both: int, plus: int, minus: int, *, block: int = 16) -> tuple[int, int, int, int]:
    """Prune 48 filters of which so many have both halves or one; return what is left."""
    weight = values("v", (5, 96, 1, 1))
    weight[:, 48 + both : 48 + both + plus] = 0
    weight[:, both + plus : both + plus + minus] = 0
    weight[:, both + plus + minus : 48] = weight[:, 48 + both + plus + minus :] = 0
    case = Case("[conv] z = Conv(x, w)", IMAGE, {"w": (48, 4, 3, 3), "v": weight})
    original = model(case, f"{SITE} y = Conv(c, v)")
    pruned = prune(original, block=block)
    check(pruned.model)
    x = values("x", IMAGE)
    for level in (OFF, ALL):
        assert_close(run(pruned.model, x, level)[0], run(original, x, level)[0])
    r = pruned.removed.get("site", Removal(48, (), (), ()))
    return r.both, len(r.positive), len(r.negative), len(r.dropped)


FILLED = {
    "whole-blocks": ((16, 8, 8), (16, 8, 8, 16)),
    "both-from-single": ((10, 12, 10), (16, 6, 10, 16)),
    "both-from-dropped": ((20, 2, 1), (32, 0, 0, 16)),
    "single-from-dropped": ((16, 4, 5), (16, 11, 5, 16)),
    "single-only": ((0, 9, 9), (0, 23, 9, 16)),
    "both-and-single": ((15, 10, 10), (16, 22, 10, 0)),
    "nothing-gained": ((40, 2, 2), (48, 0, 0, 0)),
    "dropped-only": ((0, 0, 0), (0, 0, 0, 48)),
}


@pytest.mark.parametrize("name", FILLED)
def test_dead_halves_stay_where_they_fill_the_blocks(name: str) -> None:
    alive, left = FILLED[name]
    assert filled(*alive) == left


def test_blocks_of_one_leave_nothing_dead() -> None:
    assert filled(10, 12, 10, block=1) == (10, 12, 10, 16)


BIASES = {
    "zero": (0.0, "CReLU", "dropped"),
    "negative": (-0.5, "CReLU", "negative"),
    "positive": (0.5, "CReLU", "positive"),
    "below-a-clip": (-0.5, "CClip", "negative"),
    "softplus": (-0.5, "CSoftplus", None),
    "nan": (np.nan, "CReLU", None),
}


@pytest.mark.parametrize("name", BIASES)
def test_a_filter_of_zeros_fires_with_its_bias(name: str) -> None:
    bias, op_type, left = BIASES[name]
    w, b = values("w", (6, 4, 3, 3)), values("b", (6,))
    w[2], b[2] = 0, bias
    limits = ", min=0.0, max=6.0" if op_type == "CClip" else ""
    site = f"[site] c = crelu_deploy.{op_type}<axis=1{limits}>(z) y = Conv(c, v)"
    original = model(image(CONV, w=w, b=b, v=(5, 12, 1, 1)), site)
    pruned = prune(original)
    expected = {"positive": (), "negative": (), "dropped": ()}
    if left is None:
        assert pruned.removed == {}
        return
    assert pruned.removed == {"site": Removal(6, **{**expected, left: (2,)})}
    x = values("x", IMAGE)
    assert_close(run(pruned.model, x)[0], run(original, x)[0])


def test_a_bias_times_zero_does_not_fire() -> None:
    w = values("w", (5, 6))
    w[:, 2] = 0
    case = Case("z = Gemm<beta=0.0>(x, w, b)", (3, 5), {"w": w, "b": (6,), "v": (12, 4)})
    original = model(case, f"{SITE} y = Gemm(c, v)")
    pruned = prune(original)
    assert pruned.removed == {"site": Removal(6, (), (), (2,))}
    x = values("x", case.x)
    assert_close(run(pruned.model, x)[0], run(original, x)[0])


def chain_of_three() -> Case:
    """Filter 0 of the second conv is read by no one, and alone reads half 3 of the first site.

    Filter 1 of the second conv reads nothing but half 2 of the first, which never fires.
    """
    w = {f"w{i}": values(f"w{i}", (4, 4 if i == 1 else 8, 1, 1)) for i in (1, 2, 3)}
    w["w1"][2] = 0
    w["w2"][1:, 3] = 0
    w["w2"][1, [i for i in range(8) if i not in (2, 6)]] = 0
    w["w3"][:, [0, 4]] = 0
    body = (
        "p = Conv(x, w1) [first] q = crelu_deploy.CReLU<axis=1>(p)"
        " r = Conv(q, w2) [second] s = crelu_deploy.CReLU<axis=1>(r)"
    )
    return Case(body, (2, 4, 5, 6), w)


def test_death_goes_up_and_down() -> None:
    original = model(chain_of_three(), "y = Conv(s, w3)")
    pruned = prune(original)
    check(pruned.model)
    assert pruned.removed == {
        "first": Removal(4, (), (3,), (2,)),
        "second": Removal(4, (), (), (0, 1)),
    }
    x = values("x", (2, 4, 5, 6))
    assert_close(run(pruned.model, x)[0], run(original, x)[0])


def test_a_second_run_changes_nothing() -> None:
    once = prune(model(*SITES["conv"])).model
    twice = prune(once)
    assert twice.removed == {}
    assert twice.reasons == {
        "site": "Concat site/Concat reads it, which is no Conv, ConvTranspose, Gemm or MatMul"
    }
    assert bytes_of(twice.model) == bytes_of(once)


@pytest.mark.parametrize("name", LOWERINGS)
def test_a_pruned_site_can_be_lowered(name: str) -> None:
    original = model(*SITES["conv"])
    lowered = lower(prune(original).model, name)
    check(lowered.model)
    if name == "split":  # the halves that stay single are joined to the site behind it
        assert lowered.reasons["site"].startswith("Concat site/Concat reads it")
    name = "primitive" if name in ("split", "pooled") else name
    assert lowered.applied == {"site": name}
    x = values("x", IMAGE)
    for level in (OFF, ALL):
        assert_close(run(lowered.model, x, level)[0], run(original, x, level)[0], 2e-6)


PRODUCERS = {
    "no-producer": (
        "z = Sigmoid(x)",
        "its input comes from Sigmoid, which is no Conv, ConvTranspose, Gemm or MatMul",
    ),
    "step": ("p = Conv(x, w) [d] z = Dropout(p)", "Dropout d is between it and its producer"),
    "groups": ("[k] z = Conv<group=2>(x, g)", "its producer Conv k has groups"),
    "read-elsewhere": ("[k] z = Conv(x, w) r = Sigmoid(z)", None),
    "computed-weight": (
        "q = Tanh(w) [k] z = Conv(x, q)",
        "the weight 'q' of its producer Conv k is computed by Tanh ",
    ),
}


@pytest.mark.parametrize("name", PRODUCERS)
def test_a_producer_that_cannot_lose_filters(name: str) -> None:
    body, reason = PRODUCERS[name]
    channels = 4 if name == "no-producer" else 6
    case = Case(
        body,
        IMAGE,
        {"w": (6, 4, 3, 3), "g": (6, 2, 3, 3), "v": np.zeros((5, 2 * channels, 1, 1), np.float32)},
    )
    elsewhere = name == "read-elsewhere"
    original = model(case, f"{SITE} y = Conv(c, v)", outputs=["y", "r"] if elsewhere else ["y"])
    pruned = prune(original)
    reason = "the output of its producer Conv k is read elsewhere" if elsewhere else reason
    assert (pruned.removed, pruned.reasons) == ({}, {"site": reason.rstrip()})
    assert bytes_of(pruned.model) != b""


READERS = {
    "output": ("y = Identity(c)", "'y' behind it is an output of the graph"),
    "sigmoid": (
        "[s] e = Sigmoid(c) y = Conv(e, v)",
        "Sigmoid s reads it, which is no Conv, ConvTranspose, Gemm or MatMul",
    ),
    "groups": ("[k] y = Conv<group=2>(c, u)", "Conv k behind it has groups"),
    "indices": (
        "[p] e, j = MaxPool<kernel_shape=[2,2]>(c) f = Cast<to=1>(j) y = Add(e, f)",
        "MaxPool p behind it has a second output that is read",
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_that_cannot_lose_channels(name: str) -> None:
    tail, reason = READERS[name]
    zero = {"v": np.zeros((5, 12, 1, 1), np.float32), "u": np.zeros((4, 6, 1, 1), np.float32)}
    original = model(*conv(tail, **{k: v for k, v in zero.items() if f"{k})" in tail}))
    pruned = prune(original)
    assert (pruned.removed, pruned.reasons) == ({}, {"site": reason})
    x = values("x", IMAGE)
    np.testing.assert_array_equal(run(pruned.model, x)[0], run(original, x)[0])


OTHER_SITES = {
    "affine": ("crelu_deploy.AffineCReLU<axis=1>(z, k, k)", "it has a scale and a shift"),
    "axis": (
        "crelu_deploy.CReLU<axis=2>(z)",
        "its axis 2 is not that of the channels of Conv conv",
    ),
}


@pytest.mark.parametrize("name", OTHER_SITES)
def test_a_site_that_is_not_on_the_channels(name: str) -> None:
    node, reason = OTHER_SITES[name]
    original = model(image(CONV, k=(1,)), f"[site] c = {node} y = Sigmoid(c)")
    assert prune(original).reasons == {"site": reason}


@pytest.mark.parametrize("lowering", ["primitive", "depthwise", "complement", "split", "fold"])
def test_faceboxes_with_dead_halves(lowering: str) -> None:
    original = ir.load(real_model("faceboxes-3ddfa/FaceBoxesProd.onnx"))
    recognize(original)
    cleaned = clean(original)
    consumer = [node for node in cleaned.graph if node.op_type == "Conv"][1]
    weight = consumer.inputs[1].const_value.numpy().copy()
    weight[:, [0, 3, 5, 27, 24, 40]] = 0  # filters 0 and 3 die, one each of 5 and 16
    consumer.inputs[1].const_value = ir.tensor(weight, name=consumer.inputs[1].name)
    pruned = prune(cleaned)
    assert list(pruned.removed.values()) == [Removal(24, (16,), (5,), (0, 3))]
    cleaned.graph.inputs[0].name = pruned.model.graph.inputs[0].name = "x"
    x = values("x", [d if isinstance(d, int) else 1 for d in cleaned.graph.inputs[0].shape])
    result = lower(pruned.model, lowering)
    check(result.model)
    for actual, expected in zip(run(result.model, x, ALL), run(cleaned, x, ALL), strict=True):
        assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("sites", [50, 500])
def test_the_cost_grows_with_the_nodes(sites: int) -> None:
    """The limit is several times what one core needs."""
    lines, constants, value = [], {"v": halves()[:, :8]}, "x"
    for i in range(sites):
        weight = values(f"w{i}", (4, 8, 1, 1))
        weight[:, [i % 8, (i + 3) % 8]] = 0
        constants[f"w{i}"] = weight
        lines.append(f"p{i} = Conv({value}, w{i}) y{i} = crelu_deploy.CReLU<axis=1>(p{i})")
        value = f"y{i}"
    original = model(Case(" ".join(lines), (1, 8, 4, 4), constants), f"y = Conv({value}, v)")
    start = time.process_time()
    assert len(prune(original).removed) == sites - 1
    assert time.process_time() - start < 0.01 * sites + 0.5
