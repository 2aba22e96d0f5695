"""Proofs as text for people and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from crelu_deploy.proof import Proof
from crelu_deploy.tables import Section, add, counted, section

JSON = dict[str, Any]


def proof_json(proof: Proof | None) -> JSON | None:
    """Return what is known of every site, and what is wrong."""
    if proof is None:
        return None
    return {
        "proved": proof.proved,
        "sites": {
            name: {"proved": site.proved, "roundings": site.roundings, "verdict": str(site)}
            for name, site in proof.sites.items()
        },
        "faults": list(proof.faults),
        "open": proof.open,
    }


def proofs_parts(proofs: Mapping[str, Proof | None]) -> list[Section]:
    """Return a table of what is proved of the sites of each target; none where nothing is known."""
    known = {name: proof for name, proof in proofs.items() if proof is not None}
    if not known:
        return []
    table = section("proof    from the files alone", "target!", "sites", "verdict")
    for target, proof in known.items():
        for sites, verdict in _alike(proof):
            add(table, target, sites, verdict)
        if proof.open:
            add(table, target, "-", f"not provable: {proof.open}")
        for fault in proof.faults:
            if not fault.startswith("site "):
                add(table, target, "-", f"refuted: {fault}")
    return [table] if table.row_count else []


def _alike(proof: Proof) -> list[tuple[str, str]]:
    """Return the sites of each verdict, named together."""
    sites: dict[str, list[str]] = {}
    for name, site in proof.sites.items():
        sites.setdefault(str(site), []).append(name)
    return [(", ".join(names), verdict) for verdict, names in sites.items()]


def proof_line(proof: Proof) -> str:
    """Return a proof in a line."""
    if proof.faults:
        return f"proof    refuted: {proof.faults[0]}"
    if proof.open:
        return f"proof    not provable: {proof.open}"
    counts = Counter(str(site) for site in proof.sites.values())
    told = ", ".join(f"{counted(n, 'site')} {verdict}" for verdict, n in counts.items())
    return f"proof    {told or 'nothing but the sites was to be changed, and nothing was'}"
