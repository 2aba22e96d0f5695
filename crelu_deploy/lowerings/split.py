"""Two convolutions and an Add in place of each one behind a site: its halves are never joined.

``conv(concat(a, b), [Wa, Wb]) = conv(a, Wa) + conv(b, Wb)``, with the halves and the weights of
``complement``. ONNX Runtime adds within the second convolution, whose sum over the input channels
it keeps in the output anyway; so this saves the Concat, which copies both halves, and costs no
arithmetic. The sums are rounded in another order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings import complement
from crelu_deploy.lowerings.consumers import Consumer, below, extent_of
from crelu_deploy.lowerings.editing import Editor
from crelu_deploy.lowerings.producers import Refusal
from crelu_deploy.lowerings.sitenode import SiteNode
from crelu_deploy.lowerings.values import describe, is_onnx, node_like


def lower(editor: Editor, sites: Mapping[str, SiteNode]) -> dict[str, str]:
    """Split every convolution that reads a plain site, directly or behind a max pool.

    Returns:
        For each site with another activation or other readers, the reason.
    """
    refused = {}
    for name, site in sites.items():
        try:
            consumers = _convolutions(site)
            complement.rewrite(editor, site)
        except Refusal as refusal:
            refused[name] = str(refusal)
            continue
        for consumer in consumers:
            _split(editor, site, consumer)
    return refused


def _convolutions(site: SiteNode) -> tuple[Consumer, ...]:
    """Return what reads the site or the max pools behind it, which are convolutions only."""
    consumers = below(site, extent_of(site), {"MaxPool"}).consumers
    for consumer in consumers:
        if not is_onnx(consumer.node, "Conv"):
            raise Refusal(f"{describe(consumer.node)} behind it is no Conv")
        before = consumer.node.inputs[0]
        pool = before.producer() if before is not None else None
        if before is not site.y and (pool is None or pool.inputs[0] is not site.y):
            raise Refusal(f"{describe(pool)} is not the only pool before {describe(consumer.node)}")
    return consumers


def _split(editor: Editor, site: SiteNode, consumer: Consumer) -> None:
    """Put two convolutions of the halves in the place of one of their Concat."""
    conv = consumer.node
    data, _, *bias = conv.inputs
    concat = data.producer() if data is not None else None
    assert is_onnx(concat, "Concat"), "complement has joined the halves"
    nodes = list[ir.Node]()
    halves = zip(concat.inputs, np.split(consumer.weight(), 2), ([], bias), strict=True)
    for half, columns, rest in halves:
        weight = np.ascontiguousarray(np.moveaxis(columns, 0, consumer.axis))
        value = editor.constant(site.scope, weight, f"{site.name}/weight", conv)
        nodes.append(node_like(conv.outputs[0], "Conv", [half, value, *rest], conv.attributes))
    ends = [node.outputs[0] for node in nodes]
    nodes.append(node_like(conv.outputs[0], "Add", ends))
    editor.name(nodes, conv.name or site.name)
    conv.prepend(nodes)
    editor.substitute(conv.outputs[0], nodes[-1].outputs[0])
    assert conv.graph is not None, "the node is in a graph"
    conv.graph.remove(conv, safe=True)
