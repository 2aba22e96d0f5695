"""Measure a bundle behind a Triton server: many clients at once, against the bare Runner.

    python scripts/bench_serving.py BUNDLE [-t TARGET] [--seconds 30] [--shared-memory]

Each client sends one row at a time, the rows of the bundle's samples in turn, and waits for the
answer before it sends the next. Every answer is compared with the Runner's outputs for its row;
the last bits of a row may depend on the batch that it is in, in the Runner too. Server and clients
share this machine, so the clients' part of its time is in the figures. Afterwards the Runner is
timed alone, at the mean batch that the server formed by its own metrics: the best of three rounds.
Where other programs run too, the processor time of a row tells more than the throughput.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from serving_clients import Load, Row, clients, rows_of

from crelu_deploy import Runner, load
from crelu_deploy.serving import environment
from crelu_deploy.serving.models import PYTHON
from crelu_deploy.serving.repository import package
from crelu_deploy.serving.server import Address, serve

COUNTERS = ("request_success", "request_failure", "count", "exec_count")
ROUNDS, ROUND_SECONDS = 3, 4.0


def main() -> None:
    """Print the figures as JSON."""
    given = arguments()
    found = environment.provide(given.server_env or environment.default_folder(), print)
    address = Address(http=given.port, grpc=given.port + 1, metrics=given.port + 2)
    with tempfile.TemporaryDirectory() as folder:
        made = package(
            given.bundle,
            Path(folder) / "models",
            [given.target],
            largest=given.batch,
            instances=given.instances,
        )
        (name,) = (model.name for model in made.models if model.backend == PYTHON)
        with serve(made.path, [name], found, address):
            before, start = counters(address, name), processor_seconds(os.getpid())
            loads, spent = drive(given, address, name)
            after, server = counters(address, name), processor_seconds(os.getpid()) - start
    delta = {key: after[key] - before[key] for key in COUNTERS}
    print(json.dumps(figures(given, loads, delta, (server, spent)), indent=2))


def processor_seconds(parent: int) -> float:
    """Return the processor time of the running processes that one started, directly or not."""
    total = 0.0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                ticks = int(fields[11]) + int(fields[12])
                total += ticks / os.sysconf("SC_CLK_TCK") + processor_seconds(int(file.parent.name))
    return total


def arguments() -> argparse.Namespace:
    """Return what the user asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-t", "--target", default="ort-cpu")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--batch", type=int, default=16, help="the largest that is formed")
    parser.add_argument("--instances", type=int, default=1, help="copies of the model")
    parser.add_argument("--port", type=int, default=18000, help="the first of three")
    parser.add_argument("--shared-memory", action="store_true", help="for the inputs")
    parser.add_argument("--server-env", type=Path)
    return parser.parse_args()


def drive(given: argparse.Namespace, address: Address, name: str) -> tuple[list[Load], float]:
    """Run the clients, each a thread with a connection of its own, in another process.

    Returns:
        What each saw, and the seconds of processor time of them all.
    """
    job = (given.bundle, given.target, address, name, given.clients, given.seconds)
    pool = multiprocessing.get_context("spawn").Pool(1)
    done = pool.apply(clients, job, {"shared": given.shared_memory})
    pool.close()
    pool.join()
    return done


def counters(address: Address, name: str) -> dict[str, int]:
    """Return a model's counters from the server's metrics."""
    with urlopen(address.urls["metrics"], timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = dict.fromkeys(COUNTERS, 0)
    for line in lines:
        for key in COUNTERS:
            if line.startswith(f"nv_inference_{key}{{") and f'model="{name}"' in line:
                found[key] += int(float(line.rsplit(" ", 1)[1]))
    return found


def direct(bundle: Path, target: str, batch: int) -> tuple[float, float]:
    """Time the Runner called directly.

    Returns:
        Rows per second in the best round, and the least processor time of a row in seconds.
    """
    row = rows_of(bundle, target)[0][0]
    feeds = {name: np.repeat(array, batch, axis=0) for name, array in row.items()}
    with load(bundle, target) as runner:
        runner(feeds)
        rounds = [_round(runner, feeds) for _ in range(ROUNDS)]
    seconds, processor = (min(found) for found in zip(*rounds, strict=True))
    return batch / seconds, processor / batch


def _round(runner: Runner, feeds: Row) -> tuple[float, float]:
    """Return the seconds and the processor seconds of one call."""
    calls, start, before = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < ROUND_SECONDS:
        runner(feeds)
        calls += 1
    return (time.perf_counter() - start) / calls, (time.process_time() - before) / calls


def figures(
    given: argparse.Namespace,
    loads: list[Load],
    delta: Mapping[str, int],
    spent: tuple[float, float],
) -> dict[str, object]:
    """Return everything that was measured, times in milliseconds.

    ``spent`` is the processor time of the server with its Python, and that of the clients.
    """
    latencies = np.array([s for one in loads for s in one.latencies]) * 1e3
    batch = delta["count"] / max(delta["exec_count"], 1)
    served = len(latencies) / given.seconds
    alone, processor = direct(given.bundle, given.target, max(round(batch), 1))
    return {
        "clients": given.clients,
        "inputs": "shared memory" if given.shared_memory else "HTTP",
        "seconds": given.seconds,
        "requests": len(latencies),
        "errors": sorted({error for one in loads for error in one.errors}),
        "answers that differ in a bit": sum(one.wrong for one in loads),
        "largest distance": max(one.apart for one in loads),
        "metrics": dict(delta),
        "mean batch": round(batch, 2),
        "rows per second": round(served, 1),
        "rows per second of the Runner alone": round(alone, 1),
        "ratio": round(served / alone, 3),
        "processor ms per row": {
            "Runner alone": round(1e3 * processor, 3),
            "server and Runner": round(1e3 * spent[0] / max(len(latencies), 1), 3),
            "clients": round(1e3 * spent[1] / max(len(latencies), 1), 3),
        },
        "p50_ms": round(float(np.percentile(latencies, 50)), 1),
        "p99_ms": round(float(np.percentile(latencies, 99)), 1),
    }


if __name__ == "__main__":
    main()
