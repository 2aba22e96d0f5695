"""The results in ``report.json`` as sections, tables and plots, in a reader's order."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from crelu_deploy.report.parts import (
    Cell,
    Curve,
    Curves,
    Page,
    Part,
    Range,
    Ranges,
    Section,
    Table,
    code_cell,
    number_cell,
    verdict_cell,
)
from crelu_deploy.report.sites import error_parts, operator_parts, site_parts
from crelu_deploy.tables import counted
from crelu_deploy.targets import BASELINE

JSON = Mapping[str, Any]


def page(data: JSON) -> Page:
    """Return the report of what ``report.collect`` returned."""
    waiting = [t["target"] for t in data["targets"] if t.get("skipped")]
    failed = [t["target"] for t in data["targets"] if not t["passed"] and not t.get("skipped")]
    total = counted(len(data["targets"]) - len(waiting), "target")
    verdict = f"{len(failed)} of {total} failed: {', '.join(failed)}"
    if not failed:
        verdict = f"All {total} agree with PyTorch"
    if waiting:
        verdict += f"; not here: {', '.join(waiting)}"
    sections = (
        Section("Targets", (_targets(data),)),
        Section("Latency", tuple(_latency(data["bench"]))),
        Section("CReLU sites", tuple(site_parts(data))),
        Section("Errors", tuple(error_parts(data))),
        Section("Operators and sizes", tuple(operator_parts(data["targets"]))),
        Section("Environment", tuple(_environment(data))),
        Section("Commands", tuple(_commands(data))),
    )
    title = f"crelu-deploy report: {data['bundle']}"
    return Page(title, not failed, verdict, tuple(_summary(data)), sections)


def _summary(data: JSON) -> list[str]:
    """Return the fastest target at the first batch size, and what was compared."""
    rows = data["bench"]["rows"]
    first = [r for r in rows if r["batch"] == rows[0]["batch"] and r["ratio"] is not None]
    lines = []
    best = min(first, key=lambda row: row["ratio"], default=None)
    if best is not None and not best.get("clear", True):
        lines.append(
            "The machine was too busy, or the rounds too few, to tell which target is the fastest; "
            "run crelu bench again when it is idle"
        )
    elif best is not None:
        lines.append(
            f"Fastest at batch {best['batch']}: {best['target']}, {best['median_ms']:.2f} ms, "
            f"{best['ratio']:.2f} times the time of {BASELINE}"
        )
    sites = counted(len(data["sites"]), "CReLU site")
    lines.append(f"{sites}; compared on {counted(data['samples'], 'recorded sample')}")
    return [*lines, *data["notes"]]


def _targets(data: JSON) -> Table:
    first = {row["target"]: row for row in reversed(data["bench"]["rows"])}
    rows = []
    for target in data["targets"]:
        timed = first.get(target["target"], {})
        rows.append(
            (
                code_cell(target["target"]),
                Cell("not here") if target.get("skipped") else verdict_cell(target["passed"]),
                number_cell(target["score"], ".2f"),
                number_cell(target["max_abs"], ".1e"),
                Cell(_decisions(target)),
                number_cell(timed.get("median_ms"), ".2f", " ms"),
                number_cell(timed.get("ratio"), ".2f", " x"),
                Cell("; ".join(filter(None, (target["worst"], target.get("note"))))),
            )
        )
    batch = data["bench"]["rows"][0]["batch"] if data["bench"]["rows"] else 1
    caption = (
        f"Every target: its distance from PyTorch's outputs (score 1.00 is the limit), its equal "
        f"decisions and its latency at batch {batch}; the ratio is time over that of {BASELINE}"
    )
    errors, times = ("score>", "max error>", "decisions>"), ("median>", "ratio>")
    return Table(caption, ("target", "verdict", *errors, *times, "worst element"), tuple(rows))


def _decisions(target: JSON) -> str:
    agreement = target.get("agreement")
    return f"{agreement['equal']}/{agreement['rows']}" if agreement else "-"


def _latency(bench: JSON) -> list[Part]:
    rows, parts = bench["rows"], list[Part]()
    if not rows:
        parts.append("Nothing was timed; run: crelu bench")
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    for batch in batches:
        parts.append(_ranges([row for row in rows if row["batch"] == batch], batch))
    if len(batches) > 1:
        parts.append(_sweep(rows, batches))
    if rows:
        parts.append(_timings(rows))
    if bench["not_timed"]:
        refused = tuple((code_cell(name), Cell(why)) for name, why in bench["not_timed"].items())
        parts.append(Table("Not timed", ("target", "reason"), refused))
    return parts


def _ranges(rows: Sequence[JSON], batch: int) -> Ranges:
    caption = f"Batch {batch}: median of one call, and the range from the 10th to 90th percentile"
    ranges = (Range(r["target"], r["p10_ms"], r["median_ms"], r["p90_ms"]) for r in rows)
    return Ranges(caption, tuple(ranges))


def _sweep(rows: Sequence[JSON], batches: Sequence[int]) -> Curves:
    curves = []
    for name in dict.fromkeys(row["target"] for row in rows):
        own = [row for row in rows if row["target"] == name]
        curves.append(Curve(name, tuple((r["batch"], r["median_ms"] / r["batch"]) for r in own)))
    return Curves(
        "Batch sweep: median time for each sample", "batch", "ms per sample", tuple(curves)
    )


def _differs(row: JSON) -> str:
    if row["target"] == str(BASELINE):
        return "-"
    if not row.get("clear", True):
        return "too busy to tell"
    return "yes" if row.get("significant", True) else "no"


def _timings(rows: Sequence[JSON]) -> Table:
    on_gpu = any("gpu_ms" in row for row in rows)
    cells = tuple(
        (
            code_cell(row["target"]),
            number_cell(row["batch"], "d"),
            number_cell(row["median_ms"], ".3f"),
            *((number_cell(row.get("gpu_ms"), ".3f"),) if on_gpu else ()),
            number_cell(row["p10_ms"], ".3f"),
            number_cell(row["p90_ms"], ".3f"),
            number_cell(row["median_ms"] / row["batch"], ".3f"),
            number_cell(row["runs"], "d"),
            number_cell(row["ratio"], ".2f"),
            Cell(_differs(row)),
        )
        for row in rows
    )
    gpu = ("GPU>",) if on_gpu else ()
    times = ("median>", *gpu, "p10>", "p90>", "per sample>", "runs>", "ratio>")
    columns = ("target", "batch>", *times, "differs")
    caption = f"Milliseconds, interleaved in one process; ratio to {BASELINE} at the same batch"
    return Table(caption, columns, cells)


def _environment(data: JSON) -> list[Part]:
    source = data["source"] or {}
    facts = {
        "measured": data["date"],
        **{k: v for k, v in data["bench"]["environment"].items() if not isinstance(v, Mapping)},
        **data["bench"]["environment"].get("versions", {}),
        "opset": data["opset"],
        "inputs": "; ".join(data["inputs"]),
        "outputs": ", ".join(data["outputs"]),
        "images become": data.get("images"),
        "checkpoint": source.get("path"),
        "checkpoint sha256": source.get("sha256"),
        "architecture": source.get("arch"),
    }
    rows = tuple((Cell(k), Cell(str(v))) for k, v in facts.items() if v is not None)
    return [Table("Where this was measured, and on what", ("what", "value"), rows)]


def _commands(data: JSON) -> list[Part]:
    """Return what repeats each row, to be run beside the bundle's folder."""
    bundle, rows = shlex.quote(data["bundle"]), []
    threads = data["bench"]["environment"].get("threads")
    batches = {
        t["target"]: sorted(
            {r["batch"] for r in data["bench"]["rows"] if r["target"] == t["target"]}
        )
        for t in data["targets"]
    }
    for name, timed in batches.items():
        rows.append(
            (
                code_cell(name),
                Cell("errors"),
                code_cell(f"crelu verify {bundle} -t {name} --locate"),
            )
        )
        if timed:
            sizes = ",".join(map(str, timed))
            command = f"crelu bench {bundle} -t {name} --batch {sizes} --threads {threads}"
            rows.append((code_cell(name), Cell("latency"), code_cell(command)))
    caption = "What repeats each row, in the folder that holds the bundle"
    return [Table(caption, ("target", "figures", "command"), tuple(rows))]
