"""The verb ``score``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crelu_deploy.cli import options
from crelu_deploy.cli.commands import OK, cli
from crelu_deploy.cli.output import Output
from crelu_deploy.cli.pixels import PIXELS, changes
from crelu_deploy.cli.text import Text
from crelu_deploy.scoring.inputs import missing
from crelu_deploy.tables import counted, printable
from crelu_deploy.targets import Target

if TYPE_CHECKING:
    from crelu_deploy.scoring.run import Settings, Summary

POSITIVE, COUNT = click.IntRange(1), click.IntRange(0)

TARGET = click.option(
    "-t",
    "--target",
    type=Text("BACKEND[:LOWERING]", Target.parse),
    default="ort-cpu",
    show_default=True,
    help="What to run; it must be built.",
)


@dataclass(frozen=True)
class Choices:
    """What becomes of pixels, and how the work is divided."""

    mean: str | None
    scale: str | None
    bgr: bool | None
    batch: int
    shard: int
    cpus: int
    gpus: float | None
    address: str | None
    max_errors: int | None

    def settings(self) -> Settings:
        """Return what the run is told."""
        from crelu_deploy.scoring.run import Settings

        pixels = changes(self.mean, self.scale, self.bgr)
        return Settings(
            *(self.batch, self.shard, pixels, self.cpus, self.gpus, self.address, self.max_errors)
        )


choices = options.group(
    "choices",
    Choices,
    click.option("--address", help="Ray's HOST:PORT, or auto; without it, this machine alone."),
    click.option("--max-errors", type=COUNT, help="Stop when more rows than this fail."),
    click.option("--batch", type=POSITIVE, default=32, show_default=True, help="Rows a call."),
    click.option("--shard", type=POSITIVE, default=1024, show_default=True, help="Rows a file."),
    *PIXELS,
    click.option(
        "--cpus",
        type=POSITIVE,
        default=1,
        show_default=True,
        help="Cores an actor: one for the network, the others decode ahead.",
    ),
    click.option("--gpus", type=click.FloatRange(0), help="GPUs an actor, such as 0.5."),
)


@cli.command(epilog="Example: crelu score faceboxes.crelu images -o scores")
@click.argument("bundle", type=options.FILE)
@click.argument("data", type=options.FILE, nargs=-1, required=True)
@click.option("-o", "--out", type=options.FILE, required=True, help="The folder to write.")
@TARGET
@choices
@options.output
def score(
    bundle: Path,
    data: tuple[Path, ...],
    out: Path,
    target: str,
    choices: Choices,
    output: Output,
) -> int:
    """Score image folders, .npy, .npz and Parquet files on every machine of a Ray cluster."""
    with output:
        try:
            from crelu_deploy.scoring import run

            settings = choices.settings()
        except ModuleNotFoundError as error:
            raise missing(error) from error
        done = run.score(
            bundle, data, out, target=target, settings=settings, progress=output.progress
        )
        output.result({**asdict(done), "out": str(done.out)}, *_lines(done))
    return OK


def _lines(done: Summary) -> list[str]:
    there = f", {done.resumed} of them were there" if done.resumed else ""
    images = f"images   {done.preprocessing}"
    lines = [
        *([images] if done.preprocessing else []),
        f"scored   {counted(done.rows, 'row')} in {counted(done.shards, 'file')}{there}",
        f"errors   {done.errors}",
    ]
    if done.errors:
        lines.append(f"first    {printable(done.example)}")
    return [*lines, f"wrote    {printable(str(done.out))}"]
