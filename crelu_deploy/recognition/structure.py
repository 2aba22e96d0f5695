"""The structure of pointwise regions: constants, common roots, and the steps between two values.

A region is a set of elementwise nodes whose only variable input is one value, its root. The values
that every path through a region passes cut it into steps, each a pointwise function of one value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from crelu_deploy.recognition.constants import Constants, Frame
from crelu_deploy.recognition.probe import OPS, Array, evaluate

_MOST_NODES = 24
"""Regions with more nodes than this are not looked at, which keeps the search linear."""


class Refused(Exception):
    """A candidate is not a site; the message is the reason in words."""


class Undecided(Refused):
    """A candidate is not a site as far as shapes are known; more of them may tell otherwise."""


@dataclass(frozen=True)
class Step:
    """Elementwise nodes in order, which make ``output`` of one value and constants."""

    nodes: tuple[ir.Node, ...]
    output: ir.Value


class Regions:
    """The pointwise regions of one model.

    Args:
        constants: The model's constants.
    """

    def __init__(self, constants: Constants) -> None:
        self._constants = constants

    def constant(self, value: ir.Value) -> Array | None:
        """Return a constant as float64 or bool in its own shape, None if it is none."""
        return self._constants.get(value)

    def operands(self, node: ir.Node | None) -> tuple[ir.Value, ...] | None:
        """Return the variable inputs of a pointwise node; None if the node is not pointwise."""
        if node is None or node.domain or node.op_type not in OPS:
            return None
        if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
            return None
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type in _SPECIAL and not _SPECIAL[node.op_type](self, node):
            return None
        if node.op_type in ("Dropout", "CastLike"):
            return (inputs[0],)
        variable = []
        for i, value in enumerate(inputs):
            if node.op_type == "ConstantOfShape" or (node.op_type == "Expand" and i == 1):
                variable.append(_shaped(value))
            elif self.constant(value) is None:
                variable.append(value)
        return tuple(dict.fromkeys(variable))

    def ordered(self, target: ir.Value, source: ir.Value) -> tuple[ir.Node, ...] | None:
        """Return the nodes from ``source`` to ``target`` in order; None if more comes in."""
        order: dict[ir.Node, None] = {}
        return tuple(order) if self._visit(target, source, order, 0) else None

    def _visit(
        self, value: ir.Value, source: ir.Value, order: dict[ir.Node, None], depth: int
    ) -> bool:
        node = value.producer()
        if value is source or node in order:
            return True
        operands = self.operands(node) if depth < _MOST_NODES else None
        if node is None or not operands or len(order) >= _MOST_NODES:
            return False
        if not all(self._visit(operand, source, order, depth + 1) for operand in operands):
            return False
        order[node] = None
        return True

    def cone(self, value: ir.Value) -> dict[ir.Value, int]:
        """Return the values that ``value`` is a pointwise function of, with their distance."""
        found = {value: 0}
        todo = [value]
        while todo and len(found) < _MOST_NODES:
            current = todo.pop(0)
            for operand in self.operands(current.producer()) or ():
                if operand not in found:
                    found[operand] = found[current] + 1
                    todo.append(operand)
        return found

    def root(self, a: ir.Value, b: ir.Value) -> ir.Value | None:
        """Return the nearest value that ``a`` and ``b`` both are pointwise functions of alone."""
        before_a, before_b = self.cone(a), self.cone(b)
        common = [value for value in before_a if value in before_b]
        common.sort(key=lambda value: before_a[value] + before_b[value])
        for value in common:
            if self.ordered(a, value) is not None and self.ordered(b, value) is not None:
                return value
        return None

    def steps(self, source: ir.Value, target: ir.Value) -> list[Step]:
        """Cut the region from ``source`` to ``target`` into the smallest steps."""
        nodes = self.ordered(target, source) or ()
        readers = Counter(value for node in nodes for value in self.operands(node) or ())
        live, start, steps = readers[source], 0, []
        for i, node in enumerate(nodes):
            live += readers[node.outputs[0]] - len(self.operands(node) or ())
            if live == readers[node.outputs[0]]:
                steps.append(Step(nodes[start : i + 1], node.outputs[0]))
                start = i + 1
        return steps

    def following(self, value: ir.Value) -> Iterator[Step]:
        """Yield the next steps behind ``value``: one if all its readers meet again, else each."""
        together = self.meeting(value)
        if together is not None:
            yield together
            return
        for node in readers(value):
            nodes = self.ordered(node.outputs[0], value)
            if nodes is not None:
                yield Step(nodes, node.outputs[0])

    def meeting(self, value: ir.Value) -> Step | None:
        """Return the step to the first value in which all readers of ``value`` meet again."""
        known, nodes = {value}, list[ir.Node]()
        pending = {value: dict.fromkeys(readers(value))}
        while len(nodes) < _MOST_NODES // 2:
            ready = next(
                (n for left in pending.values() for n in left if self._is_ready(n, known)), None
            )
            if ready is None or any(v.is_graph_output() for v in pending):
                return None
            nodes.append(ready)
            output = ready.outputs[0]
            known.add(output)
            for left in pending.values():
                left.pop(ready, None)
            pending = {v: left for v, left in pending.items() if left}
            if not pending:
                return Step(tuple(nodes), output)
            pending[output] = dict.fromkeys(readers(output))
        return None

    def _is_ready(self, node: ir.Node, known: set[ir.Value]) -> bool:
        operands = self.operands(node)
        return bool(operands) and all(operand in known for operand in operands or ())

    def sample(
        self, nodes: Sequence[ir.Node], source: ir.Value, probes: Array, frame: Frame
    ) -> Array:
        """Evaluate ``nodes`` at ``probes``, shape (n,); return shape (n, channels or 1).

        Raises:
            Refused: A constant is not one number per channel.
        """
        known = {source: probes[:, np.newaxis]}
        for node in nodes:
            for value in node.inputs:
                constant = None if value is None else self.constant(value)
                if value is not None and constant is not None:
                    known[value] = _laid(node, value, constant, frame)
        evaluate(nodes, known)
        last = nodes[-1].outputs[0] if nodes else source
        result = np.asarray(known[last], np.float64)
        return np.broadcast_to(result, np.broadcast_shapes(result.shape, (len(probes), 1)))


def readers(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the nodes that read ``value``; in place of a Shape, those that read the shape.

    A node that nothing reads is left out.
    """
    for node in value.consumers():
        if node.op_type == "Shape" and not node.domain:
            yield from node.outputs[0].consumers()
        elif any(output.uses() or output.is_graph_output() for output in node.outputs):
            yield node


