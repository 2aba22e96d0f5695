"""NaN and infinities as inputs: what PyTorch makes of them, and what a target does.

A runtime's max pool may lose NaN whatever the lowering, so a difference is told and fails nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from crelu_deploy.errors import DeployError
from crelu_deploy.lowerings import LOSES
from crelu_deploy.runner import Runner
from crelu_deploy.samples import Arrays

VALUES = {"NaN": math.nan, "inf": math.inf, "-inf": -math.inf}
"""What is put into an input, by its name in a manifest and in words."""

SAME = "as PyTorch's"
"""What is told where nothing differs."""

Counts = Mapping[str, int]
"""Kind of element, a key of ``VALUES`` -> how many a call's outputs have."""


def calls(first: Arrays) -> dict[str, Arrays]:
    """Return a call for each of ``VALUES``: it is in the middle of the first input of floats."""
    names = [name for name, x in first.items() if x.dtype.kind == "f" and x.size]
    found: dict[str, Arrays] = {}
    for what, value in VALUES.items() if names else ():
        x = first[names[0]].copy()
        x[np.unravel_index(x.size // 2, x.shape)] = value
        found[what] = {**first, names[0]: x}
    return found


def counted(outputs: Arrays) -> Counts:
    """Return how many elements of all outputs are NaN and infinite."""
    found = [y for y in outputs.values() if y.dtype.kind == "f"]
    return {
        "NaN": sum(int(np.isnan(y).sum()) for y in found),
        **{w: sum(int((y == VALUES[w]).sum()) for y in found) for w in ("inf", "-inf")},
    }


def told(
    runner: Runner, first: Arrays, recorded: Mapping[str, Counts], lowerings: Collection[str]
) -> str:
    """Say what a target makes of NaN and infinities; empty where PyTorch's answer is not recorded.

    Args:
        runner: The target.
        first: The first sample, whose input they are put into.
        recorded: Which of ``VALUES`` was put in -> what PyTorch's outputs had.
        lowerings: Of the target's sites.
    """
    differences, tried = [], calls(first) if recorded else {}
    for what, call in tried.items():
        try:
            with np.errstate(all="ignore"):  # for a runtime that is written in NumPy
                found = counted(runner(call))
        except DeployError as error:
            return f"refused: {error}"
        if found != recorded[what]:
            words = (_words(counts) for counts in (found, recorded[what]))
            differences.append("{} gives {}, PyTorch's {}".format(what, *words))
    if not differences:
        return SAME if tried else ""
    losing = [f"{name} {LOSES[name]}" for name in sorted({*lowerings} & LOSES.keys())]
    losing.append("the runtime may change them too" if losing else "that is the runtime's doing")
    return "; ".join([*differences, *losing])


def _words(counts: Counts) -> str:
    return ", ".join(f"{counts[w]} {w}" for w in VALUES if counts[w]) or "finite numbers"
