"""Bundles with targets that this machine could not build, and how a repository is read back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from crelu_deploy.backends.engines import Note, engine_file, note_file
from crelu_deploy.bundle import REPORTS, Bundle
from crelu_deploy.lowerings import lower
from crelu_deploy.profiles import Range
from crelu_deploy.report import FORMAT
from crelu_deploy.targets import CARRIED, PLUGIN, Target


def put_target(bundle: Bundle, name: str) -> Target:
    """Lower a target into the bundle without its runtime."""
    target = Target.parse(name)
    form = PLUGIN if target.lowering == CARRIED else target.lowering
    files = bundle.write(lower(bundle.model, form).model, target)
    sites = [site["name"] for site in bundle.manifest["sites"]]
    entry = {"lowerings": dict.fromkeys(sites, target.lowering), "reasons": {}}
    bundle.record(files, targets={**bundle.manifest["targets"], name: entry})
    return target


def put_engine(bundle: Bundle, target: Target, largest: int, flags: tuple[str, ...] = ()) -> None:
    """Write what stands for an engine, and its note, for batches of 1 to ``largest``."""
    engine = engine_file(bundle, target)
    engine.write_bytes(b"an engine of another machine")
    shapes = {s.name: Range(*((n, *s.shape[1:]) for n in (1, 2, largest))) for s in bundle.inputs}
    note = Note("TensorRT", "10.13.3", ("NVIDIA L4 (8.9)",), shapes, (), flags)
    note_file(engine).write_text(json.dumps(asdict(note)), encoding="utf-8")
    bundle.record((engine, note_file(engine)))


def put_report(
    bundle: Bundle,
    target: Target,
    *,
    timed: dict[int, float] | None = None,
    passed: bool = True,
    sha256: str = "",
) -> None:
    """Write the record of a bench on another machine: batch -> milliseconds of one call."""
    name = str(bundle.artifact(target).relative_to(bundle.path))
    rows = [
        {"target": str(target), "batch": batch, "median_ms": ms}
        for batch, ms in (timed or {}).items()
    ]
    verdict = {"target": str(target), "passed": passed}
    verdict["sha256"] = sha256 or bundle.manifest["files"][name]
    data = {"format": FORMAT, "targets": [verdict], "bench": {"rows": rows}}
    bundle.replace_text(REPORTS[0], json.dumps(data))


def read_config(folder: Path):
    """Return the configuration of one model, read with Triton's schema."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its content."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
