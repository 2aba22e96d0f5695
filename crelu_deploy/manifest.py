"""The manifest of a bundle, read and checked field by field: it may come from anyone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.extremes import VALUES
from crelu_deploy.guards import Limits
from crelu_deploy.plan import Plan
from crelu_deploy.preprocessing import Preprocessing

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the manifest; a reader refuses a newer one."""

LONGEST_PATH = 255
"""Characters of the name of a bundle's file."""

_DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the content of a bundle's ``manifest.json``.

    Raises:
        UnsupportedModel: No bundle, a newer format, a field that is missing or of a wrong type, or
            a file outside the bundle.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise UnsupportedModel(f"{path}: not a bundle, it has no {MANIFEST}; run: crelu export")
    try:
        manifest = dict(json.loads(file.read_text(encoding="utf-8")))
        version = manifest["format"]
        known = version <= FORMAT
        if known:
            _check(manifest)
    except _DAMAGE as error:
        raise UnsupportedModel(f"{file}: damaged ({_short(error)}); export again") from error
    if not known:
        raise UnsupportedModel(f"{file}: format {version} is not {FORMAT}; update crelu-deploy")
    for name in manifest["files"]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UnsupportedModel(f"{file}: {name!r} lies outside the bundle")
    return manifest


def _short(error: Exception) -> str:
    text = repr(error)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _check(manifest: dict[str, Any]) -> None:
    """Look at every field that is read later.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: One is not what it should be.
    """
    _require("files", _texts(manifest["files"]) and manifest["files"])
    _require("files", max(map(len, manifest["files"])) <= LONGEST_PATH)
    _require("announced", manifest.get("announced", {}).keys() <= manifest["files"].keys())
    _require("inputs", manifest["inputs"] and all(map(_is_input, manifest["inputs"])))
    Limits.parse(manifest.get("guards", []), manifest["inputs"])
    searched = manifest.get("searched", 0)
    _require("searched", type(searched) is int and searched >= 0)
    _require("coverage", all(map(_is_coverage, manifest.get("coverage", {}).values())))
    _require("extremes", _is_extremes(manifest.get("extremes", {})))
    _require("allow_nan", isinstance(manifest.get("allow_nan", False), bool))
    outputs = manifest["outputs"]
    _require("outputs", outputs and all(isinstance(name, str) for name in outputs))
    _require("sites", all(map(_is_site, manifest["sites"])))
    misses = manifest.get("near_misses", [])
    _require("near misses", all(_texts(miss) and {"name", "reason"} <= {*miss} for miss in misses))
    _require("notes", all(isinstance(note, str) for note in manifest.get("notes", [])))
    _require("targets", all(map(_is_target, manifest["targets"].values())))
    sites = {site["name"] for site in manifest["sites"]}
    for target in manifest["targets"].values():
        _require("lowerings", target["lowerings"].keys() <= sites)
    for plan in manifest.get("plans", {}).values():
        Plan.parse(plan)
    if (how := manifest.get("preprocessing")) is not None:
        Preprocessing.parse(how)
    if (source := manifest.get("source")) is not None:
        _require("source", _is_source(source))


def _require(field: str, holds: object) -> None:
    if not holds:
        raise ValueError(f"its {field} are missing or of a wrong type")


def _texts(mapping: dict[str, Any]) -> bool:
    return all(isinstance(text, str) for text in mapping.values())


def _is_site(entry: dict[str, Any]) -> bool:
    flags = isinstance(entry["affine"], bool) and isinstance(entry["foldable"], bool)
    texts = {key: entry[key] for key in ("name", "spelling", "activation", "producer", "reason")}
    return flags and type(entry["axis"]) is int and _texts(texts)


def _is_coverage(entry: dict[str, Any]) -> bool:
    return all(type(entry[key]) is int for key in ("channels", "both", "none"))


def _is_extremes(entry: dict[str, Any]) -> bool:
    kinds = set(VALUES)
    whole = entry.keys() in (set(), kinds) and all(c.keys() == kinds for c in entry.values())
    return whole and all(type(n) is int for counts in entry.values() for n in counts.values())


def _is_target(entry: dict[str, Any]) -> bool:
    counts = (*entry.get("layers", {}).values(), entry.get("weight_bits", 0))
    told = all(_texts(entry[key]) for key in ("lowerings", "reasons"))
    proof = entry.get("proof", {"sites": {}, "faults": [], "open": ""})
    proved = _texts(proof["sites"]) and all(isinstance(text, str) for text in proof["faults"])
    named = isinstance(entry.get("processor", ""), str) and isinstance(proof["open"], str)
    return told and named and proved and all(type(count) is int for count in counts)


def _is_input(entry: dict[str, Any]) -> bool:
    dims = isinstance(entry["shape"], list) and all(
        isinstance(d, int | str) and not isinstance(d, bool) for d in entry["shape"]
    )
    return dims and isinstance(entry["name"], str) and np.dtype(entry["dtype"]).kind in "biuf"


def _is_source(entry: dict[str, Any]) -> bool:
    texts = isinstance(entry["path"], str) and isinstance(entry["sha256"], str)
    return texts and isinstance(entry["arch"], str | None) and isinstance(entry["ema"], bool)
