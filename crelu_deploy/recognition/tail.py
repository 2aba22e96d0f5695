"""What follows a bare concat(x, -x): affine steps, then an activation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from crelu_deploy.recognition.constants import Frame
from crelu_deploy.recognition.fit import Fit, Piece, activation, line
from crelu_deploy.recognition.structure import Refused, Regions, Step, readers

_MOST_STEPS = 12
_MOST_PARTS = 5
"""An activation that is spelled in more steps than this is not read as one."""


@dataclass(frozen=True)
class Tail:
    """An activation behind a join.

    Attributes:
        output: Its value.
        piece: What it computes of the joined value; vectors have an entry per joined channel.
    """

    output: ir.Value
    piece: Piece


class Tails:
    """The tails behind one joined value, and why other readers begin none.

    Args:
        regions: The model's pointwise regions.
        frame: Where constants lie against the joined value.
        dtype: Its dtype.
    """

    def __init__(self, regions: Regions, frame: Frame, dtype: ir.DataType) -> None:
        self._regions, self._frame, self._dtype = regions, frame, dtype
        self.refusals: list[Refused] = []

    def behind(self, value: ir.Value, before: Piece) -> Iterator[Tail]:
        """Yield every tail behind ``value``, to which the affine ``before`` has led."""
        todo = [(value, before, 0)]
        while todo:
            current, before, depth = todo.pop()
            for step in self._regions.following(current) if depth < _MOST_STEPS else ():
                try:
                    straight = line(self._regions, current, step, self._frame, self._dtype)
                    if straight is not None:
                        todo.append((step.output, before.then(*straight), depth + 1))
                    else:
                        yield self._activated(current, step, before)
                except Refused as reason:
                    self.refusals.append(reason)

    def _activated(self, value: ir.Value, step: Step, before: Piece) -> Tail:
        """Read as many steps as one activation as agree with one (relu then min is a clip)."""
        nodes, found, output = list[ir.Node](), None, step.output
        following: Step | None = step
        for _ in range(_MOST_PARTS):
            if following is None:
                break
            nodes += following.nodes
            fitted = self._fit(value, nodes, keep=found)
            if fitted is not None:
                found, output = fitted, following.output
            elif found is not None:
                break
            following = self._regions.meeting(following.output)
        if found is None:
            found = activation(self._regions, value, step.nodes, self._frame, self._dtype)
        gained = before.then(np.asarray(found.gain), np.asarray(0.0))
        return Tail(
            output, replace(gained, activation=found.activation, attributes=found.attributes)
        )

    def _fit(self, value: ir.Value, nodes: list[ir.Node], *, keep: Fit | None) -> Fit | None:
        try:
            fitted = activation(self._regions, value, nodes, self._frame, self._dtype)
        except Refused:
            return None
        return fitted if keep is None or fitted.gain in (keep.gain, 1) else None


def reading(value: ir.Value) -> str:
    """Say in words what reads a joined value that no activation follows."""
    if value.is_graph_output():
        return "concat(x, -x) is a graph output, no activation follows"
    names = [f"{node.op_type} {node.name!r}" for node in readers(value)]
    return f"concat(x, -x) feeds {', '.join(names) or 'nothing'}, not a pointwise activation"
