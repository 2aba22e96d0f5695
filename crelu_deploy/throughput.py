"""Rows per second with all cores busy, and the memory that a target takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BuildError
from crelu_deploy.pipeline import feeds_of, open_target
from crelu_deploy.results import Benchmark, Load
from crelu_deploy.targets import BACKENDS, Options, Progress, Target, silent

ROUNDS = 2
"""How often each target has its turn; the better turn counts."""


def loads(
    bundle: Bundle,
    found: Benchmark,
    options: Options,
    *,
    seconds: float,
    progress: Progress = silent,
) -> tuple[Load, ...]:
    """Measure what was timed again, with all cores busy.

    Args:
        bundle: Where the targets are.
        found: What was timed: its rows name the targets and batch sizes.
        options: Threads of one call, and trust.
        seconds: For all targets together, at each batch size.
        progress: Told what is being measured.
    """
    callers, results = callers_for(options), []
    with ExitStack() as stack:
        runners = {
            target: stack.enter_context(open_target(bundle, target, options))
            for target in dict.fromkeys(row.target for row in found.rows)
        }
        for batch in dict.fromkeys(row.batch for row in found.rows):
            progress(f"throughput batch {batch}")
            feeds = feeds_of(bundle, batch)
            able = [row.target for row in found.rows if row.batch == batch]
            rates = saturate({t: partial(runners[t], feeds) for t in able}, callers, seconds)
            for target, rate in rates.items():
                peak = peak_memory(bundle.path, target, batch, options)
                results.append(Load(target, batch, callers, rate * batch, peak))
    return tuple(results)


def callers_for(options: Options) -> int:
    """Return how many calls at once keep all cores busy, at least two."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(2, (usable or 1) // options.cores)


def saturate(
    calls: Mapping[Target, Callable[[], object]], callers: int, seconds: float
) -> dict[Target, float]:
    """Return calls per second for each, called by several threads for some seconds.

    Each has ROUNDS turns, in alternating order; the better one counts.
    """
    best = dict.fromkeys(calls, 0.0)
    for turn in range(ROUNDS):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            found = _rate(calls[name], callers, seconds / ROUNDS / len(calls))
            best[name] = max(best[name], found)
    return best


def _rate(call: Callable[[], object], callers: int, seconds: float) -> float:
    counts, failures = [0] * callers, list[Exception]()
    call()
    start = time.perf_counter()

    def work(i: int) -> None:
        try:
            while time.perf_counter() < start + seconds:
                call()
                counts[i] += 1
        except Exception as error:  # raised again below, in the thread that asked
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return sum(counts) / (time.perf_counter() - start)


def peak_memory(bundle: Path, target: Target, batch: int, options: Options) -> float | None:
    """Return the MiB that a process of its own takes to open a target and run it once.

    Raises:
        BuildError: It fails there.
    """
    if sys.platform != "linux":
        return None
    told = {"threads": options.threads, "trust": options.trust, "tf32": options.tf32}
    job = {"bundle": str(bundle), "target": str(target), "batch": batch, "options": told}
    done = subprocess.run(
        [sys.executable, "-m", "crelu_deploy.throughput", json.dumps(job)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BuildError(f"{target}: its memory cannot be measured: {last}")
    return float(done.stdout.splitlines()[-1])


def _peak() -> float:
    """Return the largest resident memory of this process since ``_reset``, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _reset() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def main(text: str) -> None:
    """Open a target, run it once and print the MiB that took; ``text`` is ``peak_memory``'s job."""
    job = json.loads(text)
    target, bundle = Target.parse(job["target"]), Bundle.open(job["bundle"])
    feeds = feeds_of(bundle, job["batch"])
    BACKENDS[target.backend].implementation()  # the import is not the target's
    _reset()
    before = _peak()
    with open_target(bundle, target, Options(**job["options"])) as runner:
        runner(feeds)
    print(_peak() - before)


if __name__ == "__main__":
    main(sys.argv[1])
