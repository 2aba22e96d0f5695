"""Where a target goes wrong, as text and as JSON."""

from __future__ import annotations

from typing import Any

from crelu_deploy.locating import Difference, Located
from crelu_deploy.render.behind import COLUMNS, add_sites, comparison_json, sites_json
from crelu_deploy.tables import Section, counted, printable, section


def located_json(found: Located, reproduction: str) -> dict[str, Any]:
    """Return the errors at the sites and the first difference; what is not finite is null."""
    first = found.first
    return {
        "target": str(found.target),
        "reference": comparison_json(found.reference),
        "sites": sites_json(found.sites),
        "first": None if first is None else _first_json(first, reproduction),
    }


def _first_json(first: Difference, reproduction: str) -> dict[str, Any]:
    return {
        "sites": list(first.sites),
        "where": first.where,
        "value": first.value,
        "node": first.node,
        "sample": first.sample,
        **comparison_json(first.comparison),
        "inputs": list(first.inputs),
        "reproduce": reproduction,
    }


def located_parts(found: Located, reproduction: str, *, passed: bool) -> list[Section | str]:
    """Return a row per site, and the first difference in words."""
    title = f"sites    {found.target} against model.onnx, value by value; score 1.00 is the limit"
    table = section(printable(title), *COLUMNS)
    add_sites(table, found.sites)
    lines = _first_lines(found.first, reproduction) if found.first else [_none(passed)]
    if not found.reference.passed:
        lines.append(
            f"note     model.onnx itself differs from PyTorch: {printable(found.reference.worst)}; "
            "what differs there was exported so"
        )
    return [table, *lines]


def _none(passed: bool) -> str:
    if passed:
        return "first    no value is beyond tolerance"
    return (
        "first    no value is beyond tolerance when ONNX Runtime computes each of them: "
        "the difference comes from the backend, or from what it fuses"
    )


def _first_lines(first: Difference, reproduction: str) -> list[str]:
    place = {
        "in": f"in {_named(first)}",
        "behind": f"behind {_named(first)}, in {first.node}",
        "before": f"before {_named(first)}, in {first.node}",
        "without": f"in {first.node}",
    }[first.where]
    return [
        f"first    {printable(place)}: value {printable(first.value)}, sample {first.sample}",
        f"         {printable(first.comparison.worst)}",
        *(f"         {printable(line)}" for line in first.inputs),
        f"run      {printable(reproduction)}",
    ]


def _named(first: Difference) -> str:
    count = counted(len(first.sites), "site").split(" ")[1]
    return f"{count} {' or '.join(first.sites)}"
