"""What a report says of sites: lowerings, measured alternatives, errors, operators and sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crelu_deploy.report.parts import Cell, Part, Table, code_cell, number_cell, verdict_cell
from crelu_deploy.targets import BASELINE

JSON = Mapping[str, Any]


def site_parts(data: JSON) -> list[Part]:
    """Return how sites are written and lowered, what was measured, and what was left alone."""
    if not data["sites"]:
        return ["The network has no CReLU site."]
    parts: list[Part] = [_spellings(data["sites"])]
    if lowered := [target for target in data["targets"] if target["sites"]]:
        parts.append(_lowerings(data["sites"], lowered))
    for backend, plan in data["plans"].items():
        parts += _plan(backend, plan)
    if data["near_misses"]:
        rows = tuple(
            (code_cell(miss["name"]), Cell(miss["reason"])) for miss in data["near_misses"]
        )
        parts.append(Table("Left alone: what looks like CReLU and is none", ("node", "why"), rows))
    return parts


def _spellings(sites: Sequence[JSON]) -> Table:
    rows = []
    for site in sites:
        activation = site["activation"] + (" with scale and shift" if site["affine"] else "")
        fold = "yes" if site["foldable"] else f"no: {site['reason']}"
        rows.append(
            (
                code_cell(site["name"]),
                Cell(site["spelling"]),
                Cell(activation),
                number_cell(site["axis"], "d"),
                code_cell(site["producer"] or "-"),
                Cell(fold),
            )
        )
    columns = ("site", "spelling", "activation", "axis>", "producer", "foldable")
    return Table("How the network wrote each site", columns, tuple(rows))


def _lowerings(sites: Sequence[JSON], targets: Sequence[JSON]) -> Table:
    forms = [{s["site"]: s["lowering"] for s in target["sites"]} for target in targets]
    reasons = [target.get("reasons", {}) for target in targets]
    rows = []
    for site in sites:
        name = site["name"]
        why = "; ".join(dict.fromkeys(r[name] for r in reasons if name in r))
        reason = (Cell(why),) if any(reasons) else ()
        rows.append((code_cell(name), *(Cell(f.get(name, "-")) for f in forms), *reason))
    last = ("refused because",) if any(reasons) else ()
    columns = ("site", *(target["target"] for target in targets), *last)
    return Table("The lowering of each site in each target", columns, tuple(rows))


def _plan(backend: str, plan: JSON) -> list[Part]:
    chosen = tuple((code_cell(site), Cell(form)) for site, form in plan["choice"].items())
    how = "measured here" if plan["ratios"] else "by rule"
    parts: list[Part] = [
        Table(f"The plan of {backend}, {how}: what auto means", ("site", "lowering"), chosen)
    ]
    if plan["ratios"]:
        rows = tuple(
            (
                Cell(name),
                number_cell(ratio, ".2f", " x"),
                number_cell((1 - ratio) * 100, "+.0f", " %"),
            )
            for name, ratio in sorted(plan["ratios"].items(), key=lambda item: item[1])
        )
        caption = f"Measured alternatives on {backend}: the whole network, every site as named"
        parts.append(Table(caption, ("choice", "time to primitive>", "saved>"), rows))
    return parts


def error_parts(data: JSON) -> list[Part]:
    """Return the errors of outputs and of sites."""
    outputs = [
        (code_cell(target["target"]), code_cell(output["output"]), *_compared(output))
        for target in data["targets"]
        for output in target["outputs"]
    ]
    columns = ("target", "output", "verdict", "score>", "max error>", "worst element")
    parts: list[Part] = []
    if outputs:
        caption = "Each output against PyTorch, over all samples"
        parts.append(Table(caption, columns, tuple(outputs)))
    if looked := [target for target in data["targets"] if target["sites"]]:
        parts += _site_errors(data["sites"], looked)
    return parts or ["No target that reads a lowered model ran."]


def _site_errors(sites: Sequence[JSON], targets: Sequence[JSON]) -> list[Part]:
    """Return a score for each site and target, and the worst elements beyond tolerance."""
    found = [{s["site"]: s for s in target["sites"]} for target in targets]
    rows = tuple(
        (code_cell(site["name"]), *(_score(errors.get(site["name"])) for errors in found))
        for site in sites
    )
    caption = (
        "Score of each site, against the network that is not lowered: of what its consumers "
        "compute or, where the runtime shows no value inside, of its own output on the first "
        "sample; 1.00 is the limit"
    )
    columns = ("site", *(f"{target['target']}>" for target in targets))
    failed = tuple(
        (
            code_cell(target["target"]),
            code_cell(site["site"]),
            Cell(site["lowering"]),
            *_compared(site),
        )
        for target in targets
        for site in target["sites"]
        if site["passed"] is False
    )
    parts: list[Part] = [Table(caption, columns, rows)]
    if failed:
        heads = ("verdict", "score>", "max error>", "worst element")
        parts.append(Table("Beyond tolerance", ("target", "site", "lowering", *heads), failed))
    return parts


def _score(found: JSON | None) -> Cell:
    """Return a score, which is infinite where only one side is NaN; None was not compared."""
    if found is None or found["passed"] is None:
        return Cell("-")
    score = math.inf if found["score"] is None else found["score"]
    return Cell(f"{score:.2f}", score, "" if found["passed"] else "bad")


def _compared(found: JSON) -> tuple[Cell, ...]:
    return (
        verdict_cell(found["passed"]),
        number_cell(found["score"], ".2f"),
        number_cell(found["max_abs"], ".1e"),
        Cell(found["worst"] or ""),
    )


def operator_parts(targets: Sequence[JSON]) -> list[Part]:
    """Return the nodes and the file size of each target that has a lowered model."""
    known = [target for target in targets if target["operators"]]
    if not known:
        return ["No lowered model was built."]
    names = sorted({name for target in known for name in target["operators"]})
    rows = [
        (code_cell(name), *(number_cell(target["operators"].get(name, 0), "d") for target in known))
        for name in names
    ]
    totals = (number_cell(sum(target["operators"].values()), "d") for target in known)
    sizes = (Cell(_size(target["bytes"]), float(target["bytes"])) for target in known)
    rows += [(Cell("all nodes"), *totals), (Cell("file"), *sizes)]
    caption = f"Nodes of each kind and the size of the file; {BASELINE} is the network as exported"
    columns = ("operator", *(f"{target['target']}>" for target in known))
    return [Table(caption, columns, tuple(rows))]


def _size(count: int) -> str:
    if count < 1_000_000:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.2f} MB"
