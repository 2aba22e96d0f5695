"""``crelu score`` on two Ray nodes of one core each beside one, and what its driver needs.

Both run on this machine, with nodes made by ``ray.cluster_utils``, in turn. Printed: images a
second after a quarter of the shards, because until then Ray itself starts; their ratio; and the
driver's memory at a quarter of the way and at its most.

With ``--photo`` instead, what an image costs one core, part by part, in processor time, so that
other processes do not count: the photo in the size of the bundle's input, as JPEG and as PNG.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

LEAST = 1.6
"""Two nodes beside one, in images a second."""

GROWTH = 1.1
"""The driver's memory at the end beside a quarter of the way, at most."""

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = "from crelu_deploy.cli import main; main()"


def make_inputs(path: Path, images: int) -> None:
    """Write the example's digits again and again, each with noise of its own."""
    with np.load(ROOT / "examples" / "digits_samples.npz") as file:
        digits = file["input"]
    noise = np.random.default_rng(0).normal(0, 0.05, (images, *digits.shape[1:]))
    x = (digits[np.arange(images) % len(digits)] + noise).astype(np.float32)
    np.savez(path, input=x)


def watch(driver: subprocess.Popen[str], out: Path, seen: list[tuple[int, int]]) -> None:
    """Note the finished shards and the driver's memory in bytes, until it ends."""
    page = os.sysconf("SC_PAGE_SIZE")
    while driver.poll() is None:
        try:
            pages = int(Path(f"/proc/{driver.pid}/statm").read_text().split()[1])
        except OSError:
            return
        seen.append((len(list(out.glob("part-*"))), pages * page))
        time.sleep(0.1)


def measure(nodes: int, bundle: Path, data: Path, out: Path, shard: int) -> tuple[float, float]:
    """Return images a second and the growth of the driver's memory on a fresh cluster."""
    from ray.cluster_utils import Cluster

    # Ray gives way to all other processes by default, which would then be what is measured.
    os.environ.update(RAY_worker_niceness="0")
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        return _run(bundle, data, out, shard, cluster.address)
    finally:
        cluster.shutdown()


def _run(bundle: Path, data: Path, out: Path, shard: int, address: str) -> tuple[float, float]:
    line = [sys.executable, "-c", SCRIPT, "score", bundle, data, "-o", out, "--json", "-q"]
    line += ["--shard", shard, "--address", address]
    driver = subprocess.Popen([str(part) for part in line], stdout=subprocess.PIPE, text=True)
    seen: list[tuple[int, int]] = []
    watcher = threading.Thread(target=watch, args=(driver, out, seen))
    watcher.start()
    stdout, _ = driver.communicate()
    watcher.join()
    assert driver.returncode == 0, "crelu score failed"
    summary = json.loads(stdout)
    assert summary["errors"] == 0
    quarter = [memory for shards, memory in seen if shards >= summary["shards"] / 4]
    print(f"  driver {quarter[0] >> 20} MiB at a quarter, {max(quarter) >> 20} MiB at most")
    return _rate(out, shard), max(quarter) / quarter[0]


def _rate(out: Path, shard: int) -> float:
    """Return rows a second after a quarter of the way: until then, Ray's own actors start."""
    times = sorted(file.stat().st_mtime for file in out.glob("part-*"))
    first = len(times) // 4
    return (len(times) - 1 - first) * shard / (times[-1] - times[first])


def per_image(part: Callable[[], object], images: int, seconds: float = 2.0) -> float:
    """Return the processor time of one image in milliseconds, the median of some repeats."""
    part()
    found = []
    end = time.monotonic() + seconds
    while len(found) < 5 or time.monotonic() < end:
        start = time.process_time_ns()
        part()
        found.append((time.process_time_ns() - start) / 1e6 / images)
    return statistics.median(found)


def measure_parts(bundle: Path, photo: Path, batch: int) -> dict[str, float]:
    """Return what each part of scoring an image costs, in milliseconds of one core."""
    from PIL import Image

    from crelu_deploy import load
    from crelu_deploy.preprocessing import Preprocessing
    from crelu_deploy.scoring import output
    from crelu_deploy.scoring.pixels import decode
    from crelu_deploy.scoring.shard import run_rows

    found: dict[str, float] = {}
    with load(bundle, "ort-cpu", threads=1) as runner, tempfile.TemporaryDirectory() as folder:
        (spec,) = runner.inputs
        height, width = (int(extent) for extent in spec.shape[2:])
        with Image.open(photo) as image:
            small = image.convert("RGB").resize((width, height))
        for kind in ("JPEG", "PNG"):
            file = Path(folder) / kind
            small.save(file, kind)
            content = file.read_bytes()
            found[f"read {kind}, {len(content) >> 10} KiB"] = per_image(file.read_bytes, 1)
            how = Preprocessing()
            found[f"decode {kind}"] = per_image(partial(decode, content, spec, how), 1)
        rows = [{spec.name: decode(content, spec, how)}] * batch
        found["copy to a batch"] = per_image(lambda: np.stack([r[spec.name] for r in rows]), batch)
        found[f"copy and run, batch {batch}"] = per_image(partial(run_rows, runner, rows), batch)
        found["copy and run, batch 1"] = per_image(partial(run_rows, runner, rows[:1]), 1)
        results = run_rows(runner, rows)
        schema = output.schema_of({name: array.dtype for name, array in results[0].items()})
        keys = [("/some/folder/image.jpg", i) for i in range(batch)]

        def write() -> None:
            table = output.table_of(schema, keys, results)
            output.save_shard(Path(folder), 0, "run", schema, [table])

        found["write Parquet"] = per_image(write, batch)
    return found


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle of examples/digits_crelu.pt")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--shard", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--photo", type=Path, help="measure the parts, on this photo")
    parser.add_argument("--batch", type=int, default=32, help="of the parts")
    arguments = parser.parse_args()
    if arguments.photo:
        parts = measure_parts(arguments.bundle, arguments.photo, arguments.batch)
        for name, milliseconds in parts.items():
            print(f"{name:28} {milliseconds:9.4f} ms an image")
        return 0
    return compare(arguments)


def compare(arguments: argparse.Namespace) -> int:
    """Print both rates and their ratio; return 1 where a limit is missed."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    growth = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits.npz"
        make_inputs(data, arguments.images)
        for i in range(arguments.repeats):
            for nodes, found in rates.items():
                out = Path(folder) / f"out{nodes}-{i}"
                rate, grown = measure(nodes, arguments.bundle, data, out, arguments.shard)
                print(f"{nodes} nodes: {rate:.0f} images/s", flush=True)
                found.append(rate)
                growth.append(grown)
    one, two = (statistics.median(found) for found in rates.values())
    print(f"median: one node {one:.0f}, two nodes {two:.0f} images/s: {two / one:.2f} x")
    print(f"driver's memory: {max(growth):.2f} x from a quarter of the way to its most")
    return 0 if two / one >= LEAST and max(growth) <= GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
