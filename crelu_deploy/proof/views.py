"""Vectors seen along another axis, as a whole, and with an operator applied to each entry.

Whatever way a graph takes, the same tensor must end as the same term: what works on each element
alone is applied to slices, and taken off again before slices are put together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from crelu_deploy.op import Array
from crelu_deploy.proof.extents import Dims
from crelu_deploy.proof.pointwise import constant_of
from crelu_deploy.proof.terms import Family, Key, Terms, Vector, vector

Make = Callable[[Family, int], tuple[Family, int]]
"""From a family and the sign of its members to the family and the sign of the results."""

ODD = "Cast"
"""The operator of which ``f(-x) = -f(x)``: here its types are those of floating point only."""

Constant = Callable[[Array], Array]
"""From constants to an operator's results."""


def signed(terms: Terms, value: Vector, *, constants: bool = False) -> Vector:
    """Return a vector whose entries are atoms, their negations, or constants.

    With ``constants``, those other than zero are atoms too.
    """
    unit = (np.abs(value.scale) == 1) & (value.shift == 0)
    fixed = (value.scale == 0) & ((value.shift == 0) | (not constants))
    todo = np.flatnonzero(~(unit | fixed))
    if not len(todo):
        return value
    atoms, scale, shift = value.atoms.copy(), value.scale.copy(), value.shift.copy()
    for family, at in terms.groups(value.atoms[todo]):
        here = todo[at]
        negative = (scale[here] < 0) | ((scale[here] == 0) & (shift[here] < 0))
        sign = np.where(negative, -1.0, 1.0)
        index = atoms[here] - family.base
        atoms[here] = terms.affine(family, index, np.abs(scale[here]), shift[here] * sign)
        scale[here], shift[here] = sign, 0
    return vector(value.axis, atoms, scale, shift)


def each(terms: Terms, value: Vector, make: Make, constant: Constant | None = None) -> Vector:
    """Return an operator's results for every entry.

    Args:
        terms: Where the results are noted.
        value: What the operator reads.
        make: Returns the results' family.
        constant: Returns the results for constants; None where only 0 is known, which stays 0.
    """
    given = signed(terms, value, constants=constant is None)
    atoms, scale, shift = given.atoms.copy(), given.scale.copy(), given.shift.copy()
    for family, at in terms.groups(given.atoms):
        for sign in (1, -1, 0):
            here = at[given.scale[at] == sign]
            if not len(here):
                continue
            made, out = make(family, sign or 1)
            index = (given.atoms[here] - family.base) * abs(sign)
            atoms[here], scale[here] = made.base + index, out * abs(sign)
    fixed = scale == 0
    if constant is not None and fixed.any():
        shift[fixed] = constant(shift[fixed])
    return vector(value.axis, atoms, scale, shift)


def carried(
    terms: Terms, value: Vector, axis: int | None, make: Callable[[Family], Family]
) -> Vector:
    """Return a vector of other atoms with the same scales and shifts."""
    atoms = np.empty_like(value.atoms)
    for family, at in terms.groups(value.atoms):
        atoms[at] = value.atoms[at] - family.base + make(family).base
    return replace(value, axis=axis, atoms=atoms, layer=None)


def derived(
    terms: Terms,
    source: Family,
    sign: int,
    what: Key,
    dims: Dims | None,
    *,
    node: ir.Node | None,
    elementwise: bool = False,
    dtype: ir.DataType | None = None,
    unit: int | None = None,
) -> Family:
    """Return the family of an operator's results for ``sign * member``."""
    made = terms.family(
        ("each", what, sign, source.base),
        "each",
        source.size,
        source.dims if elementwise else dims,
        dtype or source.dtype,
        site=terms.site or source.site,
        source=source,
        what=what,
        sign=sign,
        node=node,
        elementwise=elementwise,
        unit=source.unit if elementwise else unit,
    )
    if terms.frontier is None:
        made.site = made.site or terms.site
    return made


def elementwise(
    terms: Terms, value: Vector, what: Key, node: ir.Node | None, dtype: ir.DataType | None = None
) -> Vector:
    """Apply an operator that works on each element alone, a key of ``POINTWISE``, to a vector."""

    def make(family: Family, sign: int) -> tuple[Family, int]:
        if what[0] == ODD:
            return _cast(terms, family, what, node, dtype), sign

        def on(sign: int) -> Family:
            return derived(
                *(terms, family, sign, what, None), node=node, elementwise=True, dtype=dtype
            )

        made = on(sign)
        if what == ("Relu",) and sign < 0 and not made.parts:
            made.sums(on(1), family)  # relu(-x) = relu(x) - x
        return made, 1

    return each(terms, value, make, constant_of(what))


def _cast(
    terms: Terms, family: Family, what: Key, node: ir.Node | None, dtype: ir.DataType | None
) -> Family:
    """Cast to another floating-point type; of ``relu(x)`` it is ``relu`` of the cast."""
    if family.what != ("Relu",) or family.source is None:
        return derived(terms, family, 1, what, None, node=node, elementwise=True, dtype=dtype)
    inner = _cast(terms, family.source, what, node, dtype)
    sign = np.full(inner.size, family.sign)
    return terms.lead(elementwise(terms, vector(None, inner.members, sign), ("Relu",), node))


def again(terms: Terms, value: Vector, like: Family) -> Vector:
    """Apply the elementwise operator of a family to another vector."""
    return elementwise(terms, value, like.what, like.node, like.dtype)


