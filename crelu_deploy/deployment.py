"""The whole way, from a checkpoint to timed targets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import torch

from crelu_deploy.bundle import Bundle
from crelu_deploy.exporter import ExportSettings, export
from crelu_deploy.latency import Effort
from crelu_deploy.pipeline import (
    DEFAULT,
    EFFORT,
    AnyTarget,
    Progress,
    bench,
    build,
    parse_targets,
    silent,
)
from crelu_deploy.plan import Plan
from crelu_deploy.planner import BACKEND, BUDGET, make_plan
from crelu_deploy.results import Benchmark, Build, Verification
from crelu_deploy.targets import AUTO, BASELINE, Options, Target


@dataclass(frozen=True)
class Deployment:
    """What ``deploy`` made and found.

    Attributes:
        bundle: The folder.
        plan: The lowerings of ``auto``; None where no target asked for it.
        builds: How the build of each target ended.
        benchmark: Verification and latency of the targets that were built; those that could not be,
            because something is not here, are skipped in it.
    """

    bundle: Bundle
    plan: Plan | None
    builds: tuple[Build, ...]
    benchmark: Benchmark

    @property
    def failed(self) -> list[str]:
        """The targets that were not built or not verified, but not those skipped here."""
        return [str(one.target) for one in self.results if not (one.passed or one.skipped)]

    @property
    def results(self) -> tuple[Build | Verification, ...]:
        """How each target ended: its verification, or its build where that cannot run here."""
        verified = {v.target: v for v in self.benchmark.verifications if not v.skipped}
        others = (made for made in self.builds if made.target not in verified)
        return (*others, *verified.values())


def deploy(
    model: str | os.PathLike[str] | torch.nn.Module,
    out: str | os.PathLike[str] | None = None,
    *,
    targets: Sequence[AnyTarget] = ("ort-cpu",),
    options: Options = DEFAULT,
    batches: Sequence[int] = (1,),
    budget: float = BUDGET,
    effort: Effort = EFFORT,
    end_to_end: bool = False,
    progress: Progress = silent,
    **settings: Unpack[ExportSettings],
) -> Deployment:
    """Export, plan, build, verify, time; a target stops at its first failure, the others go on.

    Arguments are those of ``export``, ``make_plan`` and ``bench``.

    Raises:
        CheckpointError, ExportError, BuildError: As ``export`` does.
    """
    settings = {**settings, "trust": options.trust or settings.get("trust", False)}
    wanted, plan = parse_targets(targets), None
    if searched := Target(BACKEND, AUTO) in wanted:
        settings["race"] = 0.0  # the search races the same forms
    bundle = export(model, out, progress=progress, **settings)
    if searched:
        plan = make_plan(bundle, options, batches=batches, budget=budget, progress=progress)
    builds = build(bundle, wanted, options, progress=progress)
    benchmark = bench(
        bundle,
        [b.target for b in builds if b.passed] or [BASELINE],
        options,
        batches=batches,
        effort=effort,
        end_to_end=end_to_end,
        tolerance=settings.get("tolerance"),
        progress=progress,
    )
    return Deployment(bundle, plan, builds, _with_absent(benchmark, builds))


def _with_absent(benchmark: Benchmark, builds: Sequence[Build]) -> Benchmark:
    """Add what could not be built, because something is not here, to what was verified."""
    absent = (Verification(b.target, None, b.error, skipped=True) for b in builds if b.skipped)
    return replace(benchmark, verifications=(*benchmark.verifications, *absent))
