"""The audit of a bundle's target."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from crelu_deploy.auditing.auditor import Audit, Examined, differs, plant, real_inputs
from crelu_deploy.behind import Witness
from crelu_deploy.bundle import SAMPLES, Bundle
from crelu_deploy.errors import BuildError, DeployError, UnsupportedModel
from crelu_deploy.modelfile import read_file
from crelu_deploy.pipeline import DEFAULT, Progress, judge, open_target, silent
from crelu_deploy.proving import prove_target
from crelu_deploy.results import Verification
from crelu_deploy.samples import Arrays
from crelu_deploy.targets import BACKENDS, Options, Target
from crelu_deploy.writing import save_model

READERS = ("onnxruntime", "onnxruntime_cuda", "openvino")
"""Modules of runtimes that open the lowered file itself, so that a fault in it is run."""


def audit(
    bundle: Bundle,
    target: Target,
    options: Options = DEFAULT,
    *,
    faults: int,
    seed: int = 0,
    inputs: Path | None = None,
    progress: Progress = silent,
) -> Audit:
    """Plant faults of every kind into copies of a built target and verify each copy.

    Args:
        bundle: Where the target is; it stays as it is.
        target: A target whose runtime opens the lowered ONNX file.
        options: Threads.
        faults: How many visible ones to plant; the kinds take turns.
        seed: Of what chooses the places.
        inputs: An NPZ of real inputs, by name, on which faults are visible or not; without it
            that is told by the recorded samples.
        progress: Told what is being done.

    Raises:
        BuildError: The target is not built, its runtime opens no ONNX file, or it does not pass
            without a fault.
        UnsupportedModel: The inputs cannot be read or are not the network's.
    """
    _require(target)
    subject = _subject(bundle, target, options, _calls(bundle, inputs))
    return plant(subject, faults=faults, seed=seed, progress=progress)


def _require(target: Target) -> None:
    backend = BACKENDS[target.backend]
    if not backend.lowered or backend.module not in READERS:
        usable = sorted(n for n, b in BACKENDS.items() if b.lowered and b.module in READERS)
        raise BuildError(
            f"{target}: faults are planted into ONNX files, which it does not open; "
            f"audit one of {', '.join(usable)}"
        )


def _calls(bundle: Bundle, inputs: Path | None) -> tuple[Arrays, ...]:
    """Return the inputs by which faults are visible or not."""
    if inputs is None:
        return tuple(sample.inputs for sample in bundle.samples)
    calls = real_inputs(inputs, bundle.inputs)
    for call in calls:
        try:
            bundle.limits.check([call[spec.name].shape for spec in bundle.inputs])
        except ValueError as error:
            raise UnsupportedModel(f"{inputs}: {error}") from error
    return calls


@dataclass(frozen=True)
class _Built:
    """A target that passes, and its outputs for the inputs that tell what is visible."""

    witness: Witness
    target: Target
    calls: Sequence[Arrays]
    outputs: Sequence[Arrays]
    provable: bool

    @property
    def name(self) -> str:
        return str(self.target)

    def model(self) -> ir.Model:
        return read_file(self.witness.bundle.artifact(self.target))

    def examined(self, model: ir.Model) -> Examined:
        with tempfile.TemporaryDirectory() as folder:
            copy = self._copy(Path(folder))
            save_model(model, copy.artifact(self.target))
            proof = prove_target(copy, self.target)
            refuted = "; ".join(proof.faults[:1]) if proof is not None else ""
            said, visible = self._run(copy)
        return Examined(refuted, said, visible)

    def _copy(self, folder: Path) -> Bundle:
        bundle = self.witness.bundle
        copy = Bundle(folder, bundle.manifest, bundle.model)
        copy.artifact(self.target).parent.mkdir(exist_ok=True)
        shutil.copyfile(bundle.path / SAMPLES, folder / SAMPLES)
        return copy

    def _run(self, copy: Bundle) -> tuple[str, bool]:
        """Return what the comparison says, and whether an output changes beyond tolerance."""
        try:
            sites, _ = self.witness.judge(self.target, bundle=copy)
            with open_target(copy, self.target, self.witness.options) as runner:
                found = replace(judge(copy, self.target, runner, None, 0.0), sites=sites)
                outputs = [runner(call) for call in self.calls]
        except (DeployError, ValueError) as error:
            return f"it does not run: {error}", True
        return _said(found), differs(outputs, self.outputs)


def _said(found: Verification) -> str:
    if found.passed or found.comparison is None:
        return ""
    return found.why or f"score {found.comparison.score:.3g}: {found.comparison.worst}"


def _subject(bundle: Bundle, target: Target, options: Options, calls: Sequence[Arrays]) -> _Built:
    with open_target(bundle, target, options) as runner:
        sound = judge(bundle, target, runner, None, 0.0)
        outputs = [runner(call) for call in calls]
    proof, witness = prove_target(bundle, target), Witness(bundle, options)
    if not replace(sound, proof=proof, sites=witness.judge(target)[0]).passed:
        raise BuildError(
            f"{bundle.path}: {target} fails without a fault, nothing was planted; "
            f"run: crelu verify {bundle.path} -t {target}"
        )
    provable = proof is not None and not proof.open
    return _Built(witness, target, calls, outputs, provable)
