"""How builds ended, as text for people and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from crelu_deploy.render.proofs import proof_json, proofs_parts
from crelu_deploy.results import Build, succeeded
from crelu_deploy.tables import Section, add, section

JSON = dict[str, Any]


def builds_json(builds: Sequence[Build]) -> JSON:
    """Return how each build ended."""
    rows = [
        {**asdict(done), "target": str(done.target), "proof": proof_json(done.proof)}
        for done in builds
    ]
    return {"passed": succeeded(builds), "targets": rows}


def builds_parts(builds: Sequence[Build]) -> list[Section]:
    """Return how the builds ended, and what is proved of each site."""
    return [builds_table(builds), *proofs_parts({str(b.target): b.proof for b in builds})]


def builds_table(builds: Sequence[Build]) -> Section:
    """Return a row per target: seconds, and how many sites got which lowering."""
    table = section("build", "target!", "time>", "sites")
    for done in builds:
        seconds = f"{done.seconds:.1f} s"
        state = "not here" if done.skipped else "FAILED"
        add(table, done.target, seconds, f"{state}: {done.error}" if done.error else _mix(done))
    return table


def _mix(done: Build) -> str:
    """Return how many sites got which lowering, an engine's final layers, and int8's precision."""
    sites = _counts(Counter(done.lowerings.values()))
    if done.weight_bits:
        return f"{sites}; weights of {done.weight_bits} bits"
    return f"{sites}; final layers: {_counts(done.layers)}" if done.layers else sites


def _counts(counts: Mapping[str, int]) -> str:
    """Return them as in ``2 fold, 4 mirror``."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


SHOWN = 6
"""Sites that are named in the line on coverage."""


def coverage_line(coverage: Mapping[str, Mapping[str, int]], what: str = "samples") -> str:
    """Say how many channels of which sites fire on ``what``; empty where nobody counted."""
    if not coverage:
        return ""
    total, both, none = (
        sum(counts[key] for counts in coverage.values()) for key in ("channels", "both", "none")
    )
    if both == total:
        return f"{what} make both halves of all {total} channels fire"
    named = [f"{c['both']} of {c['channels']} in {site}" for site, c in coverage.items()]
    shown = ", ".join(named) if len(named) <= SHOWN else f"{both} of {total}"
    half = total - both - none
    rest = [f"of {half} one half alone"] * (half > 0) + [f"{none} never fire"] * (none > 0)
    where = f"both halves of the channels fire: {shown}"
    return f"{what} make {where}; {' and '.join(rest)} on any input tried"
