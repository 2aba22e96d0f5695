"""The main job on a real trained model and real images: accuracy, verification, latency.

Usage: demo.py CHECKPOINT SAMPLES.npz OUT, where the samples hold the inputs and their labels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from rich.console import Console

from crelu_deploy import deploy, load
from crelu_deploy.deployment import Deployment
from crelu_deploy.latency import Effort
from crelu_deploy.render import stages
from crelu_deploy.tables import Section, add, section
from crelu_deploy.targets import Target

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
EFFORT = Effort(seconds=10)


def accuracy(bundle: Path, target: Target, images: np.ndarray, labels: np.ndarray) -> str:
    """Return how many images one target classifies as labelled."""
    with load(bundle, target) as runner:
        (logits,) = runner(images).values()
    right = int((logits.argmax(axis=1) == labels).sum())
    return f"{right} of {len(labels)}"


def accuracies(done: Deployment, samples: Path) -> Section:
    """Return a row per target: how many of the labelled images it classifies as labelled."""
    with np.load(samples) as data:
        images, labels = data["input"], data["label"]
    table = section("accuracy on held-out digits", "target!", "right")
    for made in done.builds:
        told = f"not here: {made.error}" if made.skipped else "not built"
        if made.passed:
            told = accuracy(done.bundle.path, made.target, images, labels)
        add(table, made.target, told)
    return table


def main(checkpoint: Path, samples: Path, out: Path) -> int:
    """Deploy the checkpoint and print a table per stage, and the accuracy."""
    console = Console(highlight=False)
    done = deploy(
        checkpoint,
        out,
        targets=TARGETS,
        samples=samples,
        batches=(1, 8),
        effort=EFFORT,
        progress=lambda step: print(f"... {step}", file=sys.stderr),
    )
    for part in stages.deployment_parts(done):
        console.print(part, markup=False)
        console.print()
    console.print(accuracies(done, samples))
    return 1 if done.failed else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4])))
