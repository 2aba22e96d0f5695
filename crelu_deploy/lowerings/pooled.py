"""Max pools first, on x and on -x, then the activation on the small maps.

A site that only max pools read: ``max(f(x)) = f(max(x))`` for an f that never falls, so each half
is pooled before it is activated, which is exact but for NaN, which max pools may drop. -x is made
by the 1x1 convolution of ``depthwise``, so that all maps stay in the blocked layout that ONNX
Runtime keeps for convolutions and pools on the CPU. A scale and a shift go into the convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from crelu_deploy.lowerings import depthwise
from crelu_deploy.lowerings.editing import Editor
from crelu_deploy.lowerings.producers import Refusal
from crelu_deploy.lowerings.sitenode import SiteNode
from crelu_deploy.lowerings.values import describe, is_onnx, node_like
from crelu_deploy.op import activate


def lower(editor: Editor, sites: Mapping[str, SiteNode]) -> dict[str, str]:
    """Pool every site that only max pools read before it is activated.

    Returns:
        For each site with other readers, an activation that falls somewhere or is not exactly
        monotonic in floating point, or an input that no convolution reads, the reason.
    """
    refused = {}
    for name, site in sites.items():
        try:
            require_pools(site)
            x = depthwise.input_of(site)
            halves = depthwise.halves_of(site, x)
        except Refusal as refusal:
            refused[name] = str(refusal)
            continue
        nodes = [half and depthwise.convolve(editor, site, half, x.rank) for half in halves]
        pool(editor, site, *nodes)
    return refused


def is_read_by_pools(site: SiteNode) -> bool:
    """Whether a max pool is among the readers of the site."""
    return any(is_onnx(node, "MaxPool") for node in site.y.consumers())


def require_pools(site: SiteNode) -> None:
    """Refuse a site that anything but plain max pools reads, or that they cannot precede.

    Raises:
        Refusal: What is in the way.
    """
    _require_monotonic(site)
    if site.y.is_graph_output():
        raise Refusal(f"{site.y.name!r} behind it is an output of the graph")
    if not is_read_by_pools(site):
        raise Refusal("no MaxPool reads it")
    for node in site.y.consumers():
        if not is_onnx(node, "MaxPool"):
            raise Refusal(f"{describe(node)} reads it beside a MaxPool")
        if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
            raise Refusal(f"the indices of {describe(node)} behind it are read")
        if set(node.attributes.get_ints("dilations", ())) - {1}:
            # A window of a dilated pool may lie in the padding alone.
            raise Refusal(f"{describe(node)} behind it is dilated")
    if site.axis != 1:
        raise Refusal(f"its axis {site.axis} is not that of a pool's channels, 1")


def _require_monotonic(site: SiteNode) -> None:
    """Refuse an f that falls somewhere, or whose rounding may: exponentials are approximated."""
    rises = site.activation in ("relu", "clip", "leaky_relu")
    if not rises or site.node.attributes.get_float("alpha", 0.0) < 0:
        raise Refusal(f"the activation of {describe(site.node)} is not surely monotonic")


def pool(editor: Editor, site: SiteNode, first: ir.Node | None, second: ir.Node | None) -> None:
    """Put the pools of two new nodes, or of x itself, in the place of the site and its pools."""
    made = [node for node in (first, second) if node is not None]
    editor.name(made, site.name)
    site.node.prepend(made)
    values = [site.x if node is None else node.outputs[0] for node in (first, second)]
    for old in dict.fromkeys(site.y.consumers()):
        halves = [_half(site, old, value) for value in values]
        ends = [half[-1].outputs[0] for half in halves]
        concat = node_like(old.outputs[0], "Concat", ends, {"axis": ir.AttrInt64("axis", 1)})
        nodes = [*halves[0], *halves[1], concat]
        editor.name(nodes, old.name or site.name)
        old.prepend(nodes)
        editor.substitute(old.outputs[0], concat.outputs[0])
        _remove(old)
    _remove(site.node)


def _half(site: SiteNode, old: ir.Node, value: ir.Value) -> list[ir.Node]:
    """Return the pool of one half and its activation."""
    pooled = ir.node("MaxPool", [value], old.attributes)
    end, shape = pooled.outputs[0], old.outputs[0].shape
    nodes = [pooled, *activate(site.activation, end, site.node.attributes, site.scope.opset)]
    for value in (end, nodes[-1].outputs[0]):
        value.type = site.x.type
        if shape is not None and site.x.shape is not None:
            value.shape = ir.Shape([shape[0], site.x.shape[1], *shape[2:]])
    return nodes


def _remove(node: ir.Node) -> None:
    assert node.graph is not None, "the node is in a graph"
    node.graph.remove(node, safe=True)
