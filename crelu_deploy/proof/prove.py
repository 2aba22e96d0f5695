"""Both graphs read, their outputs compared, and a verdict for every site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from crelu_deploy.lowerings.sitenode import scopes, site_nodes
from crelu_deploy.proof.constants import Numbers
from crelu_deploy.proof.explain import Fault, Walks, fault_behind
from crelu_deploy.proof.following import rule_of
from crelu_deploy.proof.inferred import Extents, inferred
from crelu_deploy.proof.interface import differences, is_valid
from crelu_deploy.proof.matching import Register
from crelu_deploy.proof.telling import different
from crelu_deploy.proof.terms import Terms, Vector
from crelu_deploy.proof.views import whole
from crelu_deploy.proof.walk import Walk, random_functions

UNREADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)
"""What reading a graph ends in that no runtime could run, or that is not understood."""

MOST = 8
"""Faults that are looked for; each is taken for mended to find the next."""

Body = ir.Graph | ir.Function


@dataclass(frozen=True)
class SiteProof:
    """What is known of one site.

    Attributes:
        roundings: How many roundings its weights are apart from the canonical node's.
        fault: What is wrong with it; empty where it is proved.
        judged: Whether it could be looked at: not behind too many faults.
    """

    roundings: int = 0
    fault: str = ""
    judged: bool = True

    @property
    def proved(self) -> bool:
        """Whether it computes what the canonical node computes."""
        return self.judged and not self.fault

    def __str__(self) -> str:
        if self.fault:
            return f"refuted: {self.fault}"
        if not self.judged:
            return "not judged: it, or too much before it, is not proved"
        many = f"{self.roundings} rounding{'s' * (self.roundings > 1)}"
        return f"proved up to {many}" if self.roundings else "proved: weights equal bit for bit"


@dataclass(frozen=True)
class Proof:
    """What is known of a lowered graph.

    Attributes:
        sites: Site -> what is known of it.
        faults: What is wrong, at sites and elsewhere.
        open: Why it cannot be proved; empty where it can.
    """

    sites: Mapping[str, SiteProof] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    open: str = ""

    @property
    def refuted(self) -> bool:
        """Whether something is wrong."""
        return bool(self.faults)

    @property
    def proved(self) -> bool:
        """Whether all of it is proved."""
        sites = all(site.proved for site in self.sites.values())
        return sites and not self.faults and not self.open


def prove(canonical: ir.Model, lowered: ir.Model, reduced: ir.DataType | None = None) -> Proof:
    """Compare a lowered model with the canonical one, whose nodes define what it must compute.

    Args:
        canonical: The model with its canonical nodes.
        lowered: The model that a runtime reads.
        reduced: The element type that float32 became; None where it stayed.
    """
    proof = _proof(canonical, lowered, reduced, folded=True)
    if proof.proved:
        return proof
    # A row of zeros is a constant, which pruning removes, and a row like others, which is rounded.
    other = _proof(canonical, lowered, reduced, folded=False)
    return proof if other.refuted else other


def _proof(
    canonical: ir.Model, lowered: ir.Model, reduced: ir.DataType | None, *, folded: bool
) -> Proof:
    names = {node.node: name for name, node in site_nodes(canonical).items()}
    faults, unknown = list(differences(canonical, lowered)), list[str]()
    found, roundings, finished = list[Fault](), dict[str, int](), True
    try:
        scoped = list(_scoped(canonical, lowered))
    except KeyError as error:
        return Proof(dict.fromkeys(names.values(), SiteProof(judged=False)), (*faults, str(error)))
    extents = inferred(canonical)
    for one, two in scoped:
        judged = _Judged((canonical, lowered), extents, Numbers(reduced, folded=folded))
        try:
            finished &= judged.compare(one, two, found)
        except UNREADABLE as error:
            why = f"it cannot be followed: {type(error).__name__} {error}"
            if judged.canonical is None:
                return Proof(open=f"the network itself: {why}")
            told, finished = f"outside the sites: {why}", False
            (unknown if is_valid(lowered) else faults).append(told)
        roundings |= judged.roundings
    texts = {fault.site: fault.text for fault in reversed(found) if not fault.open}
    missed = {fault.site for fault in found if fault.open}
    sites = {
        name: SiteProof(
            roundings.get(name, 0), texts.get(name, ""), finished and name not in missed
        )
        for name in names.values()
    }
    for fault in found:
        (unknown if fault.open else faults).append(_told(fault))
    return Proof(sites, tuple(faults), "; ".join(unknown))


def _told(fault: Fault) -> str:
    return f"site {fault.site}: {fault.text}" if fault.site else f"outside the sites: {fault.text}"


def _scoped(canonical: ir.Model, lowered: ir.Model) -> Iterator[tuple[Body, Body]]:
    """Yield the graphs, then the functions that both models have."""
    yield canonical.graph, lowered.graph
    known = {g.identifier(): g for _, g in scopes(canonical) if isinstance(g, ir.Function)}
    for _, body in scopes(lowered):
        if isinstance(body, ir.Function):
            if body.identifier() not in known:
                raise KeyError(f"function {body.name} is not in the network")
            yield known[body.identifier()], body


class _Judged:
    """One graph or function of both models."""

    def __init__(
        self, models: tuple[ir.Model, ir.Model], extents: Extents, numbers: Numbers
    ) -> None:
        self._names = [
            {site.node: name for name, site in site_nodes(model).items()} for model in models
        ]
        self._random = tuple(random_functions(model) for model in models)
        self._terms, self._numbers = Terms(), numbers
        self._register = Register(self._terms)
        self.roundings: dict[str, int] = {}
        self.canonical: Walk | None = None
        self._extents = extents

    def compare(self, one: Body, two: Body, found: list[Fault]) -> bool:
        """Add the faults; return whether all were found."""
        canonical = self.canonical = self._read(one, 0, {})
        self._terms.freeze()
        mended: dict[ir.Value, Vector] = {}
        for _ in range(MOST + 1):
            lowered = self._read(two, 1, mended)
            self.roundings = lowered.roundings
            fault = self._fault(Walks(canonical, lowered), one, two)
            if fault is None:
                return True
            if fault.value in mended or len(mended) == MOST:
                break
            found.append(fault)
            mended[fault.value] = fault.expected
        return False

    def _read(self, graph: Body, which: int, mended: Mapping[ir.Value, Vector]) -> Walk:
        walk = Walk(self._terms, self._numbers, self._register, self._names[which])
        walk.mended.update(mended)
        walk.inferred = self._extents
        walk.random = self._random[which]
        for i, value in enumerate(graph.inputs):
            walk.formal(value, i)
        walk.graph(graph)
        return walk

    def _fault(self, walks: Walks, one: Body, two: Body) -> Fault | None:
        for expected, value in zip(one.outputs, two.outputs, strict=True):
            wanted = walks.canonical.read(expected)
            single = whole(walks.terms, wanted), whole(walks.terms, walks.lowered.read(value))
            if len(different(*single)) or not _alike_in_shape(walks.terms, *single):
                try:
                    return fault_behind(walks, value, wanted, rule_of)
                except UNREADABLE as error:
                    why = f"it is another value, and where cannot be followed: {error}"
                    return Fault("", f"output {value.name!r}: {why}", value, wanted)
        return None


def _alike_in_shape(terms: Terms, one: Vector, two: Vector) -> bool:
    """Whether tensors of one entry have one shape; those of one atom do."""
    families = terms.lead(one), terms.lead(two)
    dims = [family.dims for family in families]
    known = dims[0] is not None and None not in dims[0] and dims[0] == dims[1]
    return one.scale[0] != 0 or known or families[0].shape == families[1].shape
