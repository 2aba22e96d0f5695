"""The bare node for a compiled kernel: TensorRT's plugin, or the custom op of ONNX Runtime.

TensorRT's parser takes a node for a plugin when it names the plugin's namespace and version, and
knows functions by name alone. The node therefore says both, and the function of its name goes:
where the library is missing, the model is refused instead of running the body without a word.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from crelu_deploy.lowerings.editing import Editor
from crelu_deploy.lowerings.sitenode import SiteNode
from crelu_deploy.op import ACTIVATIONS, DOMAIN

NAMESPACE, PLUGIN_VERSION = "plugin_namespace", "plugin_version"

KERNEL = ACTIVATIONS["relu"].op_type
"""The node type that the libraries hold a kernel for."""


def lower(editor: Editor, sites: Mapping[str, SiteNode]) -> dict[str, str]:
    """Mark every plain CReLU as a plugin's node, and drop its function.

    Returns:
        For each site of another activation, or with a scale and shift, the reason.
    """
    refused = {}
    for name, site in sites.items():
        if site.node.op_type != KERNEL:
            refused[name] = f"the plugin computes {KERNEL}, not {site.node.op_type}"
            continue
        site.node.attributes[NAMESPACE] = ir.AttrString(NAMESPACE, DOMAIN)
        site.node.attributes[PLUGIN_VERSION] = ir.AttrString(PLUGIN_VERSION, "1")
    if len(refused) < len(sites):
        editor.model.functions.pop((DOMAIN, KERNEL, ""), None)
    return refused


def is_plugin(node: ir.Node) -> bool:
    """Whether a node is one that only the compiled library computes."""
    return node.domain == DOMAIN and NAMESPACE in node.attributes


def has_plugins(model: ir.Model) -> bool:
    """Whether a model has such a node, in its graph or in a function."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    return any(is_plugin(n) for g in graphs for n in ir.traversal.RecursiveGraphIterator(g))
