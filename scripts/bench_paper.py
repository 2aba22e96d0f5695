"""The latency of the CReLU paper's networks and of FaceBoxes, as one table, with one command.

For every network and batch size: a plan is searched, then all targets are timed, interleaved, one
thread, twice. Printed are the ratio of ``ort-cpu:auto`` to the plain ``torch.onnx`` graph on the
same runtime, to the best uniform lowering and to other runtimes, each as the median over the rounds
of both runs with the 10th and 90th percentile, and the distance of the sites from their ceiling.
Then the fastest targets of any precision. Rows that miss what is aimed at are listed last.

Usage: bench_paper.py [--faceboxes FaceBoxes.pth] [--quick] [--only TITLE] [--budget SECONDS]
    [--seconds SECONDS]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import bench_sites
import numpy as np
import torch
from paper_networks import NETWORKS, Network, write_bundle

from crelu_deploy import Bundle, Options, Target, bench, build
from crelu_deploy.environment import environment
from crelu_deploy.latency import Effort
from crelu_deploy.lowerings import LOWERINGS
from crelu_deploy.planner import make_plan
from crelu_deploy.results import Benchmark
from crelu_deploy.targets import BASELINE, FUNCTION

AUTO = Target("ort-cpu", "auto")
UNIFORM = tuple(Target("ort-cpu", n) for n in LOWERINGS if n != FUNCTION)
OTHERS = tuple(Target.parse(n) for n in ("openvino:primitive", "openvino", "torch"))
COMPILED = Target.parse("torch-compile")
REDUCED = ("openvino-int8", "openvino-bf16", "ort-cpu-int8")
ONE = Options(threads=1, trust=True)  # the stem is made by code of this folder
RUNS = 2
CEILING = 1.05
"""How far from the ceiling ``auto`` may be."""

DECISIONS = 100
"""Samples on which decisions of reduced precision are compared."""


@dataclass(frozen=True)
class Settings:
    """How long to work.

    Attributes:
        budget: Seconds for each search of a plan.
        seconds: Seconds for each of the two runs of a row.
        compiled: Whether torch.compile, which takes minutes to build, takes part.
        every: Whether all batch sizes are timed, or the first alone.
        samples: Samples on which decisions are compared.
    """

    budget: float = 60.0
    seconds: float = 40.0
    compiled: bool = True
    every: bool = True
    samples: int = DECISIONS


QUICK = Settings(budget=2.0, seconds=3.0, compiled=False, every=False, samples=4)


@dataclass(frozen=True)
class Ratio:
    """Time over time, per round: the median of each run, and percentiles over all rounds."""

    medians: tuple[float, ...]
    p10: float
    p90: float

    @property
    def median(self) -> float:
        """The middle of the runs' medians."""
        return float(np.mean(self.medians))

    def __str__(self) -> str:
        runs = "/".join(f"{m:.3f}" for m in self.medians)
        return f"{runs} ({self.p10:.2f}..{self.p90:.2f})"


def paired(runs: Sequence[Benchmark], one: Target, other: Target) -> Ratio | None:
    """Return how long one target takes, over another in the same round; None if one has no row."""
    rounds = []
    for run in runs:
        times = {row.target: row.latency.times for row in run.rows}
        if one not in times or other not in times:
            return None
        rounds.append(np.divide(times[one], times[other]))
    p10, p90 = np.percentile(np.concatenate(rounds), (10, 90))
    return Ratio(tuple(float(np.median(r)) for r in rounds), float(p10), float(p90))


def timed(bundle: Bundle, batch: int, targets: Sequence[Target], seconds: float) -> list[Benchmark]:
    """Time the targets in two runs; those that fail verification have no row."""
    effort = Effort(runs=2000, warmup=3, seconds=seconds)
    return [bench(bundle, targets, ONE, batches=[batch], effort=effort) for _ in range(RUNS)]


def report(network: Network, bundle: Bundle, batch: int, settings: Settings) -> list[str]:
    """Print one row of the table; return what it misses, in words."""
    plan = make_plan(bundle, ONE, batches=[batch], budget=settings.budget)
    (built,) = build(bundle, [AUTO], ONE)
    compiled = (COMPILED,) if settings.compiled else ()
    runs = timed(bundle, batch, (*UNIFORM, AUTO, *OTHERS, *compiled), settings.seconds)
    found = paired(runs, AUTO, BASELINE)
    if found is None:
        return [f"{network.title}, batch {batch}: {_failures(runs[0])}"]
    against = {str(t): paired(runs, AUTO, t) for t in (*OTHERS, *compiled)}
    uniform = {t: r for t in UNIFORM if (r := paired(runs, t, BASELINE)) is not None}
    best = min(uniform, key=lambda target: uniform[target].median)
    rounds = sum(row.latency.runs for run in runs for row in run.rows if row.target == AUTO)
    base = next(row.latency.median for row in runs[0].rows if row.target == BASELINE)
    sites = bench_sites.measure(bundle, batch, rounds=10 if settings == QUICK else 40)
    distance = sites.ratio(str(AUTO))
    aim = network.reach[batch]
    print(f"\n{network.title}, batch {batch}   {BASELINE} {base:.2f} ms")
    print(f"  plan         {mix(built.lowerings)}   ({plan.how}, {settings.budget:.0f} s)")
    print(f"  auto         {found}   aim {aim:.2f}   {RUNS} runs, {rounds} rounds")
    print(f"  uniform      {'  '.join(f'{t.lowering} {r.median:.3f}' for t, r in uniform.items())}")
    print(f"  auto/best    {paired(runs, AUTO, best)}   the best uniform lowering is {best}")
    for name, ratio in against.items():
        aimed = f"   aim {network.against[name]:.2f}" if name in network.against else ""
        print(f"  auto/{name:18} {ratio or _failures(runs[0])}{aimed}")
    print(f"  sites        {distance:.2f} x the ceiling (plain {sites.ratio(str(BASELINE)):.2f})")
    print(f"  opening      {_openings(runs[0])}", flush=True)
    tried = ", ".join(f"{name} {ratio:.3f}" for name, ratio in plan.ratios.items())
    missed = _missed(network, batch, found, against)
    if distance > CEILING:
        missed.append(f"sites {distance:.2f} x the ceiling, aim {CEILING}")
    return [f"{network.title}, batch {batch}: {miss}; tried: {tried}" for miss in missed]


