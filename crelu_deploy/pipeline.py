"""The stages after export, in order; a target stops at its first failure, the others go on."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from crelu_deploy import extremes, miscompilation, saturation
from crelu_deploy.accuracy import GPU_ROUNDING, REDUCED, Limits, Tolerance, check, not_finite
from crelu_deploy.agreement import decisions
from crelu_deploy.behind import Witness
from crelu_deploy.bundle import Bundle
from crelu_deploy.environment import environment
from crelu_deploy.errors import BackendUnavailable, BuildError, DeployError, UnsupportedModel
from crelu_deploy.latency import Effort
from crelu_deploy.locking import locked
from crelu_deploy.lowerings import lower
from crelu_deploy.plan import Plan
from crelu_deploy.precision import in_precision
from crelu_deploy.proof import Proof
from crelu_deploy.proving import given, prove_lowered, prove_target, recorded
from crelu_deploy.resizing import resized
from crelu_deploy.results import Benchmark, Build, Engine, Row, Verification
from crelu_deploy.rules import choice
from crelu_deploy.runner import Runner
from crelu_deploy.samples import Array, Sample
from crelu_deploy.targets import (
    AUTO,
    BACKENDS,
    BASELINE,
    CARRIED,
    ENGINES,
    FUNCTION,
    GPU,
    INT8,
    PLUGIN,
    Options,
    Target,
)
from crelu_deploy.targets import Progress as Progress
from crelu_deploy.targets import silent as silent
from crelu_deploy.timing import time_runners

Entry = dict[str, Any]
AnyBundle = str | Path | Bundle
AnyTarget = str | Target

DEFAULT = Options()
EFFORT = Effort()


def build(
    bundle: AnyBundle,
    targets: Sequence[AnyTarget],
    options: Options = DEFAULT,
    *,
    progress: Progress = silent,
) -> tuple[Build, ...]:
    """Make the artifacts of some targets in the bundle's folder; say how each build ended.

    Raises:
        BuildError: Another process is writing to the bundle.
    """
    opened = opened_bundle(bundle)
    with locked(opened.path):
        opened.reload()
        return _built(opened, targets, options, progress)


def _built(
    opened: Bundle, targets: Sequence[AnyTarget], options: Options, progress: Progress
) -> tuple[Build, ...]:
    results = []
    told = replace(options, progress=progress)
    for target in parse_targets(targets):
        progress(f"build {target}")
        start = time.perf_counter()
        try:
            entry = _build(opened, target, told)
            results.append(Build(target, time.perf_counter() - start, **entry))
        except DeployError as error:
            seconds, skipped = time.perf_counter() - start, isinstance(error, BackendUnavailable)
            results.append(Build(target, seconds, error=str(error), skipped=skipped))
    return tuple(results)


def _build(bundle: Bundle, target: Target, options: Options) -> Entry:
    backend = BACKENDS[target.backend]
    runtime = backend.implementation()
    if not backend.lowered:
        runtime.build(bundle, target, options)
        return {"lowerings": {}, "reasons": {}}
    entry, files = _lower(bundle, target)
    if backend.precision == INT8:
        entry = {**entry, **backend.quantizer().quantize(bundle, target)}
    engine: Engine | None = runtime.build(bundle, target, options)
    if engine is not None:
        files, entry = (*files, *engine.files), {**entry, "layers": dict(engine.layers)}
    kept = {**entry, "proof": recorded(entry["proof"])}
    bundle.record(files, targets={**bundle.manifest["targets"], str(target): kept})
    return entry


def _lower(bundle: Bundle, target: Target) -> tuple[Entry, tuple[Path, ...]]:
    """Write what the target reads; the bundle's own model is the lowering ``function`` already."""
    if target.lowering == FUNCTION:
        sites = [site["name"] for site in bundle.manifest["sites"]]
        entry: Entry = {"lowerings": dict.fromkeys(sites, FUNCTION), "reasons": {}}
        return {**entry, "proof": given(bundle)}, ()
    model = bundle.model
    lowered = lower(model, _choice(bundle, target, model))
    entry = {"lowerings": dict(lowered.applied), "reasons": dict(lowered.reasons)}
    result = in_precision(lowered.model, BACKENDS[target.backend])
    entry["proof"] = prove_lowered(bundle, target, result)
    return entry, bundle.write(result, target)


def _choice(bundle: Bundle, target: Target, model: ir.Model) -> Mapping[str, str] | str:
    if target.lowering != AUTO:
        return PLUGIN if target.lowering == CARRIED else target.lowering
    stored = bundle.manifest.get("plans", {}).get(target.backend)
    return Plan.parse(stored).choice if stored else choice(model, target.backend)


def opened_bundle(bundle: AnyBundle) -> Bundle:
    """Open a bundle that is given by its folder."""
    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)


def parse_targets(targets: Sequence[AnyTarget]) -> tuple[Target, ...]:
    """Read targets that are given by their text."""
    return tuple(t if isinstance(t, Target) else Target.parse(t) for t in targets)


