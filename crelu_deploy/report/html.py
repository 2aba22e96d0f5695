"""A report as one self-contained page; every name is escaped, and nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template

from crelu_deploy.report.parts import Cell, Curves, Page, Part, Ranges, Section, Table
from crelu_deploy.report.plots import curves, ranges
from crelu_deploy.tables import printable

LONG = 24
"""Characters from which on a text wraps in a column of some width."""


def to_html(page: Page) -> str:
    """Return the text of ``report.html``."""
    template = files("crelu_deploy.report").joinpath("template.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=text(page.title),
        state="good" if page.passed else "bad",
        verdict=text(page.verdict),
        summary=_list(page.summary),
        links="".join(
            f'<li><a href="#{_anchor(section)}">{text(section.title)}</a></li>'
            for section in page.sections
        ),
        sections="\n".join(_section(section) for section in page.sections),
    )


def text(raw: str) -> str:
    """Return text that HTML shows as it is, control characters written out."""
    return escape(printable(raw))


def _list(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
    return f'<ul class="summary">{items}</ul>' if items else ""


def _anchor(section: Section) -> str:
    """Return the section's id; titles are the program's own words."""
    return section.title.lower().replace(" ", "-")


def _section(section: Section) -> str:
    name = _anchor(section)
    parts = "\n".join(_part(part) for part in section.parts)
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{text(section.title)}</h2>\n'
        f"{parts}\n</section>"
    )


def _part(part: Part) -> str:
    if isinstance(part, str):
        return f"<p>{text(part)}</p>"
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Ranges):
        return _figure("ranges", part, ranges(part))
    return _figure("curves", part, curves(part))


def _figure(kind: str, part: Ranges | Curves, drawing: str) -> str:
    caption = f"<figcaption>{text(part.caption)}</figcaption>"
    return f'<figure class="{kind}">{caption}\n{drawing}\n</figure>'


def _table(table: Table) -> str:
    """Return a table whose columns sort, in a box that scrolls where it is too wide."""
    numbers = [column.endswith(">") for column in table.columns]
    heads = "".join(
        f'<th scope="col"{_aligned(number)}><button type="button">{text(column.rstrip(">"))}'
        "</button></th>"
        for column, number in zip(table.columns, numbers, strict=True)
    )
    rows = "\n".join(
        f"<tr>{''.join(_cell(cell, i, numbers[i]) for i, cell in enumerate(row))}</tr>"
        for row in table.rows
    )
    caption = text(table.caption)
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0">\n<table>\n'
        f"<caption>{caption}</caption>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
    )


def _aligned(number: bool) -> str:
    return ' class="number"' if number else ""


def _cell(cell: Cell, column: int, number: bool) -> str:
    """Return one cell; the first of a row is its heading."""
    shown = f"<code>{text(cell.text)}</code>" if cell.kind == "code" else text(cell.text)
    sort = "" if cell.sort is None else f' data-sort="{min(cell.sort, 1e300)!r}"'
    if column == 0:
        return f'<th scope="row"{sort}>{shown}</th>'
    styles = ["number"] if number else ["words" if len(cell.text) > LONG else "short"]
    styles += [cell.kind] if cell.kind in ("good", "bad") else []
    style = f' class="{" ".join(styles)}"' if styles else ""
    return f"<td{style}{sort}>{shown}</td>"
