"""What is left of a target's time, node by node, and how near its convolutions are to the peak.

ONNX Runtime's own profile of single calls, one thread: the shortest time of each node. The peak is
what a loop of fused multiply-adds on registers reaches here, with the widest vectors that ONNX
Runtime uses (blocks of 16: AVX-512; else AVX2), compiled with ``cc``.

Usage: bench_nodes.py BUNDLE TARGET [--calls 30]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
import onnxruntime as ort

from crelu_deploy import Bundle, Target
from crelu_deploy.environment import cpu_name
from crelu_deploy.pipeline import feeds_of
from crelu_deploy.rules import block

PEAK = r"""
#include <immintrin.h>
#include <stdio.h>
#include <time.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9; }
int main(void) {
  enum { N = 12, LOOPS = 20000000 };
  double best = 0;
  for (int repeat = 0; repeat < 60; repeat++) {
    VECTOR a[N], x = SET(1.0000001f), y = SET(1e-9f);
    for (int i = 0; i < N; i++) a[i] = SET(i);
    double start = now();
    for (int loop = 0; loop < LOOPS / 10; loop++)
      for (int i = 0; i < N; i++) a[i] = FMA(a[i], x, y);
    double rate = 2.0 * N * (LOOPS / 10) * sizeof(VECTOR) / 4 / (now() - start) / 1e9;
    float sink[16]; for (int i = 1; i < N; i++) a[0] = ADD(a[0], a[i]);
    STORE(sink, a[0]); if (sink[0] == 42) puts("");
    if (rate > best) best = rate;
  }
  printf("%.1f\n", best);
}
"""
WIDE = ("__m512", "_mm512_set1_ps", "_mm512_fmadd_ps", "_mm512_add_ps", "_mm512_storeu_ps")
NARROW = ("__m256", "_mm256_set1_ps", "_mm256_fmadd_ps", "_mm256_add_ps", "_mm256_storeu_ps")


@dataclass(frozen=True)
class Node:
    """One node of the optimised graph: its shortest time in ms, and what it multiplies and adds."""

    name: str
    kind: str
    milliseconds: float
    products: float


def peak() -> float:
    """Return GFLOP/s of one core, a multiply-add counted as two."""
    names = ("VECTOR", "SET", "FMA", "ADD", "STORE")
    words = WIDE if block() == 16 else NARROW
    defines = [f"-D{name}={word}" for name, word in zip(names, words, strict=True)]
    flags = ["-O3", "-ffp-contract=off", "-funroll-loops", "-mfma", "-mavx2"]
    flags += ["-mavx512f"] if block() == 16 else []
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "peak.c"), Path(folder, "peak")
        source.write_text(PEAK)
        # Neither may have instructions hidden by a library that is loaded before them.
        env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        subprocess.run(["cc", *flags, *defines, source, "-o", program], check=True, env=env)
        told = subprocess.run([program], check=True, env=env, capture_output=True, text=True)
        return float(told.stdout)


def profiled(path: Path, feeds: dict[str, object], calls: int) -> Iterator[Node]:
    """Yield every node that ran."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.enable_profiling = True
    settings.log_severity_level = 4
    times: dict[str, list[float]] = defaultdict(list)
    events = {}
    with tempfile.TemporaryDirectory() as folder:
        settings.profile_file_prefix = f"{folder}/profile"
        settings.optimized_model_filepath = f"{folder}/optimised.onnx"
        session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        for _ in range(calls):
            session.run(None, feeds)
        data = json.loads(Path(session.end_profiling()).read_text())
        graph = onnx.load(settings.optimized_model_filepath).graph
    weights = {node.name: list(node.input[1:2]) for node in graph.node if node.op_type == "Conv"}
    shapes = {value.name: list(value.dims) for value in graph.initializer}
    for event in data:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            times[name].append(event["dur"] / 1e3)
            events[name] = event["args"]
    for name, taken in times.items():
        args = events[name]
        products = 0.0
        for weight in weights.get(name, []):
            (output,) = (next(iter(one.values())) for one in args["output_type_shape"][:1])
            products = prod(output) * prod(shapes[weight][1:])
        yield Node(name, args["op_name"], min(taken), products)


def main() -> int:
    """Print a row per node that takes more than a hundredth of the whole."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("target", type=Target.parse)
    parser.add_argument("--calls", type=int, default=30)
    given = parser.parse_args()
    bundle = Bundle.open(given.bundle)
    nodes = list(profiled(bundle.artifact(given.target), feeds_of(bundle, 1), given.calls))
    whole, best = sum(node.milliseconds for node in nodes), peak()
    print(f"{cpu_name()}, blocks of {block()}: {whole:.2f} ms in all, peak {best:.0f} GFLOP/s")
    rest = whole
    for node in sorted(nodes, key=lambda node: -node.milliseconds):
        if node.milliseconds < whole / 100:
            continue
        rest -= node.milliseconds
        rate = 2 * node.products / node.milliseconds / 1e6
        share = f"{rate / best:4.0%} of the peak" if node.products else ""
        print(f"{node.milliseconds:7.2f} ms  {node.kind:14} {node.name[:40]:40} {share}")
    print(f"{rest:7.2f} ms  all others, each below a hundredth")
    glue = sum(node.milliseconds for node in nodes if not node.products)
    print(f"{glue:7.2f} ms  of the whole is not in convolutions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
