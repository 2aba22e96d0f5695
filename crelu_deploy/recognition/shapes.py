"""The shape that a reshape makes of a tensor, where it is computed from the tensor's own.

A size is a number, a symbol, or the place of an extent in the tensor that is reshaped; None is not
known. So a ``flatten`` of two axes, exported for any size of the others, can be followed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import onnx_ir as ir

from crelu_deploy.recognition.structure import Regions

Size: TypeAlias = int | str | None
_Sizes = list[Size]
_Numbers = list[list[int]]


def place(axis: int) -> str:
    """Return the size that stands for an extent of the tensor that is reshaped."""
    return f"extent {axis}"


def reshaped(
    node: ir.Node, sources: set[ir.Value], rank: int, regions: Regions
) -> list[Size] | None:
    """Return the sizes that a Reshape or Flatten makes, None if its shape cannot be followed.

    Args:
        node: The Reshape or Flatten.
        sources: Values with the shape of what it reads.
        rank: Their number of dimensions.
        regions: The model's constants.
    """
    if node.op_type == "Flatten":
        return [place(0), None] if node.attributes.get_int("axis", 1) == 1 else None
    target = node.inputs[1] if len(node.inputs) > 1 else None
    sizes = None if target is None else _followed(target, sources, rank, regions)
    if sizes is None:
        return None
    return [place(i) if n == 0 else None if n == -1 else n for i, n in enumerate(sizes)]


def _followed(
    value: ir.Value, sources: set[ir.Value], rank: int, regions: Regions
) -> list[Size] | None:
    constant = regions.constant(value)
    if constant is not None:
        return [int(n) for n in constant.reshape(-1)]
    node = value.producer()
    if node is None or node.domain or None in node.inputs:
        return None
    inputs = [v for v in node.inputs if v is not None]
    if node.op_type == "Shape":
        known = inputs[0] in sources and not node.attributes
        return [place(i) for i in range(rank)] if known else None
    if node.op_type == "Concat":
        parts = [_followed(v, sources, rank, regions) for v in inputs]
        return None if None in parts else [n for part in parts for n in part or ()]
    pick = _PICKS.get(node.op_type)
    source = None if pick is None else _followed(inputs[0], sources, rank, regions)
    numbers = [_numbers(v, regions) for v in inputs[1:]]
    return None if pick is None or source is None else pick(source, numbers)


def _numbers(value: ir.Value, regions: Regions) -> list[int]:
    constant = regions.constant(value)
    return [] if constant is None else [int(n) for n in constant.reshape(-1)]


def _sliced(source: _Sizes, numbers: _Numbers) -> _Sizes | None:
    if len(numbers) < 2:
        return None
    start, end = numbers[0], numbers[1]
    steps = numbers[3] if len(numbers) > 3 else [1]
    return source[start[0] : end[0]] if len(start) == len(end) == 1 and steps == [1] else None


def _gathered(source: _Sizes, numbers: _Numbers) -> _Sizes | None:
    return [source[i] for i in numbers[0]] if numbers and numbers[0] else None


def _kept(source: _Sizes, numbers: _Numbers) -> _Sizes | None:
    return source


_PICKS: Mapping[str, Callable[[_Sizes, _Numbers], _Sizes | None]] = {
    "Cast": _kept,
    "Gather": _gathered,
    "Slice": _sliced,
    "Squeeze": _kept,
    "Unsqueeze": _kept,
}
"""How parts of a shape are picked; the sizes of a scalar and of a vector of one are the same."""
