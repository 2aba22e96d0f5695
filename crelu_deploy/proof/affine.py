"""Scales and shifts of entries, and which of the canonical graph's a lowered graph's are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from crelu_deploy.op import Array
from crelu_deploy.proof.constants import smallest_of, unit_of
from crelu_deploy.proof.matching import REDUCED_SLACK, SLACK
from crelu_deploy.proof.terms import Block, Family, Terms, Vector, vector
from crelu_deploy.proof.views import derived, signed

if TYPE_CHECKING:
    from crelu_deploy.proof.walk import Walk

MOVES = ("Transpose", "reshape")
"""What commutes with a scale: a layer before it may have taken the scale into its weights."""


MOST = 2
"""Roundings that a number may be from the canonical one, all nodes on the way together."""


def affine(
    walk: Walk,
    value: Vector,
    scale: Array | float,
    shift: Array | float,
    dtype: ir.DataType,
    *,
    noted: bool = True,
) -> Vector | None:
    """Return ``value * scale + shift``, with one number for each entry or for all.

    None where that is no number: the operator is left to its name.

    In the canonical graph the numbers are noted, unless more is to come; in the lowered graph they
    are replaced by the noted ones that they are roundings of.
    """
    with np.errstate(all="ignore"):
        scales, atoms = value.scale * scale, value.atoms.copy()
    for family, at in walk.terms.groups(atoms):
        zero = at[scales[at] == 0]
        if len(zero):
            atoms[zero] = _fill(walk.terms, family).base
    with np.errstate(all="ignore"):
        result = vector(value.axis, atoms, scales, value.shift * scale + shift)
    if np.isnan(result.scale).any() or np.isnan(result.shift).any():
        return None
    if walk.lowered:
        return _known(walk, result, dtype)
    if noted:
        note(walk.terms, result)
    return result


def _fill(terms: Terms, family: Family) -> Family:
    """Return the atom that a constant in the place of a family's is written with, as a layer's."""
    if family.layer is not None:
        return terms.of(family.layer.fill())
    inner = None if family.source is None else _fill(terms, family.source)
    if inner is None or inner is family.source or family.kind != "each":
        return family
    return derived(
        *(terms, inner, 1, family.what, family.dims),
        node=family.node,
        elementwise=family.elementwise,
        dtype=family.dtype,
        unit=family.unit,
    )


def note(terms: Terms, value: Vector) -> None:
    """Note the scales and shifts of a vector for its atoms, and for those that were only moved."""
    signed(terms, value)
    for family, at in terms.groups(value.atoms):
        source, index = family.source, value.atoms[at] - family.base
        while source is not None and family.what and family.what[0] in MOVES:
            moved = vector(value.axis, source.base + index, value.scale[at], value.shift[at])
            signed(terms, moved)
            family, source = source, source.source


def _known(walk: Walk, value: Vector, dtype: ir.DataType) -> Vector:
    scale, shift = value.scale.copy(), value.shift.copy()
    open_ = (scale != 0) & ((np.abs(scale) != 1) | (shift != 0))
    kind, drift = np.dtype(dtype.numpy()), walk.drifting
    for family, at in walk.terms.groups(value.atoms):
        for block in family.blocks:
            here = at[open_[at]]
            if block.new or not len(here):
                continue
            index = value.atoms[here] - family.base
            sign = np.where(scale[here] < 0, -1.0, 1.0)
            wanted = block.scale[index] * sign, block.shift[index] * sign
            exact = (wanted[0] == scale[here]) & (wanted[1] == shift[here])
            close = exact | _close(walk, block, index, wanted, (scale[here], shift[here]), kind)
            apart = [close & (wanted[i] != got[here]) for i, got in enumerate((scale, shift))]
            first, second = (walk.drifting[i] + bool(apart[i].any()) for i in range(2))
            if max(first, second) > MOST and (close & ~exact).any():
                close, first, second = exact, *walk.drifting
            drift = max(drift[0], first), max(drift[1], second)
            for number in np.unique(block.sites[index[close & ~exact]]):
                if number >= 0:
                    walk.note(walk.terms.sites[number], max(first, second))
            done = here[close]
            scale[done], shift[done] = wanted[0][close], wanted[1][close]
            open_[done] = False
    walk.drifting = drift
    return vector(value.axis, value.atoms, scale, shift)


@np.errstate(all="ignore")
def _close(
    walk: Walk,
    block: Block,
    index: Array,
    wanted: tuple[Array, Array],
    got: tuple[Array, Array],
    dtype: np.dtype[Any],
) -> Array:
    """Return where numbers are roundings of those wanted, where a lowering may round them."""
    reduced = walk.numbers.reduced is not None
    unit, smallest = unit_of(dtype), smallest_of(dtype)
    limit = unit * (REDUCED_SLACK if reduced else SLACK)
    pairs = zip(got, wanted, strict=True)
    near = [np.abs(g - w) <= limit * np.abs(w) + smallest for g, w in pairs]
    return np.asarray(near[0] & near[1] & ((block.sites[index] >= 0) | reduced))
