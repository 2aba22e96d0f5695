"""What ``crelu_deploy.export`` costs beside a plain ``torch.onnx.export`` of the same network.

Both run in processes of their own, in turn, from the import of PyTorch to the last byte on disk;
the bundle is also sampled, lowered and verified in its time. Printed: seconds and peak memory, the
median of the repeats, and their ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

LIMITS = {"seconds": 1.25, "megabytes": 1.3}
"""Ratios to the plain export that are not to be exceeded."""


def plain(checkpoint: Path, folder: Path) -> None:
    """Load a checkpoint and export it as PyTorch's documentation shows."""
    import torch

    from crelu_deploy import checkpoint as checkpoints
    from crelu_deploy.tracing import TRANSLATIONS

    loaded = checkpoints.load(checkpoint)
    assert loaded.input_shapes is not None
    (shape,) = loaded.input_shapes
    torch.onnx.export(
        loaded.module,
        (torch.randn(2, *shape[1:]),),
        folder / "model.onnx",
        dynamo=True,
        opset_version=20,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        custom_translation_table=TRANSLATIONS,
        verbose=False,
    )


def bundle(checkpoint: Path, folder: Path) -> None:
    """Do what ``crelu-export`` does."""
    from crelu_deploy import export

    export(checkpoint, folder / "bundle")


WAYS: dict[str, Callable[[Path, Path], None]] = {"plain": plain, "bundle": bundle}


def child(way: str, checkpoint: Path) -> None:
    """Export once and print the seconds and the peak memory of this process."""
    start = time.perf_counter()
    import torch  # noqa: F401 - both ways pay for it

    with tempfile.TemporaryDirectory() as folder:
        WAYS[way](checkpoint, Path(folder))
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "megabytes": peak}))


def measure(way: str, checkpoint: Path) -> dict[str, float]:
    """Return what one fresh process needed."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", way, "--file", str(checkpoint)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return result


def compare(checkpoint: Path, repeats: int) -> bool:
    """Print the table; return whether both ratios are within their limits."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, results in runs.items():
            results.append(measure(way, checkpoint))
    within = True
    print(f"{'':10} {'plain':>8} {'bundle':>8} {'ratio':>6} {'limit':>6}   {repeats} runs each")
    for key, limit in LIMITS.items():
        first, second = (statistics.median(r[key] for r in runs[way]) for way in WAYS)
        within &= second / first <= limit
        print(f"{key:10} {first:8.2f} {second:8.2f} {second / first:6.2f} {limit:6.2f}")
    return within


def main() -> int:
    """Compare both ways on a network of the size that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="all-cnn-b-crelu-1-4", help="a known architecture")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.file)
        return 0
    from crelu_deploy import checkpoint, models

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.pt"
        classes = models.MODELS[arguments.arch].num_classes
        module = models.build(arguments.arch)
        checkpoint.save(file, module, arch=arguments.arch, num_classes=classes)
        return 0 if compare(file, arguments.repeats) else 1


if __name__ == "__main__":
    sys.exit(main())
