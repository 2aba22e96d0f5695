"""The rows of ``gpu_check.py``: how each is made, printed and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

OK, WRONG, MISSING, LATE = "ok", "wrong", "missing", "not run"


@dataclass(frozen=True)
class Row:
    """One check.

    Attributes:
        part: ``kernel``, ``bandwidth`` or a network.
        case: What was checked.
        status: ``ok``, ``wrong``, ``missing`` or ``not run``.
        value: A latency in ms, or the share of the copy's bandwidth; None where nothing is timed.
        note: What is behind the status, or the value's base.
    """

    part: str
    case: str
    status: str
    value: float | None = None
    note: str = ""


class Missing(Exception):
    """Something that a check needs is not on this machine."""


@dataclass
class Clock:
    """How much time there is, in seconds from now on."""

    seconds: float
    start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the end, below 0 after it."""
        return self.seconds - (time.monotonic() - self.start)


Check = tuple[str, str, Callable[[], Iterator[Row]]]
"""Part, case, and what gives the rows; one that stops early is reported under part and case."""


def collect(checks: Sequence[Check], clock: Clock, progress: Callable[[str], None]) -> list[Row]:
    """Run the checks in order; what cannot run becomes a row that says why."""
    rows: list[Row] = []
    for part, case, check in checks:
        if clock.left <= 0:
            rows.append(Row(part, case, LATE, note="the time was up"))
            continue
        progress(f"{part}: {case}")
        try:
            rows += check()
        except (Missing, ImportError) as error:
            rows.append(Row(part, case, MISSING, note=_line(error)))
        except Exception as error:  # one broken runtime must not hide what the others do
            rows.append(Row(part, case, WRONG, note=f"{type(error).__name__}: {_line(error)}"))
    return rows


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text in columns."""
    cells = [("part", "case", "status", "value", "note")]
    cells += [(r.part, r.case, r.status, _number(r.value), r.note) for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    return "\n".join(_joined(row, widths) for row in cells)


def _joined(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
    return "  ".join([*padded, row[-1]]).rstrip()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