def load(bundle: AnyBundle, target: AnyTarget = "ort-cpu", *, threads: int | None = None) -> Runner:
    """Return what an application calls: a target of a bundle, opened on its runtime.

    It warns (``RuntimeWarning``) where an int8 target was made on another processor and loses
    precision on this one, with the command that makes it here.

    Args:
        bundle: The folder, whose files are compared with their recorded hashes.
        target: ``BACKEND[:LOWERING]``, built before.
        threads: Threads of one call; every usable core when None.

    Raises:
        BuildError: The target was not built.
        BackendUnavailable: Its runtime is not installed here.
        UnsupportedModel: The folder is no bundle, or a file in it was changed.
    """
    (parsed,) = parse_targets([target])
    opened = opened_bundle(bundle)
    runner = open_target(opened, parsed, Options(threads=threads))
    if note := saturation.warning(opened, parsed):
        warnings.warn(note, RuntimeWarning, stacklevel=2)
    return runner


def open_target(bundle: Bundle, target: Target, options: Options) -> Runner:
    """Open a target on its runtime.

    Raises:
        BuildError: It was not built, or the runtime refuses it.
        BackendUnavailable: The runtime or its device is not here.
    """
    backend = BACKENDS[target.backend]
    if backend.lowered and str(target) not in bundle.manifest["targets"]:
        raise BuildError(
            f"{bundle.path}: {target} is not built; run: crelu build {bundle.path} -t {target}"
        )
    runner: Runner = backend.implementation().load(bundle, target, options)
    runner.limits = bundle.limits
    return runner


def verify(
    bundle: AnyBundle,
    targets: Sequence[AnyTarget] = (),
    options: Options = DEFAULT,
    *,
    tolerance: Tolerance | None = None,
    sizes: Sequence[str] = (),
    progress: Progress = silent,
) -> tuple[Verification, ...]:
    """Prove targets from their files, and compare them with PyTorch's recorded outputs.

    Those not built yet are built.

    Args:
        bundle: Where the targets are.
        targets: What to verify, or every target that was built.
        options: Threads and trust.
        tolerance: What counts as equal, instead of what element type and precision tell.
        sizes: Further sizes to compare at, ``[NAME:]2x3x96x128,1x3x64x64`` for each input; PyTorch
            and the checkpoint must be here then.
        progress: Told what is being done.

    Raises:
        UnsupportedModel: A size is none that the network takes.
        BackendUnavailable: PyTorch or the checkpoint is missing.
    """
    witness = Witness(opened_bundle(bundle), options)
    more = _recorded(witness.bundle, sizes, options, progress) if sizes else ()
    results = []
    for target in parse_targets(targets) or built(witness.bundle):
        with ExitStack() as stack:
            found, _ = _verify(witness, target, tolerance, progress, stack, more)
            results.append(_asked(found, progress))
    return tuple(results)


def _asked(found: Verification, progress: Progress) -> Verification:
    """Add which known miscompilations the runtime of an engine has, if it ran here."""
    backend = found.target.backend
    if BACKENDS[backend].module not in ENGINES or found.comparison is None:
        return found
    progress(f"ask {backend} for known miscompilations")
    try:
        wrong = miscompiled(backend)
    except DeployError as error:
        wrong = (f"known miscompilations could not be asked for: {error}",)
    return replace(found, note="; ".join(filter(None, (found.note, *wrong))))


@functools.cache
def miscompiled(backend: str) -> tuple[str, ...]:
    """Return which known miscompilations a backend has on this machine, in words.

    Raises:
        BackendUnavailable: It does not run here.
        BuildError: It refuses a reproducer.
    """

    def judged(bundle: Bundle) -> Verification:
        with ExitStack() as stack:
            target = Target(backend, "primitive")
            return _verify(Witness(bundle, DEFAULT), target, None, silent, stack)[0]

    return miscompilation.present(judged)


def _recorded(
    bundle: Bundle, sizes: Sequence[str], options: Options, progress: Progress
) -> tuple[Sample, ...]:
    """Let PyTorch compute the outputs at further sizes."""
    calls = resized(bundle, sizes)
    progress("run PyTorch")
    samples: tuple[Sample, ...] = BACKENDS["torch"].implementation().record(bundle, calls, options)
    return samples


def _verify(
    witness: Witness,
    target: Target,
    tolerance: Tolerance | None,
    progress: Progress,
    stack: ExitStack,
    more: Sequence[Sample] = (),
) -> tuple[Verification, Runner | None]:
    """Build a target where it is missing and check it; its runner stays open in the stack."""
    bundle, options = witness.bundle, witness.options
    proof: Proof | None = None
    if BACKENDS[target.backend].lowered and str(target) not in bundle.manifest["targets"]:
        (result,) = build(bundle, [target], options, progress=progress)
        if result.error:
            return Verification(target, None, result.error, skipped=result.skipped), None
        proof = result.proof
    progress(f"verify {target}")
    try:
        sites, why = witness.judge(target, tolerance)  # closed before the next copy of the weights
        start = time.perf_counter()
        runner = stack.enter_context(open_target(bundle, target, options))
        opening = time.perf_counter() - start
        found = judge(bundle, target, runner, tolerance, opening, more)
        note = "; ".join(filter(None, (found.note, why)))
        proof = proof or prove_target(bundle, target)  # what was built here is proved already
        return replace(found, proof=proof, sites=sites, note=note), runner
    except DeployError as error:
        skipped = isinstance(error, BackendUnavailable)
        return Verification(target, None, str(error), skipped=skipped), None


