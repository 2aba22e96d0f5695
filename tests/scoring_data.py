"""Many inputs from few, and what a runner says of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from crelu_deploy.pipeline import load

DIGITS = Path(__file__).resolve().parent.parent / "examples" / "digits_samples.npz"
SCRIPT = "from crelu_deploy.cli import main; main()"

Array = np.ndarray[Any, Any]


def noisy_digits(count: int, seed: int = 0) -> Array:
    """Return (count, 1, 28, 28) float32: the samples in turn, each with noise of its own."""
    with np.load(DIGITS) as file:
        digits = file["input"]
    noise = np.random.default_rng(seed).normal(0, 0.05, (count, *digits.shape[1:]))
    return (digits[np.arange(count) % len(digits)] + noise).astype(np.float32)


def expected(bundle: Path, x: Array, batch: int, shard: int) -> Array:
    """Return the runner's logits, called with the batches that a run has."""
    with load(bundle, "ort-cpu", threads=1) as runner:
        return np.concatenate([runner(part)["logits"] for part in batches(x, batch, shard)])


def batches(x: Array, batch: int, shard: int) -> Iterator[Array]:
    """Yield consecutive rows: at most ``batch``, none across the border of two shards."""
    for first in range(0, len(x), shard):
        end = min(first + shard, len(x))
        for start in range(first, end, batch):
            yield x[start : min(start + batch, end)]


def command(*arguments: object) -> list[str]:
    """Return the command line of ``crelu score``."""
    return [sys.executable, "-c", SCRIPT, "score", *map(str, arguments)]


def crelu_score(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``crelu score`` in a process of its own, as Ray wants it."""
    done = command(*arguments)
    return subprocess.run(done, capture_output=True, text=True, check=False, timeout=280)


def read_rows(out: Path) -> dict[str, list[Any]]:
    """Return the columns of a run, its shards in order."""
    import pyarrow.dataset as ds

    files = sorted(map(str, out.glob("part-*.parquet")))
    columns: dict[str, list[Any]] = ds.dataset(files).to_table().to_pydict()
    return columns
