"""Faults are planted into copies of a built target, and the bundle's verification looks at each."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx_ir as ir

from crelu_deploy.accuracy import compare_outputs
from crelu_deploy.auditing.editing import Graph
from crelu_deploy.auditing.faults import KINDS
from crelu_deploy.behind import Witness
from crelu_deploy.bundle import SAMPLES, Bundle
from crelu_deploy.errors import BuildError, DeployError
from crelu_deploy.modelfile import read_file
from crelu_deploy.pipeline import DEFAULT, Progress, judge, open_target, silent
from crelu_deploy.proving import prove_target
from crelu_deploy.results import Verification
from crelu_deploy.samples import Arrays
from crelu_deploy.targets import BACKENDS, Options, Target
from crelu_deploy.writing import save_model

READERS = ("onnxruntime", "onnxruntime_cuda", "openvino")
"""Modules of runtimes that open the lowered file itself, so that a fault in it is run."""

TRIES = 20
"""How often a kind may find no place, before it is left out."""

FAULTS = 200
"""How many faults are planted unless told otherwise."""


@dataclass(frozen=True)
class Planted:
    """One fault and who caught it.

    Attributes:
        kind: A key of ``faults.KINDS``.
        where: What was changed.
        proof: What the proof said; empty where it did not notice.
        comparison: What the comparison with the samples said; empty where it did not notice.
        visible: Whether the outputs for the recorded samples are others than without the fault.
    """

    kind: str
    where: str
    proof: str
    comparison: str
    visible: bool

    @property
    def caught(self) -> bool:
        """Whether the verification as a whole notices."""
        return bool(self.proof or self.comparison)


@dataclass(frozen=True)
class Audit:
    """What became of the faults that were planted into a target.

    Attributes:
        target: The target.
        planted: The faults, in the order they were planted.
        provable: Whether the target's file can be proved at all.
    """

    target: Target
    planted: tuple[Planted, ...]
    provable: bool

    @property
    def missed(self) -> tuple[Planted, ...]:
        """The faults that change outputs of the recorded samples and that nothing caught."""
        return tuple(one for one in self.planted if one.visible and not one.caught)


def audit(
    bundle: Bundle,
    target: Target,
    options: Options = DEFAULT,
    *,
    faults: int = FAULTS,
    seed: int = 0,
    progress: Progress = silent,
) -> Audit:
    """Plant faults of every kind into copies of a built target and verify each copy.

    Args:
        bundle: Where the target is; it stays as it is.
        target: A target whose runtime opens the lowered ONNX file.
        options: Threads.
        faults: How many to plant; the kinds take turns.
        seed: Of what chooses the places.
        progress: Told what is being done.

    Raises:
        BuildError: The target is not built, or its runtime opens no ONNX file.
        UnsupportedModel: It does not pass without a fault.
    """
    _require(target)
    random = np.random.default_rng(seed)
    with open_target(bundle, target, options) as runner:
        sound = judge(bundle, target, runner, None, 0.0)
        outputs = [runner(sample.inputs) for sample in bundle.samples]
    proof, witness = prove_target(bundle, target), Witness(bundle, options)
    clean = _Clean(witness, target, outputs)
    if not replace(sound, proof=proof, sites=witness.judge(target)[0]).passed:
        raise BuildError(
            f"{bundle.path}: {target} fails without a fault, nothing was planted; "
            f"run: crelu verify {bundle.path} -t {target}"
        )
    found = list[Planted]()
    for kind, model, where in _planted(clean, faults, random):
        progress(f"fault {len(found) + 1} of {faults}: {kind}")
        found.append(clean.examined(kind, model, where))
    return Audit(target, tuple(found), proof is not None and not proof.open)


def _require(target: Target) -> None:
    backend = BACKENDS[target.backend]
    if not backend.lowered or backend.module not in READERS:
        usable = sorted(n for n, b in BACKENDS.items() if b.lowered and b.module in READERS)
        raise BuildError(
            f"{target}: faults are planted into ONNX files, which it does not open; "
            f"audit one of {', '.join(usable)}"
        )


@dataclass(frozen=True)
class _Clean:
    """A target without a fault, and its outputs for the samples."""

    witness: Witness
    target: Target
    outputs: Sequence[Arrays]

    def model(self) -> ir.Model:
        """Read the target's file anew."""
        return read_file(self.witness.bundle.artifact(self.target))

    def examined(self, kind: str, model: ir.Model, where: str) -> Planted:
        """Verify a copy of the bundle in which the target has a fault."""
        with tempfile.TemporaryDirectory() as folder:
            copy = self._copy(Path(folder))
            save_model(model, copy.artifact(self.target))
            proof = prove_target(copy, self.target)
            refuted = "; ".join(proof.faults[:1]) if proof is not None else ""
            said, visible = self._run(copy)
        return Planted(kind, where, refuted, said, visible)

    def _copy(self, folder: Path) -> Bundle:
        bundle = self.witness.bundle
        copy = Bundle(folder, bundle.manifest, bundle.model)
        copy.artifact(self.target).parent.mkdir(exist_ok=True)
        shutil.copyfile(bundle.path / SAMPLES, folder / SAMPLES)
        return copy

    def _run(self, copy: Bundle) -> tuple[str, bool]:
        """Return what the comparison says, and whether any output is another."""
        try:
            sites, _ = self.witness.judge(self.target, bundle=copy)
            with open_target(copy, self.target, self.witness.options) as runner:
                found = replace(judge(copy, self.target, runner, None, 0.0), sites=sites)
                outputs = [runner(sample.inputs) for sample in copy.samples]
        except DeployError as error:
            return f"it does not run: {error}", True
        pairs = zip(outputs, self.outputs, strict=True)
        visible = not all(compare_outputs(now, before).passed for now, before in pairs)
        return _said(found), visible


def _said(found: Verification) -> str:
    if found.passed or found.comparison is None:
        return ""
    return found.why or f"score {found.comparison.score:.3g}: {found.comparison.worst}"


def _planted(
    clean: _Clean, faults: int, random: np.random.Generator
) -> Iterator[tuple[str, ir.Model, str]]:
    """Yield faults, the kinds in turn; a kind that finds no place is left out."""
    tries: Mapping[str, list[int]] = {kind: [0] for kind in KINDS}
    count = 0
    for kind in cycle(KINDS):
        if count == faults or all(tried[0] > TRIES for tried in tries.values()):
            return
        if tries[kind][0] > TRIES:
            continue
        model = clean.model()
        where = KINDS[kind](Graph(model, random))
        if where is None:
            tries[kind][0] += 1
            continue
        count += 1
        yield kind, model, where
