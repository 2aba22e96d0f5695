"""The rule that chooses a lowering per site: short sums fold, the others depend on neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest
from graphs import Case, model

from crelu_deploy.lowerings import lower
from crelu_deploy.rule import Preference, Rule, added, by_rule, folding_pays

SITE = "[site] y = crelu_deploy.CReLU<axis={axis}>(z)"


def conv(terms: tuple[int, ...], channels: int, attributes: str = "", groups: int = 1) -> Case:
    """Return a convolution whose output elements sum up ``prod(terms)`` products."""
    inputs = terms[0] * groups
    return Case(f"z = Conv{attributes}(x, w)", (1, inputs, 9, 9), {"w": (channels, *terms)})


def gemm(terms: int, channels: int) -> Case:
    return Case("z = Gemm(x, w)", (3, terms), {"w": (terms, channels)})


def cells(pools: str, layers: str, others: str, fold: int) -> dict[str, Preference]:
    found = {"pools": pools, "layers": layers, "others": others}
    return {readers: Preference(tuple(forms.split()), fold) for readers, forms in found.items()}


RULE = Rule(
    16,
    cells("pooled split", "split complement", "depthwise mirror", 100),
    cells("complement", "complement", "mirror", 125),
)

# case -> lowering; the limits are 100 added products where the channels fill blocks of 16, else 125
CHOSEN = {
    "stem": (conv((3, 5, 5), 32), "fold"),
    "whole-at-the-limit": (conv((4, 5, 5), 16), "fold"),
    "whole-above": (conv((101, 1, 1), 16), "depthwise"),
    "padded-at-the-limit": (conv((10, 5, 5), 24), "fold"),  # one block is added to two
    "padded-above": (conv((251, 1, 1), 24), "mirror"),
    "padded-wide": (conv((201, 1, 1), 17), "fold"),
    "wide": (conv((64, 3, 3), 64), "depthwise"),
    "pointwise": (conv((64, 1, 1), 64), "fold"),
    "grouped": (conv((32, 3, 3), 32, "<group=2>", 2), "depthwise"),
    "grouped-narrow": (conv((8, 3, 3), 32, "<group=2>", 2), "fold"),
    "depthwise": (conv((1, 3, 3), 64, "<group=64>", 64), "depthwise"),
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
    assert by_rule(model(case), RULE) == {"site": lowering}


@pytest.mark.parametrize(("case", "lowering"), CHOSEN.values(), ids=CHOSEN)
def test_what_the_rule_chooses_is_what_the_site_gets(case, lowering):
    network = model(case)
    lowered = lower(network, by_rule(network, RULE))
    assert dict(lowered.applied) == {"site": lowering}
    assert not lowered.reasons


def test_a_rule_is_for_its_block():
    network = model(conv((101, 1, 1), 24))
    for block, lowering in ((16, "fold"), (8, "depthwise"), (1, "depthwise"), (32, "fold")):
        rule = replace(RULE, block=block)
        assert by_rule(network, rule) == {"site": lowering}


# terms, channels, channels of a block -> products that folding adds to each output element
ADDED = [
    (100, 16, 16, 100),
    (100, 24, 16, 50),
    (100, 24, 8, 100),
    (100, 8, 16, 0),
    (100, 17, 16, 50),
    (100, 5, 1, 100),
]


@pytest.mark.parametrize(("terms", "channels", "block", "expected"), ADDED)
def test_a_fold_into_idle_lanes_adds_less(terms, channels, block, expected):
    assert added(terms, channels, block) == expected


def test_where_folding_pays():
    wide, stem = model(conv((101, 1, 1), 16)), model(conv((4, 5, 5), 16))
    assert (folding_pays(wide, RULE), folding_pays(stem, RULE)) == ({"site": False}, {"site": True})
    assert folding_pays(model(Case("z = Sigmoid(x)", (1, 4, 3, 3))), RULE) == {"site": False}


@pytest.mark.parametrize(("channels", "lowering"), [(32, "pooled"), (24, "complement")])
def test_a_site_that_only_pools_read(channels, lowering):
    case = Case(
        "p = Conv(x, w) [wide] q = crelu_deploy.CReLU<axis=1>(p)"
        " z = MaxPool<kernel_shape=[2,2]>(q)",
        (1, 32, 9, 9),
        {"w": (channels, 32, 3, 3)},
    )
    assert by_rule(model(case, "y = Relu(z)"), RULE) == {"wide": lowering}


def test_every_site_is_decided_for_itself_and_the_model_is_kept():
    case = Case(
        "p = Conv(x, w) [first] q = crelu_deploy.CReLU<axis=1>(p) z = Conv(q, v)",
        (1, 16, 9, 9),
        {"w": (16, 16, 3, 3), "v": (16, 32, 3, 3)},
    )
    network = model(case)
    before = [node.op_type for node in network.graph]
    assert by_rule(network, RULE) == {"first": "split", "site": "depthwise"}
    assert [node.op_type for node in network.graph] == before


@pytest.mark.parametrize(("channels", "lowering"), [(64, "split"), (40, "complement")])
def test_a_wide_site_that_only_convolutions_read(channels, lowering):
    case = Case(
        "p = Conv(x, w) [wide] q = crelu_deploy.CReLU<axis=1>(p) z = Conv(q, v)",
        (1, 32, 9, 9),
        {"w": (channels, 32, 3, 3), "v": (8, 2 * channels, 1, 1)},
    )
    assert by_rule(model(case, "y = Relu(z)"), RULE) == {"wide": lowering}


def test_a_model_without_sites_needs_no_plan():
    assert by_rule(model(Case("z = Neg(x)", (1, 4)), "y = Relu(z)"), RULE) == {}
