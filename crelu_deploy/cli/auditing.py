"""The verb ``audit``."""

from __future__ import annotations

from pathlib import Path

import click

from crelu_deploy.bundle import Bundle
from crelu_deploy.cli import options
from crelu_deploy.cli.commands import FAILED, OK, cli
from crelu_deploy.cli.output import Output
from crelu_deploy.cli.text import Text
from crelu_deploy.targets import Target


@cli.command(epilog="Example: crelu audit faceboxes.crelu -t ort-cpu --faults 200")
@click.argument("bundle", type=options.FILE)
@click.option(
    "-t",
    "--target",
    default="ort-cpu",
    show_default=True,
    type=Text("BACKEND[:LOWERING]", Target.parse),
    help="The built target that faults are planted into.",
)
@click.option(
    "--faults", type=click.IntRange(min=1), default=200, show_default=True, help="How many."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the places.")
@options.running
@options.output
def audit(
    bundle: Path, target: str, faults: int, seed: int, running: options.Running, output: Output
) -> int:
    """Plant faults into copies of a target, and count which its verification catches."""
    from crelu_deploy import auditing
    from crelu_deploy.render import audited

    with output:
        done = auditing.audit(
            Bundle.open(bundle),
            Target.parse(target),
            running.options(),
            faults=faults,
            seed=seed,
            progress=output.progress,
        )
        output.result(audited.audit_json(done), *audited.audit_parts(done))
    if done.missed:
        click.echo(
            f"error: {len(done.missed)} of {len(done.planted)} faults change the outputs and "
            "are not caught: record more samples with crelu export --samples",
            err=True,
        )
    return FAILED if done.missed else OK
