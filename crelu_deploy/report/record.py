"""How exact and how fast a bundle's targets are: ``report.json``, ``.md`` and ``.html`` in it.

The JSON file holds the results of the last ``deploy`` or ``bench``; the other two show it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crelu_deploy.accuracy import REDUCED, Limits, Tolerance, compare, worst_of
from crelu_deploy.bundle import REPORTS, Bundle
from crelu_deploy.errors import DeployError, UnsupportedModel
from crelu_deploy.locating import locate
from crelu_deploy.locking import locked
from crelu_deploy.modelfile import read_file
from crelu_deploy.pipeline import open_target
from crelu_deploy.render import stages
from crelu_deploy.render.behind import comparison_json, sites_json
from crelu_deploy.report.content import page
from crelu_deploy.report.html import to_html
from crelu_deploy.report.markdown import to_markdown
from crelu_deploy.results import Benchmark, Verification
from crelu_deploy.targets import BACKENDS, Options, Target

JSON = dict[str, Any]

FORMAT = 1
"""Version of ``report.json``."""


def write_report(
    bundle: Bundle,
    benchmark: Benchmark,
    *,
    threads: int | None = None,
    tolerance: Tolerance | None = None,
) -> tuple[Path, ...]:
    """Write the three files for a benchmark of the bundle.

    The error at each site is measured here, on the first sample.

    Args:
        bundle: What was timed.
        benchmark: The result.
        threads: Threads of one call; every usable core when None.
        tolerance: What counts as equal, instead of what element type and precision tell.

    Raises:
        BuildError: The folder cannot be written.
    """
    return save_report(bundle, collect(bundle, benchmark, Options(threads=threads), tolerance))


def save_report(bundle: Bundle, data: JSON) -> tuple[Path, ...]:
    """Write the three files and note them in the manifest; return their paths.

    Raises:
        BuildError: The folder cannot be written.
    """
    shown = page(data)
    texts = (json.dumps(data, indent=2) + "\n", to_markdown(shown), to_html(shown))
    with locked(bundle.path):
        bundle.reload()
        for name, text in zip(REPORTS, texts, strict=True):
            bundle.replace_text(name, text)
    return tuple(bundle.path / name for name in REPORTS)


def read_report(bundle: Bundle) -> JSON | None:
    """Return what ``report.json`` holds; None where there is none.

    Raises:
        UnsupportedModel: It is damaged, or was written by a newer version.
    """
    file = bundle.path / REPORTS[0]
    if REPORTS[0] not in bundle.manifest["files"]:
        return None
    try:
        data = dict(json.loads(file.read_text(encoding="utf-8")))
        version = data["format"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnsupportedModel(f"{file}: damaged ({error!r}); run: crelu bench") from error
    if version != FORMAT:
        raise UnsupportedModel(f"{file}: format {version} is not {FORMAT}; run: crelu bench")
    return data


def collect(
    bundle: Bundle, benchmark: Benchmark, options: Options, tolerance: Tolerance | None = None
) -> JSON:
    """Return what ``report.json`` holds."""
    manifest = bundle.manifest
    return {
        "format": FORMAT,
        "bundle": bundle.path.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "opset": manifest.get("opset"),
        "inputs": [str(spec) for spec in bundle.inputs],
        "outputs": list(bundle.outputs),
        "images": None if bundle.preprocessing is None else str(bundle.preprocessing),
        "samples": len(bundle.samples),
        "source": _source(manifest),
        "notes": manifest.get("notes", []),
        "sites": manifest["sites"],
        "near_misses": manifest.get("near_misses", []),
        "plans": manifest.get("plans", {}),
        "targets": [
            _target(bundle, verification, row, options, tolerance)
            for verification, row in _rows(benchmark.verifications)
        ],
        "bench": stages.benchmark_json(benchmark),
    }


def _rows(found: Sequence[Verification]) -> list[tuple[Verification, JSON]]:
    return list(zip(found, stages.verifications_json(found)["targets"], strict=True))


def _source(manifest: JSON) -> JSON | None:
    """Return the checkpoint's name, hash and architecture, without its folder."""
    source = manifest.get("source")
    return {**source, "path": Path(source["path"]).name} if source else None


def _target(
    bundle: Bundle,
    verification: Verification,
    row: JSON,
    options: Options,
    tolerance: Tolerance | None,
) -> JSON:
    target = verification.target
    entry = bundle.manifest["targets"].get(str(target))
    ran = verification.comparison is not None
    if not BACKENDS[target.backend].lowered or entry is None:
        return {**row, "outputs": [], "sites": [], "operators": {}, "bytes": None, "sha256": None}
    artifact = bundle.artifact(target)
    name = str(artifact.relative_to(bundle.path))
    return {
        **row,
        "outputs": _outputs(bundle, target, options, tolerance) if ran else [],
        "sites": _sites(bundle, verification, options, tolerance) if ran else [],
        "reasons": entry["reasons"],
        "operators": _operators(artifact),
        "bytes": sum(
            (bundle.path / file).stat().st_size
            for file in bundle.manifest["files"]
            if file == name or file == f"{name}.data"
        ),
        "sha256": bundle.manifest["files"].get(name),
    }


def _operators(artifact: Path) -> dict[str, int]:
    nodes = read_file(artifact).graph
    names = (n.op_type if not n.domain else f"{n.domain}.{n.op_type}" for n in nodes)
    return dict(sorted(Counter(names).items()))


def _outputs(
    bundle: Bundle, target: Target, options: Options, tolerance: Tolerance | None
) -> list[JSON]:
    """Return the distance of each output from PyTorch's, over all samples."""
    allowed = tolerance or REDUCED.get(BACKENDS[target.backend].precision, Limits()).tolerance
    samples = bundle.samples
    with open_target(bundle, target, options) as runner:
        actual = [runner(sample.inputs) for sample in samples]
    return [
        {
            "output": name,
            **comparison_json(
                worst_of(
                    compare(got[name], sample.outputs[name], name, allowed)
                    for got, sample in zip(actual, samples, strict=True)
                )
            ),
        }
        for name in bundle.outputs
    ]


def _sites(
    bundle: Bundle, verification: Verification, options: Options, tolerance: Tolerance | None
) -> list[JSON]:
    """Return the lowering and the error of each site, null where nothing could be run.

    It is the verification's or, where that could not look inside, that of the lowered file on ONNX
    Runtime.
    """
    if verification.sites:
        return sites_json(verification.sites)
    target = verification.target
    try:
        errors = locate(bundle, target, options, tolerance=tolerance, samples=1).sites
    except DeployError:  # a copy with more outputs may be refused where the target itself is not
        entry = bundle.manifest["targets"][str(target)]["lowerings"]
        return [{"site": s, "lowering": form, **comparison_json(None)} for s, form in entry.items()]
    return sites_json(errors)
