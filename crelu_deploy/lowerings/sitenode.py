"""The canonical nodes of a model under unique names."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.lowerings.values import rank_of
from crelu_deploy.op import DOMAIN, NODE_TYPES


@dataclass(frozen=True)
class Scope:
    """The model's graph with all its subgraphs, or one model-local function.

    Attributes:
        opset: The opset of the domain ``""`` that nodes in this scope are written in.
        initializers: The graph that holds new constants, which subgraphs read from outside; None
            in a function, where a constant is a node.
    """

    opset: int
    initializers: ir.Graph | None


@dataclass(frozen=True)
class SiteNode:
    """A canonical node, its unique name and its scope."""

    name: str
    node: ir.Node
    scope: Scope

    @property
    def activation(self) -> str:
        """The name of the pointwise function in ``ACTIVATIONS``."""
        return NODE_TYPES[self.node.op_type][0]

    @property
    def affine(self) -> bool:
        """Whether a scale and a shift lie between the concatenation and the activation."""
        return NODE_TYPES[self.node.op_type][1]

    @property
    def x(self) -> ir.Value:
        """The tensor that is concatenated with its negation."""
        if (value := self.node.inputs[0]) is None:
            raise UnsupportedModel(f"{self.node.op_type} node {self.name!r} has no input")
        return value

    @property
    def y(self) -> ir.Value:
        """The node's output."""
        return self.node.outputs[0]

    @property
    def axis(self) -> int:
        """The axis that doubles: counted from the front where the rank is known.

        Raises:
            UnsupportedModel: The axis is missing, outside the rank, or a function's attribute.
        """
        where = f"{self.node.op_type} node {self.name!r}"
        attribute = self.node.attributes.get("axis")
        integer = ir.AttributeType.INT
        if attribute is None or attribute.is_ref() or attribute.type != integer:
            raise UnsupportedModel(f"{where}: its axis must be an integer in the node itself")
        axis, rank = attribute.as_int(), rank_of(self.x)
        if rank is not None and not -rank <= axis < rank:
            raise UnsupportedModel(
                f"{where}: axis {axis} is outside rank {rank} of input {self.x.name!r}"
            )
        return axis if rank is None else axis % rank


def scopes(model: ir.Model) -> Iterator[tuple[Scope, ir.Graph | ir.Function]]:
    """Yield the model's graph, then its functions except the bodies of canonical nodes."""
    opset = model.graph.opset_imports.get("", 1)
    yield Scope(opset, model.graph), model.graph
    for function in model.functions.values():
        if function.domain != DOMAIN:
            yield Scope(function.opset_imports.get("", opset), None), function


def site_nodes(model: ir.Model) -> dict[str, SiteNode]:
    """Return the canonical nodes by name, in topological order, subgraphs and functions included.

    A node without a name, or with one that an earlier node has, is given one; so the names are the
    same in a clone of the model.
    """
    found: dict[str, SiteNode] = {}
    for scope, graph in scopes(model):
        for node in ir.traversal.RecursiveGraphIterator(graph):
            if node.domain == DOMAIN and node.op_type in NODE_TYPES:
                name = unused_name(node.name or node.op_type, found)
                found[name] = SiteNode(name, node, scope)
    return found


def unused_name(wanted: str, taken: Container[str]) -> str:
    """Return the name asked for, with a number behind it where it is taken."""
    name, i = wanted, 0
    while name in taken:
        i += 1
        name = f"{wanted}_{i}"
    return name