def along(terms: Terms, value: Vector, axis: int) -> Vector:
    """Return a tensor as a vector along an axis, in slices where the extent is known."""
    if value.axis == axis:
        return value
    single = whole(terms, value)
    family = terms.lead(single)
    inner = replace(single, axis=axis, scale=np.ones(1), shift=np.zeros(1), layer=None)
    if family.size == 1:  # and no row of a layer, which is not sliced
        inner = _opened(terms, family, axis)
    scale, shift = float(single.scale[0]), float(single.shift[0])
    return vector(axis, inner.atoms, inner.scale * scale, inner.shift * scale + shift)


def _opened(terms: Terms, family: Family, axis: int) -> Vector:
    """Return a family of one as a vector along an axis."""
    source = family.source
    if family.vector is not None and family.vector.axis == axis:
        return family.vector
    if source is not None and family.kind == "affine":
        block = source.blocks[int(str(family.what[2]))]
        inner, scale = _opened(terms, source, axis), float(block.scale[0])
        shift = inner.shift * scale + float(block.shift[0])
        return vector(axis, inner.atoms, inner.scale * scale, shift)
    if source is not None and family.elementwise:
        inner = _opened(terms, source, axis)
        signs = vector(axis, inner.atoms, inner.scale * family.sign, inner.shift * family.sign)
        return again(terms, signs, family)
    extent = family.dims[axis] if family.dims is not None and axis < 0 else None
    if not isinstance(extent, int) or extent < 2:
        return vector(axis, family.members)
    return vector(axis, _slices(terms, family, axis, extent).members)


def _slices(terms: Terms, family: Family, axis: int, extent: int) -> Family:
    dims, what = family.dims, ("slices", family.base, axis)
    assert dims is not None, "the extent is known"
    one = tuple(1 if i == axis + len(dims) else dim for i, dim in enumerate(dims))
    more = {"source": family, "node": family.node, "what": what, "unit": axis}
    return terms.family(what, "slices", extent, one, family.dtype, **more)


def whole(terms: Terms, value: Vector) -> Vector:
    """Return a tensor as a single entry, the same for equal tensors."""
    if value.axis is None:
        return value
    value = unfolded(terms, value)
    core, scale, shift = value, 1.0, 0.0
    uniform = (value.scale == value.scale[:1]).all() and (value.shift == value.shift[:1]).all()
    if len(value) and uniform and value.scale[0] != 0:
        scale, shift = float(value.scale[0]), float(value.shift[0])
        core = vector(value.axis, value.atoms)
    elif len(value) and next(iter(value.scale[value.scale != 0]), 1.0) < 0:
        scale = -1.0  # of a tensor and its negation, one is named
        core = vector(value.axis, value.atoms, -value.scale, -value.shift)
    inner = _collapsed(terms, core)
    return vector(None, inner.atoms, inner.scale * scale, inner.shift * scale + shift)


def unfolded(terms: Terms, value: Vector) -> Vector:
    """Return a vector without atoms that are another atom's scale and shift."""
    atoms, scale, shift = value.atoms.copy(), value.scale.copy(), value.shift.copy()
    for family, at in terms.groups(value.atoms):
        source = family.source
        if family.kind == "affine" and source is not None:
            block, index = source.blocks[int(str(family.what[2]))], atoms[at] - family.base
            shift[at] += scale[at] * block.shift[index]
            scale[at] *= block.scale[index]
            atoms[at] = source.base + index
        here = at[scale[at] == 0]
        atoms[here] = (source if family.kind == "affine" and source else family).base
    return vector(value.axis, atoms, scale, shift)


def _collapsed(terms: Terms, value: Vector) -> Vector:
    if len(value) == 1:
        return replace(value, axis=None, layer=None)
    first = terms.lead(value) if len(value) else None
    if first is None or not (value.plain or _is_odd(value, first)):
        return _interned(terms, value)
    sliced = first.kind == "slices" and first.what[2] == value.axis and value.plain
    if sliced and np.array_equal(value.atoms, first.members):
        return vector(None, np.array([first.what[1]]))
    inner = _peeled(terms, value, first)
    return _interned(terms, value) if inner is None else again(terms, whole(terms, inner), first)


def _is_odd(value: Vector, first: Family) -> bool:
    """Whether an odd operator made all entries, some of which are negated."""
    signs = (np.abs(value.scale) == 1).all() and not value.shift.any()
    return bool(first.what[:1] == (ODD,) and signs)


def _peeled(terms: Terms, value: Vector, first: Family) -> Vector | None:
    """Return what an elementwise operator reads that makes all entries; None where none does."""
    if not first.elementwise:
        return None
    atoms, scale = np.empty_like(value.atoms), np.empty(len(value))
    for family, at in terms.groups(value.atoms):
        if family.what != first.what or family.source is None or not family.elementwise:
            return None
        atoms[at] = value.atoms[at] - family.base + family.source.base
        scale[at] = family.sign * value.scale[at]
    return vector(value.axis, atoms, scale)


def _interned(terms: Terms, value: Vector) -> Vector:
    family = terms.lead(value) if len(value) else None
    dims = family.dims if family is not None else None
    axis = value.axis
    if dims is not None and axis is not None and -len(dims) <= axis < 0:
        extents = terms.extents(value)
        total = sum(e or 0 for e in extents) if None not in extents else None
        dims = (*dims[:axis], total, *dims[axis + len(dims) + 1 :])
    made = terms.family(
        ("whole", *value.key()),
        "whole",
        1,
        dims,
        family.dtype if family is not None else None,
        node=family.node if family is not None else None,
        vector=replace(value, layer=None),
    )
    return vector(None, made.members)
