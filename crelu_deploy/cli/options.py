"""The options that commands share, each group read into one object."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from crelu_deploy import plan, profiles, shapes, targets
from crelu_deploy.accuracy import Tolerance
from crelu_deploy.cli.output import Output
from crelu_deploy.cli.pixels import PIXELS, changes
from crelu_deploy.cli.sizes import read_size
from crelu_deploy.cli.text import Text
from crelu_deploy.latency import Effort
from crelu_deploy.lowerings import LOWERINGS
from crelu_deploy.preprocessing import Changes
from crelu_deploy.resizing import parse_sizes
from crelu_deploy.targets import AUTO, unknown

Command = Callable[..., Any]

FILE = click.Path(path_type=Path)


def _check_lowering(text: str) -> None:
    if text not in (AUTO, *LOWERINGS):
        raise ValueError(unknown("lowering", text, (AUTO, *LOWERINGS)))


def read_batches(text: str) -> tuple[int, ...]:
    """Read batch sizes such as ``1,8``.

    Raises:
        ValueError: Not positive integers with commas between them.
    """
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise ValueError(f"batch {text!r}: expected positive numbers such as 1,8")
    return sizes


def _check_samples(text: str) -> None:
    if text.isdecimal() and not 1 <= int(text) <= 10_000:
        raise ValueError(f"samples {text!r}: expected 1 to 10000, or an NPZ file")


def number_of(sizes: tuple[str, ...]) -> int:
    """Return how many calls ``--sizes`` asks for."""
    return len(parse_sizes(sizes[0])[1]) if sizes else 0


INPUT = click.option(
    "--input",
    "inputs",
    multiple=True,
    type=Text("[NAME:]SIZES", shapes.parse_shape),
    help="Shape of an input, such as 1x3x224x224. Repeatable.",
)

SIZES = click.option(
    "--sizes",
    multiple=True,
    type=Text("[NAME:]SIZES,...", parse_sizes),
    help="Compare with PyTorch at these sizes too, such as 2x3x96x128,1x3x64x64. Once per input.",
)

LOWERING = click.option(
    "--lowering",
    type=Text("LOWERING", _check_lowering),
    default=AUTO,
    show_default=True,
    help=f"One form for all sites ({', '.join(LOWERINGS)}), or auto: what is the fastest here.",
)

TARGETS = click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    type=Text("BACKEND[:LOWERING]", targets.Target.parse),
    help="What to build, verify or time. Repeatable.",
)

BATCH = click.option(
    "--batch",
    type=Text("SIZES", read_batches),
    default="1",
    show_default=True,
    help="Batch sizes, such as 1,8.",
)


class Finite(click.FloatRange):
    """A finite number, which click's own range does not ask for."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Read it; what is none is wrong usage."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


BUDGET = click.option(
    "--budget",
    type=Finite(min=0),
    default=30.0,
    show_default=True,
    help="Seconds to search for the fastest mix of lowerings; 0 takes a rule's choice.",
)

RACE = click.option(
    "--budget",
    "race",
    type=Finite(min=0),
    default=None,
    show_default=f"{plan.RACE:g}",
    help="Seconds to race the forms of the network here; 0 takes a rule's choice.",
)

NO_RACE = click.option(
    "--no-race",
    "race",
    flag_value=0.0,
    type=float,
    help="As --budget 0: for a machine other than this one.",
)

TRUST = click.option("--trust", is_flag=True, help="Load files that can run code.")


@dataclass(frozen=True)
class Export:
    """Where a checkpoint's bundle goes and how it is exported."""

    out: Path | None
    trust: bool
    arch: str | None
    ema: bool
    inputs: tuple[str, ...]
    dynamic: tuple[str, ...]
    opset: int
    samples: str
    seed: int
    mean: str | None
    scale: str | None
    bgr: bool | None
    allow_nan: bool

    def arguments(self) -> dict[str, Any]:
        """Return keyword arguments of ``export`` and ``deploy``."""
        samples = int(self.samples) if self.samples.isdecimal() else Path(self.samples)
        pixels = {"preprocessing": changes(self.mean, self.scale, self.bgr)}
        own = {
            name: value for name, value in vars(self).items() if name not in Changes.__annotations__
        }
        return {**own, "samples": samples, **pixels}


@dataclass(frozen=True)
class Limits:
    """What counts as equal, where the user says so."""

    atol: float | None
    rtol: float | None

    @property
    def tolerance(self) -> Tolerance | None:
        """The tolerance, or None for the one of the outputs' types."""
        if self.atol is None and self.rtol is None:
            return None
        return Tolerance(self.atol or 0.0, self.rtol or 0.0)


