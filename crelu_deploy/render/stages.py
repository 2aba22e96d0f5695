"""Results as text for people and as JSON for programs; nothing is computed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crelu_deploy.accuracy import Comparison
from crelu_deploy.bundle import Bundle
from crelu_deploy.extremes import SAME
from crelu_deploy.latency import Paired
from crelu_deploy.optimizer import Inspection, Optimized
from crelu_deploy.plan import ORIGINAL, PLAIN, RULE, Plan
from crelu_deploy.render.behind import behind_parts, number, sites_json
from crelu_deploy.render.build import builds_json as builds_json
from crelu_deploy.render.build import builds_parts as builds_parts
from crelu_deploy.render.build import builds_table as builds_table
from crelu_deploy.render.build import coverage_line
from crelu_deploy.render.proofs import proof_json, proof_line, proofs_parts
from crelu_deploy.results import Benchmark, Build, Load, Row, Verification, succeeded
from crelu_deploy.sites import Site
from crelu_deploy.tables import Section, add, counted, printable, section
from crelu_deploy.targets import BASELINE, Target

if TYPE_CHECKING:
    from crelu_deploy.deployment import Deployment  # which imports PyTorch

JSON = dict[str, Any]


def _site(site: Site) -> JSON:
    fields = asdict(site)
    return {**fields, "consumers": list(site.consumers)}


def inspection_json(found: Inspection) -> JSON:
    """Return sites and near misses under their fixed names."""
    return {
        "sites": [_site(site) for site in found.sites],
        "near_misses": [asdict(miss) for miss in found.near_misses],
    }


def inspection_tables(found: Inspection) -> list[Section]:
    """Return a table of the sites and, where there are any, one of the near misses."""
    title = counted(len(found.sites), "CReLU site")
    table = section(title, "site", "spelling", "activation", "axis>", "producer", "fold")
    for site in found.sites:
        fold = "yes" if site.foldable else f"no: {site.reason}"
        name = f"{site.activation} with scale and shift" if site.affine else site.activation
        add(table, site.name, site.spelling, name, site.axis, site.producer or "-", fold)
    tables = [table]
    if found.near_misses:
        missed = section("left alone", "node", "why it is no CReLU")
        for miss in found.near_misses:
            add(missed, miss.name, miss.reason)
        tables.append(missed)
    return tables


def optimized_json(done: Optimized) -> JSON:
    """Return what the tables of ``optimized_tables`` show."""
    return {
        **inspection_json(done.inspection),
        "lowerings": dict(done.lowerings),
        "reasons": dict(done.reasons),
        "removed": {site: asdict(removal) for site, removal in done.removed.items()},
        "before": dict(done.before),
        "after": dict(done.after),
        "plan": None if done.plan is None else plan_json(done.plan),
        "proof": proof_json(done.proof),
        "bit_equal": done.bit_equal,
        "score": None if done.comparison is None else number(done.comparison.score),
        "max_abs": None if done.comparison is None else number(done.comparison.max_abs),
        "inputs": 0 if done.compared is None else done.compared.inputs,
        "searched": 0 if done.compared is None else done.compared.searched,
        "coverage": {} if done.compared is None else dict(done.compared.coverage),
    }


def optimized_parts(done: Optimized, out: Path) -> list[Section | str]:
    """Return the lowering of each site, the operators before and after, and the check's result."""
    sites = section("sites", "site", "spelling", "lowering", "proof", "note")
    proved = {} if done.proof is None else done.proof.sites
    for site in done.inspection.sites:
        lowering, name = done.lowerings.get(site.name, "unchanged"), site.name
        note = done.reasons.get(name, site.reason)
        add(sites, name, site.spelling, lowering, proved.get(name, "-"), note)
    counts = section("operators", "operator", "before>", "after>")
    for name in sorted({*done.before, *done.after}):
        before, after = done.before.get(name, 0), done.after.get(name, 0)
        if before != after:
            add(counts, name, before, after)
    add(counts, "all", sum(done.before.values()), sum(done.after.values()))
    return [
        sites,
        *_pruned_section(done),
        *([] if done.plan is None else _timed(done.plan)),
        counts,
        *([] if done.proof is None else [proof_line(done.proof)]),
        *_check_lines(done),
        f"wrote    {printable(str(out))}",
    ]


