"""Inputs of an ONNX file are sought that make both halves of every channel of every site fire.

ONNX Runtime computes the sites' inputs, and there are no gradients: noise of several sizes and
pictures come first and are kept, and what is still silent is climbed to by random changes of the
rows that come nearest. As in ``exciting`` the search is bound by arithmetic, and by a number of
runs, not by time.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from crelu_deploy.correspondence import expose, observable
from crelu_deploy.coverage import BUDGET, FIRES, Coverage
from crelu_deploy.errors import DeployError
from crelu_deploy.lowerings import lower
from crelu_deploy.lowerings.sitenode import site_nodes
from crelu_deploy.lowerings.values import constant, is_onnx
from crelu_deploy.runner import Runner, TensorSpec
from crelu_deploy.samples import Array, Arrays
from crelu_deploy.stimuli import varied_inputs
from crelu_deploy.targets import BACKENDS, Options

RUNS, PATIENCE = 150, 60
"""Runs of a search at most, and without a new half."""

OFFERED = 12
"""Calls that are offered at most beside noise and pictures: the original runs on each twice."""

ELITES = 16
"""Halves that are climbed to at a time: each keeps a row of an input."""

ELEMENT = 400
"""Multiplications that take as long as to draw an element of an input, or to read one of a site.

To compare one of an output takes three times as long.
"""

LARGEST = 1e4
"""Size of an element at most: float16 holds it, and its products."""

Accept = Callable[[Arrays], bool]
"""Tells whether the outputs for a call can be compared."""


@dataclass(frozen=True)
class Peaks:
    """How far the halves of one site rise in one call.

    Attributes:
        rows: The largest value of each half of each channel, ``(rows, 2, channels)``.
        squares: The mean square of each row, ``(rows,)``.
    """

    rows: Array
    squares: Array

    @property
    def whole(self) -> Array:
        """Those of the call over its root mean square, ``(2, channels)``."""
        result: Array = self.rows.max(0) / max(math.sqrt(self.squares.mean()), 1e-30)
        return result

    @property
    def each(self) -> Array:
        """Those of each row over its root mean square, ``(rows, 2, channels)``."""
        result: Array = self.rows / np.maximum(np.sqrt(self.squares), 1e-30)[:, None, None]
        return result


def peaks(x: Array, axis: int) -> Peaks:
    """Return the peaks of a site's input; a site along axis 0 has one row."""
    x, axis = (x, axis % x.ndim) if axis % x.ndim else (x[None], 1)
    x = np.moveaxis(np.asarray(x, np.float64), axis, 1).reshape(len(x), x.shape[axis], -1)
    return Peaks(np.stack([x.max(2), -x.min(2)], 1), np.mean(x**2, (1, 2)))


