"""The main job on a real trained model and real images: accuracy, verification, latency.

Usage: demo.py CHECKPOINT SAMPLES.npz OUT, where the samples hold the inputs and their labels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from crelu_deploy import deploy, load
from crelu_deploy.latency import Effort
from crelu_deploy.render import stages

TARGETS = (
    "torch",
    "ort-cpu:function",
    "ort-cpu:primitive",
    "ort-cpu:mirror",
    "ort-cpu:fold",
    "ort-cpu:auto",
    "ort-cpu-int8",
    "openvino",
    "openvino-bf16",
    "openvino-int8",
)


def accuracy(bundle: Path, target: str, images: np.ndarray, labels: np.ndarray) -> str:
    """Return how many images one target classifies as labelled."""
    with load(bundle, target) as runner:
        (logits,) = runner(images).values()
    right = int((logits.argmax(axis=1) == labels).sum())
    return f"{right} of {len(labels)}"


def main(checkpoint: Path, samples: Path, out: Path) -> int:
    """Deploy the checkpoint and print the three tables."""
    console = Console(highlight=False)
    done = deploy(
        checkpoint,
        out,
        targets=TARGETS,
        samples=samples,
        batches=(1, 8),
        effort=Effort(seconds=10),
        progress=lambda step: print(f"... {step}", file=sys.stderr),
    )
    with np.load(samples) as data:
        images, labels = data["input"], data["label"]
    table = Table(title="accuracy on held-out digits", title_justify="left", box=None)
    table.add_column("target")
    table.add_column("right", justify="right")
    for target in TARGETS:
        table.add_row(target, accuracy(out, target, images, labels))
    for part in stages.deployment_parts(done):
        console.print(part, markup=False)
        console.print()
    console.print(table)
    return 1 if done.failed else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4])))
