"""Tables for people, safe for whatever stands in a file's names."""

from __future__ import annotations

from typing import Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text


class Section(Table):
    """A table under a heading that may be wider than the table."""

    def __init__(self, heading: str) -> None:
        super().__init__(box=None, pad_edge=False)
        self.heading = heading

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.heading, style="bold")
        yield from super().__rich_console__(console, options)


def section(heading: str, *columns: str) -> Section:
    """Return an empty table; ``>`` behind a name aligns right, ``!`` keeps cells in one line."""
    table = Section(heading)
    for column in columns:
        name = column.rstrip(">!")
        kept = column != name
        justify: Literal["left", "right"] = "right" if column.endswith(">") else "left"
        table.add_column(name, justify=justify, no_wrap=kept, overflow="fold")
    return table


def add(table: Table, *cells: object) -> None:
    """Add a row; names come from files and are shown as they are, control characters escaped."""
    table.add_row(*(Text(printable(str(cell))) for cell in cells))


def printable(text: str) -> str:
    r"""Return the text with control characters written out, such as ``\x1b``."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def counted(number: int, noun: str) -> str:
    """Return ``1 thread``, ``2 threads``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