def judge(
    bundle: Bundle,
    target: Target,
    runner: Runner,
    tolerance: Tolerance | None,
    opening: float,
    more: Sequence[Sample] = (),
) -> Verification:
    """Run every sample, and more, once; compare the values, and where there are any the decisions.

    Raises:
        UnsupportedModel: The samples are not those of the runner.
    """
    precision = BACKENDS[target.backend].precision
    samples = (*(bundle.usual if precision in REDUCED else bundle.samples), *more)
    for sample in samples:
        sample.check(runner.inputs, runner.outputs)
        if not bundle.allow_nan and any(map(not_finite, sample.outputs.values())):
            raise UnsupportedModel(
                f"{bundle.path}: PyTorch's outputs are not all finite, and NaN is equal to NaN "
                "whatever went wrong before; export again, with --allow-nan if that is right"
            )
    outputs = [_called(target, runner, sample) for sample in samples]
    limits = REDUCED.get(precision, Limits())
    allowance = GPU_ROUNDING if BACKENDS[target.backend] in GPU else 1.0
    comparison = check(outputs, samples, tolerance or limits.tolerance, allowance)
    expected = [sample.outputs for sample in samples]
    agreement = decisions(list(zip(outputs, expected, strict=True)))
    note = saturation.warning(bundle, target)
    found = Verification(target, comparison, "", agreement, limits.agreement, opening, note=note)
    if precision in REDUCED:  # whose numbers are others on purpose
        return found
    lowerings = bundle.manifest["targets"].get(str(target), {}).get("lowerings", {}).values()
    kept = extremes.told(runner, samples[0].inputs, bundle.extremes, lowerings)
    return replace(found, extremes=kept)


def _called(target: Target, runner: Runner, sample: Sample) -> Mapping[str, Array]:
    try:
        return runner(sample.inputs)
    except ValueError as error:  # an engine takes the extents of its profile alone
        raise UnsupportedModel(f"{target}: {error}") from error


def bench(
    bundle: AnyBundle,
    targets: Sequence[AnyTarget] = (),
    options: Options = DEFAULT,
    *,
    batches: Sequence[int] = (1,),
    effort: Effort = EFFORT,
    end_to_end: bool = False,
    tolerance: Tolerance | None = None,
    progress: Progress = silent,
) -> Benchmark:
    """Time targets, interleaved, beside the baseline; only verified ones have a speed.

    Args:
        bundle: Where the targets are.
        targets: What to time, or every target that was built; ``ort-cpu:primitive`` joins them.
            Those not built yet are built.
        options: Threads and trust.
        batches: Extents of axis 0 to time; the first sample is repeated to fill them.
        effort: How long to measure each batch size.
        end_to_end: Time the copies to and from a GPU too.
        tolerance: What counts as verified, instead of what element type and precision tell.
        progress: Told what is being done.
    """
    opened, rows = opened_bundle(bundle), list[Row]()
    witness, refused = Witness(opened, options), dict[str, str]()
    with ExitStack() as stack:
        checked = [
            _verify(witness, target, tolerance, progress, stack)
            for target in dict.fromkeys([BASELINE, *(parse_targets(targets) or built(opened))])
        ]
        runners = {v.target: runner for v, runner in checked if v.passed and runner is not None}
        for batch in batches:
            progress(f"bench batch {batch}")
            feeds = feeds_of(opened, batch)
            found = time_runners(runners, feeds, batch, effort, end_to_end=end_to_end)
            rows, refused = rows + found[0], refused | found[1]
    verifications = tuple(verification for verification, _ in checked)
    return Benchmark(environment(options.cores), tuple(rows), verifications, refused, end_to_end)


def feeds_of(bundle: Bundle, batch: int) -> dict[str, Array]:
    """Repeat the first sample's rows to a batch."""
    first = bundle.samples[0].inputs
    return {
        name: np.ascontiguousarray(np.resize(x, (batch, *x.shape[1:]))) if x.ndim else x
        for name, x in first.items()
    }


def built(bundle: Bundle) -> tuple[Target, ...]:
    """Return the targets that the bundle holds.

    Raises:
        UnsupportedModel: It holds one that this version does not know.
    """
    try:
        return tuple(Target.parse(name) for name in bundle.manifest["targets"])
    except ValueError as error:
        raise UnsupportedModel(f"{bundle.path}: {error}; update crelu-deploy") from error
