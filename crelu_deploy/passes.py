"""The clean-up that any model gets before its sites are lowered."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes import common

from crelu_deploy.lowerings.absorb import AFFINE, absorb
from crelu_deploy.lowerings.editing import Editor, bypass
from crelu_deploy.lowerings.sitenode import scopes
from crelu_deploy.lowerings.steps import is_inference_dropout
from crelu_deploy.lowerings.values import is_onnx

CleanUp = Callable[[ir.Model], object]


def remove_identities(model: ir.Model) -> None:
    """Remove Identity, and Dropout outside training, except where an output needs the node."""
    for _, graph in scopes(model):
        for node in list(ir.traversal.RecursiveGraphIterator(graph)):
            same = is_onnx(node, "Identity")
            same = same or (is_onnx(node, "Dropout") and is_inference_dropout(node))
            if same and node.inputs[0] is not None and not node.outputs[0].is_graph_output():
                bypass(node)


def absorb_affine(model: ir.Model) -> None:
    """Work batch norms and per-channel arithmetic into the producer before them."""
    editor = Editor(model)
    for scope, graph in scopes(model):
        for node in reversed(list(ir.traversal.RecursiveGraphIterator(graph))):
            if node.graph is not None and is_onnx(node, *AFFINE):
                absorb(editor, scope, node)


def merge_initializers(model: ir.Model) -> None:
    """Merge small initializers that are equal, unless the interface names one."""
    initializers = model.graph.initializers.values()
    if not any(value.is_graph_input() or value.is_graph_output() for value in initializers):
        common.DeduplicateInitializersPass()(model)


CLEANUP: tuple[CleanUp, ...] = (
    remove_identities,
    absorb_affine,
    common.RemoveUnusedNodesPass(),
    merge_initializers,
)
"""The passes in the order they run; each changes the model in place."""


def clean(model: ir.Model) -> ir.Model:
    """Return a simplified copy of a model in inference: same inputs, outputs, shapes and metadata.

    Canonical nodes and their bodies stay, and large weights stay where they are. A second time
    changes nothing.
    """
    result = model.clone()
    for pass_ in CLEANUP:
        pass_(result)
    return result
