"""What verbs do with results beyond printing them: the report, and a closer look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from crelu_deploy.accuracy import Tolerance
from crelu_deploy.bundle import Bundle
from crelu_deploy.cli import options
from crelu_deploy.cli.output import Output
from crelu_deploy.errors import BackendUnavailable, BuildError
from crelu_deploy.results import Benchmark, Verification
from crelu_deploy.tables import printable
from crelu_deploy.targets import BACKENDS, Options

REPRODUCE = click.option(
    "--reproduce",
    type=options.FILE,
    default="reproduce",
    show_default=True,
    help="Folder for files that reproduce the difference without crelu-deploy.",
)


def look_into(
    bundle: Bundle,
    found: Sequence[Verification],
    settings: Options,
    tolerance: Tolerance | None,
    folder: Path,
    output: Output,
) -> tuple[list[dict[str, Any]], list[object]]:
    """Locate the differences of the targets that ran, as JSON and as text.

    What shows each of them is written to ``folder``, where Polygraphy is installed.
    """
    from crelu_deploy import locating, reproducing
    from crelu_deploy.render.located import located_json, located_parts

    data, parts = list[dict[str, Any]](), list[object]()
    for v in found:
        if v.comparison is None or not BACKENDS[v.target.backend].lowered:
            continue
        output.progress(f"look into {v.target}")
        located = locating.locate(bundle, v.target, settings, tolerance=tolerance)
        said = ""
        if located.first is not None:
            place = folder / str(v.target).replace(":", "-")
            try:
                said = reproducing.reproduce(
                    bundle, v.target, located.first, place, tolerance=tolerance
                )
            except BackendUnavailable as error:
                said = str(error)
        data.append(located_json(located, said))
        parts += located_parts(located, said, passed=v.passed)
    return data, parts


def finish(
    bundle: Bundle,
    found: Benchmark,
    settings: Options,
    measuring: options.Measuring,
    tolerance: Tolerance | None,
    output: Output,
) -> tuple[dict[str, Any], list[object]]:
    """Write the report and, if asked to, measure with all cores busy; as JSON and as text."""
    data, parts = dict[str, Any](), list[object]()
    if measuring.throughput:
        from crelu_deploy import throughput
        from crelu_deploy.render import stages

        seconds = measuring.seconds
        loads = throughput.loads(bundle, found, settings, seconds=seconds, progress=output.progress)
        data["throughput"] = stages.loads_json(loads)
        parts.append(stages.loads_table(loads))
    output.progress("report")
    return data, [*parts, _report(bundle, found, settings.threads, tolerance)]


def _report(
    bundle: Bundle, found: Benchmark, threads: int | None, tolerance: Tolerance | None
) -> str:
    """Write the bundle's report and say where it is, or why there is none."""
    from crelu_deploy.report import write_report

    try:
        files = write_report(bundle, found, threads=threads, tolerance=tolerance)
    except BuildError as error:  # what was measured counts all the same
        return f"report   not written: {printable(str(error))}"
    return f"report   {printable(str(files[-1]))}"


def calibrated(output: Output) -> tuple[dict[str, Any], list[object]]:
    """Fit the rule of ``auto`` to this processor and keep it; as JSON and as text."""
    from crelu_deploy import calibration, rules
    from crelu_deploy.render import health

    found = calibration.calibrate(rules.block(), Options(threads=1), progress=output.progress)
    file = rules.keep(found.rule)
    data = health.calibration_json(found, file)
    return data, [health.calibration_table(found), f"kept in {printable(str(file))}"]
