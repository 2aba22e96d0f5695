"""A traced network becomes one whose dynamic axes were tried: on PyTorch and on the model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from crelu_deploy.accuracy import Tolerance, compare_outputs
from crelu_deploy.errors import DeployError, ExportError
from crelu_deploy.extents import (
    Shapes,
    Space,
    binding,
    several,
    smallest,
    unverified,
    wanted,
)
from crelu_deploy.guards import Guard, broken, statements
from crelu_deploy.passes import clean
from crelu_deploy.recognition import Recognition, recognize
from crelu_deploy.recording import run
from crelu_deploy.runner import Runner, TensorSpec
from crelu_deploy.samples import Arrays, Sample
from crelu_deploy.shapes import Input
from crelu_deploy.targets import BACKENDS, Options
from crelu_deploy.tracing import Traced
from crelu_deploy.writing import save_model


@dataclass(frozen=True)
class Settled:
    """A network and where it holds.

    Attributes:
        model: With canonical nodes, cleaned.
        recognition: What was found in it.
        specs: Its inputs.
        guards: What it demands of its dynamic extents.
        samples: PyTorch's outputs at other extents than the example's, each equal to the model's.
    """

    model: ir.Model
    recognition: Recognition
    specs: tuple[TensorSpec, ...]
    guards: tuple[Guard, ...] = ()
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Trying:
    """What is tried and how.

    Attributes:
        module: The network, in evaluation mode.
        inputs: Its inputs and their example shapes.
        outputs: Names of its outputs.
        dtype: Of inputs for which the model names none.
        draw: Makes inputs.
        tolerance: What counts as equal, instead of what the outputs' types tell.
    """

    module: torch.nn.Module
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    dtype: str
    draw: Callable[[Sequence[TensorSpec], Shapes], Arrays]
    tolerance: Tolerance | None = None

    def recorded(self, specs: Sequence[TensorSpec], shapes: Shapes) -> Sample:
        """Run PyTorch on inputs of these shapes.

        Raises:
            ExportError: It refuses them.
        """
        inputs = self.draw(specs, shapes)
        return Sample(inputs, run(self.module, inputs, self.outputs))


class _BatchFixed(ExportError):
    """The network takes the example's batch alone."""


def settle(traced: Iterable[Traced], trying: Trying) -> Settled:
    """Take the first way of exporting a network whose dynamic axes hold.

    Raises:
        ExportError: None does; why the first does not.
    """
    failure: ExportError | None = None
    for one in traced:
        try:
            return _settled(one, trying)
        except ExportError as error:
            failure = failure or error
            if one.last and not isinstance(error, _BatchFixed):
                break
    raise failure or ExportError("PyTorch cannot export this module")


def _settled(traced: Traced, trying: Trying) -> Settled:
    recognition = recognize(traced.model)
    model = clean(traced.model)
    for value in traced.model.graph.initializers.values():
        value.const_value = None  # PyTorch's rewrite rules keep the last graph they saw
    specs = tuple(_spec(value, trying.dtype) for value in model.graph.inputs)
    space = Space([spec.shape for spec in specs], tuple(one.shape for one in trying.inputs))
    if not traced.guards and not space.extents.keys() - space.batches:
        rows = tuple(_rows(space, (), trying, specs))
        return Settled(model, recognition, specs, samples=rows)
    with _Both(model, trying, specs) as both:
        guards = binding(space, traced.guards, both.agree)
        if wrong := broken(guards, space.example):
            raise ExportError(
                f"the network was traced for {', '.join(statements(wrong, space.names))} alone, "
                "which its example is not; leave --dynamic out"
            )
        rows = tuple(_rows(space, guards, trying, specs))
        samples = (*rows, *_samples(space, guards, both))
    return Settled(model, recognition, specs, guards, samples)


def _spec(value: ir.Value, dtype: str) -> TensorSpec:
    dims = tuple(d if isinstance(d, int) else str(d) for d in value.shape or ())
    return TensorSpec(str(value.name), value.dtype.numpy().name if value.dtype else dtype, dims)


class _Both(AbstractContextManager["_Both"]):
    """A network in PyTorch and as a model, to be run on the same inputs."""

    def __init__(self, model: ir.Model, trying: Trying, specs: Sequence[TensorSpec]) -> None:
        self.trying, self.specs = trying, specs
        self._stack = ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        runtime = BACKENDS["ort-cpu"].implementation()
        try:
            self.runner: Runner = self._stack.enter_context(runtime.open_session(path, Options()))
        except DeployError as error:
            self._stack.close()
            why = str(error).replace(f"{folder}{os.sep}", "")
            raise ExportError(f"ort-cpu:function cannot be verified: {why}") from error

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def expected(self, shapes: Shapes) -> Sample | None:
        """Return PyTorch's outputs, or None where it refuses inputs of these shapes."""
        try:
            return self.trying.recorded(self.specs, shapes)
        except ExportError:
            return None

    def distance(self, sample: Sample) -> str:
        """Return how the model differs from PyTorch, in words; empty where it does not."""
        try:
            actual = self.runner(sample.inputs)
        except (DeployError, ValueError) as error:
            return str(error)
        comparison = compare_outputs(actual, sample.outputs, "", self.trying.tolerance)
        return "" if comparison.passed else f"score {comparison.score:.3g}; {comparison.worst}"

    def takes(self, shapes: Shapes) -> bool:
        """Tell whether PyTorch takes inputs of these shapes."""
        return self.expected(shapes) is not None

    def agree(self, shapes: Shapes) -> bool:
        """Tell whether both take inputs of these shapes and agree."""
        sample = self.expected(shapes)
        return sample is not None and not self.distance(sample)


def _rows(
    space: Space, guards: Sequence[Guard], trying: Trying, specs: Sequence[TensorSpec]
) -> Iterable[Sample]:
    """Yield a sample of three rows or more, where the batch may vary.

    Raises:
        ExportError: PyTorch takes no other batch than the example's.
    """
    if not space.batches:
        return
    fitted = space.fitted(several(space), guards)
    if fitted is None or fitted == space.extents:
        raise _BatchFixed(f"no other batch fits {', '.join(statements(guards, space.names))}")
    try:
        yield trying.recorded(specs, space.shapes(fitted))
    except ExportError as error:
        raise _BatchFixed(
            f"the batch cannot be verified at another size than the example's: {error}; fix it "
            "with --dynamic none"
        ) from error


def _samples(space: Space, guards: Sequence[Guard], both: _Both) -> Iterable[Sample]:
    """Yield samples at other extents, each compared with the model.

    Raises:
        ExportError: The model differs at one, or PyTorch takes no other extent along an axis.
    """
    least = smallest(space, guards, both.takes)
    done = []
    for extents in wanted(space, least):
        fitted = space.fitted(extents, guards)
        if fitted is None or fitted in done or (s := both.expected(space.shapes(fitted))) is None:
            continue
        if differs := both.distance(s):
            raise ExportError(
                f"with {_words(fitted)} the exported model differs from PyTorch ({differs}): what "
                "the exporter wrote holds for the example alone; leave --dynamic out, or make the "
                "network independent of its extents"
            )
        done.append(fitted)
        yield s
    if axes := [name for name in unverified(space, done) if name not in space.batches]:
        raise ExportError(
            f"{' and '.join(axes)} cannot be verified at another extent than the example's: "
            "PyTorch takes none of those that were tried; leave --dynamic out for it"
        )


def _words(extents: dict[str, int]) -> str:
    return ", ".join(f"{name} {extent}" for name, extent in extents.items())
