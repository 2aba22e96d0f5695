"""The values of two graphs as terms: equal terms are equal values, whatever nodes compute them.

A tensor is a vector along one axis, mostly the channels'. Each entry is ``scale * atom + shift``,
where an atom stands for one slice of a tensor: a channel of an input, one filter of a convolution,
an activation of another atom. So a sign, an order, a concatenation and a scale cost nothing, and
``concat(relu(x), relu(-x))``, ``relu(concat(x, -x))`` and ``relu`` of a convolution with the
weights ``[W; -W]`` are one vector.

Atoms come in families, the channels that one operator computes, so that all is done on arrays.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from crelu_deploy.op import Array
from crelu_deploy.proof.extents import Dims

if TYPE_CHECKING:
    from crelu_deploy.proof.layers import Layer

Key = tuple[Hashable, ...]


@dataclass(eq=False)
class Block:
    """For the members of a family, one scale and shift each.

    Attributes:
        scale: (size,) float64, at least 0; NaN where the block has none.
        shift: (size,) float64.
        sites: (size,) the number of the site that it was met in, -1 for none.
        family: The atoms ``scale * member + shift``.
        new: Whether only the lowered graph has them.
    """

    scale: Array
    shift: Array
    sites: Array
    family: Family
    new: bool


@dataclass(eq=False)
class Family:
    """Atoms that one operator computes, numbered from ``base``.

    Attributes:
        kind: ``op``, ``slices``, ``whole``, ``each``, ``affine`` or ``layer``.
        base: The number of the first.
        size: How many there are.
        dims: The extents of each, as far as they are known.
        dtype: Their element type, as far as it is known.
        site: The site that they were first met in; empty for none.
        node: What computes them; None for an input.
        source: What they are made of, member by member; a slice's is the whole tensor.
        what: The operator that is applied to the source, with its attributes.
        sign: 1 or -1: what the source is multiplied by first.
        elementwise: Whether the operator works on each element alone.
        parts: Coefficients and families whose sum they are, member by member: of ``relu(-x)``
            these are ``relu(x)`` and ``-x``.
        opposite: Of ``relu(x)``, the family of ``relu(-x)`` where there is one.
        vector: Of a whole tensor, its entries.
        inputs: Of an operator that is not looked into, what it reads.
        layer: Of a layer, its weights.
        blocks: The scales and shifts that the members are met with.
        unit: The axis on which each has the extent 1, where that is known.
    """

    kind: str
    base: int
    size: int
    dims: Dims | None
    dtype: ir.DataType | None
    site: str
    node: ir.Node | None = None
    source: Family | None = None
    what: Key = ()
    sign: int = 1
    elementwise: bool = False
    parts: tuple[tuple[float, Family], ...] = ()
    opposite: Family | None = None
    vector: Vector | None = None
    inputs: tuple[Vector | None, ...] = ()
    layer: Layer | None = None
    blocks: list[Block] = field(default_factory=list)
    unit: int | None = None

    def sums(self, first: Family, second: Family) -> None:
        """Note that the members are those of one family less those of another."""
        self.parts, first.opposite = ((1.0, first), (-1.0, second)), self

    @property
    def shape(self) -> Key:
        """What is equal only for families of one shape: what was done to which other's."""
        steps, one = list[Hashable](), self
        while one.source is not None:
            if not (one.elementwise or one.kind == "affine"):
                steps.append(one.what if one.kind == "each" else (one.kind, one.what[2:]))
            one = one.source
        return (*steps, one.base)

    @property
    def members(self) -> Array:
        """All its atoms."""
        return np.arange(self.base, self.base + self.size)


@dataclass(frozen=True, eq=False)
class Vector:
    """A tensor as entries ``scale * atom + shift`` along an axis.

    Attributes:
        axis: Counted from the end where the rank is known; None for a single entry, all of it.
        atoms: (n,) int64.
        scale: (n,) float64; 0 for a constant.
        shift: (n,) float64.
        layer: The weights of a layer of the lowered graph that is none of the canonical one.
    """

    axis: int | None
    atoms: Array
    scale: Array
    shift: Array
    layer: Layer | None = None

    def __len__(self) -> int:
        return len(self.atoms)

    @property
    def arrays(self) -> tuple[Array, Array, Array]:
        """The atoms, scales and shifts."""
        return self.atoms, self.scale, self.shift

    @property
    def plain(self) -> bool:
        """Whether every entry is an atom itself."""
        return bool((self.scale == 1).all() and (self.shift == 0).all())

    def key(self) -> Key:
        """Return what is equal for equal vectors."""
        return (self.axis, *(array.tobytes() for array in self.arrays))


def vector(
    axis: int | None, atoms: Array, scale: Array | float = 1.0, shift: Array | float = 0.0
) -> Vector:
    """Return a vector; a single scale or shift is that of all entries."""
    n = len(atoms)
    scales = np.broadcast_to(np.asarray(scale, np.float64) + 0.0, n)  # -0.0 becomes 0.0
    shifts = np.broadcast_to(np.asarray(shift, np.float64) + 0.0, n)
    return Vector(axis, atoms.astype(np.int64), scales.copy(), shifts.copy())


