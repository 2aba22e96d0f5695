"""From a site down to the operators with constant weights that read it, seen as columns.

A column is what an operator multiplies one input channel by.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.chains import chain_above
from crelu_deploy.lowerings.editing import Editor
from crelu_deploy.lowerings.producers import Refusal, groups_of
from crelu_deploy.lowerings.sitenode import Scope, SiteNode
from crelu_deploy.lowerings.steps import STEPS, Spot
from crelu_deploy.lowerings.values import constant, describe, is_onnx, rank_of
from crelu_deploy.op import Array


@dataclass(frozen=True)
class Reader:
    """How one operator reads its input channels.

    Attributes:
        data: Their axis in its first input, counted from the end, from the weight's rank.
        weight: Their axis in the weight, counted from the end.
    """

    data: Callable[[int], int]
    weight: Callable[[int, ir.Node], int]


def _gemm_axis(_: int, node: ir.Node) -> int:
    return -1 if node.attributes.get_int("transB", 0) else -2


READERS: Mapping[str, Reader] = {
    "Conv": Reader(lambda rank: 1 - rank, lambda rank, _: 1 - rank),
    "ConvTranspose": Reader(lambda rank: 1 - rank, lambda rank, _: -rank),
    "Gemm": Reader(lambda _: -1, _gemm_axis),
    "MatMul": Reader(lambda _: -1, lambda _rank, _node: -2),
}
"""Operators that sum over their input channels, by type."""

LINEAR = frozenset(name for name, step in STEPS.items() if step.moves) | {
    "AveragePool",
    "GlobalAveragePool",
    "Pad",
}
"""Steps that compute the same sums of every channel and add nothing: ``s(a - b) = s(a) - s(b)``."""


@dataclass(frozen=True)
class Part:
    """Where the channels of a site are in a tensor behind it.

    Attributes:
        spot: Their axis and its whole extent.
        start: The first position that is theirs; others may be before it, from a Concat.
        extent: How many positions are theirs: both halves, the first then the second.
    """

    spot: Spot
    start: int
    extent: int

    def at(self, spot: Spot) -> Part:
        """Return the part after a step, which may flatten other elements into the axis."""
        block = spot.extent // self.spot.extent
        return Part(spot, self.start * block, self.extent * block)


@dataclass(frozen=True)
class Consumer:
    """An operator of ``READERS`` behind a site.

    Attributes:
        node: The operator.
        axis: The axis of the input channels in its weight, counted from the end.
        part: Where the site's channels are among them.
    """

    node: ir.Node
    axis: int
    part: Part

    def weight(self) -> Array:
        """Return the weight with the input channels first."""
        tensor = constant(self.node.inputs[1])
        assert tensor is not None, "consumers_below has refused weights that are not constant"
        return np.moveaxis(tensor.numpy(), self.axis, 0)

    def columns(self) -> Array:
        """Return the columns of the site's channels."""
        return self.weight()[self.part.start : self.part.start + self.part.extent]

    def write(self, editor: Editor, scope: Scope, columns: Array) -> None:
        """Give the node a weight with all its input channels; other readers of the old keep it."""
        weight = np.ascontiguousarray(np.moveaxis(columns, 0, self.axis))
        old = self.node.inputs[1]
        name = old.name if old is not None and old.name else "weight"
        self.node.replace_input_with(1, editor.constant(scope, weight, name, self.node))


@dataclass(frozen=True)
class Below:
    """What lies behind a site, up to the operators that sum over its channels.

    Attributes:
        values: Every tensor that holds the site's channels, the site's own output first.
        consumers: The operators that read them.
    """

    values: tuple[tuple[ir.Value, Part], ...]
    consumers: tuple[Consumer, ...]


def extent_of(site: SiteNode) -> int:
    """Return the extent of the site's axis before it doubles, from its producer where not noted.

    Raises:
        Refusal: It is not known.
    """
    shape, rank = site.x.shape, rank_of(site.x)
    extent = shape[site.axis] if shape is not None else None
    if isinstance(extent, int):
        return extent
    try:
        spot = chain_above(site.x, site.node.graph).links[-1].spot
    except Refusal as refusal:
        raise Refusal(f"the extent of its axis is not known: {refusal}") from refusal
    if rank is None or site.axis % rank - rank != spot.axis:
        raise Refusal(f"the extent of axis {site.axis} of its input {site.x.name!r} is not known")
    return spot.extent


