"""A PyTorch network becomes a bundle: canonical ONNX, samples, PyTorch's outputs for them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict, Unpack

import onnx
import torch

from crelu_deploy import extremes, plan
from crelu_deploy.accuracy import TOLERANCES, Tolerance
from crelu_deploy.bundle import (
    MODEL,
    SAMPLES,
    Bundle,
    check_destination,
)
from crelu_deploy.correspondence import consumed
from crelu_deploy.coverage import Coverage
from crelu_deploy.environment import versions
from crelu_deploy.errors import ExportError
from crelu_deploy.locking import reserved
from crelu_deploy.manifest import FORMAT
from crelu_deploy.memory import release
from crelu_deploy.pipeline import Progress, silent, verify
from crelu_deploy.planner import make_plan
from crelu_deploy.preprocessing import Changes, Preprocessing
from crelu_deploy.recording import check_finite, finite, record, run, run_twice
from crelu_deploy.results import Verification
from crelu_deploy.runner import TensorSpec
from crelu_deploy.samples import Arrays, Sample, save_samples
from crelu_deploy.sampling import Maker
from crelu_deploy.settling import Settled, Trying, settle
from crelu_deploy.shapes import parse_axes, parse_shape, resolve
from crelu_deploy.sites import find_sites
from crelu_deploy.source import Source, evaluating, find_source, stated_preprocessing
from crelu_deploy.staging import staged_folder
from crelu_deploy.targets import AUTO, Target
from crelu_deploy.tracing import traces
from crelu_deploy.widening import with_noise
from crelu_deploy.writing import save_model

DEFAULT_OPSET = 20
DEFAULT_SAMPLES = 2


class ExportSettings(TypedDict, total=False):
    """How a network is exported; every key may be left out.

    Attributes:
        arch: A key of ``models.MODELS``, or ``package.module:factory``, for weights whose
            architecture the file does not tell.
        trust: Allow a file that can run code to be loaded; False when left out.
        ema: Take the moving average of the weights where the checkpoint has one.
        inputs: ``[NAME:]1x3x224x224`` per input whose example shape is not known.
        dynamic: ``[NAME:]AXES`` that may vary beside the batch, such as ``2,3``; ``none`` fixes
            the batch too.
        opset: Version of the ONNX operators; 20 when left out.
        samples: How many random inputs to record, 2 when left out, or an NPZ file with real ones
            by input name.
        seed: Of the random inputs; 0 when left out.
        preprocessing: How the network reads pixels, where it is not what the architecture tells:
            recorded for whoever runs the bundle on images.
        tolerance: What counts as equal to PyTorch, instead of what each output's type tells.
        allow_nan: Accept outputs that are NaN or infinite, which are compared element by element.
        race: Seconds to race the forms of the network on this machine, so that the one for the
            CPU is never slower here than the plain graph; 5 when left out. 0 takes the rule's
            choice, for a bundle that is made for another machine.
    """

    arch: str | None
    trust: bool
    ema: bool
    inputs: Sequence[str]
    dynamic: Sequence[str]
    opset: int
    samples: int | str | os.PathLike[str]
    seed: int
    preprocessing: Changes
    tolerance: Tolerance | None
    allow_nan: bool
    race: float


def export(
    model: str | os.PathLike[str] | torch.nn.Module,
    out: str | os.PathLike[str] | None = None,
    *,
    progress: Progress = silent,
    **settings: Unpack[ExportSettings],
) -> Bundle:
    """Write a bundle and verify it: the portable model, and the fastest form for the CPU.

    Args:
        model: A checkpoint, or a module, which is exported in evaluation mode and left as it was.
        out: The folder; ``<name of the checkpoint>.crelu`` when None. An earlier bundle there is
            replaced when the new one is complete.
        progress: Told what is being done.
        **settings: See ``ExportSettings``.

    Raises:
        CheckpointError: The file cannot be loaded.
        ExportError: The module cannot be run or exported, or the result differs from PyTorch's.
        BuildError: The folder cannot be written.
    """
    path = _destination(model, out)
    check_destination(path)
    with reserved(path):
        return _export(model, path, settings, progress)


def _export(
    model: str | os.PathLike[str] | torch.nn.Module,
    path: Path,
    settings: ExportSettings,
    progress: Progress,
) -> Bundle:
    progress("load")
    trust, ema = settings.get("trust", False), settings.get("ema", False)
    source = find_source(model, arch=settings.get("arch"), trust=trust, ema=ema)
    with evaluating(source.module):
        exported = _exported(source, settings, progress)
    with staged_folder(path) as stage:
        bundle = _write(stage, source, exported)
        # The runtime makes its own copies of the weights: make room for them.
        del source, exported
        bundle.loaded = None
        release()
        tolerance = settings.get("tolerance")
        make_plan(bundle, budget=settings.get("race", plan.RACE), progress=progress)
        both = verify(bundle, (PORTABLE, FASTEST), tolerance=tolerance, progress=progress)
        found = {str(one.target): _entry(bundle, one) for one in both}
        bundle.record((), verification=found)
    return Bundle(path, bundle.manifest)


def _destination(model: object, out: str | os.PathLike[str] | None) -> Path:
    if out is not None:
        return Path(os.path.abspath(out))
    if not isinstance(model, str | os.PathLike):
        raise TypeError("a module in memory has no name: say where to write with out=")
    return Path(os.path.abspath(Path(model).with_suffix(".crelu").name))


@dataclass(frozen=True)
class Exported:
    """A recognised model and what PyTorch computes for its samples."""

    settled: Settled
    samples: tuple[Sample, ...]
    searched: int
    coverage: Coverage
    outputs: tuple[str, ...]
    notes: tuple[str, ...]
    preprocessing: Preprocessing | None
    allow_nan: bool
    extremes: Mapping[str, extremes.Counts]


def _exported(source: Source, settings: ExportSettings, progress: Progress) -> Exported:
    samples = settings.get("samples", DEFAULT_SAMPLES)
    if isinstance(samples, int) and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    shapes = [parse_shape(text) for text in settings.get("inputs", ())]
    axes = [parse_axes(text) for text in settings.get("dynamic", ())]
    inputs = resolve(source.names, source.shapes, shapes, axes)
    dtype, seed = _dtype(source.module), settings.get("seed", 0)
    specs = tuple(TensorSpec(one.name, dtype, one.shape) for one in inputs)
    how = stated_preprocessing(source, settings.get("preprocessing", {}), specs)
    maker = Maker(samples, inputs, how, seed)
    maker.check(specs)
    example = maker.made(specs, maker.example)
    progress("run PyTorch")
    first = Sample(example, run_twice(source.module, example, source.outputs))
    names = tuple(first.outputs)
    progress("export to ONNX")
    tensors = [torch.from_numpy(x) for x in example.values()]
    opset = settings.get("opset", DEFAULT_OPSET)
    traced = traces(source.module, tensors, inputs, outputs=names, opset=opset)
    trying = Trying(source.module, inputs, names, dtype, maker.draw, settings.get("tolerance"))
    settled = settle(traced, trying)
    model = settled.model
    model.producer_name, model.producer_version = "crelu-deploy", version("crelu-deploy")
    allow_nan = settings.get("allow_nan", False)
    recorded, searched, coverage = _recorded(source, settled, maker, first, allow_nan, progress)
    progress("measure PyTorch's rounding")
    inside = consumed(model)
    recorded, why = with_noise(source.module, settled.program, inside, recorded, searched)
    notes = (*source.notes, why) if why else source.notes
    kept = _extremes(source.module, recorded[0].inputs, names)
    return Exported(settled, recorded, searched, coverage, names, notes, how, allow_nan, kept)


def _recorded(
    source: Source,
    settled: Settled,
    maker: Maker,
    first: Sample,
    allow_nan: bool,
    progress: Progress,
) -> tuple[tuple[Sample, ...], int, Coverage]:
    """Return the samples, how many of the last were searched, and what fires on them."""
    progress("record PyTorch's outputs")
    calls = maker.calls(settled.specs, len(settled.samples))
    there = (first,) if isinstance(maker.wanted, int) else ()
    names = tuple(first.outputs)
    own = (*there, *record(source.module, calls[len(there) :], names))
    if not allow_nan:
        check_finite((*own, *settled.samples))
    progress("search inputs that make every channel fire")
    searched = list[Sample]()

    def accept(call: Arrays) -> bool:
        searched.extend(found := finite(record(source.module, [call], names)))
        return bool(found)

    coverage = maker.search(settled.program, settled.specs, own, settled.samples, accept)
    return (*own, *settled.samples, *searched), len(searched), coverage


def _extremes(
    module: torch.nn.Module, first: Arrays, names: Sequence[str]
) -> dict[str, extremes.Counts]:
    """Return what PyTorch makes of NaN and infinities; empty where the network refuses them."""
    try:
        return {
            what: extremes.counted(run(module, call, names))
            for what, call in extremes.calls(first).items()
        }
    except ExportError:
        return {}


def _dtype(module: torch.nn.Module) -> str:
    """Return the element type of the inputs: that of the weights."""
    dtypes = []
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type != "cpu":
            raise ExportError(
                f"the module is on {tensor.device}; PyTorch's outputs are recorded on the CPU, "
                "which computes in full precision: export module.cpu()"
            )
        if tensor.is_floating_point() or tensor.is_complex():
            dtypes.append(str(tensor.dtype).removeprefix("torch."))
    for dtype in dtypes:
        if dtype not in TOLERANCES:
            raise ExportError(
                f"the module has weights in {dtype}, expected {', '.join(TOLERANCES)}; "
                "export module.float()"
            )
    return dtypes[0] if dtypes else "float32"


def _write(stage: Path, source: Source, exported: Exported) -> Bundle:
    files = save_model(exported.settled.model, stage / MODEL)
    try:
        onnx.checker.check_model(str(stage / MODEL), full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported model is not valid ONNX: {error}") from error
    save_samples(stage / SAMPLES, exported.samples)
    bundle = Bundle(stage, {"format": FORMAT, "files": {}}, exported.settled.model)
    bundle.record(
        (*files, stage / SAMPLES),
        versions=versions(),
        source=source.record,
        opset=exported.settled.model.opset_imports[""],
        inputs=[asdict(spec) for spec in exported.settled.specs],
        outputs=list(exported.outputs),
        guards=[guard.text for guard in exported.settled.guards],
        coverage=exported.coverage.counts(),
        searched=exported.searched,
        extremes=exported.extremes,
        allow_nan=exported.allow_nan,
        sites=[asdict(site) for site in find_sites(exported.settled.model)],
        near_misses=[asdict(miss) for miss in exported.settled.recognition.near_misses],
        notes=list(exported.notes),
        preprocessing=None if exported.preprocessing is None else asdict(exported.preprocessing),
        targets={},
        verification={},
    )
    return bundle


OWN_FAULT = "this is a fault of crelu-deploy: please report it with the network"

PORTABLE, FASTEST = Target("ort-cpu", "function"), Target("ort-cpu", AUTO)
"""What every export ends with: the portable model as it is, and the fastest form for the CPU."""


def _entry(bundle: Bundle, result: Verification) -> dict[str, Any]:
    """Return the manifest's entry; a target that differs from PyTorch ends the export."""
    target = result.target
    if result.comparison is None:
        why = result.error.replace(f"{bundle.path}{os.sep}", "")  # a folder soon removed
        raise ExportError(f"{target} cannot be verified: {why}")
    if result.refuted:
        raise ExportError(f"{target} is refuted: {result.refuted}; {OWN_FAULT}")
    if result.comparison.passed and result.wrong is not None:
        raise ExportError(f"{target} is wrong {result.why}; {OWN_FAULT}")
    if not result.passed:
        raise ExportError(
            f"{target} differs from PyTorch: score {result.comparison.score:.3g}, "
            f"limit 1; worst: {result.comparison.worst}"
        )
    behind = {e.site: e.comparison.score for e in result.sites if e.comparison is not None}
    entry = {"passed": True, **asdict(result.comparison), "behind": behind}
    return {**entry, "extremes": result.extremes}