def _pruned_section(done: Optimized) -> list[Section]:
    if not done.removed:
        return []
    table = section("dead halves removed", "site", "filters>", "both alive>", "one>", "none>")
    for site, removal in done.removed.items():
        single = len(removal.positive) + len(removal.negative)
        add(table, site, removal.channels, removal.both, single, len(removal.dropped))
    return [table]


def _check_lines(done: Optimized) -> list[str]:
    """Return how the result compares with the original, and what fires on the inputs."""
    if (found := done.compared) is None:
        return ["not compared with the original"]
    inputs = f"{counted(found.inputs - found.searched, 'random input')}"
    inputs += f" and {found.searched} searched" if found.searched else ""
    line = f"check    outputs bit-equal to the original's on {inputs} (1 thread)"
    if not found.bit_equal:
        error, score = f"{found.comparison.max_abs:.1e}", f"{found.comparison.score:.2f}"
        line = f"check    largest error {error} against the original on {inputs}; "
        line += f"score {score}, limit 1"
    told = coverage_line(found.coverage, "inputs")
    return [line, *([f"         {printable(told)}"] if told else [])]


def plan_json(made: Plan, built: Build | None = None) -> JSON:
    """Return the plan, and why sites did not get the lowering that it names."""
    return {**asdict(made), "reasons": {} if built is None else dict(built.reasons)}


def plan_tables(made: Plan, built: Build | None = None) -> list[Section | str]:
    """Return the lowering of each site, and the mixes that were timed."""
    table = section(f"plan     {made.backend}, {_how(made)}", "site", "lowering!", "note")
    for site, lowering in made.choice.items():
        add(table, site, lowering, "" if built is None else built.reasons.get(site, ""))
    return [table, *_timed(made)]


def _timed(made: Plan) -> list[Section | str]:
    """Return how a plan was made and, where forms were timed, each one's ratio to the first."""
    if not made.ratios:
        return []
    plain = ORIGINAL if ORIGINAL in made.ratios else PLAIN
    heading = f"timed    {_how(made)}; ratio to {NAMES[plain]}"
    timed = section(heading, "choice!", "ratio>")
    for name, ratio in sorted(made.ratios.items(), key=lambda item: item[1]):
        add(timed, name, f"{ratio:.2f} x")
    return [timed] if made.key.get("sure", True) else [timed, UNSURE]


UNSURE = "         too busy a machine to be sure of what seems faster: run it again when it is idle"


NAMES = {PLAIN: "all sites primitive", ORIGINAL: "the original"}


def _how(made: Plan) -> str:
    if made.how == RULE:
        return "by rule"
    inputs = [", ".join(dict(one).values()) for one in made.key.get("inputs", ())]
    threads = counted(made.key.get("threads", 0), "thread")
    return f"{made.how} here on {' and '.join(inputs)}, {threads}"


def verifications_json(found: Sequence[Verification]) -> JSON:
    """Return the verdicts under their fixed names; what is not finite is null."""
    rows = [
        {
            "target": str(v.target),
            "passed": v.passed,
            "skipped": v.skipped,
            "score": None if v.comparison is None else number(v.comparison.score),
            "max_abs": None if v.comparison is None else number(v.comparison.max_abs),
            "worst": v.why or (v.comparison.worst if v.comparison is not None else ""),
            "agreement": None if v.agreement is None else asdict(v.agreement),
            "proof": proof_json(v.proof),
            "behind": sites_json(v.sites),
            "note": v.note,
            "extremes": v.extremes,
        }
        for v in found
    ]
    return {"passed": succeeded(found), "targets": rows}


