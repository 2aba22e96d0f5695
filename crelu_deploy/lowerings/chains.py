"""From a site up to its producer, over the steps between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from crelu_deploy.lowerings.producers import KINDS, Refusal, channels_of
from crelu_deploy.lowerings.steps import STEPS, Spot, data_index, is_step
from crelu_deploy.lowerings.values import describe, is_onnx, rank_of


@dataclass(frozen=True)
class Link:
    """One node of a chain and where the channels are in its output."""

    node: ir.Node
    spot: Spot

    @property
    def value(self) -> ir.Value:
        """The output that carries the channels."""
        return self.node.outputs[0]


@dataclass(frozen=True)
class Chain:
    """A producer and the steps behind it, in the order of the data.

    Attributes:
        channels: The number of the producer's output channels.
        links: The producer, then the steps.
    """

    channels: int
    links: tuple[Link, ...]

    @property
    def producer(self) -> ir.Node:
        """The node whose weights make the channels."""
        return self.links[0].node


def upwards(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the nodes above a value: steps, and at the end the first node that is no step."""
    node = value.producer()
    while node is not None:
        yield node
        if not is_step(node):
            return
        above = node.inputs[data_index(node)]
        node = above.producer() if above is not None else None


def chain_above(value: ir.Value, graph: ir.Graph | None) -> Chain:
    """Return the chain that ends in ``value``, all in one graph.

    Raises:
        Refusal: There is no producer, or a node between does not keep the channels whole.
    """
    nodes = list(upwards(value))[::-1]
    if not nodes or not is_onnx(nodes[0], *KINDS):
        raise Refusal(_no_producer(value, nodes))
    if any(node.graph is not graph for node in nodes):
        raise Refusal(f"its producer {describe(nodes[0])} is outside the subgraph that it is in")
    return follow(nodes)


def follow(nodes: list[ir.Node]) -> Chain:
    """Return the chain of a producer and the steps behind it.

    Raises:
        Refusal: As for ``chain_above``.
    """
    axis, channels = channels_of(nodes[0])
    spot = Spot(axis, channels, rank_of(nodes[0].outputs[0]))
    links = [Link(nodes[0], spot)]
    for node in nodes[1:]:
        spot = STEPS[node.op_type].follow(node, spot)
        spot = spot if spot.rank is not None else replace(spot, rank=rank_of(node.outputs[0]))
        links.append(Link(node, spot))
    return Chain(channels, tuple(links))


def _no_producer(value: ir.Value, nodes: list[ir.Node]) -> str:
    """Say what is where a producer should be."""
    kinds = f"{', '.join(list(KINDS)[:-1])} or {list(KINDS)[-1]}"
    if nodes and not is_step(nodes[0]):
        return f"its input comes from {describe(nodes[0])}, which is no {kinds}"
    return f"no {kinds} lies before its input {value.name!r}"
