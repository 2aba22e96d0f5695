"""Terms in words: ``relu(-conv1[3])``."""

from __future__ import annotations

import numpy as np

from crelu_deploy.lowerings.values import describe
from crelu_deploy.proof.terms import Family, Terms, Vector

DEEP = 4
"""Operators that are written out, one in the other."""


def entry(terms: Terms, value: Vector, index: int) -> str:
    """Return one entry of a vector in words."""
    scale, shift = float(value.scale[index]), float(value.shift[index])
    if scale == 0:
        return f"{shift:g}"
    text = atom(terms, int(value.atoms[index]))
    text = {1.0: text, -1.0: f"-{text}"}.get(scale, f"{scale:.9g} * {text}")
    return f"{text} {'+' if shift >= 0 else '-'} {abs(shift):.9g}" if shift else text


def atom(terms: Terms, number: int, depth: int = DEEP) -> str:
    """Return an atom in words."""
    family = terms.of(number)
    index = number - family.base
    if depth == 0:
        return "..."
    if family.kind == "affine" and family.source is not None:
        block = family.source.blocks[int(str(family.what[2]))]
        inner = atom(terms, family.source.base + index, depth)
        return f"({block.scale[index]:.6g} * {inner} + {block.shift[index]:.6g})"
    if family.kind == "each" and family.source is not None:
        sign = "-" if family.sign < 0 else ""
        name = str(family.what[1] if family.what[0] == "within" else family.what[0]).lower()
        return f"{name}({sign}{atom(terms, family.source.base + index, depth - 1)})"
    if family.kind == "slices" and family.source is not None:
        return f"{atom(terms, family.source.base, depth)}[{index}]"
    name = _name(family)
    return f"{name}[{index}]" if family.kind == "layer" else name


def _name(family: Family) -> str:
    if family.vector is not None:
        return f"{len(family.vector)} joined"
    if family.node is None:
        return str(family.what[0]) if family.what else "a constant"
    return family.node.name or describe(family.node)


def different(one: Vector, two: Vector) -> np.ndarray:
    """Return the positions at which two vectors of one length differ."""
    same = (one.atoms == two.atoms) | ((one.scale == 0) & (two.scale == 0))
    same &= (one.scale == two.scale) & (one.shift == two.shift)
    return np.flatnonzero(~same)


def positions(index: np.ndarray) -> str:
    """Return positions as in ``3``, ``3 and 2 more``."""
    more = len(index) - 1
    return f"{int(index[0])}" if not more else f"{int(index[0])} and {more} more"