def mix(lowerings: Mapping[str, str]) -> str:
    """Return the lowering of every site, or how many have which where they are many."""
    if len(lowerings) <= 8:
        return ", ".join(f"{site} {lowering}" for site, lowering in lowerings.items())
    return ", ".join(f"{n} {lowering}" for lowering, n in Counter(lowerings.values()).items())


def _missed(
    network: Network, batch: int, found: Ratio, against: Mapping[str, Ratio | None]
) -> list[str]:
    missed = []
    if found.median > network.reach[batch]:
        missed.append(f"auto {found.median:.3f}, aim {network.reach[batch]:.2f}")
    for name, aim in network.against.items() if batch == 1 else ():
        ratio = against.get(name)
        if ratio is not None and ratio.median > aim:
            missed.append(f"auto/{name} {ratio.median:.3f}, aim {aim:.2f}")
    return missed


def _failures(run: Benchmark) -> str:
    failed = [f"{v.target} {v.error or 'differs'}" for v in run.verifications if not v.passed]
    return "; ".join((*failed, *run.refused.values())) or "not timed"


def _openings(run: Benchmark) -> str:
    found = [f"{v.target} {v.opening * 1e3:.0f} ms" for v in run.verifications if v.passed]
    return ", ".join(found)


def precisions(bundle: Bundle, title: str, settings: Settings) -> None:
    """Print the fastest targets of any precision, and how often each decides as PyTorch."""
    runs = timed(bundle, 1, [Target.parse(name) for name in REDUCED], settings.seconds)
    choices = np.concatenate([sample.outputs["logits"].argmax(axis=1) for sample in bundle.samples])
    print(f"\n{title}, batch 1, reduced precision")
    print(f"  {len(choices)} random inputs, which PyTorch puts into {len(set(choices))} classes")
    for verification in runs[0].verifications[1:]:
        if verification.comparison is None:
            print(f"  {verification.target!s:20} {verification.error}")
            continue
        ratio = paired(runs, verification.target, BASELINE)
        verdict = "ok" if verification.passed else "FAILED, not timed"
        score = f"score {verification.comparison.score:.2f}"
        line = f"{ratio or '-'}   top-1 {verification.agreement}   {score}   {verdict}"
        print(f"  {verification.target!s:20} {line}", flush=True)


def run(network: Network, weights: Path | None, settings: Settings) -> list[str]:
    """Do one network: every batch size, and reduced precision for All-CNN-B."""
    if network.trained and weights is None:
        print(f"\n{network.title}: skipped, give its trained weights with --faceboxes FILE")
        return []
    with tempfile.TemporaryDirectory() as folder:
        file = weights if network.trained else None
        bundle = write_bundle(network, Path(folder), file, samples=2)
        batches = list(network.reach) if settings.every else list(network.reach)[:1]
        missed = [miss for batch in batches for miss in report(network, bundle, batch, settings)]
    if network.arch.startswith("all-cnn-b"):
        with tempfile.TemporaryDirectory() as folder:
            bundle = write_bundle(network, Path(folder), None, settings.samples)
            precisions(bundle, network.title, settings)
    return missed


def main() -> int:
    """Print the whole table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faceboxes", type=Path, help="trained weights of FaceBoxes")
    parser.add_argument("--quick", action="store_true", help="minutes, not an hour; rough figures")
    parser.add_argument("--only", default="", help="networks whose title holds this text")
    parser.add_argument("--budget", type=float, help="seconds for each search of a plan")
    parser.add_argument("--seconds", type=float, help="seconds for each of the runs of a row")
    arguments = parser.parse_args()
    settings = QUICK if arguments.quick else Settings()
    given = {"budget": arguments.budget, "seconds": arguments.seconds}
    settings = replace(settings, **{name: value for name, value in given.items() if value})
    torch.set_num_threads(1)
    for key, value in environment(ONE.cores).items():
        print(f"{key}: {value}")
    chosen = [network for network in NETWORKS if arguments.only.lower() in network.title.lower()]
    missed = [miss for one in chosen for miss in run(one, arguments.faceboxes, settings)]
    print("\nmissed:" if missed else "\neverything aimed at was reached")
    for miss in missed:
        print(f"  {miss}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