def _shaped(value: ir.Value) -> ir.Value:
    node = value.producer()
    is_shape = node is not None and node.op_type == "Shape" and not node.attributes
    source = node.inputs[0] if node is not None and is_shape else None
    return value if source is None else source


def _laid(node: ir.Node, value: ir.Value, constant: Array, frame: Frame) -> Array:
    if node.op_type == "BatchNormalization":  # always by axis 1
        laid = constant.reshape(-1) if frame.axis == 1 else None
    else:
        laid = frame.by_channel(constant)
    if laid is None:
        raise Undecided(
            f"constant {value.name!r} of shape {list(constant.shape)} at {node.op_type} "
            f"{node.name!r} is not one number per channel of axis {frame.axis}"
        )
    return laid


def _normalizes_by_statistics(regions: Regions, node: ir.Node) -> bool:
    fixed = all(v is not None and regions.constant(v) is not None for v in node.inputs[1:])
    return fixed and node.attributes.get_int("training_mode", 0) == 0 and len(node.inputs) == 5


def _drops_nothing(regions: Regions, node: ir.Node) -> bool:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    flag = None if training is None else regions.constant(training)
    return training is None or (flag is not None and not flag.any())


def _fills_like(regions: Regions, node: ir.Node) -> bool:
    shape = node.inputs[-1]
    return shape is not None and _shaped(shape) is not shape


def _was_condition(regions: Regions, node: ir.Node) -> bool:
    """A cast of a mask is pointwise; one from float to float begins another tensor."""
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    return producer is not None and not producer.domain and producer.op_type in _CONDITIONS


_CONDITIONS = frozenset(
    {"And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor"}
)
_SPECIAL: Mapping[str, Callable[[Regions, ir.Node], bool]] = {
    "BatchNormalization": _normalizes_by_statistics,
    "Cast": _was_condition,
    "CastLike": _was_condition,
    "ConstantOfShape": _fills_like,
    "Dropout": _drops_nothing,
    "Expand": _fills_like,
}
"""Operators that are pointwise on a condition only."""
