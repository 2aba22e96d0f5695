"""Operators that sum over channels with constant weights, as rows over the atoms that they read.

A row is what one output channel multiplies each atom by. ``relu(-x)`` is written as
``relu(x) - x`` here, so that rows over ``[relu(x), relu(-x)]`` and over ``[x, relu(x)]`` compare.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.values import constant
from crelu_deploy.op import Array
from crelu_deploy.proof.columns import Basis, Columns, columns_of, noise
from crelu_deploy.proof.constants import cast, smallest_of, unit_of
from crelu_deploy.proof.extents import Dims
from crelu_deploy.proof.terms import Key, Terms, Vector

FILL = ("a constant",)
"""What the atoms of constant channels are."""

CHUNK = 1 << 22
"""Weights that are compared at a time."""


@dataclass(frozen=True)
class Kind:
    """How one operator keeps its weights.

    Attributes:
        data: The axis of the input channels in its first input, from the end.
        out: The axis of the output channels in its output, from the end.
        channels: How many input channels there are, from the weight's shape.
        rows: The weight as (outputs, inputs of one group, all else).
        inner: The extents of "all else", which are part of what the operator is.
        defaults: Attributes that say how it computes, and what they are where left out.
    """

    data: Callable[[int, ir.Node], int]
    out: Callable[[int], int]
    channels: Callable[[tuple[int, ...], ir.Node], int]
    rows: Callable[[Array, ir.Node], Array]
    inner: Callable[[tuple[int, ...]], tuple[int, ...]]
    defaults: Callable[[int], Mapping[str, Hashable]]


def groups_of(node: ir.Node) -> int:
    """Return the number of channel groups."""
    return node.attributes.get_int("group", 1)


def _conv_defaults(rank: int) -> dict[str, Hashable]:
    n = rank - 2
    return {
        "auto_pad": "NOTSET",
        "dilations": (1,) * n,
        "pads": (0,) * 2 * n,
        "strides": (1,) * n,
    }


def _transposed_defaults(rank: int) -> dict[str, Hashable]:
    return {**_conv_defaults(rank), "output_padding": (0,) * (rank - 2), "output_shape": ()}


def _transposed_rows(weight: Array, node: ir.Node) -> Array:
    groups = groups_of(node)
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return split.swapaxes(1, 2).reshape(-1, split.shape[1], split.shape[3])


def _gemm_rows(weight: Array, node: ir.Node) -> Array:
    rows = weight if node.attributes.get_int("transB", 0) else weight.T
    return rows[:, :, None]


def _matmul_rows(weight: Array, _: ir.Node) -> Array:
    rows = np.moveaxis(weight, (-1, -2), (0, 1))
    return rows.reshape(*rows.shape[:2], -1)


KINDS: Mapping[str, Kind] = {
    "Conv": Kind(
        lambda rank, _: 1 - rank,
        lambda rank: 1 - rank,
        lambda shape, node: shape[1] * groups_of(node),
        lambda w, _: w.reshape(*w.shape[:2], -1),
        lambda shape: shape[2:],
        _conv_defaults,
    ),
    "ConvTranspose": Kind(
        lambda rank, _: 1 - rank,
        lambda rank: 1 - rank,
        lambda shape, _: shape[0],
        _transposed_rows,
        lambda shape: shape[2:],
        _transposed_defaults,
    ),
    "Gemm": Kind(
        lambda _, node: -2 if node.attributes.get_int("transA", 0) else -1,
        lambda _: -1,
        lambda shape, node: shape[1 if node.attributes.get_int("transB", 0) else 0],
        _gemm_rows,
        lambda _: (),
        lambda _: {"transA": 0},
    ),
    "MatMul": Kind(
        lambda *_: -1,
        lambda _: -1,
        lambda shape, _: shape[-2],
        _matmul_rows,
        lambda shape: shape[:-2],
        lambda _: {},
    ),
}

INTERNAL = ("group", "alpha", "beta", "transB", "kernel_shape")
"""Attributes that say how the weights are kept, which rows do not depend on."""


def signature(node: ir.Node, shape: tuple[int, ...]) -> Key:
    """Return what an operator does besides its weights: its type, kernel, strides and so on."""
    kind = KINDS[node.op_type]
    given: dict[str, Hashable] = {
        name: tuple(a.value) if isinstance(a.value, list | tuple) else a.value
        for name, a in node.attributes.items()
        if name not in INTERNAL
    }
    merged = {**kind.defaults(len(shape)), **given}
    return (node.op_type, len(shape), kind.inner(shape), *sorted(merged.items()))


@dataclass(eq=False)
class Layer:
    """One operator with constant weights.

    Attributes:
        node: The operator.
        what: What it does besides its weights.
        groups: Groups of channels.
        data: What it reads; constants are atoms or zero.
        extents: How many input channels each entry has.
        weight: (outputs, inputs of one group, kernel) in its own type.
        bias: (outputs, all else) in float64; None for none.
        factor: What the weights are multiplied by first.
        bias_factor: What the bias, as it is stored, was multiplied by.
        terms: Where the atoms are.
        dims: The extents of one output channel.
        dtype: The element type of the output.
        base: The first of its atoms in the canonical graph.
        entries: Its output; of a lowered layer, what its rows were found to be.
        roundings: Site -> how many roundings the rows are apart from those found.
    """

    node: ir.Node
    what: Key
    groups: int
    data: Vector
    extents: Array
    weight: Array
    bias: Array | None
    factor: float
    bias_factor: float
    terms: Terms
    dims: Dims | None = None
    dtype: ir.DataType | None = None
    base: int = -1
    entries: Vector | None = field(default=None, repr=False)
    roundings: Mapping[str, int] = field(default_factory=dict, repr=False)
    _columns: dict[Basis | None, Columns] = field(default_factory=dict, repr=False, init=False)

    @property
    def outputs(self) -> int:
        """The number of output channels."""
        return len(self.weight)

    @cached_property
    def unit(self) -> float:
        """The largest relative error of one rounding to the weights' type."""
        return unit_of(self.weight.dtype)

    @cached_property
    def smallest(self) -> float:
        """What a rounding of a weight to zero may lose."""
        return smallest_of(self.weight.dtype) * abs(self.factor)

    @cached_property
    def basis(self) -> Basis:
        """The atoms ``relu(-x)`` that it reads without ``relu(x)``."""
        there, found = set(self.data.atoms.tolist()), set[int]()
        for family, at in self.terms.groups(self.data.atoms):
            if family.parts:
                positive = family.parts[0][1].base - family.base
                atoms = self.data.atoms[at].tolist()
                found.update(atom for atom in atoms if atom + positive not in there)
        return frozenset(found)

    def columns(self, basis: Basis | None = frozenset()) -> Columns:
        """Return the atoms that the rows are over, in a basis; None for those that are read."""
        if basis not in self._columns:
            made = columns_of(self.terms, self.data, self.extents, self.groups, basis)
            self._columns[basis] = made
        return self._columns[basis]

    @cached_property
    def sites(self) -> frozenset[str]:
        """The sites whose second halves it reads."""
        found = (family for family, _ in self.terms.groups(self.data.atoms))
        return frozenset(family.site for family in found if family.parts and family.site)

    def fill(self) -> int:
        """Return the atom that a constant output channel is written with: it tells the shape."""
        read = [family for family, _ in self.terms.groups(self.data.atoms)]
        one = min(read, key=lambda family: (family.what == FILL, family.base))
        key = ("fill", self.what, one.shape)
        more = {"node": self.node, "what": FILL}
        return self.terms.family(key, "op", 1, self.dims, self.dtype, **more).base

    def shifts(self) -> Array:
        """Return the bias of every row, (outputs, all else)."""
        return np.zeros((self.outputs, 1)) if self.bias is None else self.bias

    def group(self, index: Array) -> Array:
        """Return the groups that some rows are in."""
        return np.asarray(index // (self.outputs // self.groups))

    def reads_as(self, other: Layer) -> bool:
        """Whether its rows are over the same atoms, in the same order and with the same factor."""
        ways = [
            (one.groups, one.factor, one.weight.dtype, one.weight.shape[1:], one.data.key())
            for one in (self, other)
        ]
        return ways[0] == ways[1] and np.array_equal(self.extents, other.extents)

    def chunks(self, index: Array) -> Iterator[slice]:
        """Yield where some of its rows are, so many at a time as fit in memory."""
        step = max(1, CHUNK // max(1, self.weight[:1].size))
        for start in range(0, len(index), step):
            yield slice(start, start + step)

    def rows(self, index: Array, columns: Columns) -> tuple[Array, Array]:
        """Return some rows in float64, (n, B, kernel), and the sums of their terms' sizes."""
        found = self.weight[index[:, None], columns.order].astype(np.float64)
        found *= columns.coefficients[self.group(index)][:, :, None] * self.factor
        if columns.most == 1 or not found.shape[1]:
            return found, np.abs(found)
        sums = np.add.reduceat(found, columns.starts, axis=1)
        return sums, np.add.reduceat(np.abs(found, out=found), columns.starts, axis=1)

    @cached_property
    def random(self) -> Array:
        """Random numbers for the weights, (groups, inputs of one group, kernel).

        They belong to the terms of the atoms, so that rows over the same atoms have the same
        product with them, whatever the order of the atoms and whichever of two make a third.
        """
        columns, kernel = self.columns(), self.weight.shape[2]
        if self.groups > 1:
            return noise(columns.keys, kernel) * columns.coefficients[..., None]
        counts = np.diff(columns.starts, append=len(columns.order))
        terms = noise(columns.keys[0].repeat(counts), kernel) * columns.coefficients[0][:, None]
        found = np.zeros((1, self.weight.shape[1], kernel))
        np.add.at(found[0], columns.order, terms)
        return found

    @cached_property
    def projection(self) -> tuple[Array, Array, Array]:
        """Each row's product with random numbers, its size, and whether it is zero."""
        every, one = np.arange(self.outputs), np.ones(self.outputs)
        values, sizes = self.project(every, one, None), np.empty(self.outputs)
        zero, read = np.zeros(self.outputs, bool), (self.random != 0).any(2)
        kind = np.promote_types(self.weight.dtype, np.float32)  # sizes are but roughly known
        size = (np.abs(self.random) * abs(self.factor)).astype(kind)
        for part in self.chunks(every):
            rows, group = (
                np.abs(self.weight[part]).astype(kind, copy=False),
                self.group(every[part]),
            )
            sizes[part] = _times(rows, size, group)
            if not np.isfinite(sizes[part]).all():
                sizes[part] = _times(_finite(rows.astype(np.float64)), size, group)
            small = np.flatnonzero(sizes[part] == 0)
            given = read[group[small] if self.groups > 1 else 0]
            zero[part][small] = ~(rows[small].any(2) & given).any(1)
        return values, sizes, zero

    def project(self, row: Array, scale: Array, to: ir.DataType | None) -> Array:
        """Return the products of some rows with the random numbers, rounded to a type first."""
        found, random = np.empty(len(row)), self.random * self.factor
        with np.errstate(all="ignore"):
            for part in self.chunks(row):
                group, scales = self.group(row[part]), scale[part, None, None]
                rows = self.weight[row[part]].astype(np.float64)
                if to is not None:
                    rows = cast((rows * scales).astype(np.float32), to).astype(np.float64)
                    scales = np.ones_like(scales)
                found[part] = _times(rows, random, group) * scales[:, 0, 0]
                if not np.isfinite(found[part]).all():
                    found[part] = _times(_finite(rows * scales * self.factor), self.random, group)
        return found


def _finite(rows: Array) -> Array:
    """Return numbers where NaN and infinities are numbers too."""
    return np.nan_to_num(rows, nan=3.0, posinf=7.0, neginf=-7.0)


def _times(rows: Array, random: Array, group: Array) -> Array:
    if len(random) == 1:
        return np.asarray(rows.reshape(len(rows), -1) @ random.ravel())
    return np.asarray((rows * random[group]).sum((1, 2)))


def read(node: ir.Node, data: Vector, extents: Array, terms: Terms, weight: Array) -> Layer:
    """Return a layer; the weight, and the bias if any, are constants."""
    groups, rows = groups_of(node), KINDS[node.op_type].rows(weight, node)
    gemm = node.op_type == "Gemm"
    alpha, beta = (node.attributes.get_float(n, 1.0) if gemm else 1.0 for n in ("alpha", "beta"))
    bias = _bias(node, len(rows), beta)
    what = signature(node, weight.shape)
    return Layer(node, what, groups, data, extents, rows, bias, alpha, beta, terms)


def _bias(node: ir.Node, outputs: int, factor: float) -> Array | None:
    tensor = constant(bias_of(node))
    if tensor is None:
        return None
    values = tensor.numpy().astype(np.float64)
    values = np.broadcast_to(values, (*values.shape[:-1], outputs))
    return np.asarray(np.moveaxis(values, -1, 0).reshape(outputs, -1) * factor)


def bias_of(node: ir.Node) -> ir.Value | None:
    """Return the bias that an operator reads; a MatMul has none."""
    return node.inputs[2] if node.op_type != "MatMul" and len(node.inputs) > 2 else None