class Terms:
    """The families of both graphs.

    Attributes:
        site: The site that is being read; empty for none.
        sites: The names of all sites.
        frontier: The first atom that the canonical graph does not compute; None while it is read.
    """

    def __init__(self) -> None:
        self.site = ""
        self.sites: list[str] = []
        self.frontier: int | None = None
        self._families: list[Family] = []
        self._bases: list[int] = []
        self._starts = np.empty(1024, np.int64)
        self._table: dict[Key, Family] = {}
        self._next = 0

    def find(self, key: Key) -> Family | None:
        """Return the family of a key, where there is one."""
        return self._table.get(key)

    def family(
        self,
        key: Key,
        kind: str,
        size: int,
        dims: Dims | None,
        dtype: ir.DataType | None,
        **more: Any,
    ) -> Family:
        """Return the family of a key, which is made where there is none."""
        if (found := self._table.get(key)) is not None:
            return found
        site = more.pop("site", self.site)
        made = Family(kind, self._next, size, dims, dtype, site, **more)
        self._next += max(size, 1)
        self._families.append(made)
        self._note(made.base)
        self._table[key] = made
        return made

    def _note(self, base: int) -> None:
        """Keep where families begin, as a list and as an array that grows by doubling."""
        n = len(self._bases)
        if n == len(self._starts):
            self._starts = np.concatenate([self._starts, np.empty_like(self._starts)])
        self._starts[n] = base
        self._bases.append(base)

    def freeze(self) -> None:
        """Take all that comes from now on for the lowered graph's."""
        self.frontier = self._next

    def is_new(self, family: Family) -> bool:
        """Whether the canonical graph has no such family."""
        return self.frontier is not None and family.base >= self.frontier

    def of(self, atom: int) -> Family:
        """Return the family of an atom."""
        return self._families[bisect_right(self._bases, atom) - 1]

    def groups(self, atoms: Array) -> Iterator[tuple[Family, Array]]:
        """Yield the families of some atoms, each with the positions that it is at."""
        if not len(atoms):
            return
        first = self.of(int(atoms.min()))
        if atoms.max() < first.base + first.size:
            yield first, np.arange(len(atoms))
            return
        at = np.searchsorted(self._starts[: len(self._bases)], atoms, "right") - 1
        for number in np.unique(at):
            yield self._families[number], np.flatnonzero(at == number)

    def lead(self, value: Vector) -> Family:
        """Return the family of a vector's first entry."""
        return self.of(int(value.atoms[0]))

    def rank(self, value: Vector) -> int | None:
        """Return the rank of a tensor, where it is known."""
        dims = self.lead(value).dims
        return None if dims is None else len(dims)

    def extents(self, value: Vector) -> list[int | None]:
        """Return the extents of the entries along the vector's axis; None where not known."""
        found: list[int | None] = [None] * len(value)
        axis = value.axis
        for family, at in self.groups(value.atoms):
            dims = family.dims
            inside = dims is not None and axis is not None and -len(dims) <= axis < 0
            extent = dims[axis] if inside and dims is not None and axis is not None else None
            extent = 1 if extent is None and axis is not None and family.unit == axis else extent
            for i in at:
                found[i] = extent if isinstance(extent, int) else None
        return found

    def affine(self, family: Family, index: Array, scale: Array, shift: Array) -> Array:
        """Return the atoms ``scale * member + shift``, with scales of at least 0."""
        shift, atoms = shift + 0.0, np.full(len(index), -1, np.int64)
        left, number = np.arange(len(index)), 0
        while len(left):
            block = self._block(family, number)
            at, number = index[left], number + 1
            if block.new == (self.frontier is not None):
                self._fill(block, at, scale[left], shift[left])
            same = (block.scale[at] == scale[left]) & _equal(block.shift[at], shift[left])
            atoms[left[same]] = block.family.base + at[same]
            if self.site and self.frontier is None:  # a site's number may be that of a step too
                met = at[same & (block.sites[at] < 0)]
                block.sites[met] = self.sites.index(self.site)
            left = left[~same]
        return atoms

    def _fill(self, block: Block, at: Array, scale: Array, shift: Array) -> None:
        """Note scales and shifts where the block has none for their members."""
        new, first = np.unique(at, return_index=True)
        free = np.isnan(block.scale[new])
        new, first = new[free], first[free]
        block.scale[new], block.shift[new] = scale[first], shift[first]
        block.sites[new] = self.sites.index(self.site) if self.site else -1

    def _block(self, family: Family, number: int) -> Block:
        if number == len(family.blocks):
            n, key = family.size, ("affine", family.base, number)
            more = {"source": family, "node": family.node, "what": key, "unit": family.unit}
            made = self.family(key, "affine", n, family.dims, family.dtype, **more)
            empty, none = np.full(n, np.nan), np.full(n, -1)
            new = self.frontier is not None
            family.blocks.append(Block(empty, np.zeros(n), none, made, new))
        return family.blocks[number]


def _equal(one: Array, two: Array) -> Array:
    return np.asarray((one == two) | (np.isnan(one) & np.isnan(two)))
