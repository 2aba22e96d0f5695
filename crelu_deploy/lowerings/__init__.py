"""The forms that a site can take in the graph that a runtime reads.

A lowering is one file with one function, ``lower(editor, sites)``: it rewrites the sites it is
given and returns, for each one that it cannot, the reason. Such a site becomes ``primitive``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.lowerings import (
    complement,
    depthwise,
    fold,
    function,
    mirror,
    plugin,
    pooled,
    primitive,
    split,
)
from crelu_deploy.lowerings.concats import JoinConcats
from crelu_deploy.lowerings.editing import Editor
from crelu_deploy.lowerings.sitenode import SiteNode, site_nodes

Lowering = Callable[[Editor, Mapping[str, SiteNode]], Mapping[str, str]]

LOWERINGS: Mapping[str, Lowering] = {
    "fold": fold.lower,
    "depthwise": depthwise.lower,
    "pooled": pooled.lower,
    "split": split.lower,
    "complement": complement.lower,
    "mirror": mirror.lower,
    "function": function.lower,
    "primitive": primitive.lower,
}
"""Name -> lowering, in the order they are applied.

Folding comes first because it judges producers by the graph as it was; primitive comes last
because it takes what the others refuse.
"""

LOSES: Mapping[str, str] = {"split": complement.LOSES, "complement": complement.LOSES}
"""Name -> what becomes of NaN and infinities at a site; every other lowering keeps both.

``pooled`` too: a max pool drops NaN before the activation where it would behind it.
"""

NATIVE: Mapping[str, Lowering] = {"plugin": plugin.lower}
"""Name -> lowering that only a runtime with this project's compiled library reads.

They are applied first, so that no function of their nodes' name is added afterwards. No rule and no
search chooses one: they are asked for.
"""


@dataclass(frozen=True)
class Lowered:
    """A lowered model and what became of each site.

    Attributes:
        model: The lowered model.
        applied: Site -> the lowering it has now.
        reasons: Site -> why it did not get the lowering that was asked for.
    """

    model: ir.Model
    applied: Mapping[str, str]
    reasons: Mapping[str, str]


def lower(model: ir.Model, choice: Mapping[str, str] | str) -> Lowered:
    """Return a copy of the model with its sites lowered; weights are shared with the original.

    Args:
        model: A model with canonical nodes; it stays as it is.
        choice: Site -> lowering, or one lowering for all sites. A site that is not named keeps
            its node, which is the lowering ``function``.

    Raises:
        UnsupportedModel: A site or a lowering that does not exist.
    """
    result = model.clone()
    sites = site_nodes(result)
    applied = _choose(choice, sites)
    editor, reasons = Editor(result), dict[str, str]()
    for name, lowering in {**NATIVE, **LOWERINGS}.items():
        reasons |= lowering(
            editor, {s: sites[s] for s, chosen in applied.items() if chosen == name}
        )
        applied |= dict.fromkeys((s for s in reasons if applied[s] == name), "primitive")
    for cleanup in (
        JoinConcats(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
    ):
        cleanup(result)
    return Lowered(result, applied, reasons)


def _choose(choice: Mapping[str, str] | str, sites: Mapping[str, SiteNode]) -> dict[str, str]:
    chosen = dict.fromkeys(sites, choice) if isinstance(choice, str) else dict(choice)
    names = {choice} if isinstance(choice, str) else set(chosen.values())
    _require(names, (*LOWERINGS, *NATIVE), "lowering")
    _require(chosen, sites, "site")
    return {name: chosen.get(name, "function") for name in sites}


def _require(names: Iterable[str], known: Iterable[str], what: str) -> None:
    if unknown := sorted(set(names) - set(known)):
        raise UnsupportedModel(
            f"no {what} is called {unknown[0]!r}; the {what}s here are {', '.join(known) or 'none'}"
        )
