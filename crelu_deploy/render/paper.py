"""The zoo and the analyses as text and as JSON; nothing is computed here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crelu_deploy.tables import Section, add, section

if TYPE_CHECKING:  # all of these import PyTorch
    from torch import Tensor

    from crelu_deploy.analysis.invariance import Invariance
    from crelu_deploy.analysis.outgoing import Outgoing
    from crelu_deploy.analysis.pairing import Pairing
    from crelu_deploy.analysis.signs import Signs
    from crelu_deploy.models import Entry

JSON = dict[str, Any]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def zoo_json(rows: Sequence[Entry]) -> JSON:
    """Return the architectures under their fixed names; counts are exact integers."""
    return {"rows": [_zoo_row(row) for row in rows]}


def _zoo_row(row: Entry) -> JSON:
    return {
        "name": row.name,
        "classes": row.classes,
        "params": row.cost.params,
        "params_weights": row.cost.weights,
        "params_folded": row.cost.params_folded,
        "reported": row.reported,
        "verdict": row.verdict,
        "macs": row.cost.macs,
        "macs_folded": row.cost.macs_folded,
        "input": list(row.shape),
    }


def zoo_tables(rows: Sequence[Entry]) -> list[Section]:
    """Return a table of the parameters and one of the work, each with a row per architecture."""
    size = section("parameters", "name!", "all>", "no biases>", "reported>", "verdict")
    work = section(
        "multiply-adds, batch 1; folded: layers before a CReLU duplicated, batch norm gone",
        *("name!", "input!", "classes>", "MMAC>", "folded>", "params folded>"),
    )
    for row in rows:
        c = row.cost
        counts = (f"{c.params:,}", f"{c.weights:,}", row.reported or "-")
        add(size, row.name, *counts, row.verdict)
        macs = (f"{c.macs / 1e6:.1f}", f"{c.macs_folded / 1e6:.1f}", f"{c.params_folded:,}")
        add(work, row.name, "x".join(map(str, row.shape)), row.classes, *macs)
    return [size, work]


def pairing_json(found: Mapping[str, Pairing]) -> JSON:
    """Return the statistics of every layer's pairing."""
    return {"layers": [{"name": name, **_pairing_row(p)} for name, p in found.items()]}


def _pairing_row(found: Pairing) -> JSON:
    ks, wasserstein = found.distances
    return {
        "filters": len(found.cosines),
        "mean": found.cosines.mean().item(),
        "median": found.cosines.median().item(),
        "min": found.cosines.min().item(),
        "below_half": found.opposite,
        "baseline_mean": found.baseline.mean().item(),
        "ks": ks,
        "wasserstein": wasserstein,
        "zero_filters": found.zeros,
    }


def pairing_table(found: Mapping[str, Pairing]) -> Section:
    """Return a row per layer, the Gaussian baseline beside it."""
    title = "pairing: smallest cosine of each filter to another, beside Gaussian filters"
    table = section(
        title, *("layer!", "filters>", "mean>", "Gaussian>", "median>", "min>"),
        *("< -0.5>", "KS>", "W1>"),
    )  # fmt: skip
    for name, result in found.items():
        r = _pairing_row(result)
        means = (f"{r[k]:.3f}" for k in ("mean", "baseline_mean", "median", "min"))
        share = f"{r['below_half']:.0%}"
        add(table, name, r["filters"], *means, share, f"{r['ks']:.2f}", f"{r['wasserstein']:.3f}")
    return table


def outgoing_json(found: Mapping[str, Outgoing]) -> JSON:
    """Return mean and deviation of the correlations for every reading layer."""
    return {"layers": [{"name": name, **_outgoing_row(o)} for name, o in found.items()]}


def _outgoing_row(found: Outgoing) -> JSON:
    return {
        "channels": len(found.pairs),
        **_moments("pairs", found.pairs),
        **_moments("others", found.others),
    }


def _moments(name: str, values: Tensor) -> JSON:
    deviation = (
        values.std(correction=min(1, max(len(values) - 1, 0))).item() if len(values) else 0.0
    )
    return {f"{name}_mean": _finite(values.mean().item()), f"{name}_deviation": _finite(deviation)}


def outgoing_table(found: Mapping[str, Outgoing]) -> Section:
    """Return a row per reading layer."""
    title = "outgoing: correlation of the weights that read the two halves of a CReLU"
    table = section(title, "layer -> reader!", "channels>", "pairs>", "other channels>")
    for name, result in found.items():
        r = _outgoing_row(result)
        cells = (_spread(r[f"{k}_mean"], r[f"{k}_deviation"]) for k in ("pairs", "others"))
        add(table, name, r["channels"], *cells)
    return table


def _spread(mean: float | None, deviation: float | None) -> str:
    return "-" if mean is None or deviation is None else f"{mean:+.3f} +- {deviation:.3f}"


def signs_json(found: Mapping[str, Signs]) -> JSON:
    """Return shares, losses in bits, and what can be pruned or merged, per reading layer."""
    return {"layers": [{"name": name, **_signs_row(s)} for name, s in found.items()]}


def _signs_row(found: Signs) -> JSON:
    smallest = int(found.norms.argmin())
    return {
        "same_sign": found.same,
        "zero": found.zero,
        "bits": found.bits,
        "bits_same_sign": _finite(found.bits_same),
        "prunable": list(found.dead),
        "mergeable": list(found.proportional),
        "smallest_half": smallest,
        "smallest_norm": (found.norms[smallest] / (found.norms.mean() or 1)).item(),
        "norms": found.norms.tolist(),
    }


def signs_table(found: Mapping[str, Signs]) -> Section:
    """Return a row per reading layer."""
    title = "signs: weights of one sign on both halves lose the sign of what they read"
    table = section(
        title, "layer -> reader!", "same>", "bits>", "prunable>", "mergeable>", "least read>"
    )
    for name, result in found.items():
        r = _signs_row(result)
        counts = (len(r["prunable"]), len(r["mergeable"]))
        least = f"half {r['smallest_half']}: {r['smallest_norm']:.2f} of mean"
        add(table, name, f"{r['same_sign']:.1%}", f"{r['bits']:.3f}", *counts, least)
    return table


def invariance_json(found: Mapping[str, Invariance], terms: JSON) -> JSON:
    """Return every layer's score, and the terms on which it was measured."""
    rows = [
        {
            "name": name,
            "score": _finite(result.score),
            "units": len(result.scores),
            "skipped": result.skipped,
        }
        for name, result in found.items()
    ]
    return {**terms, "layers": rows}


def invariance_table(found: Mapping[str, Invariance], terms: JSON) -> Section:
    """Return a row per layer."""
    title = (
        f"invariance: g = {terms['rate']:g}, best {terms['best']:.0%} of the units, at the map's "
        f"centre, {terms['images']} images, at least {terms['minimum']} firing; {terms['moves']}"
    )
    table = section(title, "layer!", "score>", "best possible>", "units>", "skipped>")
    for name, result in found.items():
        score = f"{result.score:.2f}" if len(result.scores) else "-"
        limit = f"{1 / terms['rate']:.0f}"
        add(table, name, score, limit, len(result.scores), result.skipped)
    return table
