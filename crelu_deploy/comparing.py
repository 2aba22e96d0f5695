"""A lowered ONNX file beside its original on ONNX Runtime: on random inputs and searched ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from crelu_deploy.accuracy import Comparison, Tolerance, compare_outputs, not_finite, worst_of
from crelu_deploy.coverage import Coverage
from crelu_deploy.errors import DeployError, ExportError, UnsupportedModel
from crelu_deploy.runner import Runner, TensorSpec
from crelu_deploy.samples import Array, Arrays
from crelu_deploy.seeking import Probe, Search
from crelu_deploy.shapes import LARGEST, assign, parse_shape
from crelu_deploy.stimuli import made_inputs
from crelu_deploy.targets import BACKENDS, Options

SEEDS = (0, 1)
"""One random input each for the check."""

ROWS = 3
"""Rows of the inputs that are searched, at least, and of one random one: where axis 0 may vary."""

SMALL = 64
"""Extent at most of other axes that may vary, where the original takes it."""

STEADY = 1 / 16
"""Score at most of the original against itself, its inputs changed in the last bit.

A searched input on which it amplifies rounding by more, such as one far up an exponential, would
tell nothing of the lowered file.
"""

ONE = Options(threads=1)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Compared:
    """How two files compare.

    Attributes:
        comparison: Distance of the outputs.
        bit_equal: Whether all outputs were equal bit for bit.
        inputs: How many inputs were compared.
        searched: How many of them were searched.
        coverage: Per site, its channels, those of which both halves fire, and those of none; empty
            where nothing was searched.
    """

    comparison: Comparison
    bit_equal: bool
    inputs: int
    searched: int
    coverage: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Expected:
    """What a lowered file is compared with.

    Attributes:
        source: The original.
        calls: Inputs, the last of which were searched.
        outputs: The original's, for each call.
        searched: How many were.
        coverage: What fires on them.
        tolerance: What counts as equal, instead of what element types tell.
    """

    source: Path
    calls: Sequence[Arrays]
    outputs: Sequence[Arrays]
    searched: int
    coverage: Coverage
    tolerance: Tolerance | None

    def compare(self, candidate: Path, options: Options = ONE) -> Compared:
        """Run a lowered file and return its distance.

        Raises:
            BuildError: ONNX Runtime refuses it.
        """
        runtime = BACKENDS["ort-cpu"].implementation()
        with runtime.open_session(candidate, options) as lowered:
            results = [lowered(feeds) for feeds in self.calls]
        pairs = list(zip(results, self.outputs, strict=True))
        comparison = worst_of(
            compare_outputs(actual, expected, f"input {number} ", self.tolerance)
            for number, (actual, expected) in enumerate(pairs)
        )
        equal = all(_same_bits(y[n], x[n]) for y, x in pairs for n in x if n in y)
        counts = self.coverage.counts()
        return Compared(comparison, equal, len(pairs), self.searched, counts)


def expected(
    source: Path, canonical: ir.Model | None, inputs: Sequence[str], tolerance: Tolerance | None
) -> Expected:
    """Make and search inputs for a file, and run it on them.

    Args:
        source: The original.
        canonical: The original with canonical nodes, for which inputs are searched; None for none.
        inputs: ``[NAME:]1x3x224x224`` for inputs whose dynamic axes cannot be guessed.
        tolerance: What counts as equal, instead of what element types tell.

    Raises:
        UnsupportedModel: It does not run, or its outputs are all NaN.
    """
    runtime = BACKENDS["ort-cpu"].implementation()
    with runtime.open_session(source, ONE) as original:
        shapes = shapes_for(source, original, inputs)
        calls = [made_inputs(original.inputs, shapes, seed) for seed in SEEDS]
        several = _several(original, shapes)
        if several != shapes:
            calls.append(made_inputs(original.inputs, several, len(SEEDS)))
        found, coverage = _searched(original, canonical, several, calls, tolerance)
        every = (*calls, *found)
        outputs = [original(feeds) for feeds in every]
    for one in outputs:
        _check_comparable(source, one)
    return Expected(source, every, outputs, len(found), coverage, tolerance)


def _searched(
    original: Runner,
    canonical: ir.Model | None,
    shapes: Shapes,
    calls: Sequence[Arrays],
    tolerance: Tolerance | None,
) -> tuple[Sequence[Arrays], Coverage]:
    """Return inputs on which more fires than on ``calls``, and what fires on all of them."""
    if canonical is None:
        return (), Coverage()
    with Probe(canonical) as probe:
        generator = np.random.default_rng(len(SEEDS))
        search = Search(probe, lambda call: _is_steady(original, call, tolerance), generator)
        if probe.sites:
            for call in calls:
                search.take(call)
            search.run(original.inputs, shapes)
    return search.calls, search.coverage


def _is_steady(original: Runner, call: Arrays, tolerance: Tolerance | None) -> bool:
    """Tell whether the original's outputs are finite, and the same within its own rounding."""
    try:
        expected, nudged = original(call), original(_nudged(call))
    except DeployError:
        return False
    if any(map(not_finite, expected.values())):
        return False
    return compare_outputs(nudged, expected, "", tolerance).score <= STEADY


