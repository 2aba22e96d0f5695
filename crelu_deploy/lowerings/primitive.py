"""``concat(f(x), f(-x))``: the form that networks are mostly written in."""

from __future__ import annotations

from collections.abc import Mapping

from crelu_deploy.lowerings import mirror
from crelu_deploy.lowerings.editing import Editor
from crelu_deploy.lowerings.sitenode import SiteNode
from crelu_deploy.lowerings.values import node_like
from crelu_deploy.op import activate


def lower(editor: Editor, sites: Mapping[str, SiteNode]) -> dict[str, str]:
    """Write every site as two activations and a Concat.

    A scale and shift belong to the concatenated tensor, so with them the activation comes last.
    """
    mirror.lower(editor, {name: site for name, site in sites.items() if site.affine})
    for site in sites.values():
        if not site.affine:
            _split(editor, site)
    return {}


def _split(editor: Editor, site: SiteNode) -> None:
    attributes, opset = site.node.attributes, site.scope.opset
    negated = node_like(site.x, "Neg", [site.x])
    positive = activate(site.activation, site.x, attributes, opset)
    negative = activate(site.activation, negated.outputs[0], attributes, opset)
    halves = [positive[-1].outputs[0], negative[-1].outputs[0]]
    for half in halves:
        half.shape, half.type = site.x.shape, site.x.type
    concat = node_like(site.y, "Concat", halves, {"axis": attributes["axis"]})
    editor.replace(site, [*positive, negated, *negative, concat])
