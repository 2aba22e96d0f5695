"""The sites of a model: each canonical node with what lies before and behind it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from crelu_deploy.lowerings import fold
from crelu_deploy.lowerings.chains import upwards
from crelu_deploy.lowerings.sitenode import SiteNode, site_nodes
from crelu_deploy.lowerings.values import describe

SPELLING = "crelu_deploy.spelling"
"""The key in a node's metadata under which recognition notes how the network wrote it."""


@dataclass(frozen=True)
class Site:
    """One canonical node in one model.

    Attributes:
        name: The node's name, unique in the model.
        op_type: The node's type in the domain ``crelu_deploy``.
        spelling: How the network wrote it; ``node`` where it was a node from the start.
        activation: The pointwise function, a name in ``ACTIVATIONS``.
        axis: The axis that doubles, counted from the front where the rank is known.
        affine: Whether a scale and a shift lie between the concatenation and the activation.
        producer: Type and name of the node that its input comes from, over the operators that
            commute with negation; empty where that is an input of the graph.
        consumers: Types and names of the nodes that read it, and ``output <name>`` where it is an
            output of the graph.
        foldable: Whether the lowering ``fold`` applies.
        reason: Why it does not; empty where it does.
    """

    name: str
    op_type: str
    spelling: str
    activation: str
    axis: int
    affine: bool
    producer: str
    consumers: tuple[str, ...]
    foldable: bool
    reason: str


def find_sites(model: ir.Model) -> tuple[Site, ...]:
    """Return the sites in topological order: the graph's and its subgraphs', then the functions'.

    Raises:
        UnsupportedModel: A canonical node has no integer axis, or one outside the rank.
    """
    nodes = site_nodes(model)
    plans = fold.plans(nodes)
    return tuple(_site(node, plans[name]) for name, node in nodes.items())


def _site(site: SiteNode, plan: fold.Plan | str) -> Site:
    above = list(upwards(site.x))
    return Site(
        name=site.name,
        op_type=site.node.op_type,
        spelling=site.node.metadata_props.get(SPELLING, "node"),
        activation=site.activation,
        axis=site.axis,
        affine=site.affine,
        producer=describe(above[-1]) if above else "",
        consumers=_consumers(site.y),
        foldable=isinstance(plan, fold.Plan),
        reason=plan if isinstance(plan, str) else "",
    )


def _consumers(value: ir.Value) -> tuple[str, ...]:
    output = [f"output {value.name}"] if value.is_graph_output() else []
    return (*dict.fromkeys(describe(node) for node in value.consumers()), *output)
