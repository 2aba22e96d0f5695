"""``f(concat(x, -x))``: TensorRT makes one pointwise kernel of it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from crelu_deploy.lowerings.editing import Editor
from crelu_deploy.lowerings.sitenode import SiteNode
from crelu_deploy.lowerings.values import node_like
from crelu_deploy.op import activate


def lower(editor: Editor, sites: Mapping[str, SiteNode]) -> dict[str, str]:
    """Write every site as Neg, Concat, the scale and shift if any, and the activation."""
    for site in sites.values():
        negated = node_like(site.x, "Neg", [site.x])
        halves = node_like(
            site.y, "Concat", [site.x, negated.outputs[0]], {"axis": site.node.attributes["axis"]}
        )
        editor.replace(site, [negated, halves, *tail(site, halves.outputs[0])])
    return {}


def tail(site: SiteNode, halves: ir.Value) -> list[ir.Node]:
    """Return what follows the concatenation: ``f(halves * scale + shift)``."""
    nodes: list[ir.Node] = []
    if site.affine:
        _, scale, shift = site.node.inputs
        nodes.append(node_like(site.y, "Mul", [halves, scale]))
        nodes.append(node_like(site.y, "Add", [nodes[-1].outputs[0], shift]))
        halves = nodes[-1].outputs[0]
    return nodes + activate(site.activation, halves, site.node.attributes, site.scope.opset)
