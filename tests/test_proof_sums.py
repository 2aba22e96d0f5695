"""Casts, scales of zero, sums of several weights, and roundings that add up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from graphs import AFFINE_SITE, image, model, values
from proof_faults import element, instead, numbers
from test_proof import FORMS, check_proved

from crelu_deploy.lowerings import lower
from crelu_deploy.proof import prove

SITE = "[site] q = crelu_deploy.CReLU<axis=1>(z)"
AFFINE = "[site] q = crelu_deploy.AffineCReLU<axis=1>(z, s, t)"
TYPES = {"double": 11, "half": 10, "bfloat16": 16}
SCALE = np.float32([1.5, 0, -2, 1, 0, -0.5, 3, 1, 1, 0.1, 0, -1]).reshape(12, 1, 1)
SHIFT = np.float32([0.3, 0.7, -0.2, 0, 0, -0.4, 0.3, 0.1, 1, -0.1, -0.5, -1]).reshape(12, 1, 1)
CASTS = {
    f"{name}, {what}": model(
        image(f"p = Conv(x, w, b) {body.format(to)}", k=(5, 12, 3, 3), m=(6, 1, 1)),
        f"{SITE} {behind.format(to)}",
    )
    for name, to in TYPES.items()
    for what, body, behind in (
        ("inside", "z = Cast<to={}>(p)", "y = Cast<to=1>(q)"),
        ("negated", "n = Neg(p) z = Cast<to={}>(n)", "y = Cast<to=1>(q)"),
        ("scaled", "n = Mul(p, m) z = Cast<to={}>(n)", "d = Cast<to=1>(q) y = Conv(d, k)"),
        ("behind", "z = Neg(p)", "c = Cast<to={}>(q) d = Cast<to=1>(c) y = Conv(d, k)"),
        ("and back", "c = Cast<to={}>(p) z = Cast<to=1>(c)", "y = Conv(q, k)"),
    )
}


@pytest.mark.parametrize("name", CASTS)
def test_casts_between_floating_point_types_are_proved(name: str) -> None:
    for form in FORMS:
        check_proved(CASTS[name], lower(CASTS[name], form).model)


def test_another_cast_is_not_proved() -> None:
    canonical = model(
        image("[conv] p = Conv(x, w, b) [c] z = Cast<to=10>(p)"), f"{SITE} y = Cast<to=1>(q)"
    )
    for wrong in (11, 16):
        lowered = lower(canonical, "fold").model
        lowered.graph.node("c").attributes["to"] = ir.AttrInt64("to", wrong)
        assert not prove(canonical, lowered).proved


def test_a_cast_to_integers_is_not_odd() -> None:
    """Rounded towards zero it would be, but of unsigned ones it is not."""
    text = "p = Conv(x, w, b) {} d = Cast<to=1>(c)"
    one = model(image(text.format("c = Cast<to=2>(p)")), "y = Neg(d)")
    two = model(image(text.format("n = Neg(p) c = Cast<to=2>(n)")), "y = Identity(d)")
    assert not prove(one, two).proved


STEPS = {
    "a layer": "z = Conv(x, w, b)",
    "a batch norm's steps": "p = Conv(x, w, b) n = Mul(p, m) z = Add(n, a)",
    "a pool": "p = Conv(x, w, b) z = MaxPool<kernel_shape=[2, 2]>(p)",
    "a negation": "p = Conv(x, w, b) z = Neg(p)",
    "a move": "p = Conv(x, w, b) z = Transpose<perm=[0, 1, 3, 2]>(p)",
    "a pad": "p = Conv(x, w, b) z = Pad(p, r)",
}
BEHIND = {
    "a layer": "y = Conv(q, k)",
    "groups": "y = Conv<group=2>(q, g)",
    "nothing": "y = Identity(q)",
    "a pool": "v = MaxPool<kernel_shape=[2, 2]>(q) y = Conv(v, k)",
    "a sigmoid": "v = Sigmoid(q) y = Conv(v, k)",
    "another site": "v = Conv(q, e) [last] u = crelu_deploy.AffineCReLU<axis=1>(v, o, f) "
    "y = Conv(u, h)",
}
CONSTANTS = {
    "k": (5, 12, 3, 3),
    "g": (4, 6, 1, 1),
    "e": (4, 12, 1, 1),
    "h": (3, 8, 1, 1),
    "m": (6, 1, 1),
    "a": (6, 1, 1),
    "s": SCALE,
    "t": SHIFT,
    "o": SCALE[:8],
    "f": SHIFT[:8],
    "r": np.int64([0, 0, 1, 1, 0, 0, 1, 1]),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("behind", BEHIND)
def test_scales_of_zero_and_one_are_proved(step: str, behind: str) -> None:
    canonical = model(image(STEPS[step], **CONSTANTS), f"{AFFINE} {BEHIND[behind]}")
    for form in FORMS:
        check_proved(canonical, lower(canonical, form).model)


@pytest.mark.parametrize("to", [0.0, 0.999])
def test_another_constant_of_a_scale_of_zero_is_refuted(to: float) -> None:
    canonical = model(image("[conv] z = Conv(x, w, b)", **CONSTANTS), f"{AFFINE} y = Conv(q, k)")
    lowered = lower(canonical, "fold").model
    check_proved(canonical, lowered)
    numbers("conv", 2, element((1,), to))(lowered)
    assert prove(canonical, lowered).refuted


SUMS = {
    "both signs": ("n = Neg(z) [t] r = crelu_deploy.CReLU<axis=1>(n) c = Concat<axis=1>(q, r)", 24),
    "twice": ("[t] r = crelu_deploy.CReLU<axis=1>(z) c = Concat<axis=1>(q, r)", 24),
    "a first half": ("r = Relu(z) c = Concat<axis=1>(q, r)", 18),
    "a second half": ("n = Neg(z) r = Relu(n) c = Concat<axis=1>(q, r)", 18),
    "what is read": ("c = Concat<axis=1>(q, z)", 18),
}
PAIRS = [(name, seed) for name in SUMS for seed in range(2)]


def summed(name: str, seed: int) -> ir.Model:
    text, width = SUMS[name]
    weight = values(f"k{seed}", (5, width, 3, 3))
    return model(image("z = Conv(x, w, b)", k=weight), f"{SITE} {text} [next] y = Conv(c, k)")


@pytest.mark.parametrize(("name", "seed"), PAIRS)
def test_sums_of_several_weights_are_proved(name: str, seed: int) -> None:
    """Each of the weights that are summed is rounded once."""
    canonical = summed(name, seed)
    for form in FORMS:
        check_proved(canonical, lower(canonical, form).model, most=3)


@pytest.mark.parametrize(("name", "seed"), PAIRS)
@pytest.mark.parametrize("factor", [1 + 2.0**-20, -1.0, 0.0])
def test_another_weight_in_a_sum_is_refuted(name: str, seed: int, factor: float) -> None:
    canonical = summed(name, seed)
    lowered = lower(canonical, "complement").model
    weight = next(n for n in lowered.graph if n.op_type == "Conv" and n.name == "next").inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    array = weight.const_value.numpy().copy()
    at = np.unravel_index(np.abs(array).argmax(), array.shape)
    array[at] *= np.float32(factor)
    weight.const_value = ir.tensor(array, name=weight.name)
    assert prove(canonical, lowered).refuted


def chained(op_type: str, number: np.ndarray, count: int, between: str = "") -> Callable[..., None]:
    """Return a change that puts operators by a constant behind a site's sum."""

    def change(lowered: ir.Model) -> None:
        added = next(node for node in lowered.graph if node.op_type == "Add")
        end, nodes = added.outputs[0], list[ir.Node]()
        uses = list(end.uses())
        constant = ir.val("tiny", ir.DataType.FLOAT, number.shape, const_value=ir.tensor(number))
        lowered.graph.register_initializer(constant)
        value = end
        for kind in [op_type, *([between] if between else [])] * count:
            rest = [constant] if kind == op_type else []
            node = ir.node(kind, [value, *rest], {"axis": 1} if kind == "Concat" else {})
            value = node.outputs[0]
            value.shape, value.dtype = end.shape, end.dtype
            nodes.append(node)
        lowered.graph.insert_after(added, nodes)
        for use in uses:
            use.node.replace_input_with(use.idx, value)

    return change


