"""The repository's Markdown pages, cut into the blocks that tests execute.

A fenced ``console`` block holds commands behind ``$ `` and what they print; a fenced ``python``
block is a program, and with ``title="..."`` a file. A comment ``<!-- not run: REASON -->`` before a
block says that, and why, no test executes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = {str(p.relative_to(ROOT)): p for p in [ROOT / "README.md", *DOCS]}

_FENCED = re.compile(
    r'(?:^<!-- not run: (?P<why>.+?) -->\n)?^```(?P<kind>\w+)(?: title="(?P<title>.+?)")?\n'
    r"(?P<text>.*?)^```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its title, its text, and why it is not run, if it is not."""

    kind: str
    title: str
    text: str
    why: str

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The commands of a console block, each with the output that is shown."""
        parts = re.split(r"^\$ ", self.text, flags=re.M)[1:]
        return [(command, shown) for command, _, shown in (p.partition("\n") for p in parts)]


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    found = _FENCED.finditer(PAGES[page].read_text(encoding="utf-8"))
    return [Block(m["kind"], m["title"] or "", m["text"], m["why"] or "") for m in found]


def agrees(shown: str, printed: str) -> bool:
    """Return whether the output is the one shown, where ``...`` stands for anything."""
    parts = [re.escape(" ".join(part.split())) for part in shown.split("...")]
    return re.fullmatch(" ?.*?".join(parts), " ".join(printed.split()), re.S) is not None
