"""The verbs: arguments to calls, results to ``render``.

What a verb needs beyond the options is imported when it runs, so that help and errors are instant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import click

from crelu_deploy import __version__
from crelu_deploy.bundle import Bundle
from crelu_deploy.cli import options
from crelu_deploy.cli.output import Output
from crelu_deploy.cli.results import REPRODUCE, calibrated, finish, look_into
from crelu_deploy.errors import CheckpointError
from crelu_deploy.render import stages
from crelu_deploy.results import Build, Verification
from crelu_deploy.tables import printable
from crelu_deploy.targets import Target

OK, FAILED = 0, 1


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: crelu-export model.pt",
)
@click.version_option(__version__, prog_name="crelu")
def cli() -> None:
    """Export CReLU networks to verified, faster ONNX Runtime artifacts."""


@cli.command(epilog="Example: crelu-export faceboxes.pt -o faceboxes.crelu")
@click.argument("model", type=options.FILE)
@options.exporting
@options.RACE
@options.NO_RACE
@options.limits
@options.output
def export(
    model: Path,
    exporting: options.Export,
    race: float | None,
    limits: options.Limits,
    output: Output,
) -> int:
    """Turn a checkpoint into a bundle: portable ONNX, samples, the fastest form for this CPU."""
    with output:
        _announce(model, output)
        from crelu_deploy import exporter

        settings = exporting.arguments() | ({} if race is None else {"race": race})
        bundle = exporter.export(
            model, tolerance=limits.tolerance, progress=output.progress, **settings
        )
        output.result(stages.export_json(bundle), *stages.export_parts(bundle))
    return OK


def _announce(model: Path, output: Output) -> None:
    """Refuse a missing file before PyTorch is started, which takes seconds."""
    if not model.exists():
        raise CheckpointError(f"{model}: no such file")
    output.start_pytorch()


@cli.command(epilog="Example: crelu inspect network.onnx")
@click.argument("file", type=options.FILE)
@options.output
def inspect(file: Path, output: Output) -> int:
    """List the CReLU sites of an ONNX file or a bundle, and what only looks like one."""
    from crelu_deploy import optimizer

    with output:
        output.progress("recognise CReLU")
        found = optimizer.inspect(file)
        output.result(stages.inspection_json(found), *stages.inspection_tables(found))
    return OK


@cli.command(epilog="Example: crelu optimize network.onnx -o faster.onnx")
@click.argument("source", metavar="IN.onnx", type=options.FILE)
@click.option("-o", "--out", type=options.FILE, required=True, help="The file to write.")
@options.LOWERING
@click.option("--prune", is_flag=True, help="Remove dead halves of sites.")
@options.INPUT
@click.option("--no-check", is_flag=True, help="Neither compare with the original nor race.")
@options.RACE
@options.NO_RACE
@options.limits
@options.output
def optimize(
    source: Path,
    out: Path,
    lowering: str,
    prune: bool,
    inputs: tuple[str, ...],
    no_check: bool,
    race: float | None,
    limits: options.Limits,
    output: Output,
) -> int:
    """Lower the CReLUs of any ONNX file, prove the result, and compare it with the original."""
    from crelu_deploy import optimizer

    with output:
        done = optimizer.optimize(
            source,
            out,
            lowering=lowering,
            prune=prune,
            inputs=inputs,
            check=not no_check,
            race=race,
            tolerance=limits.tolerance,
            progress=output.progress,
        )
        output.result(stages.optimized_json(done), *stages.optimized_parts(done, out))
    return OK


@cli.command(epilog="Example: crelu build faceboxes.crelu -t ort-cpu:fold")
@click.argument("bundle", type=options.FILE)
@options.TARGETS
@options.TRUST
@options.running
@options.output
def build(
    bundle: Path,
    targets: tuple[str, ...],
    trust: bool,
    running: options.Running,
    output: Output,
) -> int:
    """Build targets of a bundle; ort-cpu when none is named."""
    from crelu_deploy import pipeline

    with output:
        settings = running.options(trust=trust)
        done = pipeline.build(bundle, targets or ("ort-cpu",), settings, progress=output.progress)
        output.result(stages.builds_json(done), *stages.builds_parts(done))
    return verdict(done)


@cli.command(epilog="Example: crelu verify faceboxes.crelu -t ort-cpu --locate")
@click.argument("bundle", type=options.FILE)
@options.TARGETS
@click.option("--locate", is_flag=True, help="Compare site by site: where does it go wrong?")
@REPRODUCE
@options.SIZES
@options.TRUST
@options.running
@options.limits
@options.output
def verify(
    bundle: Path,
    targets: tuple[str, ...],
    locate: bool,
    sizes: tuple[str, ...],
    reproduce: Path,
    trust: bool,
    running: options.Running,
    limits: options.Limits,
    output: Output,
) -> int:
    """Prove targets of a bundle, and compare them with PyTorch; every built one by default."""
    from crelu_deploy import pipeline

    with output:
        opened = Bundle.open(bundle)
        settings = running.options(trust=trust)
        tolerance, progress = limits.tolerance, output.progress
        found = pipeline.verify(
            opened, targets, settings, tolerance=tolerance, sizes=sizes, progress=progress
        )
        data = stages.verifications_json(found)
        count = len(opened.samples) + options.number_of(sizes)
        parts: list[object] = [*stages.verifications_parts(found, count, sizes)]
        if locate:
            data["located"], more = look_into(opened, found, settings, tolerance, reproduce, output)
            parts += more
        output.result(data, *parts)
    return verdict(found)


@cli.command(epilog="Example: crelu bench faceboxes.crelu -t ort-cpu --batch 1,8")
@click.argument("bundle", type=options.FILE)
@options.TARGETS
@options.TRUST
@options.running
@options.measuring
@options.limits
@options.output
def bench(
    bundle: Path,
    targets: tuple[str, ...],
    trust: bool,
    running: options.Running,
    measuring: options.Measuring,
    limits: options.Limits,
    output: Output,
) -> int:
    """Time targets of a bundle, interleaved, beside the plain ONNX graph."""
    from crelu_deploy import pipeline

    with output:
        opened, settings = Bundle.open(bundle), running.options(trust=trust)
        found = pipeline.bench(
            opened,
            targets,
            settings,
            **measuring.arguments(),
            tolerance=limits.tolerance,
            progress=output.progress,
        )
        more, parts = finish(opened, found, settings, measuring, limits.tolerance, output)
        data = {**stages.benchmark_json(found), **more}
        output.result(data, *stages.benchmark_tables(found), *parts)
    return verdict(found.verifications, targets, found.refused)


@cli.command(epilog="Example: crelu deploy faceboxes.pt -t ort-cpu -t torch")
@click.argument("model", type=options.FILE)
@options.TARGETS
@options.exporting
@options.running
@options.BUDGET
@options.measuring
@options.limits
@options.output
def deploy(
    model: Path,
    targets: tuple[str, ...],
    exporting: options.Export,
    running: options.Running,
    budget: float,
    measuring: options.Measuring,
    limits: options.Limits,
    output: Output,
) -> int:
    """Export, plan, build, verify and time, in one go; ort-cpu when no target is named."""
    with output:
        _announce(model, output)
        from crelu_deploy import deployment

        settings = running.options(trust=exporting.trust)
        done = deployment.deploy(
            model,
            targets=targets or ("ort-cpu",),
            options=settings,
            budget=budget,
            **measuring.arguments(),
            tolerance=limits.tolerance,
            progress=output.progress,
            **exporting.arguments(),
        )
        results = done.bundle, done.benchmark
        more, parts = finish(*results, settings, measuring, limits.tolerance, output)
        data = {**stages.deployment_json(done), **more}
        output.result(data, *stages.deployment_parts(done), *parts)
    return verdict(done.results, targets or ("ort-cpu",))


@cli.command(epilog="Example: crelu doctor --json")
@click.option("--calibrate", is_flag=True, help="Also fit the rule of 'auto' to this processor.")
@options.output
def doctor(calibrate: bool, output: Output) -> int:
    """Say which backends work on this machine and how to get the others."""
    from crelu_deploy import doctor
    from crelu_deploy.machine import examine
    from crelu_deploy.render import health

    with output:
        output.progress("load every runtime")
        found, machine = doctor.diagnose(), examine()
        data = health.health_json(found, machine)
        parts: list[object] = [*health.health_parts(found, machine)]
        if calibrate:
            data["calibration"], more = calibrated(output)
            parts += more
        output.result(data, *parts)
    return OK if any(h.works for h in found if h.backend == "ort-cpu") else FAILED


def verdict(
    found: Sequence[Build | Verification],
    asked: Sequence[str] = (),
    refused: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Return the exit code; say in one line what failed, or that nothing asked for is here.

    Args:
        found: How each target ended.
        asked: The targets that the user named, where others are beside them.
        refused: What could not be timed -> why.
    """
    named = {str(Target.parse(text)) for text in asked} or {str(r.target) for r in found}
    failed = {str(r.target): _why(r) for r in found if not (r.passed or r.skipped)} | {**refused}
    absent = {str(r.target): r.error for r in found if r.skipped}
    if not failed and (not found or not named <= absent.keys()):
        return OK
    told = failed or absent
    total = len(named | told.keys())
    reason = next(iter(told.values())) if len(told) == 1 else ""
    names, why = ", ".join(told), f": {printable(reason)}" if reason else ""
    line = f"{len(told)} of {total} targets failed ({names}){why}"
    if not failed:
        line = f"{len(told)} of {total} targets not here ({names}){why}"
    click.echo(f"error: {line}", err=True)
    return FAILED


def _why(result: Build | Verification) -> str:
    if isinstance(result, Build):
        return result.error
    return result.why or result.note
