"""Any ONNX file becomes a lowered one, checked against the original before it is written."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from crelu_deploy import plan, pruning
from crelu_deploy.accuracy import Comparison, Tolerance
from crelu_deploy.bundle import MODEL
from crelu_deploy.comparing import SEEDS, Compared, expected, shapes_for
from crelu_deploy.errors import BuildError, UnsupportedModel
from crelu_deploy.lowerings import Lowered, lower
from crelu_deploy.modelfile import blaming, invalidity
from crelu_deploy.passes import clean
from crelu_deploy.pipeline import Progress, silent
from crelu_deploy.plan import MEASURED, PLAIN, Plan
from crelu_deploy.proof import Proof, prove
from crelu_deploy.reading import read_model
from crelu_deploy.recognition import NearMiss, OpaqueSite, recognize
from crelu_deploy.samples import Array
from crelu_deploy.sites import Site, find_sites
from crelu_deploy.stimuli import made_inputs
from crelu_deploy.targets import AUTO, BACKENDS, Options
from crelu_deploy.writing import save_model


@dataclass(frozen=True)
class Inspection:
    """What is known about the sites of a model.

    Attributes:
        sites: Every CReLU, those that no canonical node expresses included.
        near_misses: What looks like one and is none.
    """

    sites: tuple[Site, ...]
    near_misses: tuple[NearMiss, ...]


@dataclass(frozen=True)
class Optimized:
    """What ``optimize`` did.

    Attributes:
        inspection: The sites of the original.
        lowerings: Site -> the lowering it has now.
        reasons: Site -> why it did not get the lowering that was asked for.
        removed: Site -> the dead halves that were removed.
        before: Operator -> how many nodes the original had.
        after: The same for the result.
        plan: How ``auto`` was chosen, and what was timed; None where one lowering was asked for.
        compared: How the result's outputs compare with the original's; None if not checked.
        proof: Why the result computes what the sites are defined as; None where no form is faster
            and the result is the original.
    """

    inspection: Inspection
    lowerings: Mapping[str, str]
    reasons: Mapping[str, str]
    removed: Mapping[str, pruning.Removal]
    before: Mapping[str, int]
    after: Mapping[str, int]
    plan: Plan | None
    compared: Compared | None
    proof: Proof | None = None

    @property
    def comparison(self) -> Comparison | None:
        """Distance of the result's outputs from the original's; None if not checked."""
        return None if self.compared is None else self.compared.comparison

    @property
    def bit_equal(self) -> bool | None:
        """Whether all outputs were equal bit for bit; None if not checked."""
        return None if self.compared is None else self.compared.bit_equal


def inspect(path: str | Path) -> Inspection:
    """Return the sites of an ONNX file or a bundle; nothing is changed."""
    model = read_model(path)
    with blaming(Path(path, MODEL) if Path(path).is_dir() else Path(path)):
        return _recognized(model)[1]


def optimize(
    source: str | Path,
    out: str | Path,
    *,
    lowering: str = AUTO,
    prune: bool = False,
    inputs: Sequence[str] = (),
    check: bool = True,
    race: float | None = None,
    tolerance: Tolerance | None = None,
    progress: Progress = silent,
) -> Optimized:
    """Write a lowered copy of ``source`` to ``out``, in one step, proved and then compared.

    Args:
        source: The original, which stays as it is.
        out: The file to write.
        lowering: A name in ``LOWERINGS``, or ``auto`` for what is the fastest here.
        prune: Remove dead halves of sites, see ``pruning``.
        inputs: ``[NAME:]1x3x224x224`` for inputs whose dynamic axes cannot be guessed.
        check: Also compare both files on ONNX Runtime, on random and on searched inputs.
        race: Seconds to race the forms for ``auto`` here, ``plan.RACE`` when None; 0, for another
            machine, takes the rule's choice, and so does no check.
        tolerance: What counts as equal, instead of what element types tell.
        progress: Told what is done.

    Raises:
        UnsupportedModel: It cannot be read, run or lowered, or the result differs.
        BuildError: The file cannot be written.
    """
    source, out = _apart(Path(source), Path(out))
    seconds = (plan.RACE if race is None else race) if check else 0.0
    asked = _Asked(lowering, prune, tuple(inputs), seconds, check, tolerance)
    return _optimize(source, out, asked, progress)


@dataclass(frozen=True)
class _Asked:
    """The arguments of ``optimize`` that say how."""

    lowering: str
    prune: bool
    inputs: tuple[str, ...]
    seconds: float
    check: bool
    tolerance: Tolerance | None


def _optimize(source: Path, out: Path, asked: _Asked, progress: Progress) -> Optimized:
    progress("recognise CReLU")
    before = _operators(original := read_model(source))
    with blaming(source):
        recognized, inspection = _recognized(original)
        canonical = clean(recognized)
        model, removed = _pruned(canonical, prune=asked.prune)
        made = _chosen(model, source, asked, progress, removed) if asked.lowering == AUTO else None
        lowered = _lowered(model, source, made or asked.lowering, pruned=bool(removed))
        progress("prove")
        proof = _proved(canonical, lowered, source) if lowered.applied else None
        progress("compare with the original")
        compared = _checked(canonical, lowered, source, asked)
    save_model(lowered.model, out)
    counts, forms = (before, _operators(lowered.model)), (lowered.applied, lowered.reasons)
    return Optimized(inspection, *forms, removed, *counts, made, compared, proof)


def _pruned(model: ir.Model, *, prune: bool) -> tuple[ir.Model, Mapping[str, pruning.Removal]]:
    if not prune:
        return model, {}
    pruned = pruning.prune(model)
    return pruned.model, pruned.removed


def _proved(canonical: ir.Model, lowered: Lowered, source: Path) -> Proof:
    """Prove the result without running it; nothing is written where it is refuted."""
    proof = prove(canonical, lowered.model)
    if proof.refuted:
        raise UnsupportedModel(
            f"{source}: the lowered model is refuted, nothing was written: {proof.faults[0]}; "
            "this is a fault of crelu-deploy: please report it, and use another --lowering"
        )
    return proof


def _chosen(
    model: ir.Model, source: Path, asked: _Asked, progress: Progress, removed: Mapping[str, object]
) -> Plan:
    """Return the fastest choice of lowerings here."""
    runtime = BACKENDS["ort-cpu"].implementation()
    from crelu_deploy import planner  # which imports the runtime

    feeds: Mapping[str, Array] = {}
    if asked.seconds:
        with runtime.open_session(source, Options(threads=1)) as original:
            shapes = shapes_for(source, original, asked.inputs)
            feeds = made_inputs(original.inputs, shapes, SEEDS[0])
    pruned = bool(removed)
    return planner.plan_file(model, source, feeds, asked.seconds, progress, pruned=pruned)


def _lowered(model: ir.Model, source: Path, made: Plan | str, *, pruned: bool) -> Lowered:
    """Return the lowered model, or the original where no form is faster and nothing was removed."""
    if isinstance(made, str):
        return lower(model, made)
    if made.how == MEASURED and not made.choice:
        return lower(model, PLAIN) if pruned else Lowered(read_model(source), {}, {})
    return lower(model, made.choice)


def _apart(source: Path, out: Path) -> tuple[Path, Path]:
    if out.exists() and source.exists() and out.samefile(source):
        raise BuildError(f"{out}: is the original itself; choose another name with -o")
    return source, out


def _checked(canonical: ir.Model, lowered: Lowered, source: Path, asked: _Asked) -> Compared | None:
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "model.onnx"
        save_model(lowered.model, candidate)
        _check_structure(source, candidate)
        if not asked.check:
            return None
        network = canonical if lowered.applied else None  # else it is the original
        found = expected(source, network, asked.inputs, asked.tolerance).compare(candidate)
    if not found.comparison.passed:
        raise UnsupportedModel(
            f"{source}: the lowered model differs, nothing was written: score "
            f"{found.comparison.score:.3g}, limit 1; worst: {found.comparison.worst}"
        )
    return found


def _recognized(model: ir.Model) -> tuple[ir.Model, Inspection]:
    found = recognize(model)
    sites = (*find_sites(model), *(_opaque(site) for site in found.opaque))
    return model, Inspection(sites, found.near_misses)


def _opaque(site: OpaqueSite) -> Site:
    return Site(
        site.name, "", site.spelling, site.activation, site.axis, False, "", (), False, site.reason
    )


def _operators(model: ir.Model) -> dict[str, int]:
    nodes = (n.op_type if not n.domain else f"{n.domain}.{n.op_type}" for n in model.graph)
    return dict(sorted(Counter(nodes).items()))


def _check_structure(source: Path, candidate: Path) -> None:
    """Refuse a result that is not valid ONNX, unless the original is not either.

    Runtimes take files that the checker does not, such as one whose outputs have no shape.
    """
    if (error := invalidity(candidate)) and not invalidity(source):
        raise UnsupportedModel(f"{source}: lowering it made an invalid model: {error}")
