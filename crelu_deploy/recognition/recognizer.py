"""Spellings of CReLU become the canonical node, recognised by what they compute.

A site's spelling stays with its node, see ``spelling``. Nothing that is no CReLU is touched; what
comes near is listed with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from crelu_deploy.op import DOMAIN
from crelu_deploy.recognition.axes import annotate
from crelu_deploy.recognition.rewrite import (
    SPELLING,
    Names,
    attach_functions,
    import_domain,
    rewrite,
)
from crelu_deploy.recognition.sites import NearMiss, OpaqueSite, survey


@dataclass(frozen=True)
class Recognition:
    """What ``recognize`` did to a model.

    Attributes:
        modified: Whether the model changed.
        near_misses: Concats that look like CReLU and are none.
        opaque: CReLUs that no canonical node expresses, left as they were.
    """

    modified: bool
    near_misses: tuple[NearMiss, ...]
    opaque: tuple[OpaqueSite, ...]


def recognize(model: ir.Model) -> Recognition:
    """Replace, in place, every CReLU by its canonical node and attach the nodes' function bodies.

    Subgraphs and the model's own functions are included. The graph's inputs and outputs keep their
    names; what another node reads stays computed. The IR version rises to 8 where it is lower,
    because functions need it. Where anything changed, values without a shape get the one that ONNX
    infers, which the lowerings ask for.
    """
    modified = False
    nodes = _nodes(model)
    found = survey(model, nodes)
    while found.sites:  # a site can hide behind another that shares its concat
        modified = True
        rewrite(model, found.sites, Names(nodes, model))
        nodes = _nodes(model)
        import_domain(_own_functions(model))
        attach_functions(model, nodes)  # shapes are inferred through the bodies
        found = survey(model, nodes)
    attached = attach_functions(model, nodes)
    if modified:
        annotate(model)
    return Recognition(modified or attached, found.near_misses, found.opaque)


class RecognizeCReLU(ir.passes.InPlacePass):
    """``recognize`` as a pass."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model`` and say truthfully whether it changed."""
        return ir.passes.PassResult(model, modified=recognize(model).modified)


def near_misses(model: ir.Model) -> tuple[NearMiss, ...]:
    """Return the concats that look like CReLU and are none; the model stays as it is."""
    return survey(model, _nodes(model)).near_misses


def spelling(node: ir.Node) -> str:
    """Return how a network wrote the site of a canonical node; "node" if it wrote the node."""
    return node.metadata_props.get(SPELLING, "node")


def _own_functions(model: ir.Model) -> list[ir.Function]:
    return [function for function in model.functions.values() if function.domain != DOMAIN]


def _nodes(model: ir.Model) -> list[ir.Node]:
    """Return all nodes but those of the canonical nodes' bodies, in order, with subgraphs."""
    nodes = list(model.graph.all_nodes())
    for function in _own_functions(model):
        nodes += function.all_nodes()
    return nodes
