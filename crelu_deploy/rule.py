"""The rule of ONNX Runtime on a CPU: a lowering for every site where nothing was measured.

Folding removes the passes over memory that a site costs and doubles its producer's arithmetic, so
it pays where one output element is a short sum. Which other form is best depends on what reads the
site, and on whether its channels fill the blocks of the runtime's layout for convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from crelu_deploy.lowerings import LOWERINGS, fold, lower
from crelu_deploy.lowerings.consumers import extent_of
from crelu_deploy.lowerings.producers import Refusal
from crelu_deploy.lowerings.sitenode import SiteNode, site_nodes
from crelu_deploy.lowerings.values import constant
from crelu_deploy.targets import FUNCTION

READERS = ("pools", "layers", "others")
"""What reads a site: max pools only; layers whose weights can be rewritten; anything else."""

FORMS = tuple(name for name in LOWERINGS if name not in (FUNCTION, "fold"))
"""The lowerings that a rule chooses among beside ``fold``."""


@dataclass(frozen=True)
class Preference:
    """What is chosen for one kind of site.

    Attributes:
        forms: Lowerings, the best first; a site gets the first one that it can have.
        fold: Up to how many added products ``fold`` is better still, see ``added``.
    """

    forms: tuple[str, ...]
    fold: int


@dataclass(frozen=True)
class Rule:
    """Which lowering is the fastest, by kind of site.

    Attributes:
        block: Channels of one block in the runtime's layout for convolutions; 1 without blocks.
        whole: By what reads the site, where its channels fill their blocks.
        padded: The same where they do not; a fold then fills idle lanes with the other half.
    """

    block: int
    whole: Mapping[str, Preference]
    padded: Mapping[str, Preference]

    def preference(self, readers: str, channels: int | None) -> Preference:
        """Return what holds for a site with these readers and channels; None where unknown."""
        fills = channels is not None and channels % self.block == 0
        return (self.whole if fills else self.padded)[readers]


def by_rule(model: ir.Model, rule: Rule) -> dict[str, str]:
    """Return site -> lowering for a model with canonical nodes, without measuring."""
    sites = site_nodes(model)
    able = candidates(model, list(sites))
    costs = _costs(sites, rule.block)
    choice = {}
    for name, site in sites.items():
        preferred = rule.preference(_readers(able[name]), _channels(site))
        short = "fold" in able[name] and costs[name] <= preferred.fold
        forms = ("fold", *preferred.forms) if short else preferred.forms
        choice[name] = next(form for form in (*forms, "primitive") if form in able[name])
    return choice


def candidates(model: ir.Model, sites: list[str]) -> dict[str, list[str]]:
    """Return for each site the lowerings that it can have, ``function`` aside."""
    refused = {
        name: lower(model, dict.fromkeys(sites, name)).reasons
        for name in LOWERINGS
        if name != FUNCTION
    }
    return {site: [n for n, reasons in refused.items() if site not in reasons] for site in sites}


def _readers(able: list[str]) -> str:
    return "pools" if "pooled" in able else "layers" if "complement" in able else "others"


def _channels(site: SiteNode) -> int | None:
    try:
        return extent_of(site)
    except Refusal:
        return None


def folding_pays(model: ir.Model, rule: Rule) -> dict[str, bool]:
    """Return for each site whether it can be folded and that adds few products."""
    sites = site_nodes(model)
    costs = _costs(sites, rule.block)
    return {
        name: costs[name] <= rule.preference("others", _channels(site)).fold
        for name, site in sites.items()
    }


def _costs(sites: Mapping[str, SiteNode], block: int) -> dict[str, float]:
    """Return what folding adds to each site's producer; infinite where it cannot be folded."""
    found = {}
    for name, plan in fold.plans(sites).items():
        weight = None if isinstance(plan, str) else constant(plan.chain.producer.inputs[1])
        if weight is None or isinstance(plan, str):
            found[name] = math.inf
        else:
            channels = plan.chain.channels
            found[name] = added(weight.size / channels, channels, block)
    return found


def added(terms: float, channels: int, block: int) -> float:
    """Return the products that folding adds to each output element of a producer.

    They are as many as an element sums up where twice the channels take twice the blocks, and
    fewer where the second half fills what the first left idle.

    Args:
        terms: Products that one element sums up.
        channels: Output channels of the producer.
        block: Channels of one block in the runtime's layout; 1 without blocks.
    """
    before, after = (math.ceil(n / block) for n in (channels, 2 * channels))
    return terms * (after - before) / before
