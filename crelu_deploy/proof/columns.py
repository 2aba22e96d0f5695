"""The atoms that the rows of a layer are over, in one of several bases.

``relu(-x) = relu(x) - x``, so of the three two are enough; rows over others are written in terms of
these before they are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from crelu_deploy.op import Array
from crelu_deploy.proof.terms import Family, Terms, Vector

OFFSETS = 1 << 24
"""Positions that an atom may have along the axis."""

Basis: TypeAlias = frozenset[int]
"""The atoms ``relu(-x)`` that stay, with ``relu(x) = relu(-x) + x``; all others are written as
``relu(x) - x``."""


@dataclass(frozen=True)
class Columns:
    """The atoms that rows are over.

    Attributes:
        keys: (groups, B) int64, a number for each atom and position within it; ascending where
            there is one group; -1 for a constant 0.
        order: (M,) which column of the weight each term is.
        coefficients: (groups, M) what it is multiplied by.
        starts: (B,) where the terms of each key begin.
        most: How many terms a key has at most.
    """

    keys: Array
    order: Array
    coefficients: Array
    starts: Array
    most: int


def columns_of(
    terms: Terms, data: Vector, extents: Array, groups: int, basis: Basis | None
) -> Columns:
    """Return the atoms that rows are over, in a basis; None for those that are read."""
    position = np.repeat(np.arange(len(data)), extents)
    offset = np.arange(len(position)) - np.repeat(np.cumsum(extents) - extents, extents)
    atoms, scale = data.atoms[position], data.scale[position]
    keys = atoms * OFFSETS + offset
    if groups > 1:
        keys = np.where(scale == 0, -1, keys).reshape(groups, -1)
        scale, same = scale.reshape(keys.shape), np.arange(keys.shape[1])
        return Columns(keys, same, scale, same, 1)
    keys, order, coefficients = _expanded(terms, atoms, keys, scale, basis)
    ascending = np.argsort(keys, kind="stable")
    keys, order, coefficients = keys[ascending], order[ascending], coefficients[ascending]
    unique, starts = np.unique(keys, return_index=True)
    most = int(np.diff(starts, append=len(keys)).max(initial=1))
    return Columns(unique[None], order, coefficients[None], starts, most)


def _expanded(
    terms: Terms, atoms: Array, keys: Array, scale: Array, basis: Basis | None
) -> tuple[Array, Array, Array]:
    """Write atoms as their terms in a basis; leave out constant zeros."""
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    stay = None if basis is None else np.fromiter(basis, np.int64, len(basis))
    for family, at in terms.groups(atoms):
        here = at[scale[at] != 0]
        for mask, coefficient, part in _terms(family, atoms[here], stay):
            moved = keys[here[mask]] + (part.base - family.base) * OFFSETS
            found.append((moved, here[mask], coefficient * scale[here[mask]]))
    moved, order, coefficients = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return moved, order, coefficients


def _terms(
    family: Family, atoms: Array, stay: Array | None
) -> Iterator[tuple[Array, float, Family]]:
    """Yield which atoms have a term, its coefficient, and its family."""
    every, opposite = np.ones(len(atoms), bool), family.opposite
    if stay is not None and family.parts:
        kept = np.isin(atoms, stay)
        yield kept, 1.0, family
        for coefficient, part in family.parts:
            yield ~kept, coefficient, part
    elif stay is not None and opposite is not None:
        kept = np.isin(atoms - family.base + opposite.base, stay)
        yield ~kept, 1.0, family
        yield kept, 1.0, opposite
        yield kept, 1.0, opposite.parts[1][1]
    else:
        yield every, 1.0, family


def noise(keys: Array, kernel: int) -> Array:
    """Return random numbers in [-1, 1) that depend on the keys only, (..., kernel)."""
    with np.errstate(over="ignore"):
        mixed = keys.astype(np.uint64)[..., None] * np.uint64(0x9E3779B97F4A7C15)
        mixed = mixed + np.arange(1, kernel + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1)