def _nudged(call: Arrays) -> dict[str, Array]:
    """Return a call whose floats are the next ones, away from zero and towards it in turn."""
    nudged = {}
    for name, x in call.items():
        up = np.arange(x.size).reshape(x.shape) % 2 == 0
        nudged[name] = np.nextafter(x, np.where(up, 2 * x, 0 * x)) if x.dtype.kind == "f" else x
    return nudged


def _several(original: Runner, shapes: Shapes) -> Shapes:
    """Return shapes of ``ROWS`` rows or more where axis 0 may vary and the original takes them.

    Other axes that may vary are ``SMALL`` at most, so that the search has many runs.
    """
    for most in (SMALL, LARGEST):
        wider = {
            spec.name: tuple(
                extent if isinstance(d, int) else min(extent, most) if axis else max(extent, ROWS)
                for axis, (d, extent) in enumerate(zip(spec.shape, shapes[spec.name], strict=True))
            )
            for spec in original.inputs
        }
        try:
            original(made_inputs(original.inputs, wider, SEEDS[0]))
            return wider
        except (DeployError, ValueError):
            continue
    return shapes


def _check_comparable(source: Path, outputs: Mapping[str, Array]) -> None:
    """Refuse outputs that are NaN everywhere, which everything that is NaN too is equal to."""
    for name, output in outputs.items():
        if output.dtype.kind == "f" and output.size and np.isnan(output).all():
            raise UnsupportedModel(
                f"{source}: output {name!r} of the original is NaN in every element on random "
                "inputs, so that nothing can be compared; give --no-check to go without"
            )


def _same_bits(first: Any, second: Any) -> bool:
    return bool(np.array_equal(first, second, equal_nan=first.dtype.kind == "f"))


def shapes_for(source: Path, runner: Runner, inputs: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return input shapes that the original runs on.

    Raises:
        UnsupportedModel: It runs on none that was tried.
    """
    try:
        given = assign([spec.name for spec in runner.inputs], [parse_shape(i) for i in inputs])
    except ExportError as error:
        raise UnsupportedModel(f"{source}: {error}") from error
    failure: DeployError | ValueError | None = None
    for shapes in _guesses(runner.inputs, given):
        try:
            runner(made_inputs(runner.inputs, shapes, SEEDS[0]))
            return shapes
        except (DeployError, ValueError) as error:
            failure = failure or error
    wanted = ", ".join(map(str, runner.inputs))
    raise UnsupportedModel(
        f"{source}: the original does not run on random inputs ({failure}); "
        f"give shapes with --input for {wanted}"
    ) from failure


def _guesses(
    specs: Sequence[TensorSpec], given: Mapping[str, tuple[int, ...]]
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield shapes to try: a batch of 2, else of 1, with equal extents for equal names."""
    for batch, extent in ((2, 64), (1, 64), (2, 224), (1, 224), (1, 16)):
        yield {
            spec.name: given.get(spec.name)
            or tuple(
                d if isinstance(d, int) else batch if axis == 0 else extent
                for axis, d in enumerate(spec.shape)
            )
            for spec in specs
        }
