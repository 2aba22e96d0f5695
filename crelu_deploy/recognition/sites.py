"""Every CReLU of a model that is not yet a node, and every near miss with its reason.

Structure proposes and probing decides. A concat of two values that are pointwise functions of one
tensor x is a candidate; both halves are sampled, and it is a site if they are f(x) and f(-x). After
a bare concat(x, -x), the pointwise tail behind it is sampled for the scale, shift and activation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import onnx_ir as ir

from crelu_deploy.recognition.axes import (
    UNKNOWN,
    Layout,
    extent,
    inferred_shapes,
    layouts,
    normalized,
)
from crelu_deploy.recognition.constants import Constants, Frame
from crelu_deploy.recognition.fit import Piece, piece
from crelu_deploy.recognition.halves import Pair, form, pair, same_activation, spelled
from crelu_deploy.recognition.joins import Join, joined
from crelu_deploy.recognition.probe import FLOATS
from crelu_deploy.recognition.rewrite import Site, has_body
from crelu_deploy.recognition.structure import Refused, Regions, Undecided, readers
from crelu_deploy.recognition.tail import Tail, Tails, reading

_MOST_PARTS = 4


@dataclass(frozen=True)
class NearMiss:
    """A concat that looks like CReLU and is none.

    Attributes:
        name: The concat's name.
        reason: Why it is none, in words.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class OpaqueSite:
    """A CReLU that no canonical node expresses; the graph keeps it as it is.

    Attributes:
        name: The concat's name.
        spelling: How the network wrote it.
        activation: A name in ``ACTIVATIONS``.
        axis: The axis as the concat wrote it.
        reason: Why it stays, in words.
    """

    name: str
    spelling: str
    activation: str
    axis: int
    reason: str


@dataclass(frozen=True)
class Found:
    """What a survey of a model brings, in graph order."""

    sites: tuple[Site, ...]
    near_misses: tuple[NearMiss, ...]
    opaque: tuple[OpaqueSite, ...]


@dataclass(frozen=True)
class Candidate:
    """A join of two pointwise functions of ``x``, and what is known of ``x``."""

    join: Join
    x: ir.Value
    layout: Layout
    dtype: ir.DataType

    @property
    def name(self) -> str:
        """The concat's name."""
        return self.join.concat.name or ""

    @property
    def axis(self) -> int:
        """The axis from the front where the rank is known."""
        return normalized(self.join.axis, self.layout.rank)

    @property
    def channels(self) -> int | None:
        """The extent of the axis in x."""
        return extent(self.join.axis, self.layout)

    @property
    def frame(self) -> Frame:
        """Where constants lie against x."""
        shape = [extent(i, self.layout) for i in range(self.layout.rank or 0)]
        return Frame(self.layout.rank, self.axis, tuple(shape))


def survey(model: ir.Model, nodes: list[ir.Node]) -> Found:
    """Look at every concat among ``nodes``, the model's, in graph order; change nothing.

    Shapes are inferred only if the ones that the model carries leave a candidate undecided.
    """
    inputs = model.graph.inputs if model.ir_version >= 4 else ()
    regions = Regions(Constants(frozenset(value for value in inputs if value.is_initializer())))
    opset = model.opset_imports.get("", 0)
    first = _Survey(regions, layouts(nodes, {}), opset, inferred=False)
    found = first.run(nodes)
    if not first.undecided:
        return found
    known = layouts(nodes, inferred_shapes(model))
    return _Survey(regions, known, opset, inferred=True).run(nodes)