@dataclass(frozen=True)
class Measuring:
    """How long to measure, at which batch sizes."""

    batch: str
    runs: int
    seconds: float
    end_to_end: bool
    throughput: bool

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes."""
        return read_batches(self.batch)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``bench`` that say how to measure."""
        effort = Effort(runs=self.runs, seconds=self.seconds)
        return {"batches": self.batches, "effort": effort, "end_to_end": self.end_to_end}


@dataclass(frozen=True)
class Running:
    """How runtimes run."""

    threads: int | None
    verbose: bool
    shapes: tuple[str, ...]
    tf32: bool
    workspace: str | None
    refit: bool
    version_compatible: bool
    channels_last: bool

    def options(self, *, trust: bool = False) -> targets.Options:
        """Return what the runtimes are told."""
        workspace = None if self.workspace is None else read_size(self.workspace)
        return targets.Options(**{**vars(self), "workspace": workspace}, trust=trust)


def group(name: str, kind: type[Any], *options: Command) -> Callable[[Command], Command]:
    """Return a decorator that adds options and passes them to the command as one object."""
    fields = [field.name for field in dataclasses.fields(kind) if field.init]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def grouped(**values: Any) -> Any:
            read = kind(**{field: values.pop(field) for field in fields})
            return command(**values, **{name: read})

        for option in reversed(options):
            grouped = option(grouped)
        return grouped

    return decorate


exporting = group(
    "exporting",
    Export,
    click.option("-o", "--out", type=FILE, help="The bundle's folder."),
    TRUST,
    click.option("--arch", help="Architecture: a name, or package.module:factory."),
    click.option("--ema", is_flag=True, help="Take the moving average of the weights."),
    INPUT,
    click.option(
        "--dynamic",
        multiple=True,
        type=Text("[NAME:]AXES", shapes.parse_axes),
        help="Axes that may vary beside the batch, such as 2,3; 'none' fixes all.",
    ),
    click.option("--opset", type=click.IntRange(7), default=20, show_default=True),
    click.option(
        "--samples",
        type=Text("N|FILE.npz", _check_samples),
        default="2",
        show_default=True,
        help="How many random inputs to verify on, or real ones by input name.",
    ),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
    click.option("--allow-nan", is_flag=True, help="Accept outputs that are NaN or infinite."),
    *PIXELS,
)

limits = group(
    "limits",
    Limits,
    click.option(
        "--atol", type=Finite(min=0), help="Relative to a channel's RMS, instead of the rule."
    ),
    click.option(
        "--rtol", type=Finite(min=0), help="Relative to each element, instead of the rule."
    ),
)

measuring = group(
    "measuring",
    Measuring,
    BATCH,
    click.option(
        "--runs",
        type=click.IntRange(1),
        default=200,
        show_default=True,
        help="Timed calls of each target.",
    ),
    click.option(
        "--seconds",
        type=Finite(min=0.1),
        default=20.0,
        show_default=True,
        help="Limit for each batch size.",
    ),
    click.option("--end-to-end", is_flag=True, help="Time the copies to and from a GPU too."),
    click.option(
        "--throughput", is_flag=True, help="Also rows per second on all cores, and memory."
    ),
)

running = group(
    "running",
    Running,
    click.option("--threads", type=click.IntRange(1), help="Threads of one call."),
    click.option("-v", "--verbose", is_flag=True, help="The runtimes' own logs."),
    click.option(
        "--shapes",
        multiple=True,
        type=Text("[NAME:]MIN/LIKELY/MAX", profiles.parse_range),
        help="For an engine: the shapes of an input, such as 1x3x32x32/8x3x32x32/64x3x32x32.",
    ),
    click.option("--tf32", is_flag=True, help="Let a GPU multiply float32 in TF32."),
    click.option(
        "--workspace",
        type=Text("SIZE", read_size),
        help="For an engine: device memory that a layer may use, such as 4GiB.",
    ),
    click.option("--refit", is_flag=True, help="For an engine: its weights can be replaced."),
    click.option(
        "--version-compatible",
        is_flag=True,
        help="For an engine: later versions of its runtime read it.",
    ),
    click.option("--channels-last", is_flag=True, help="For ort-cuda: compute in NHWC."),
)

output = group(
    "output",
    Output,
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    click.option("-q", "--quiet", is_flag=True, help="No progress on stderr."),
)