class Probe(AbstractContextManager["Probe"]):
    """Reads the inputs of the sites of a network on ONNX Runtime.

    Sites in subgraphs and functions, whose values no output can have, are left out.
    """

    def __init__(self, canonical: ir.Model) -> None:
        model = lower(canonical, "function").model
        there = observable(model)
        given = {str(value.name) for value in model.graph.inputs}
        sites = site_nodes(canonical)
        self.sites = {
            name: (str(site.x.name), site.axis)
            for name, site in sites.items()
            if site.x.name in there or site.x.name in given
        }
        self._stack = ExitStack()
        self._names = {value for value, _ in self.sites.values()} & there.keys()
        self._runner: Runner | None = None
        self._model = canonical
        if self._names:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory())
            path = Path(folder) / "probe.onnx"
            expose(model, self._names, path, alone=True)
            runtime = BACKENDS["ort-cpu"].implementation()
            session = runtime.open_session(path, Options(threads=1))
            self._runner = self._stack.enter_context(session)

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def __call__(self, feeds: Arrays) -> dict[str, Peaks]:
        """Return the peaks of every site; of those alone whose input has elements, all finite."""
        known = dict(feeds)
        if self._runner is not None:
            known |= self._runner({spec.name: feeds[spec.name] for spec in self._runner.inputs})
        found = {}
        for site, (value, axis) in self.sites.items():
            if known[value].size and np.isfinite(known[value]).all():
                found[site] = peaks(known[value], axis)
        return found

    def products(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Return how many multiplications of layers a call takes, and as many as the rest costs."""
        model = self._model.clone()
        for value in model.graph.inputs:
            value.shape = ir.Shape(shapes[str(value.name)])
        common.ShapeInferencePass()(model)
        drawn = sum(map(math.prod, shapes.values()))
        layers = sum(_products(node, drawn) for node in model.graph)
        reads = {str(v.name): v for node in model.graph for v in node.outputs}
        read = sum(_size(reads.get(value), drawn) for value, _ in self.sites.values())
        compared = sum(_size(value, drawn) for value in model.graph.outputs)
        return layers + ELEMENT * (drawn + read + 3 * compared)


def _products(node: ir.Node, otherwise: int) -> float:
    """Return a layer's multiplications; ``otherwise`` elements are taken where it has no shape."""
    if not is_onnx(node, "Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0.0
    weight, size = constant(node.inputs[1]), _size(node.outputs[0], otherwise)
    if weight is None:
        return float(size)
    channels = weight.shape.numpy()[-1 if node.op_type == "MatMul" else 0]
    return size * weight.size / max(channels, 1)


def _size(value: ir.Value | None, otherwise: int) -> int:
    """Return how many elements a value has, or ``otherwise`` where its shape is not known."""
    shape = None if value is None else value.shape
    known = shape is not None and all(isinstance(extent, int) for extent in shape)
    return math.prod(shape.numpy()) if shape is not None and known else otherwise


@dataclass
class _Elite:
    """The row of the first input that comes nearest to making one half fire."""

    row: Array
    height: float


@dataclass
class Search:
    """The state of one search.

    Attributes:
        probe: The network.
        accept: Tells whether a call may be kept.
        generator: Of everything random.
        coverage: What fires on the calls that are there and those that were kept.
        calls: What was kept.
    """

    probe: Probe
    accept: Accept
    generator: np.random.Generator
    coverage: Coverage = field(default_factory=Coverage)
    calls: list[Arrays] = field(default_factory=list)
    _elites: dict[tuple[str, int, int], _Elite] = field(default_factory=dict)
    _runs: int = 0
    _idle: int = 0
    _offers: int = 0

    def take(self, call: Arrays) -> None:
        """Count what fires on a call that is compared anyway."""
        self._add(self.probe(call))

    def _add(self, found: Mapping[str, Peaks]) -> None:
        for site, one in found.items():
            known = self.coverage.peaks.get(site)
            if known is None or known.shape == one.whole.shape:
                self.coverage.add(site, one.whole)

    def run(self, specs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Search calls of these shapes."""
        products, first = self.probe.products(shapes), specs[0].name
        starts = list(varied_inputs(specs, shapes, self.generator))
        for call in starts:
            if self._runs * products < BUDGET:
                self._try(call, first, always=True)
        self._idle = 0
        for call in self._changes(specs, shapes, starts):
            done = self._offers >= OFFERED or self._idle >= PATIENCE or self._runs >= RUNS
            if done or self.coverage.complete or self._runs * products >= BUDGET:
                return
            self._try(call, first)

    def _changes(
        self,
        specs: Sequence[TensorSpec],
        shapes: Mapping[str, tuple[int, ...]],
        starts: Sequence[dict[str, Array]],
    ) -> Iterator[dict[str, Array]]:
        """Yield rows of the first input that are changed, or others where it has none of floats."""
        first = specs[0].name
        climbing = np.dtype(specs[0].dtype).kind == "f" and starts[0][first].ndim > 1
        for number in range(RUNS):
            start = starts[number % len(starts)]
            if climbing and self._elites:
                yield {**start, first: self._changed(start[first], number)}
            else:
                yield from varied_inputs(specs, shapes, self.generator)

    def _try(self, call: dict[str, Array], first: str, *, always: bool = False) -> None:
        """Run a call, keep it if a half fires that has not, and remember the nearest rows."""
        self._runs, self._idle = self._runs + 1, self._idle + 1
        try:
            found = self.probe(call)
        except DeployError:  # such as an index beyond what it reads
            return
        new = (bool((one.whole > FIRES)[silent].any()) for one, silent, _ in self._silent(found))
        if always or any(new):
            self._offers += not always
            if self.accept(call):
                self._idle = 0
                self.calls.append(call)
                self._add(found)
        self._remember(found, call[first])

    def _silent(self, found: Mapping[str, Peaks]) -> Iterator[tuple[Peaks, Array, str]]:
        """Yield what a call does at each site that has silent halves, and which those are."""
        for site, one in found.items():
            if site in self.coverage.peaks:
                silent = self.coverage.silent(site)
                if silent.any() and silent.shape == one.whole.shape:
                    yield one, silent, site

    def _remember(self, found: Mapping[str, Peaks], x: Array) -> None:
        """Keep for each silent half the row of the first input on which it is highest."""
        self._elites = {k: e for k, e in self._elites.items() if self.coverage.silent(k[0])[k[1:]]}
        for one, silent, site in self._silent(found) if x.ndim > 1 else ():
            each = one.each if len(one.rows) == len(x) else one.each.max(0)[None]
            for half, channel in np.argwhere(silent):
                row = int(each[:, half, channel].argmax())
                height, key = float(each[row, half, channel]), (site, int(half), int(channel))
                known = self._elites.get(key)
                if len(self._elites) < ELITES if known is None else height > known.height:
                    self._elites[key] = _Elite(x[row].copy(), height)

    def _changed(self, fresh: Array, number: int) -> Array:
        """Return rows that come near to a silent half each, changed; ``fresh`` are others."""
        elites, rows = list(self._elites.values()), []
        for i, other in enumerate(fresh):
            row = elites[(number * len(fresh) + i) % len(elites)].row
            rows.append(self._mutated(row.astype(np.float64), other.astype(np.float64)))
        result: Array = np.clip(np.stack(rows), -LARGEST, LARGEST).astype(fresh.dtype)
        return result

    def _mutated(self, row: Array, other: Array) -> Array:
        """Make a row larger or smaller, shift it, add noise, or take a part of another."""
        random, kind = self.generator, int(self.generator.integers(4))
        spread = float(row.std()) or 1.0
        if kind == 0:
            row *= np.exp(random.normal())
        elif kind == 1:
            row += spread * random.normal(size=(len(row), *[1] * (row.ndim - 1)))
        elif kind == 2:
            row += np.exp(random.uniform(-3, 1)) * spread * random.standard_normal(row.shape)
        else:
            np.copyto(row, other, where=_box(row.shape, random))
        return row


def _box(shape: Sequence[int], random: np.random.Generator) -> Array:
    """Return a mask that holds in a random box."""
    mask = np.zeros(shape, bool)
    ends = [sorted(random.integers(0, extent + 1, 2)) for extent in shape]
    mask[tuple(slice(low, high) for low, high in ends)] = True
    return mask
