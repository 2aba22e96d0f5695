"""What became of planted faults, as text for people and as JSON for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from crelu_deploy.auditing import Audit, Planted
from crelu_deploy.auditing.faults import KINDS, SIMULATED
from crelu_deploy.tables import Section, add, counted, section

JSON = dict[str, Any]


def audit_json(done: Audit) -> JSON:
    """Return every fault and who caught it, and the counts of each kind."""
    return {
        "name": done.name,
        "provable": done.provable,
        "passed": not done.missed,
        "kinds": {kind: _counts(faults) for kind, faults in _by_kind(done).items()},
        "faults": [_fault(one) for one in done.planted],
    }


def _fault(one: Planted) -> JSON:
    told = {"kind": one.kind, "where": one.where, **asdict(one.examined)}
    return {**told, "caught": one.examined.caught}


def audit_parts(done: Audit) -> list[Section | str]:
    """Return a row per kind, and the faults that nothing caught."""
    visible = counted(len(done.visible), "visible fault")
    title = f"audit    {done.name}: {len(done.visible) - len(done.missed)} of {visible} caught"
    names = ("planted>", "visible>", "by the proof>", "by the samples>", "by either>", "missed>")
    table = section(title, "kind", *names)
    for kind, faults in _by_kind(done).items():
        name = f"{kind} (a runtime's, simulated)" if kind in SIMULATED else kind
        add(table, name, *_counts(faults).values())
    add(table, "all", *_counts(done.planted).values())
    parts: list[Section | str] = [table]
    if not done.provable:
        parts.append("the file is not provable: only the samples can catch a fault")
    if unseen := [
        one for one in done.visible if not one.examined.comparison and one.examined.caught
    ]:
        alone = section("by the proof alone: the samples do not notice", "kind", "where")
        for one in unseen:
            add(alone, one.kind, one.where)
        parts.append(alone)
    if done.missed:
        missed = section("missed   visible, and nothing noticed", "kind", "where")
        for one in done.missed:
            add(missed, one.kind, one.where)
        parts.append(missed)
    return parts


def _by_kind(done: Audit) -> dict[str, tuple[Planted, ...]]:
    found = {kind: tuple(p for p in done.planted if p.kind == kind) for kind in KINDS}
    return {kind: faults for kind, faults in found.items() if faults}


def _counts(faults: tuple[Planted, ...]) -> dict[str, int]:
    """Count those planted, and of the visible ones who caught them."""
    visible = [one.examined for one in faults if one.examined.visible]
    return {
        "planted": len(faults),
        "visible": len(visible),
        "by_proof": sum(bool(one.proof) for one in visible),
        "by_samples": sum(bool(one.comparison) for one in visible),
        "caught": sum(one.caught for one in visible),
        "missed": sum(not one.caught for one in visible),
    }