def verifications_parts(
    found: Sequence[Verification], samples: int, sizes: Sequence[str] = ()
) -> list[object]:
    """Return the verdicts, the errors behind the sites, and what is proved of them."""
    proofs = proofs_parts({str(v.target): v.proof for v in found})
    return [
        verifications_table(found, samples),
        *([f"sizes    also at {', '.join(sizes)}"] if sizes else []),
        *behind_parts(found),
        *_extremes(found),
        *proofs,
    ]


def _extremes(found: Sequence[Verification]) -> list[Section]:
    """Return what targets make of NaN and infinities that PyTorch does not."""
    table = section("NaN and infinities as inputs", "target!", "the outputs")
    for v in found:
        if v.extremes not in ("", SAME):
            add(table, v.target, v.extremes)
    return [table] if table.rows else []


def verifications_table(found: Sequence[Verification], samples: int) -> Section:
    """Return a row per target: score, largest error, equal decisions, worst element, verdict."""
    title = f"verify   {samples} samples against PyTorch; score 1.00 is the limit"
    table = section(title, "target!", "score>", "max error>", "decisions>", "worst at", "!")
    for v in found:
        verdict = "ok" if v.passed else "not here" if v.skipped else "FAILED"
        if v.comparison is None:
            add(table, v.target, "-", "-", "-", v.error, verdict)
        else:
            score, error = f"{v.comparison.score:.2f}", f"{v.comparison.max_abs:.1e}"
            worst = v.why or v.comparison.worst
            worst = f"{worst}; {v.note}" if v.note else worst
            add(table, v.target, score, error, v.agreement or "-", worst, verdict)
    return table


def benchmark_json(found: Benchmark) -> JSON:
    """Return environment and rows under their fixed names, milliseconds and time ratios."""
    opening = {v.target: v.opening for v in found.verifications}
    rows = [
        {
            "target": str(row.target),
            "batch": row.batch,
            "median_ms": row.latency.median,
            "p10_ms": row.latency.p10,
            "p90_ms": row.latency.p90,
            **({} if row.latency.gpu is None else {"gpu_ms": row.latency.gpu}),
            "runs": row.latency.runs,
            "ratio": number(row.ratio),
            "significant": row.significant,
            "clear": row.clear,
            **_interval(row.against),
            "opening_s": opening[row.target],
        }
        for row in found.rows
    ]
    return {
        "environment": dict(found.environment),
        "end_to_end": found.end_to_end,
        "rows": rows,
        "not_timed": _not_timed(found),
    }


def _interval(against: Paired | None) -> JSON:
    """Return where the ratio lies beyond chance, and the ratio of the shortest times."""
    if against is None:
        return {"ratio_low": None, "ratio_high": None, "ratio_of_minima": None}
    return {
        "ratio_low": number(against.low),
        "ratio_high": number(against.high),
        "ratio_of_minima": number(against.minima),
    }


def loads_json(found: Sequence[Load]) -> list[JSON]:
    """Return rows per second and memory of each target and batch size."""
    return [{**asdict(load), "target": str(load.target)} for load in found]


def loads_table(found: Sequence[Load]) -> Section:
    """Return a row per target and batch size."""
    title = f"throughput with {counted(found[0].callers, 'caller') if found else 'no callers'}"
    table = section(title, "target!", "batch>", "rows per second>", "peak memory>")
    for load in found:
        peak = "not told" if load.peak_mib is None else f"{load.peak_mib:.0f} MiB"
        add(table, load.target, load.batch, f"{load.per_second:,.0f}", peak)
    return table


def _failed(found: Benchmark) -> list[Verification]:
    return [v for v in found.verifications if not v.passed]


def _why(verification: Verification) -> str:
    """Return why a target is not timed."""
    if verification.skipped:
        return f"not here: {verification.error}"
    return verification.why or verification.note or "verification failed"


