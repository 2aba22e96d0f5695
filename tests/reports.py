"""Benchmarks of a small bundle as if they had been measured, some with names that try to harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bundles import write_bundle

from crelu_deploy import Bundle, Options
from crelu_deploy.latency import Effort
from crelu_deploy.pipeline import bench
from crelu_deploy.results import Benchmark

TARGETS = ("ort-cpu:primitive", "ort-cpu:mirror", "ort-cpu:fold", "ort-cpu")
HOSTILE = "</script><img src=x onerror=alert(1)>|`$title`\n\x1b[31m&amp;\"'${a}"
"""A name that means something to HTML, to Markdown, to templates and to terminals."""


def measured(path: Path) -> tuple[Bundle, Benchmark]:
    """Return a bundle with four targets built, and a benchmark of a few calls of them."""

    bundle = write_bundle(path)
    effort = Effort(runs=6, warmup=1, seconds=1.0)
    options = Options(threads=1)
    return bundle, bench(bundle, TARGETS, options, batches=[1, 4], effort=effort)


def hostile(data: dict[str, Any]) -> dict[str, Any]:
    """Return the data with the name in the place of every name that comes from a file."""
    return {key: HOSTILE if key in NAMES else _hostile(value) for key, value in data.items()}


NAMES = {"bundle", "site", "output", "name", "spelling", "producer", "reason", "worst", "lowering"}


def _hostile(value: Any) -> Any:
    if isinstance(value, dict):
        return hostile(value)
    return [_hostile(item) for item in value] if isinstance(value, list) else value
