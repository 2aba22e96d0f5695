"""Where a figure was measured: hardware, operating system, versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "crelu-deploy",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
)


def versions() -> dict[str, str]:
    """Return the versions of the packages that matter here, of those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def environment(threads: int) -> dict[str, object]:
    """Return what a latency depends on; ``threads`` is the number that one call uses."""
    return {
        "cpu": cpu_name(),
        "threads": threads,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": versions(),
    }


def cache_folder() -> Path | None:
    """Return this program's folder in the user's cache; None for a user without a home."""
    given = Path(os.environ.get("XDG_CACHE_HOME") or ".")
    try:
        return (given if given.is_absolute() else Path.home() / ".cache") / "crelu-deploy"
    except RuntimeError:  # a container's user, for one, may be no one that the system knows
        return None


def cpu_name() -> str:
    """Return the processor's name as the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