class _Survey:
    def __init__(
        self, regions: Regions, known: dict[ir.Value, Layout], opset: int, *, inferred: bool
    ) -> None:
        self._regions, self._layouts, self._opset = regions, known, opset
        self._inferred = inferred
        self._sites: list[Site] = []
        self._near: list[NearMiss] = []
        self._opaque: list[OpaqueSite] = []
        self.undecided = False

    def run(self, nodes: list[ir.Node]) -> Found:
        for node in nodes:
            if node.op_type == "Concat" and not node.domain:
                try:
                    self._examine(node)
                except Refused as reason:
                    self.undecided |= isinstance(reason, Undecided)
                    self._near.append(NearMiss(node.name or "", str(reason)))
        return Found(tuple(self._sites), tuple(self._near), tuple(self._opaque))

    def _examine(self, node: ir.Node) -> None:
        if 2 < len(node.inputs) <= _MOST_PARTS:
            self._refuse_parts(node)
        candidate = self._candidate(node)
        if candidate is None:
            return
        first, second = self._halves(candidate)
        same_activation(first, second)
        halves = pair(candidate.x, first, second)
        self._check_axis(candidate)
        if first.activation is not None:
            whole = Piece(activation=first.activation, attributes=first.attributes)
            self._add(candidate, halves, Tail(candidate.join.output, whole), bare=False)
        else:
            self._follow(candidate, halves)

    def _follow(self, candidate: Candidate, halves: Pair) -> None:
        """Find the activations behind a bare join."""
        join, frame = candidate.join, replace(candidate.frame, joined=True)
        start = join.concat.outputs[0]
        within = piece(self._regions, start, join.within, frame, candidate.dtype)
        if within.activation is not None:
            self._add(candidate, halves, Tail(join.output, within), bare=True)
            return
        tails = Tails(self._regions, frame, candidate.dtype)
        found = list(tails.behind(join.output, within))
        for tail in found:
            self._add(candidate, halves, tail, bare=True)
        if not found and not self._normalized(candidate, tails):
            raise tails.refusals[-1] if tails.refusals else Refused(reading(join.output))

    def _normalized(self, candidate: Candidate, tails: Tails) -> bool:
        """Report a site with an instance norm before its activation."""
        for node in readers(candidate.join.output):
            if node.op_type == "InstanceNormalization":
                for tail in tails.behind(node.outputs[0], Piece()):
                    reason = "an instance norm between concat and activation depends on the input"
                    name = tail.piece.activation or ""
                    self._keep(candidate, name, f"cat(x, -x) then instance norm, {name}", reason)
                    return True
        return False

    def _keep(self, candidate: Candidate, name: str, spelling: str, reason: str) -> None:
        axis = candidate.join.axis
        self._opaque.append(OpaqueSite(candidate.name, spelling, name, axis, reason))

    def _add(self, candidate: Candidate, halves: Pair, tail: Tail, *, bare: bool) -> None:
        join, found = candidate.join, tail.piece
        channels = candidate.channels
        if join.interleaved and channels is None:
            raise Undecided("the channels of the halves alternate, and their number is unknown")
        into = form(halves, found, interleaved=join.interleaved, channels=channels)
        vectors = [v for v in (into.scale, into.shift) if v is not None and v.ndim]
        if vectors and candidate.layout.rank is None and join.axis >= 0:
            raise Undecided("the channels have their own scale or shift, and the rank is unknown")
        site = Site(
            join.concat,
            tail.output,
            halves.x,
            into,
            interleaved=join.interleaved,
            axis=join.axis,
            rank=candidate.layout.rank,
            channels=channels,
            activation=found.activation or "",
            attributes=found.attributes,
            dtype=candidate.layout.dtype,
            spelling=spelled(halves, found, into, interleaved=join.interleaved, bare=bare),
        )
        reason = self._inexpressible(site)
        if reason is None:
            self._sites.append(site)
        else:
            self._keep(candidate, site.activation, site.spelling, reason)

    def _inexpressible(self, site: Site) -> str | None:
        """Say why there can be no canonical node for a site."""
        name = site.activation
        if not has_body(site.op_type, self._opset):
            return f"{name} has no function body in opset {self._opset}, only from 15 on"
        for number in site.attributes.values() if site.dtype == ir.DataType.DOUBLE else ():
            if float(np.float32(number)) != number:
                return f"{name} by the double {number:.17g}: an attribute of a node is a float32"
        return None

    def _refuse_parts(self, node: ir.Node) -> None:
        values = [value for value in node.inputs if value is not None]
        for one, other in combinations(dict.fromkeys(values), 2):
            if self._regions.root(one, other) is not None:
                raise Refused(f"the concat has {len(values)} parts, not two")

    def _candidate(self, node: ir.Node) -> Candidate | None:
        join = joined(node, self._regions, self._layouts)
        if join is None or join.first is join.second:
            return None
        x = self._regions.root(join.first, join.second)
        if x is None:
            return None
        layout = self._layouts.get(x, UNKNOWN)
        dtype = layout.dtype or ir.DataType.FLOAT
        return Candidate(join, x, layout, dtype) if dtype in FLOATS else None

    def _halves(self, candidate: Candidate) -> tuple[Piece, Piece]:
        x, join = candidate.x, candidate.join
        halves = []
        for value in (join.first, join.second):
            steps = self._regions.steps(x, value)
            try:
                halves.append(piece(self._regions, x, steps, candidate.frame, candidate.dtype))
            except Undecided:
                raise
            except Refused as reason:
                raise Refused(f"{self._sampled(candidate)}{reason}") from reason
        return halves[0], halves[1]

    def _sampled(self, candidate: Candidate) -> str:
        """Say how the halves differ, in numbers if they are not f(x) and f(-x)."""
        rows = []
        for value in (candidate.join.first, candidate.join.second):
            nodes = self._regions.ordered(value, candidate.x) or ()
            at = np.array([1.0, -1.0])
            samples = self._regions.sample(nodes, candidate.x, at, candidate.frame)
            rows.append(samples[:, 0] + 0.0)  # no -0 in a message
        if np.array_equal(rows[0], rows[1][::-1]):
            return "halves are f(x) and f(-x), but "
        first, second = (f"{row[0]:.6g} and {row[1]:.6g}" for row in rows)
        return f"at x = 1 and -1 one half is {first}, the other {second}, not f(x) and f(-x): "

    def _check_axis(self, candidate: Candidate) -> None:
        """Refuse an axis that does not hold the channels, as far as that can be told."""
        axis, layout = candidate.axis, candidate.layout
        if layout.axis is not None:
            if axis != normalized(layout.axis, layout.rank):
                raise Refused(f"concat on axis {axis}, but the channels are on axis {layout.axis}")
            return
        if not self._inferred:
            raise Undecided(f"concat on axis {axis}, and the axis of the channels is unknown")
        if axis == 0 and layout.rank != 1:
            raise Refused("concat on axis 0, which is the batch axis")
        last = -1 if layout.rank is None else layout.rank - 1
        if axis not in (1, last):
            raise Refused(f"concat on axis {axis}, which is neither axis 1 nor the last")
