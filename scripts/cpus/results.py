"""What was found under each instruction set, as a table and as a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

INEXACT = ("complement", "split")
"""The lowerings that add up in another order; all others must give the bits of ``primitive``."""

DECIBELS = 25.0


@dataclass(frozen=True)
class Found:
    """One instruction set.

    Attributes:
        name: The instruction set.
        how: How it was had; for one that was not, why.
        ran: Whether it was had.
        block: Channels of a block in the runtime's convolutions; 1 without blocks.
        passed: How many tests passed.
        failed: The tests that failed.
        errors: Network -> lowering -> largest error relative to the largest output.
        verified: Target -> whether it agrees with PyTorch's outputs.
        decibels: Signal-to-noise ratio of the int8 target.
        broken: What did not run to its end.
    """

    name: str
    how: str
    ran: bool = True
    block: int = 1
    passed: int = 0
    failed: tuple[str, ...] = ()
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    verified: Mapping[str, bool] = field(default_factory=dict)
    decibels: float = 0.0
    broken: tuple[str, ...] = ()

    def error(self, lowering: str) -> float:
        """Return the largest error of a lowering over the networks."""
        return float(np.max([found[lowering] for found in self.errors.values()]))

    def exact(self) -> list[str]:
        """Return the lowerings that are bit for bit equal on all networks, of those that can be."""
        names = next(iter(self.errors.values()), {})
        return [name for name in names if name not in INEXACT and self.error(name) == 0]

    def faults(self) -> list[str]:
        """Return what is wrong, one line each."""
        if not self.ran:
            return []
        lines = [*self.broken, *(f"failed: {test}" for test in self.failed)]
        differing = {*next(iter(self.errors.values()), {})} - {*INEXACT, *self.exact()}
        lines += [f"{name} is not bit for bit equal" for name in sorted(differing)]
        lines += [
            f"{target} does not agree with PyTorch"
            for target, agrees in self.verified.items()
            if not agrees
        ]
        if self.verified and not self.decibels >= DECIBELS:
            lines.append(f"int8 has {self.decibels:.1f} dB, less than {DECIBELS:.0f}")
        return lines


def table(found: Sequence[Found]) -> str:
    """Return a row for every instruction set, and below what is wrong."""
    cells = [("instruction set", "how", "block", "tests", "bit for bit", *INEXACT, "int8")]
    cells += [_cells(row) if row.ran else (row.name, f"not here: {row.how}") for row in found]
    whole = [row for row in cells if len(row) == len(cells[0])]
    widths = [max(len(row[i]) for row in whole) for i in range(len(cells[0]))]
    widths[0] = max(len(row[0]) for row in cells)
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in cells
    ]
    faults = [f"{row.name}: {fault}" for row in found for fault in row.faults()]
    return "\n".join([*lines, *(["", *faults] if faults else [])])


def _cells(row: Found) -> tuple[str, ...]:
    tests = f"{row.passed} passed" + (f", {len(row.failed)} failed" if row.failed else "")
    if not row.errors:
        return (row.name, row.how, "?", tests, "?", "?", "?", "?")
    exact = ", ".join(row.exact()) or "none"
    errors = (f"{row.error(name):.1e}" for name in INEXACT)
    block = str(row.block) if row.block > 1 else "none"
    return (row.name, row.how, block, tests, exact, *errors, f"{row.decibels:.1f} dB")
