"""Results as text for people and as JSON for programs; nothing is computed here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape
from rich.table import Table

from crelu_deploy.accuracy import Comparison
from crelu_deploy.bundle import Bundle
from crelu_deploy.doctor import Health
from crelu_deploy.optimizer import Inspection, Optimized
from crelu_deploy.results import Benchmark, Build, Verification
from crelu_deploy.sites import Site
from crelu_deploy.targets import BASELINE, Target

if TYPE_CHECKING:
    from crelu_deploy.deployment import Deployment  # which imports PyTorch

JSON = dict[str, Any]


def number(value: float) -> float | None:
    """Return a number that JSON has: None for infinity and NaN."""
    return value if math.isfinite(value) else None


def _table(title: str, *columns: str) -> Table:
    """Return an empty table; ``>`` behind a heading aligns right, ``!`` keeps cells in one line."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        heading = column.rstrip(">!")
        kept = column != heading
        justify: Literal["left", "right"] = "right" if column.endswith(">") else "left"
        table.add_column(heading, justify=justify, no_wrap=kept, overflow="fold")
    return table


def _add(table: Table, *cells: object) -> None:
    """Add a row; names come from files and are shown as they are, control characters escaped."""
    table.add_row(*(escape(_printable(str(cell))) for cell in cells))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _site(site: Site) -> JSON:
    fields = asdict(site)
    return {**fields, "consumers": list(site.consumers)}


def inspection_json(found: Inspection) -> JSON:
    """Return sites and near misses under their fixed names."""
    return {
        "sites": [_site(site) for site in found.sites],
        "near_misses": [asdict(miss) for miss in found.near_misses],
    }


def inspection_tables(found: Inspection) -> list[Table]:
    """Return a table of the sites and, where there are any, one of the near misses."""
    title = f"{len(found.sites)} CReLU site{'' if len(found.sites) == 1 else 's'}"
    table = _table(title, "site", "spelling", "activation", "axis>", "producer", "fold")
    for site in found.sites:
        fold = "yes" if site.foldable else f"no: {site.reason}"
        name = f"{site.activation} with scale and shift" if site.affine else site.activation
        _add(table, site.name, site.spelling, name, site.axis, site.producer or "-", fold)
    tables = [table]
    if found.near_misses:
        missed = _table("left alone", "node", "why it is no CReLU")
        for miss in found.near_misses:
            _add(missed, miss.name, miss.reason)
        tables.append(missed)
    return tables


def optimized_json(done: Optimized) -> JSON:
    """Return what the tables of ``optimized_tables`` show."""
    return {
        **inspection_json(done.inspection),
        "lowerings": dict(done.lowerings),
        "reasons": dict(done.reasons),
        "before": dict(done.before),
        "after": dict(done.after),
        "bit_equal": done.bit_equal,
        "score": None if done.comparison is None else number(done.comparison.score),
        "max_abs": None if done.comparison is None else number(done.comparison.max_abs),
    }


def optimized_parts(done: Optimized, out: Path) -> list[Table | str]:
    """Return the lowering of each site, the operators before and after, and the check's result."""
    sites = _table("sites", "site", "spelling", "lowering", "note")
    for site in done.inspection.sites:
        lowering = done.lowerings.get(site.name, "unchanged")
        _add(sites, site.name, site.spelling, lowering, done.reasons.get(site.name, site.reason))
    counts = _table("operators", "operator", "before>", "after>")
    for name in sorted({*done.before, *done.after}):
        before, after = done.before.get(name, 0), done.after.get(name, 0)
        if before != after:
            _add(counts, name, before, after)
    _add(counts, "all", sum(done.before.values()), sum(done.after.values()))
    return [sites, counts, _check_line(done), f"wrote    {out}"]


def _check_line(done: Optimized) -> str:
    if done.comparison is None:
        return "not compared with the original"
    if done.bit_equal:
        return "check    outputs bit-equal to the original's on random inputs (1 thread)"
    return (
        f"check    largest error {done.comparison.max_abs:.1e} against the original on random "
        f"inputs; score {done.comparison.score:.2f}, limit 1"
    )


def builds_json(builds: Sequence[Build]) -> JSON:
    """Return how each build ended."""
    rows = [{**asdict(done), "target": str(done.target)} for done in builds]
    return {"passed": not any(done.error for done in builds), "targets": rows}


def builds_table(builds: Sequence[Build]) -> Table:
    """Return a row per target: seconds, and how many sites got which lowering."""
    table = _table("build", "target!", "time>", "sites")
    for done in builds:
        seconds = f"{done.seconds:.1f} s"
        _add(table, done.target, seconds, f"FAILED: {done.error}" if done.error else _mix(done))
    return table


def _mix(done: Build) -> str:
    """Return how many sites got which lowering: ``2 fold, 4 mirror``."""
    counts = Counter(done.lowerings.values())
    return ", ".join(f"{count} {lowering}" for lowering, count in counts.items())