def benchmark_tables(found: Benchmark) -> list[Section]:
    """Return a row per target and batch size, with the spread, and what was not timed and why."""
    threads, cpu = counted(found.environment["threads"], "thread"), found.environment["cpu"]
    title = f"bench    interleaved, {threads}, {cpu}; ratio to {BASELINE}, ~ no difference"
    title += "; with the copies to and from a GPU" if found.end_to_end else ""
    on_gpu = any(row.latency.gpu is not None for row in found.rows)
    times = ("median>", *(("GPU>",) if on_gpu else ()), "p10 .. p90>")
    table = section(title, "target!", "batch>", *times, "runs>", "ratio>")
    for row in found.rows:
        t = row.latency
        spread = f"{t.p10:.2f} .. {t.p90:.2f} ms"
        gpu = ("-" if t.gpu is None else f"{t.gpu:.2f} ms",) if on_gpu else ()
        ratio = f"{_mark(row)}{row.ratio:.2f} x"
        add(table, row.target, row.batch, f"{t.median:.2f} ms", *gpu, spread, t.runs, ratio)
    if any(_mark(row) == UNCLEAR for row in found.rows):
        table.caption, table.caption_justify = BUSY, "left"
    missed = section("not timed", "target!", "why")
    for name, reason in _not_timed(found).items():
        add(missed, name, reason)
    return [table, missed] if missed.rows else [table]


UNCLEAR = "? "
BUSY = "? the machine is too busy, or the rounds are too few, to tell: measure when it is idle"


def _mark(row: Row) -> str:
    """Return what stands before a ratio that says nothing, or that is none beyond chance."""
    if row.target == BASELINE or row.against is None:
        return ""
    return UNCLEAR if not row.clear else "" if row.significant else "~ "


def _not_timed(found: Benchmark) -> dict[str, str]:
    """Return target -> why it has no row."""
    return {**{str(v.target): _why(v) for v in _failed(found)}, **found.refused}


def export_json(bundle: Bundle) -> JSON:
    """Return the manifest and where it is."""
    return {"bundle": str(bundle.path), **bundle.manifest}


def export_parts(bundle: Bundle) -> list[Section | str]:
    """Return what was written, the sites with their lowerings, and the verification."""
    manifest = bundle.manifest
    verifications = [
        Verification(
            Target.parse(name),
            Comparison(v["score"], v["max_abs"], v["worst"]),
            extremes=v.get("extremes", ""),
        )
        for name, v in manifest["verification"].items()
    ]
    lowerings = manifest["targets"]["ort-cpu:auto"]["lowerings"]
    made = Plan.parse(manifest["plans"]["ort-cpu"])
    table = section(
        f"sites    on ort-cpu {_how(made)}", "site", "spelling", "producer", "on ort-cpu"
    )
    for site in manifest["sites"]:
        add(table, site["name"], site["spelling"], site["producer"], lowerings[site["name"]])
    checked = verifications_table(verifications, len(bundle.samples))
    return [*_written(bundle), *_timed(made), table, checked, *_extremes(verifications)]


def _written(bundle: Bundle) -> list[str]:
    """Return where a bundle is, and what is to be known of it, in lines."""
    sites, notes = bundle.manifest["sites"], bundle.manifest["notes"]
    path, opset = printable(str(bundle.path)), bundle.manifest["opset"]
    lines = [f"export   {path}   opset {opset}, {len(sites)} CReLU"]
    lines += [f"         {printable(note)}" for note in notes]
    if told := coverage_line(bundle.coverage):
        lines.append(f"         {printable(told)}")
    if bundle.limits.guards:
        lines.append(f"         inputs need {printable(str(bundle.limits))}")
    if bundle.preprocessing is not None:
        lines.append(f"         images become {bundle.preprocessing}")
    return lines


def deployment_json(done: Deployment) -> JSON:
    """Return the stages' results under their names."""
    return {
        "export": export_json(done.bundle),
        "plan": None if done.plan is None else plan_json(done.plan),
        "build": builds_json(done.builds),
        "verify": verifications_json(done.benchmark.verifications),
        "bench": benchmark_json(done.benchmark),
    }


def deployment_parts(done: Deployment) -> list[Section | str]:
    """Return a table per stage."""
    return [
        *_written(done.bundle),
        *([] if done.plan is None else plan_tables(done.plan)),
        builds_table(done.builds),
        verifications_table(done.benchmark.verifications, len(done.bundle.samples)),
        *benchmark_tables(done.benchmark),
    ]
