"""Distances, and the errors behind the sites of targets, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from crelu_deploy.accuracy import Comparison
from crelu_deploy.results import SiteError, Verification
from crelu_deploy.tables import Section, add, section

JSON = dict[str, Any]


def number(value: float) -> float | None:
    """Return a number that JSON has: None for infinity and NaN."""
    return value if math.isfinite(value) else None


def comparison_json(found: Comparison | None) -> JSON:
    """Return the verdict, the errors and the worst element; nulls where nothing was compared."""
    if found is None:
        return {"passed": None, "score": None, "max_abs": None, "worst": None}
    score, error = number(found.score), number(found.max_abs)
    return {"passed": found.passed, "score": score, "max_abs": error, "worst": found.worst}


def sites_json(errors: Sequence[SiteError]) -> list[JSON]:
    """Return the error of each site and the names of the values that were compared."""
    return [
        {
            "site": error.site,
            "lowering": error.lowering,
            "values": list(error.values),
            **comparison_json(error.comparison),
        }
        for error in errors
    ]


def behind_parts(found: Sequence[Verification]) -> list[Section]:
    """Return the worst site of each target, and all that fail; none where none was looked into."""
    title = "behind   what the layers after each site compute; score 1.00 is the limit"
    table = section(title, "target!", *COLUMNS)
    for v in found:
        known = [error for error in v.sites if error.comparison is not None]
        blind = [error for error in v.sites if error.comparison is None]
        worst = sorted(known, key=lambda e: -e.comparison.score if e.comparison else 0)
        failed = [error for error in worst if error.comparison and not error.comparison.passed]
        add_sites(table, [*(failed or worst[:1]), *blind], v.target)
    return [table] if table.row_count else []


COLUMNS = ("site", "lowering!", "score>", "max error>", "worst at", "")
"""Of a table with a row per site."""


def add_sites(table: Section, errors: Sequence[SiteError], *first: object) -> None:
    """Add a row per site, with what comes first in each."""
    for error in errors:
        row, compared = (*first, error.site, error.lowering), error.comparison
        if compared is None:
            add(table, *row, "-", "-", "cannot be looked into", "")
        else:
            verdict = "ok" if compared.passed else "FAILED"
            score, size = f"{compared.score:.2f}", f"{compared.max_abs:.1e}"
            add(table, *row, score, size, compared.worst, verdict)
