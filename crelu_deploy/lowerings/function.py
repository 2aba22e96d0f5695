"""The node itself with its ONNX body: runtimes without a kernel of their own run the body."""

from __future__ import annotations

from collections.abc import Mapping

from crelu_deploy.lowerings.editing import Editor
from crelu_deploy.lowerings.plugin import KERNEL, has_plugins
from crelu_deploy.lowerings.sitenode import SiteNode
from crelu_deploy.op import DOMAIN, VERSION, function


def lower(editor: Editor, sites: Mapping[str, SiteNode]) -> dict[str, str]:
    """Give the model the body of every node type among the sites.

    Returns:
        For each site that has no body in the model's opset, or must not have one, the reason.
    """
    model, refused = editor.model, {}
    native = has_plugins(model)
    for name, site in sites.items():
        key = (DOMAIN, site.node.op_type, "")
        if native and site.node.op_type == KERNEL:
            refused[name] = "other sites are a plugin's nodes, which must find no function"
            continue
        if key in model.functions:
            continue
        try:
            model.functions[key] = function(site.node.op_type, site.scope.opset)
        except ValueError as error:
            refused[name] = str(error)
            continue
        model.opset_imports.setdefault(DOMAIN, VERSION)
    return refused
