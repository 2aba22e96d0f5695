"""The verb ``audit``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from crelu_deploy.bundle import Bundle
from crelu_deploy.cli import options
from crelu_deploy.cli.commands import FAILED, OK, cli
from crelu_deploy.cli.output import Output
from crelu_deploy.cli.text import Text
from crelu_deploy.targets import Target

TARGET = click.option(
    "-t",
    "--target",
    default="ort-cpu",
    show_default=True,
    type=Text("BACKEND[:LOWERING]", Target.parse),
    help="The target that faults are planted into; of a bundle, one that is built.",
)


@dataclass(frozen=True)
class Planting:
    """Which faults are planted."""

    faults: int
    inputs: Path | None
    seed: int


planting = options.group(
    "planting",
    Planting,
    click.option(
        "--faults",
        type=click.IntRange(min=1),
        default=200,
        show_default=True,
        help="How many that change the outputs.",
    ),
    click.option(
        "--samples",
        "inputs",
        type=options.FILE,
        help="An NPZ of real inputs: only faults that change their outputs count.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Chooses the places."),
)


@cli.command(epilog="Example: crelu audit faceboxes.crelu -t ort-cpu --samples photos.npz")
@click.argument("model", metavar="BUNDLE|FILE.onnx", type=options.FILE)
@TARGET
@planting
@options.running
@options.output
def audit(
    model: Path, target: str, planting: Planting, running: options.Running, output: Output
) -> int:
    """Damage copies of a target on purpose, and count how many faults verification finds."""
    from crelu_deploy import auditing
    from crelu_deploy.render import audited

    with output:
        asked = (Target.parse(target), running.options())
        further = {**vars(planting), "progress": output.progress}
        if model.is_file():
            done = auditing.audit_file(model, *asked, **further)
        else:
            done = auditing.audit(Bundle.open(model), *asked, **further)
        output.result(audited.audit_json(done), *audited.audit_parts(done))
    if done.missed:
        hint = "" if model.is_file() else ": record more samples with crelu export --samples"
        click.echo(
            f"error: {len(done.missed)} of {len(done.visible)} faults that change the outputs "
            f"are not caught{hint}",
            err=True,
        )
    elif not done.visible:
        click.echo("error: no fault changes the outputs for these inputs: give others", err=True)
    return FAILED if done.missed or not done.visible else OK
