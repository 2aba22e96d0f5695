"""The rule that chooses a lowering per site: short sums fold, the others depend on neighbours."""

from __future__ import annotations

import pytest
from graphs import Case, model

from crelu_deploy.lowerings import lower
from crelu_deploy.plan import Rule, by_rule

SITE = "[site] y = crelu_deploy.CReLU<axis={axis}>(z)"


def conv(terms: tuple[int, ...], channels: int, attributes: str = "", groups: int = 1) -> Case:
    """Return a convolution whose output elements sum up ``prod(terms)`` products."""
    inputs = terms[0] * groups
    return Case(f"z = Conv{attributes}(x, w)", (1, inputs, 9, 9), {"w": (channels, *terms)})


def gemm(terms: int, channels: int) -> Case:
    return Case("z = Gemm(x, w)", (3, terms), {"w": (terms, channels)})


# case -> lowering; the limits are 100 terms where the channels fill blocks of 16, else 250
CHOSEN = {
    "stem": (conv((3, 5, 5), 32), "fold"),
    "whole-at-the-limit": (conv((4, 5, 5), 16), "fold"),
    "whole-above": (conv((101, 1, 1), 16), "depthwise"),
    "padded-at-the-limit": (conv((10, 5, 5), 24), "fold"),
    "padded-above": (conv((251, 1, 1), 24), "mirror"),
    "padded-wide": (conv((101, 1, 1), 17), "fold"),
    "wide": (conv((64, 3, 3), 64), "depthwise"),
    "pointwise": (conv((64, 1, 1), 64), "fold"),
    "grouped": (conv((32, 3, 3), 32, "<group=2>", 2), "depthwise"),
    "grouped-narrow": (conv((8, 3, 3), 32, "<group=2>", 2), "fold"),
    "depthwise": (conv((1, 3, 3), 64, "<group=64>", 64), "mirror"),
    "transposed": (Case("z = ConvTranspose(x, w)", (1, 8, 5, 5), {"w": (8, 16, 3, 3)}), "fold"),
    "transposed-wide": (
        Case("z = ConvTranspose(x, w)", (1, 12, 5, 5), {"w": (12, 16, 3, 3)}),
        "depthwise",
    ),
    "gemm": (gemm(100, 32), "fold"),
    "gemm-wide": (gemm(101, 32), "mirror"),
    "no-producer": (Case("z = Identity(x)", (1, 4, 3, 3)), "mirror"),
    "nothing-to-fold-into": (Case("z = Sigmoid(x)", (1, 4, 3, 3)), "mirror"),
    "computed-weight": (
        Case("v = Sigmoid(w) z = Conv(x, v)", (1, 2, 5, 5), {"w": (4, 2, 3, 3)}),
        "mirror",
    ),
}


@pytest.mark.parametrize(("case", "lowering"), CHOSEN.values(), ids=CHOSEN)
def test_the_rule(case, lowering):
    assert by_rule(model(case)) == {"site": lowering}


@pytest.mark.parametrize(("case", "lowering"), CHOSEN.values(), ids=CHOSEN)
def test_what_the_rule_chooses_is_what_the_site_gets(case, lowering):
    network = model(case)
    lowered = lower(network, by_rule(network))
    assert dict(lowered.applied) == {"site": lowering}
    assert not lowered.reasons


def test_the_limits_are_parameters():
    network = model(conv((4, 5, 5), 16))
    assert by_rule(network, Rule(whole=99)) == {"site": "depthwise"}
    assert by_rule(network, Rule(block=32, whole=99)) == {"site": "fold"}
    assert by_rule(network, Rule(block=32, padded=99)) == {"site": "mirror"}


def test_every_site_is_decided_for_itself_and_the_model_is_kept():
    case = Case(
        "p = Conv(x, w) [first] q = crelu_deploy.CReLU<axis=1>(p) z = Conv(q, v)",
        (1, 3, 9, 9),
        {"w": (16, 3, 3, 3), "v": (16, 32, 3, 3)},
    )
    network = model(case)
    before = [node.op_type for node in network.graph]
    assert by_rule(network) == {"first": "split", "site": "depthwise"}
    assert [node.op_type for node in network.graph] == before


@pytest.mark.parametrize(("channels", "lowering"), [(64, "split"), (40, "complement")])
def test_a_wide_site_that_only_convolutions_read(channels, lowering):
    case = Case(
        "p = Conv(x, w) [wide] q = crelu_deploy.CReLU<axis=1>(p) z = Conv(q, v)",
        (1, 32, 9, 9),
        {"w": (channels, 32, 3, 3), "v": (8, 2 * channels, 1, 1)},
    )
    assert by_rule(model(case, "y = Relu(z)")) == {"wide": lowering}


def test_a_model_without_sites_needs_no_plan():
    assert by_rule(model(Case("z = Neg(x)", (1, 4)), "y = Relu(z)")) == {}
