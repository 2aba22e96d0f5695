"""Where a lowered graph differs: followed from an output to the node that is wrong.

What is expected of a value tells what is expected of what its node reads; the first node that
reads what it should and computes something else is the fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from crelu_deploy.lowerings.values import constant, describe
from crelu_deploy.proof.telling import different, entry, positions
from crelu_deploy.proof.terms import Family, Terms, Vector
from crelu_deploy.proof.views import along, unfolded, whole
from crelu_deploy.proof.walk import Walk


@dataclass(frozen=True)
class Fault:
    """One place where a lowered graph differs.

    Attributes:
        site: The site that it belongs to; empty for none.
        text: What is wrong, where, what was expected and found.
        value: The value that is wrong.
        expected: What it should be.
        open: Whether it may be none: too little is known of the shapes to compare.
    """

    site: str
    text: str
    value: ir.Value
    expected: Vector
    open: bool = False


@dataclass(frozen=True)
class Question:
    """Is a value of the lowered graph what it should be?

    Attributes:
        value: The value.
        expected: What it should be.
        site: The site that was passed last on the way here; empty for none.
    """

    value: ir.Value
    expected: Vector
    site: str

    @property
    def node(self) -> ir.Node:
        """The node that computes the value."""
        node = self.value.producer()
        assert node is not None, "the caller has looked"
        return node


@dataclass(frozen=True)
class Walks:
    """Both graphs, read."""

    canonical: Walk
    lowered: Walk

    @property
    def terms(self) -> Terms:
        """The terms of both."""
        return self.lowered.terms

    def right(self, value: ir.Value) -> bool:
        """Whether a value is that of its name in the canonical graph: its reader is wrong."""
        meant = self.canonical.named(value.name)
        return meant is not None and meant.key() == self.lowered.read(value).key()

    def seen(self, value: ir.Value, expected: Vector) -> Vector | None:
        """Return what a value is, along the axis of what it should be; None for other extents."""
        actual, axis = self.lowered.read(value), expected.axis
        actual = whole(self.terms, actual) if axis is None else along(self.terms, actual, axis)
        actual = unfolded(self.terms, actual)
        return actual if actual.axis == axis and len(actual) == len(expected) else None

    def wrong(self, value: ir.Value | None, expected: Vector) -> bool:
        """Whether a value that is computed is not what it should be."""
        if value is None or constant(value) is not None:
            return False
        actual, expected = self.seen(value, expected), unfolded(self.terms, expected)
        return actual is None or bool(len(different(actual, expected)))


@dataclass(frozen=True)
class Told:
    """What is wrong with a node, and the site that it belongs to; empty for the one passed last.

    Attributes:
        open: Whether it may not be wrong at all.
    """

    text: str
    site: str = ""
    open: bool = False


Answer = Question | Told | None
"""The next question, or what is wrong; None where the entries that differ say it best."""

Follow = Callable[[Walks, Question, Vector], Answer]
"""From a question, and what the value is, to the answer."""


def fault_behind(
    walks: Walks, value: ir.Value, expected: Vector, rules: Callable[[ir.Node], Follow | None]
) -> Fault:
    """Return the fault behind a value that is not what it should be."""
    asked = Question(value, expected, "")
    while True:
        found = _answer(walks, asked, rules)
        if isinstance(found, Told):
            node = asked.value.producer()
            where = describe(node) or f"value {asked.value.name!r}"
            text, site = f"{where}: {found.text}", found.site or asked.site
            return Fault(site, text, asked.value, asked.expected, found.open)
        asked = found


def _answer(
    walks: Walks, asked: Question, rules: Callable[[ir.Node], Follow | None]
) -> Question | Told:
    node, axis = asked.value.producer(), walks.lowered.read(asked.value).axis
    if asked.expected.axis is None and axis is not None:
        asked = replace(asked, expected=along(walks.terms, asked.expected, axis))
    asked = replace(asked, expected=unfolded(walks.terms, asked.expected))
    actual = walks.seen(asked.value, asked.expected)
    if node is None:
        return Told("another input or constant than expected")
    if actual is None:
        return _sizes(walks, asked)
    at = different(asked.expected, actual)
    here = site_of(walks.terms, int(asked.expected.atoms[at[0]])) if len(at) else ""
    asked = replace(asked, site=here or asked.site)
    rule = rules(node)
    found = None if rule is None else rule(walks, asked, actual)
    if isinstance(found, Question) and walks.right(found.value):
        found = None
    if isinstance(found, Question):
        return replace(found, site=found.site or asked.site)
    return found or Told(_entries(walks.terms, asked.expected, actual))


def site_of(terms: Terms, atom: int) -> str:
    """Return the site that an atom belongs to; empty for none."""
    family: Family | None = terms.of(atom)
    while family is not None:
        if family.site:
            return family.site
        family = family.source
    return ""


def _sizes(walks: Walks, asked: Question) -> Told:
    """Say which extents differ, or that too few of them are known."""
    actual, expected = walks.lowered.read(asked.value), asked.expected
    unknown = expected.axis is not None and None in walks.terms.extents(expected)
    if actual.axis == expected.axis and unknown:
        return Told("its extents are not known, and so not which entries it holds", open=True)
    return Told(
        f"expected {len(expected)} channels along axis {expected.axis}, "
        f"got {len(actual)} along axis {actual.axis}"
    )


def _entries(terms: Terms, expected: Vector, actual: Vector) -> str:
    at = different(expected, actual)
    if not len(at):
        return "it reads and computes what is expected, but not where it is expected"
    first = int(at[0])
    return (
        f"channel {positions(at)}: expected {entry(terms, expected, first)}, "
        f"got {entry(terms, actual, first)}"
    )
