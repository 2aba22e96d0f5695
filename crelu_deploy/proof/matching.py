"""Which row of the canonical graph each row of a lowered layer is, and within how many roundings.

Rows are found by a projection on random numbers, then compared element by element: equal, negated,
or with a scale and a shift that the canonical graph applies behind the layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from crelu_deploy.op import Array
from crelu_deploy.proof.columns import OFFSETS, Basis
from crelu_deploy.proof.constants import Numbers, cast
from crelu_deploy.proof.layers import CHUNK, Layer
from crelu_deploy.proof.terms import Key, Terms

SLACK = 1 + 2.0**-20
"""For what is computed in float64 itself."""

OWN = 2.0**-51
"""What the sums here, in float64, may be off by, relative to the size of their terms."""

REDUCED_SLACK = 1 + 2.0**-10
"""For what was rounded to float32 before it was rounded to a reduced type."""


class Register:
    """The layers of the canonical graph, by what they do and read."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._layers: dict[Key, list[Layer]] = {}

    def add(self, layer: Layer) -> None:
        """Note a layer."""
        for key in self._keys(layer):
            self._layers.setdefault(key, []).append(layer)

    def candidates(self, layer: Layer) -> list[Layer]:
        """Return the layers that do the same to something that this one reads, the likely first."""
        score: dict[int, float] = {}
        found: dict[int, Layer] = {}
        for key in self._keys(layer):
            for one in self._layers.get(key, []):
                found[id(one)] = one
                score[id(one)] = score.get(id(one), 0) + 1
        for number, one in found.items():
            score[number] += 0.5 * (one.data.key() == layer.data.key())
        return [found[n] for n in sorted(found, key=lambda n: -score[n])]

    def _keys(self, layer: Layer) -> Iterable[Key]:
        if layer.groups > 1:
            return [(layer.what, layer.groups, layer.data.key())]
        families = {
            part.base
            for family, _ in self._terms.groups(layer.data.atoms)
            for part in [p for _, p in family.parts] or [family]
        }
        return [(layer.what, 1, base) for base in sorted(families)]


