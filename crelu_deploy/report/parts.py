"""What a report is made of, before it is Markdown or HTML; text here is not escaped yet."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: What is shown.
        sort: What a number is sorted by; None sorts by the text.
        kind: ``good`` or ``bad`` for a verdict, ``code`` for a name, empty for plain text.
    """

    text: str
    sort: float | None = None
    kind: str = ""


def verdict_cell(passed: bool | None) -> Cell:
    """Return the word for a verdict; nothing was compared where it is None."""
    if passed is None:
        return Cell("not compared")
    return Cell("ok", 0, "good") if passed else Cell("FAILED", 1, "bad")


def number_cell(value: float | None, form: str, unit: str = "") -> Cell:
    """Return a number in the form of a format specification; a dash for None."""
    return Cell("-") if value is None else Cell(f"{value:{form}}{unit}", float(value))


def code_cell(text: object) -> Cell:
    """Return a name or a command."""
    return Cell(str(text), None, "code")


@dataclass(frozen=True)
class Table:
    """A table; a column whose name ends in ``>`` holds numbers and is aligned right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Range:
    """One latency with its spread, in milliseconds."""

    label: str
    p10: float
    median: float
    p90: float


@dataclass(frozen=True)
class Ranges:
    """A plot with a row per range, on one axis from 0."""

    caption: str
    rows: tuple[Range, ...]


@dataclass(frozen=True)
class Curve:
    """One line of a plot: ``(x, y)`` points."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curves:
    """A plot of lines over a few values of x, which are spread evenly; y is logarithmic."""

    caption: str
    x: str
    y: str
    curves: tuple[Curve, ...]


Part = str | Table | Ranges | Curves


@dataclass(frozen=True)
class Section:
    """A heading with what is under it; a string is a paragraph."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: Its name.
        passed: Whether every target is verified.
        verdict: That in a sentence.
        summary: What else is worth knowing first, a sentence each.
        sections: The rest.
    """

    title: str
    passed: bool
    verdict: str
    summary: tuple[str, ...] = ()
    sections: tuple[Section, ...] = field(default=())
