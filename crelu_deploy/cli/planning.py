"""The verb ``plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from crelu_deploy.bundle import Bundle
from crelu_deploy.cli import options
from crelu_deploy.cli.commands import cli, verdict
from crelu_deploy.cli.output import Output
from crelu_deploy.plan import Plan
from crelu_deploy.render import stages
from crelu_deploy.targets import Target


@cli.command(epilog="Example: crelu plan faceboxes.crelu --budget 60 -o plan.json")
@click.argument("bundle", type=options.FILE)
@options.BATCH
@options.BUDGET
@click.option("--plan", "file", type=options.FILE, help="Use this plan instead of measuring.")
@click.option("--fresh", is_flag=True, help="Forget what was measured before.")
@click.option("-o", "--out", type=options.FILE, help="Also write the plan to a file.")
@options.running
@options.output
def plan(
    bundle: Path,
    batch: str,
    budget: float,
    file: Path | None,
    fresh: bool,
    out: Path | None,
    running: options.Running,
    output: Output,
) -> int:
    """Find the fastest mix of lowerings by timing it here, and build ort-cpu:auto with it."""
    from crelu_deploy import pipeline, planner

    with output:
        opened = Bundle.open(bundle)
        settings = running.options()
        if file is not None:
            planner.use(opened, made := Plan.read(file))
        else:
            search: dict[str, Any] = {
                "batches": options.read_batches(batch),
                "budget": budget,
                "fresh": fresh,
            }
            made = planner.make_plan(opened, settings, progress=output.progress, **search)
        if out is not None:
            made.save(out)
        target = Target.parse(planner.BACKEND)
        (built,) = pipeline.build(opened, [target], settings, progress=output.progress)
        output.result(stages.plan_json(made, built), *stages.plan_tables(made, built))
    return verdict([built])
