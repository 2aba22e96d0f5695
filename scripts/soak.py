"""Long use: the same result every time, in the same memory, from one thread and from eight.

Usage: soak.py [N] [--target BACKEND[:LOWERING]]...

Every CPU runner of the digits network is called N times after a warm-up, then N times in all by 8
threads at once. Each result must equal the first bit for bit, and the resident memory must grow by
less than 1 % over either. Exit status 1: it was not so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import crelu_deploy
from crelu_deploy.errors import BackendUnavailable
from crelu_deploy.memory import release
from crelu_deploy.pipeline import feeds_of, load
from crelu_deploy.runner import Runner
from crelu_deploy.samples import Arrays

DIGITS = Path(__file__).resolve().parent.parent / "examples" / "digits_crelu.pt"
TARGETS = (
    "ort-cpu:function",
    "ort-cpu:primitive",
    "ort-cpu:auto",
    "openvino",
    "torch",
    "torch-compile",
)
THREADS = 8
GROWTH = 0.01


def resident() -> int:
    """Return the bytes of memory that this process holds, after what is free was given back."""
    release()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def differing(runner: Runner, feeds: Arrays, expected: Arrays, calls: int) -> int:
    """Return how many of some calls give another result."""
    different = 0
    for _ in range(calls):
        found = runner(feeds)
        different += not all(np.array_equal(found[name], expected[name]) for name in expected)
    return different


def threaded(runner: Runner, feeds: Arrays, expected: Arrays, calls: int) -> int:
    """Do the same from several threads at once."""
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [
            pool.submit(differing, runner, feeds, expected, calls // THREADS)
            for _ in range(THREADS)
        ]
        return sum(job.result() for job in jobs)


def soak(bundle: crelu_deploy.Bundle, target: str, calls: int) -> tuple[str, bool]:
    """Return a line about one runner, and whether all was well."""
    feeds = feeds_of(bundle, 1)
    start = time.monotonic()
    texts, good = [], True
    with load(bundle, target, threads=1) as runner:
        expected = runner(feeds)
        for name, work in (("1 thread", differing), (f"{THREADS} threads", threaded)):
            work(runner, feeds, expected, max(THREADS, calls // 10))
            before = resident()
            different = work(runner, feeds, expected, calls)
            growth = resident() / before - 1
            good &= different == 0 and growth < GROWTH
            texts.append(f"{name}: {different} differ, {before >> 20} MiB {100 * growth:+.2f} %")
    return f"{target:18} {'; '.join(texts)}; {time.monotonic() - start:.0f} s", good


def main() -> int:
    """Soak every runner and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", nargs="?", type=int, default=100_000)
    parser.add_argument("--target", action="append")
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as folder:
        bundle = crelu_deploy.export(DIGITS, Path(folder) / "digits.crelu")
        crelu_deploy.build(bundle, [t for t in TARGETS if not t.startswith("torch")])
        for target in options.target or TARGETS:
            try:
                line, fine = soak(bundle, target, options.count)
            except BackendUnavailable as error:
                line, fine = f"{target:18} skipped: {error}", True
            good &= fine
            print(line, flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
