"""A report as Markdown: tables that every renderer knows, and no HTML that a name could bring."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from crelu_deploy.report.parts import Cell, Curves, Page, Part, Ranges, Table
from crelu_deploy.tables import printable

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#!|~&$])")


def to_markdown(page: Page) -> str:
    """Return the text of ``report.md``."""
    lines = [f"# {plain(page.title)}", "", f"**{plain(page.verdict)}**", ""]
    lines += [f"* {plain(sentence)}" for sentence in page.summary]
    for section in page.sections:
        lines += ["", f"## {plain(section.title)}"]
        for part in section.parts:
            lines += ["", *_part(part)]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Return text that Markdown shows as it is, in one line, control characters written out."""
    return _SPECIAL.sub(r"\\\1", printable(text))


def _part(part: Part) -> Iterator[str]:
    if isinstance(part, str):
        yield plain(part)
    elif isinstance(part, Table):
        yield from (f"{plain(part.caption)}:", "")
        yield from _table(part.columns, [[_cell(cell) for cell in row] for row in part.rows])
    elif isinstance(part, Ranges):
        yield from (f"{plain(part.caption)}:", "")
        rows = [[_name(r.label), f"{r.median:.2f} ms", _spread(r.p10, r.p90)] for r in part.rows]
        yield from _table(("target", "median>", "p10 .. p90>"), rows)
    else:
        yield from (f"{plain(part.caption)}:", "")
        yield from _curves(part)


def _spread(low: float, high: float) -> str:
    return f"{low:.2f} .. {high:.2f} ms"


def _curves(part: Curves) -> Iterator[str]:
    xs = list(dict.fromkeys(x for curve in part.curves for x, _ in curve.points))
    rows = []
    for curve in part.curves:
        points = dict(curve.points)
        values = (f"{points[x]:.3f}" if x in points else "-" for x in xs)
        rows.append([_name(curve.label), *values])
    columns = ("target", *(f"{part.x} {x:g}, {part.y}>" for x in xs))
    yield from _table(columns, rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield _row([plain(column.rstrip(">")) for column in columns])
    yield _row(["---:" if column.endswith(">") else "---" for column in columns])
    yield from map(_row, rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    if cell.kind == "bad":
        return f"**{plain(cell.text)}**"
    return _name(cell.text) if cell.kind == "code" else plain(cell.text)


def _name(text: str) -> str:
    """Return a name as code, unless it holds what code in a table cannot."""
    return f"`{text}`" if re.fullmatch(r"[\w.:,/ +=@-]+", text) else plain(text)