def below(site: SiteNode, channels: int, through: Collection[str]) -> Below:
    """Return all that reads a site, where ``through`` are the operators that may lie between.

    ``through`` may hold ``Concat`` and names in ``STEPS`` without constants; any other operator in
    it works within each channel of axis 1 and keeps the axes.

    Raises:
        Refusal: Something else reads the site, or an operator reads it twice, with weights that
            are not constant or that are on another axis.
    """
    rank = rank_of(site.y) or rank_of(site.x)
    if rank is None:
        raise Refusal(f"the rank of its output {site.y.name!r} is not known")
    first = Part(Spot(site.axis % rank - rank, 2 * channels, rank), 0, 2 * channels)
    values, consumers = [(site.y, first)], list[Consumer]()
    for value, part in values:
        if value.is_graph_output():
            raise Refusal(f"{value.name!r} behind it is an output of the graph")
        for node, index in value.uses():
            if any(node is consumer.node for consumer in consumers):
                raise Refusal(f"{describe(node)} reads it twice")
            if is_onnx(node, *READERS):
                consumers.append(_consumer(node, index, part))
            elif is_onnx(node, *through):
                values.append((node.outputs[0], _follow(node, index, part)))
            else:
                raise Refusal(f"{describe(node)} reads it, which is no {_listed(READERS)}")
    if not consumers:
        raise Refusal("nothing reads it")
    return Below(tuple(values), tuple(consumers))


def _listed(names: Collection[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def _follow(node: ir.Node, index: int, part: Part) -> Part:
    """Return where the channels are behind an operator."""
    if is_onnx(node, "Concat"):
        return _concat(node, index, part)
    if index != 0:
        raise Refusal(f"{describe(node)} reads it as another operand than its data")
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise Refusal(f"{describe(node)} behind it has a second output that is read")
    if node.op_type not in STEPS:
        if not part.spot.is_second():
            raise Refusal(f"{describe(node)} behind it mixes the channels")
        return part
    try:
        return part.at(STEPS[node.op_type].follow(node, part.spot))
    except Refusal as refusal:
        raise Refusal(f"{describe(node)} behind it does not keep the channels whole") from refusal


def _concat(node: ir.Node, index: int, part: Part) -> Part:
    """Return the part in a concatenation along the channels."""
    if node.attributes["axis"].as_int() not in (part.spot.axis, part.spot.from_front()):
        raise Refusal(f"{describe(node)} behind it joins along another axis than the channels")
    extents = [
        value.shape[part.spot.axis] if value is not None and value.shape is not None else None
        for value in node.inputs
    ]
    known = [extent for extent in extents if isinstance(extent, int)]
    if len(known) != len(extents):
        raise Refusal(f"the number of channels at {describe(node)} behind it is not known")
    spot = replace(part.spot, extent=sum(known))
    return Part(spot, sum(known[:index]) + part.start, part.extent)


def _consumer(node: ir.Node, index: int, part: Part) -> Consumer:
    """Return how an operator reads the channels."""
    if index != 0:
        raise Refusal(f"{describe(node)} reads it as its weight or bias")
    tensor = constant(node.inputs[1])
    if tensor is None:
        raise Refusal(f"the weight of {describe(node)} behind it is not constant")
    if groups_of(node) != 1:
        raise Refusal(f"{describe(node)} behind it has groups")
    rank, reader = len(tensor.shape), READERS[node.op_type]
    on_axis = reader.data(rank) == part.spot.axis and not node.attributes.get_int("transA", 0)
    if rank < 2 or not on_axis:
        raise Refusal(f"{describe(node)} behind it sums over another axis than the channels")
    axis = reader.weight(rank, node)
    if tensor.shape[axis] != part.spot.extent:
        raise Refusal(f"{describe(node)} behind it has no column for each channel")
    return Consumer(node, axis, part)