@dataclass
class Match:
    """What is known of the rows of a lowered layer.

    Attributes:
        atoms: (n,) the atom that each is, -1 where none is found.
        scale: (n,) what the atom is multiplied by.
        shift: (n,) what is added.
        roundings: Site -> how many roundings its weights are apart.
    """

    atoms: Array
    scale: Array
    shift: Array
    roundings: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every row is found."""
        return bool((self.atoms >= 0).all())


@dataclass(frozen=True)
class Rows:
    """Rows of a canonical layer, as they are and with every scale and shift that they meet.

    Attributes:
        row: (n,) the number of the row.
        scale: (n,) what it is multiplied by.
        shift: (n,) what is added then.
        site: (n,) the number of the site that the scale belongs to, -1 for none.
    """

    row: Array
    scale: Array
    shift: Array
    site: Array

    def at(self, index: Array, sign: Array) -> Rows:
        """Return some of them, negated where the sign is -1."""
        scale, shift = self.scale[index] * sign, self.shift[index] * sign
        return Rows(self.row[index], scale, shift, self.site[index])

    def where(self, mask: Array) -> Rows:
        """Return those of a mask."""
        return Rows(self.row[mask], self.scale[mask], self.shift[mask], self.site[mask])


def match(layer: Layer, register: Register, numbers: Numbers) -> Match:
    """Return what the rows of a lowered layer are."""
    n = layer.outputs
    found = Match(np.full(n, -1), np.ones(n), np.zeros(n))
    if numbers.folded:
        _zeros(layer, found)
    candidates = register.candidates(layer)
    # In a reduced precision, roundings of two rows may be near: first those that are equal.
    for most in (2,) if numbers.reduced is None else (0, 2):
        for other in candidates:
            if found.complete:
                break
            _search(layer, other, found, numbers, most)
    return found


def _zeros(layer: Layer, found: Match) -> None:
    """A row of zeros is its bias, where that is one number."""
    shifts = layer.shifts()
    zero = layer.projection[2] & (shifts == shifts[:, :1]).all(1)
    if zero.any():
        found.atoms[zero], found.scale[zero] = layer.fill(), 0
        found.shift[zero] = shifts[zero, 0]


NEIGHBOURS = (0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6, 6)
"""How far from the nearest projection a row is looked for: roundings move projections."""


def _search(layer: Layer, other: Layer, found: Match, numbers: Numbers, most: int) -> None:
    """Compare the rows that are not found yet with the nearest ones of a layer."""
    offered = rows_of(other)
    _in_order(layer, other, found, numbers, most)
    projections = _offered(other, offered, numbers.reduced)
    signs = np.repeat([1.0, -1.0], len(projections))
    both = np.concatenate([projections, -projections])
    order = np.argsort(both, kind="stable")
    wanted, sizes = _wanted(layer), layer.projection[1]
    at = np.searchsorted(both[order], wanted)
    limit = 8 * layer.unit * (sizes + np.abs(wanted)) + 1e-30
    for step in NEIGHBOURS:
        place = order[np.clip(at + step, 0, len(order) - 1)] if len(order) else at
        left = np.flatnonzero(found.atoms < 0)
        if not len(left) or not len(order):
            return
        index = left[(np.abs(wanted - both[place]) <= limit)[left]]
        rows = offered.at(place[index] % len(projections), signs[place[index]])
        _accept(layer, other, index, rows, found, numbers, most)


def rows_of(other: Layer) -> Rows:
    """Return the rows of a canonical layer with their scales and shifts."""
    family = other.terms.of(other.base)
    assert other.entries is not None, "it is a canonical layer"
    own = np.unique(other.entries.atoms[other.entries.scale != 0]) - other.base
    parts = [(own, np.ones(len(own)), np.zeros(len(own)), np.full(len(own), -1))]
    for block in family.blocks:
        at = np.flatnonzero(block.scale > 0)
        if not block.new:
            parts.append((at, block.scale[at], block.shift[at], block.sites[at]))
    return Rows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


BIAS = 0.7390851332151607
"""The random number that belongs to the bias."""


def _wanted(layer: Layer) -> Array:
    return np.asarray(layer.projection[0] + np.nan_to_num(layer.shifts()).mean(1) * BIAS)


def _offered(other: Layer, rows: Rows, reduced: ir.DataType | None) -> Array:
    """Return the projections; what is added behind a product is not in its weights."""
    if reduced is None:
        values = other.projection[0][rows.row] * rows.scale
    else:
        values = other.project(rows.row, rows.scale, reduced)
    if other.node.op_type == "MatMul":
        return np.asarray(values)
    bias = np.nan_to_num(other.shifts()).mean(1)[rows.row] * rows.scale + rows.shift
    if reduced is not None:
        factor = other.bias_factor or 1.0
        bias = cast((bias / factor).astype(np.float32), reduced).astype(np.float64) * factor
    return np.asarray(values + bias * BIAS)


def _in_order(layer: Layer, other: Layer, found: Match, numbers: Numbers, most: int) -> None:
    """Compare rows with those at the same places, which they mostly are where as many are there."""
    entries = other.entries
    if entries is None or len(entries) != layer.outputs or numbers.reduced is None:
        return
    index = np.flatnonzero((found.atoms < 0) & (entries.scale != 0))
    row, none = entries.atoms[index] - other.base, np.full(len(index), -1)
    rows = Rows(row, entries.scale[index], entries.shift[index], none)
    _accept(layer, other, index, rows, found, numbers, most)


def _accept(
    layer: Layer,
    other: Layer,
    index: Array,
    rows: Rows,
    found: Match,
    numbers: Numbers,
    most: int,
) -> None:
    """Note which rows are those proposed."""
    if not len(index):
        return
    allowed = (rows.site >= 0).astype(int)
    apart = ~_identical(layer, other, index, rows)
    level = np.where(apart, 9.0, 0.0)
    if not other.sites or np.array_equal(layer.columns(None).keys, other.columns(None).keys):
        level[apart] = levels(layer, other, index[apart], rows.where(apart), numbers)
    rewritten = np.floor(level) > allowed
    if rewritten.any() and other.sites:
        part = rows.where(rewritten)
        again = levels(layer, other, index[rewritten], part, numbers, layer.basis)
        level[rewritten] = again
        allowed[rewritten] += bool(other.sites)
    good = np.floor(level) <= np.minimum(allowed, most)
    index, rows, level = index[good], rows.where(good), level[good]
    found.atoms[index], found.scale[index] = other.base + rows.row, rows.scale
    found.shift[index] = 0 if layer.node.op_type == "MatMul" else rows.shift
    if not level.any():
        return
    terms = np.where(rewritten[good], layer.columns(layer.basis).most, layer.columns(None).most)
    told = np.floor(level) * np.where(level % 1 == SUMMED, terms, 1)
    names = {layer.terms.sites[i] for i in rows.site[level > 0] if i >= 0} | other.sites
    for name in names:
        found.roundings[name] = max(found.roundings.get(name, 0), int(told.max()))


def _identical(layer: Layer, other: Layer, index: Array, rows: Rows) -> Array:
    """Return which rows are those proposed, or their negations, as they are stored."""
    found = (np.abs(rows.scale) == 1) & (rows.shift == 0)
    found &= layer.group(index) == other.group(rows.row)
    if not layer.reads_as(other):
        return np.zeros(len(index), bool)
    for part in layer.chunks(index):
        sign, row = rows.scale[part, None].astype(layer.weight.dtype), rows.row[part]
        same = layer.weight[index[part]] == other.weight[row] * sign[:, :, None]
        found[part] &= same.all((1, 2))
    if layer.node.op_type != "MatMul":
        bias = other.shifts()[rows.row] * rows.scale[:, None]
        found &= (layer.shifts()[index] == bias).all(1)
    return np.asarray(found)


SUMMED = 0.5
"""What is added to a number of roundings that are those of every term of a sum."""


@dataclass(frozen=True)
class Pair:
    """Rows of a lowered and a canonical layer over the same atoms.

    Attributes:
        got: (n, B, kernel) the lowered rows.
        expected: The canonical ones.
        given: The sizes of the lowered rows' terms.
        size: The sizes of the canonical rows' terms.
        most: These of ``x``, ``relu(x)`` and ``relu(-x)`` together, where terms were summed.
    """

    got: Array
    expected: Array
    given: Array
    size: Array
    most: Array


def levels(
    layer: Layer,
    other: Layer,
    index: Array,
    rows: Rows,
    numbers: Numbers,
    basis: Basis | None = None,
) -> Array:
    """Return how many roundings rows are apart from those proposed: 0, 1, 2, or 9 for more.

    ``SUMMED`` is added where they are those of every term of a sum.

    The rows are over the atoms that are read, or over their terms in a basis.
    """
    found = np.empty(len(index))
    step = max(1, CHUNK // max(1, layer.weight[:1].size + other.weight[:1].size))
    for start in range(0, len(index), step):
        part = np.zeros(len(index), bool)
        part[start : start + step] = True
        pair = aligned(layer, other, index[part], rows.row[part], basis)
        found[part] = _levels(layer, other, index[part], rows.where(part), numbers, pair)
    return found


@np.errstate(all="ignore")
def _levels(
    layer: Layer, other: Layer, index: Array, rows: Rows, numbers: Numbers, pair: Pair
) -> Array:
    scale = rows.scale[:, None, None]
    expected, size = pair.expected * scale, pair.size * np.abs(scale)
    sizes = np.minimum(pair.given, pair.most * np.abs(scale)), size
    found = _apart(pair.got, expected, sizes, layer, numbers, layer.factor)
    if layer.node.op_type != "MatMul":
        bias, shift = other.shifts()[rows.row] * rows.scale[:, None], rows.shift[:, None]
        size = np.abs(bias) + np.abs(shift)
        given = layer.shifts()[index]
        sizes = np.abs(bias + shift), size
        apart = _apart(given, bias + shift, sizes, layer, numbers, layer.bias_factor)
        found = np.maximum(found, apart)
    if layer.groups > 1:
        found[layer.group(index) != other.group(rows.row)] = 9
    return found


def aligned(layer: Layer, other: Layer, index: Array, row: Array, basis: Basis | None) -> Pair:
    """Return rows of a lowered and a canonical layer over the same atoms."""
    first, second = layer.columns(basis), other.columns(basis)
    got, given = layer.rows(index, first)
    expected, size = other.rows(row, second)
    one, two = first.keys, second.keys
    if not np.array_equal(one, two):
        union = np.union1d(one[0], two[0])
        wide = [np.zeros((len(index), len(union), got.shape[2])) for _ in range(4)]
        at, among = np.searchsorted(union, one[0]), np.searchsorted(union, two[0])
        wide[0][:, at], wide[1][:, at] = got, given
        wide[2][:, among], wide[3][:, among] = expected, size
        (got, given, expected, size), one = wide, union[None]
    most = _together(layer.terms, one[0], size) if first.most > 1 else size
    return Pair(got, expected, given, size, most)


def _together(terms: Terms, keys: Array, size: Array) -> Array:
    """Sum sizes over ``x``, ``relu(x)`` and ``relu(-x)``, of which each two make the third."""
    root = keys.copy()
    for family, at in terms.groups(keys // OFFSETS):
        pair = family if family.parts else family.opposite
        if pair is not None:
            root[at] += (pair.parts[1][1].base - family.base) * OFFSETS
    _, same = np.unique(root, return_inverse=True)
    order = np.argsort(same, kind="stable")
    starts = np.flatnonzero(np.diff(same[order], prepend=-1))
    found = np.add.reduceat(size[:, order], starts, axis=1)
    return np.asarray(found[:, same])


def _apart(
    got: Array,
    expected: Array,
    sizes: tuple[Array, Array],
    layer: Layer,
    numbers: Numbers,
    factor: float,
) -> Array:
    """Return how many roundings the worst number of each row is apart.

    Where several weights are summed, each was rounded once: a rounding is one of the first size,
    that of the terms that were found. Those that were rewritten have the second.

    In a reduced precision the numbers were rounded before the factor that they are multiplied by.
    """
    slack = SLACK
    if numbers.reduced is not None:
        slack = REDUCED_SLACK
        factor = factor or 1.0
        stored = expected / factor
        limit = float(np.finfo(np.float16).max)
        if numbers.reduced == ir.DataType.FLOAT16:
            stored = np.where(np.isfinite(stored), np.clip(stored, -limit, limit), stored)
            expected = stored * factor
        rounded = cast(stored.astype(np.float32), numbers.reduced).astype(np.float64) * factor
        expected = np.where(got == rounded, rounded, expected)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    error = np.abs(got - expected)
    size, unit, found = sizes[1], slack * layer.unit, list[Array]()
    for first in (np.abs(expected), np.maximum(sizes[0], np.abs(expected))):
        one = unit * first + layer.smallest + OWN * size
        level = (~same).reshape(len(same), -1).any(1).astype(float)
        for number, most in ((2, one), (9, one + unit * size)):
            level[~(same | (error <= most)).reshape(len(same), -1).all(1)] = number
        found.append(level)
    return np.asarray(found[1] + SUMMED * (found[0] > found[1]))