def verifications_json(found: Sequence[Verification]) -> JSON:
    """Return the verdicts under their fixed names; what is not finite is null."""
    rows = [
        {
            "target": str(v.target),
            "passed": v.passed,
            "score": None if v.comparison is None else number(v.comparison.score),
            "max_abs": None if v.comparison is None else number(v.comparison.max_abs),
            "worst": v.error if v.comparison is None else v.comparison.worst,
        }
        for v in found
    ]
    return {"passed": all(v.passed for v in found), "targets": rows}


def verifications_table(found: Sequence[Verification], samples: int) -> Table:
    """Return a row per target: score, largest error, the worst element, the verdict."""
    title = f"verify   {samples} samples against PyTorch; score 1.00 is the limit"
    table = _table(title, "target!", "score>", "max error>", "worst at", "")
    for v in found:
        verdict = "ok" if v.passed else "FAILED"
        if v.comparison is None:
            _add(table, v.target, "-", "-", v.error, verdict)
        else:
            score, error = f"{v.comparison.score:.2f}", f"{v.comparison.max_abs:.1e}"
            _add(table, v.target, score, error, v.comparison.worst, verdict)
    return table


def benchmark_json(found: Benchmark) -> JSON:
    """Return environment and rows under their fixed names, milliseconds and time ratios."""
    rows = [
        {
            "target": str(row.target),
            "batch": row.batch,
            "median_ms": row.latency.median,
            "p10_ms": row.latency.p10,
            "p90_ms": row.latency.p90,
            "runs": row.latency.runs,
            "ratio": number(row.ratio),
        }
        for row in found.rows
    ]
    refused: Mapping[str, str] = {
        **{str(v.target): v.error or "verification failed" for v in _failed(found)},
        **found.refused,
    }
    return {"environment": dict(found.environment), "rows": rows, "not_timed": dict(refused)}


def _failed(found: Benchmark) -> list[Verification]:
    return [v for v in found.verifications if not v.passed]


def benchmark_table(found: Benchmark) -> Table:
    """Return a row per target and batch size, with the spread, and what was not timed."""
    threads = found.environment["threads"]
    threads = f"{threads} thread{'' if threads == 1 else 's'}"
    title = f"bench    interleaved, {threads}, {found.environment['cpu']}; ratio to {BASELINE}"
    table = _table(title, "target!", "batch>", "median>", "p10 .. p90>", "runs>", "ratio>")
    for row in found.rows:
        t = row.latency
        spread = f"{t.p10:.2f} .. {t.p90:.2f} ms"
        cells = (row.target, row.batch, f"{t.median:.2f} ms", spread, t.runs, f"{row.ratio:.2f} x")
        _add(table, *cells)
    for v in _failed(found):
        reason = "not timed: " + (v.error or "verification failed")
        _add(table, v.target, "", "", reason, "", "")
    for name, reason in found.refused.items():
        _add(table, name, "", "", f"not timed: {reason}", "", "")
    return table


def export_json(bundle: Bundle) -> JSON:
    """Return the manifest and where it is."""
    return {"bundle": str(bundle.path), **bundle.manifest}


def export_parts(bundle: Bundle) -> list[Table | str]:
    """Return what was written, the sites with their lowerings, and the verification."""
    manifest = bundle.manifest
    sites, notes = manifest["sites"], manifest["notes"]
    first = f"export   {bundle.path}   opset {manifest['opset']}, {len(sites)} CReLU"
    lines = [first, *(f"         {_printable(note)}" for note in notes)]
    verifications = [
        Verification(Target.parse(name), Comparison(v["score"], v["max_abs"], v["worst"]))
        for name, v in manifest["verification"].items()
    ]
    lowerings = manifest["targets"]["ort-cpu:auto"]["lowerings"]
    table = _table("sites", "site", "spelling", "producer", "on ort-cpu")
    for site in sites:
        _add(table, site["name"], site["spelling"], site["producer"], lowerings[site["name"]])
    return [*lines, table, verifications_table(verifications, len(bundle.samples))]


def deployment_json(done: Deployment) -> JSON:
    """Return the stages' results under their names."""
    return {
        "export": export_json(done.bundle),
        "build": builds_json(done.builds),
        "verify": verifications_json(done.benchmark.verifications),
        "bench": benchmark_json(done.benchmark),
    }


def deployment_parts(done: Deployment) -> list[Table | str]:
    """Return a table per stage."""
    return [
        *export_parts(done.bundle)[:-1],
        builds_table(done.builds),
        verifications_table(done.benchmark.verifications, len(done.bundle.samples)),
        benchmark_table(done.benchmark),
    ]


def health_json(found: Sequence[Health]) -> JSON:
    """Return the state of every backend."""
    return {"backends": [asdict(health) for health in found]}


def health_table(found: Sequence[Health]) -> Table:
    """Return a row per backend."""
    table = _table("backends", "backend!", "!", "")
    for health in found:
        _add(table, health.backend, "ok" if health.works else "missing", health.summary)
    return table