TINY = {
    "Mul": np.float32(1 - 2.0**-24),
    "Add": np.abs(values("t", (12, 1, 1))) * np.float32(2**-24),
}


@pytest.mark.parametrize("form", ["primitive", "mirror"])
@pytest.mark.parametrize("between", ["", "Identity", "Concat"])
@pytest.mark.parametrize("op_type", TINY)
def test_roundings_add_up(op_type: str, between: str, form: str) -> None:
    constants = {"s": (12, 1, 1), "t": (12, 1, 1)}
    canonical = model(image("z = Conv(x, w, b)", **constants), AFFINE_SITE)
    for count in (1, 2, 3, 10, 300):
        lowered = lower(canonical, form).model
        chained(op_type, np.asarray(TINY[op_type]), count, between)(lowered)
        proof = prove(canonical, lowered)
        assert proof.refuted is (count > 2)
        assert count > 2 or proof.sites["site"].roundings == count


def test_an_activation_behind_a_cast_is_told_apart() -> None:
    canonical = model(image("p = Conv(x, w, b) z = Cast<to=10>(p)"), f"{SITE} y = Cast<to=1>(q)")
    lowered = lower(canonical, "fold").model
    instead("site/Relu", "Abs")(lowered)
    assert not prove(canonical, lowered).proved
