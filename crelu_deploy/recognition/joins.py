"""The two ways to join two halves along an axis: a concat, or a stack that is then reshaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from crelu_deploy.recognition.axes import UNKNOWN, Layout, extent, normalized
from crelu_deploy.recognition.shapes import Size, place, reshaped
from crelu_deploy.recognition.structure import Regions, Step, Undecided

_MOST_STEPS = 6


@dataclass(frozen=True)
class Join:
    """Two values of one shape joined along an axis.

    Attributes:
        concat: The node that joins them.
        first: The value whose channels come first.
        second: The other one.
        axis: The axis on which the extents add up, as written or from the front.
        output: The joined value; for a stack, what its reshape makes.
        interleaved: Whether the channels of the two alternate.
        within: The steps of a stack between its concat and its reshape.
    """

    concat: ir.Node
    first: ir.Value
    second: ir.Value
    axis: int
    output: ir.Value
    interleaved: bool = False
    within: tuple[Step, ...] = ()


def joined(node: ir.Node, regions: Regions, known: Mapping[ir.Value, Layout]) -> Join | None:
    """Return the join that the concat ``node`` makes, None if it is none of two values.

    Raises:
        Undecided: It stacks two halves, and it is not known how a reshape joins them.
    """
    axis = node.attributes.get("axis")
    if len(node.inputs) != 2 or axis is None or axis.is_ref():
        return None
    first, second = node.inputs
    if first is None or second is None:
        return None
    concat = Join(node, first, second, axis.as_int(), node.outputs[0])
    sources = [_unsqueezed(value, regions) for value in (first, second)]
    if sources[0] is None or sources[1] is None or sources[0][1] != sources[1][1]:
        return concat
    (one, place), (other, _) = sources[0], sources[1]
    if one is other or regions.root(one, other) is None:
        return None
    layout = known.get(one, UNKNOWN)
    if layout.rank is None:
        raise Undecided("the rank of the stacked halves is unknown")
    place = normalized(place, layout.rank + 1)
    if normalized(axis.as_int(), layout.rank + 1) != place:
        return None
    stacked = _stacked(Join(node, one, other, place, node.outputs[0]), known, regions)
    if stacked is None:
        raise Undecided("the halves are stacked, and no reshape is known to join their channels")
    return stacked


def _unsqueezed(value: ir.Value, regions: Regions) -> tuple[ir.Value, int] | None:
    """Return what an Unsqueeze of one axis reads, and that axis."""
    node = value.producer()
    if node is None or node.op_type != "Unsqueeze" or node.domain or node.inputs[0] is None:
        return None
    if "axes" in node.attributes:  # an input since opset 13
        axes = list(node.attributes["axes"].as_ints())
    else:
        stored = None if node.inputs[1] is None else regions.constant(node.inputs[1])
        axes = [] if stored is None else [int(axis) for axis in stored.reshape(-1)]
    return (node.inputs[0], axes[0]) if len(axes) == 1 else None


def _stacked(stack: Join, known: Mapping[ir.Value, Layout], regions: Regions) -> Join | None:
    """Follow a stack on a new axis to the reshape that merges this axis with a neighbour."""
    value, within = stack.output, list[Step]()
    while len(within) <= _MOST_STEPS:
        consumers = value.consumers()
        reshape = next((n for n in consumers if n.op_type in ("Reshape", "Flatten")), None)
        if reshape is not None:
            return _merged(stack, reshape, tuple(within), known, regions)
        steps = list(regions.following(value))
        if len(steps) != 1 or not _is_uniform(steps[0], regions):
            return None
        within.append(steps[0])
        value = steps[0].output
    return None


def _is_uniform(step: Step, regions: Regions) -> bool:
    """Return whether all constants are single numbers, which lie the same way in every shape."""
    constants = [regions.constant(v) for node in step.nodes for v in node.inputs if v is not None]
    return all(array is None or array.size == 1 for array in constants)


def _merged(
    stack: Join,
    reshape: ir.Node,
    within: tuple[Step, ...],
    known: Mapping[ir.Value, Layout],
    regions: Regions,
) -> Join | None:
    """Row-major: (.., c, 2, ..) to (.., 2c, ..) interleaves; (.., 2, c, ..) to the same appends."""
    layout = known.get(stack.first, UNKNOWN)
    rank = layout.rank or 0
    stacked = {stack.output, *(step.output for step in within)}
    after = reshaped(reshape, stacked, rank + 1, regions)
    if after is None and known[reshape.outputs[0]].shape:
        after = list(known[reshape.outputs[0]].shape)
    before = [_sizes(i, layout, stack.axis) for i in range(rank)]
    if after is None or len(after) != rank:
        return None
    for axis, interleaved in ((stack.axis - 1, True), (stack.axis, False)):
        if 0 <= axis < rank and _doubles(before, after, axis):
            output = reshape.outputs[0]
            return replace(stack, axis=axis, output=output, interleaved=interleaved, within=within)
    return None


def _sizes(axis: int, layout: Layout, new: int) -> set[Size]:
    """Return all that is known of one extent: a number, its symbol, its place in the stack."""
    sizes: set[Size] = {place(axis if axis < new else axis + 1)}
    sizes |= {extent(axis, layout), layout.shape[axis] if layout.shape else None}
    return sizes - {None}


def _doubles(before: Sequence[set[Size]], after: Sequence[Size], axis: int) -> bool:
    """Return whether only ``axis`` differs, twice as long; one unknown follows from the others."""
    unknown = 0
    for i, (sizes, size) in enumerate(zip(before, after, strict=True)):
        numbers = {n for n in sizes if isinstance(n, int)}
        expected = {2 * n for n in numbers} if i == axis else sizes
        if size in expected:
            continue
        if size is not None and (numbers or not isinstance(size, int)):
            return False
        unknown += 1
    return unknown <= 1
