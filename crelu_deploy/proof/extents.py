"""The shapes of terms: numbers, products of symbols, and what is not known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import onnx_ir as ir

Product: TypeAlias = tuple[int, tuple[str, ...]]
"""A number and symbols that it is multiplied by."""

Dim: TypeAlias = int | Product | None
"""An extent; None where it is not known."""

Dims: TypeAlias = tuple[Dim, ...]


def dims_of(value: ir.Value) -> Dims | None:
    """Return the extents that a graph declares for a value."""
    if value.shape is None:
        return None
    return tuple(_dim(dim) for dim in value.shape)


def _dim(dim: int | ir.SymbolicDim) -> Dim:
    if isinstance(dim, int):
        return dim
    return None if dim.value is None else (1, (str(dim.value),))


def product(dims: Sequence[Dim]) -> Product | None:
    """Return the number of elements; None where an extent is not known."""
    number, symbols = 1, list[str]()
    for dim in dims:
        if dim is None:
            return None
        number *= dim if isinstance(dim, int) else dim[0]
        symbols += [] if isinstance(dim, int) else dim[1]
    return number, tuple(sorted(symbols))


def quotient(whole: Product | None, part: Product | None) -> Dim:
    """Return a whole over a part; None where that is no product."""
    if whole is None or part is None or part[0] == 0 or whole[0] % part[0]:
        return None
    symbols = list(whole[1])
    for symbol in part[1]:
        if symbol not in symbols:
            return None
        symbols.remove(symbol)
    number = whole[0] // part[0]
    return (number, tuple(symbols)) if symbols else number


def reshaped(dims: Dims, shape: Sequence[int], *, copies: bool) -> Dims:
    """Return the extents that a Reshape makes; ``copies``: a 0 stands for the extent before."""
    target: list[Dim] = [
        (dims[i] if i < len(dims) else None) if extent == 0 and copies else extent
        for i, extent in enumerate(shape)
    ]
    for i, extent in enumerate(shape):
        if extent == -1:
            others = product([*target[:i], *target[i + 1 :]])
            target[i] = quotient(product(dims), others) if others else _cancelled(dims, target, i)
    return tuple(target)


def _cancelled(dims: Dims, target: Sequence[Dim], at: int) -> Dim:
    """Return the extent at -1 where what is not known is copied: it cancels."""
    unknown = [i for i, dim in enumerate(dims) if dim is None]
    if any(i >= len(target) or i == at or target[i] is not None for i in unknown):
        return None
    if [i for i, dim in enumerate(target) if dim is None and i != at] != unknown:
        return None
    known = [dim for i, dim in enumerate(target) if i != at and i not in unknown]
    return quotient(product([d for d in dims if d is not None]), product(known))


def kept_whole(dims: Dims, axis: int, channels: int, target: Dims) -> int | None:
    """Return the axis, from the end, on which a reshape keeps channels whole.

    Args:
        dims: The extents before.
        axis: That of the channels, from the end.
        channels: How many there are.
        target: The extents after.
    """
    start = axis + len(dims)
    outer, inner = product(dims[:start]), product(dims[start:])
    found = []
    for i, extent in enumerate(target):
        if not isinstance(extent, int) or extent % channels:
            continue
        before, behind = product(target[:i]), product(target[i:])
        same = (outer is not None and outer == before) or (inner is not None and inner == behind)
        if same:
            found.append(i)
    found.sort(key=lambda i: target[i] != dims[axis])
    return found[0] - len(target) if found else None


def count(dims: Dims) -> int:
    """Return how many extents are not known."""
    return sum(dim is None for dim in dims)


def broadcast(dims: Dims | None, shape: Sequence[int]) -> Dims | None:
    """Return the extents of what a constant of a shape, of no larger rank, is applied to."""
    if dims is None:
        return None
    wide = (*(1,) * (len(dims) - len(shape)), *shape)
    return tuple(dim if extent == 1 else extent for dim, extent in zip(dims, wide, strict=True))
