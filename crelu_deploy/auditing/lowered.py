"""The audit of what ``crelu optimize`` makes of an ONNX file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from crelu_deploy.auditing.auditor import Audit, Examined, differs, plant, real_inputs
from crelu_deploy.comparing import Expected, expected
from crelu_deploy.errors import BuildError, DeployError
from crelu_deploy.lowerings import lower
from crelu_deploy.modelfile import read_file
from crelu_deploy.passes import clean
from crelu_deploy.proof import prove
from crelu_deploy.reading import read_model
from crelu_deploy.recognition import recognize
from crelu_deploy.rules import choice
from crelu_deploy.samples import Arrays
from crelu_deploy.targets import AUTO, BACKENDS, Options, Progress, Target, silent
from crelu_deploy.writing import save_model

BACKEND = "ort-cpu"
"""What an ONNX file is checked on."""


def audit_file(
    source: Path,
    target: Target,
    options: Options,
    *,
    faults: int,
    seed: int = 0,
    inputs: Path | None = None,
    progress: Progress = silent,
) -> Audit:
    """Lower an ONNX file, plant faults into copies of the result, and check each copy.

    Args:
        source: The original, which stays as it is.
        target: ``ort-cpu`` and a lowering; ``auto`` is the rule's choice.
        options: Threads.
        faults: How many visible ones to plant; the kinds take turns.
        seed: Of what chooses the places.
        inputs: An NPZ of real inputs, by name, on which faults are visible or not; without it
            that is told by the inputs of the check.
        progress: Told what is being done.

    Raises:
        BuildError: Nothing in the file is lowered, or the target is none for files.
        UnsupportedModel: The file cannot be read, run or lowered, or the inputs are not its own.
    """
    if target.backend != BACKEND:
        raise BuildError(f"{target}: an ONNX file is checked on {BACKEND}; audit {BACKEND}")
    with tempfile.TemporaryDirectory() as folder:
        subject = _subject(source, target, options, inputs, Path(folder))
        return plant(subject, faults=faults, seed=seed, progress=progress)


@dataclass(frozen=True)
class _Lowered:
    """A lowered file that passes its check."""

    name: str
    file: Path
    canonical: ir.Model
    expected: Expected
    options: Options
    calls: Sequence[Arrays]
    outputs: Sequence[Arrays]
    provable: bool

    def model(self) -> ir.Model:
        return read_file(self.file)

    def examined(self, model: ir.Model) -> Examined:
        candidate = self.file.with_name("changed.onnx")
        save_model(model, candidate)
        proof = prove(self.canonical, model)
        try:
            found = self.expected.compare(candidate, self.options).comparison
            outputs = _run(candidate, self.options, self.calls)
        except (DeployError, ValueError) as error:
            return Examined("; ".join(proof.faults[:1]), f"it does not run: {error}", visible=True)
        said = "" if found.passed else f"score {found.score:.3g}: {found.worst}"
        return Examined("; ".join(proof.faults[:1]), said, differs(outputs, self.outputs))


def _subject(
    source: Path, target: Target, options: Options, inputs: Path | None, folder: Path
) -> _Lowered:
    recognized = read_model(source)
    recognize(recognized)
    canonical, file = clean(recognized), folder / "lowered.onnx"
    chosen = choice(canonical, BACKEND) if target.lowering == AUTO else target.lowering
    lowered = lower(canonical, chosen)
    if not lowered.applied:
        raise BuildError(f"{source}: no site of it is lowered, so there is nothing to audit")
    save_model(lowered.model, file)
    found, proof = expected(source, canonical, (), None), prove(canonical, lowered.model)
    if proof.refuted or not found.compare(file, options).comparison.passed:
        raise BuildError(
            f"{source}: {target} fails without a fault, nothing was planted; "
            f"run: crelu optimize {source} --lowering {target.lowering}"
        )
    calls: Sequence[Arrays] = found.calls
    if inputs is not None:
        with BACKENDS[BACKEND].implementation().open_session(source, options) as original:
            calls = real_inputs(inputs, original.inputs)
    outputs, provable = _run(file, options, calls), not proof.open
    return _Lowered(str(target), file, canonical, found, options, calls, outputs, provable)


def _run(file: Path, options: Options, calls: Sequence[Arrays]) -> list[Arrays]:
    with BACKENDS[BACKEND].implementation().open_session(file, options) as runner:
        return [runner(call) for call in calls]
