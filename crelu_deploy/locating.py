"""Where a target goes wrong: its values beside the unlowered network's, site by site.

The values that both models have are made outputs of copies of both, ONNX Runtime runs the copies
on a recorded sample, and the first value that differs, in the order of the network, tells where.
The reference is ``model.onnx``, with the bodies that canonical nodes should have, run without the
runtime's optimisations.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from crelu_deploy import op
from crelu_deploy.accuracy import (
    REDUCED,
    Comparison,
    Limits,
    Tolerance,
    compare,
    compare_outputs,
    scores,
    worst_of,
)
from crelu_deploy.bundle import MODEL, Bundle
from crelu_deploy.correspondence import Correspondence, expose, observable
from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.lowerings.sitenode import site_nodes
from crelu_deploy.lowerings.values import constant, describe
from crelu_deploy.modelfile import read_file
from crelu_deploy.results import SiteError
from crelu_deploy.samples import Array, Arrays, Sample
from crelu_deploy.targets import BACKENDS, Options, Target


@dataclass(frozen=True)
class Difference:
    """The first value of a target that is beyond tolerance.

    Attributes:
        sample: The number of the sample.
        value: Its name.
        node: Type and name of the node that computes it in the unlowered network.
        where: ``in``, ``behind``, ``before`` or ``without``: where it is, from ``sites``.
        sites: More than one where the target does not have the values between them.
        comparison: Its distance, with the worst element.
        inputs: The node's inputs at the worst element, in words.
        known: The unlowered network's values on the sample, its inputs included, by name.
        compared: The names of the values that both models have.
    """

    sample: int
    value: str
    node: str
    where: str
    sites: tuple[str, ...]
    comparison: Comparison
    inputs: tuple[str, ...]
    known: Arrays
    compared: frozenset[str]


@dataclass(frozen=True)
class Located:
    """What ``locate`` found.

    Attributes:
        target: The target.
        reference: Distance of the unlowered network from PyTorch's recorded outputs.
        sites: The errors at the sites, in the order of the network.
        first: The first value beyond tolerance; None where all are within.
    """

    target: Target
    reference: Comparison
    sites: tuple[SiteError, ...]
    first: Difference | None


@dataclass(frozen=True)
class _Run:
    """One sample through both models."""

    known: Arrays
    actual: Arrays
    compared: dict[str, Comparison]


def locate(
    bundle: Bundle,
    target: Target,
    options: Options,
    *,
    tolerance: Tolerance | None = None,
    samples: int | None = None,
) -> Located:
    """Compare a built target with the unlowered network, value by value, on ONNX Runtime.

    Args:
        bundle: Where the target is.
        target: What was built; its backend reads a lowered model.
        options: Threads.
        tolerance: What counts as equal, instead of what element type and precision tell.
        samples: How many samples to go through; all, up to the first that differs, when None.

    Raises:
        UnsupportedModel: The target has no lowered model.
        BuildError: ONNX Runtime refuses a model.
    """
    between = correspondence(bundle, target)
    tolerance = tolerance or REDUCED.get(BACKENDS[target.backend].precision, Limits()).tolerance
    found: dict[str, list[Comparison]] = {}
    references, first = [], None
    for i, (sample, done) in enumerate(_runs(bundle, between, options, tolerance, samples)):
        outputs = {name: done.known[name] for name in sample.outputs if name in done.known}
        references.append(compare_outputs(outputs, sample.outputs, f"sample {i} ", tolerance))
        for name, comparison in done.compared.items():
            found.setdefault(name, []).append(comparison)
        if wrong := [name for name, c in done.compared.items() if not c.passed]:
            first = _difference(between, i, wrong[0], done, tolerance)
            break
    merged = {name: worst_of(comparisons) for name, comparisons in found.items()}
    return Located(target, worst_of(references), tuple(_sites(between, merged)), first)


def correspondence(bundle: Bundle, target: Target) -> Correspondence:
    """Read the unlowered network and a built target's file.

    Raises:
        UnsupportedModel: The target has no lowered model, or a file cannot be read.
    """
    if not BACKENDS[target.backend].lowered:
        raise UnsupportedModel(
            f"{target} runs the PyTorch module, which is not lowered: it has no sites to look at"
        )
    lowerings = bundle.manifest["targets"][str(target)]["lowerings"]
    return Correspondence(reference(bundle), read_file(bundle.artifact(target)), lowerings)


def reference(bundle: Bundle) -> ir.Model:
    """Return the unlowered network; its canonical nodes have the bodies that they should have."""
    model = bundle.model
    for domain, op_type, overload in list(model.functions):
        if domain == op.DOMAIN and op_type in op.NODE_TYPES:
            try:
                body = op.function(op_type, model.graph.opset_imports.get("", 1))
            except ValueError as error:
                raise UnsupportedModel(f"{bundle.path / MODEL}: {error}") from error
            model.functions[domain, op_type, overload] = body
    return model


def _runs(
    bundle: Bundle,
    between: Correspondence,
    options: Options,
    tolerance: Tolerance | None,
    samples: int | None,
) -> Iterator[tuple[Sample, _Run]]:
    runtime = BACKENDS["ort-cpu"].implementation()
    everything = list(observable(between.original))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("original.onnx", "lowered.onnx")]
        expose(between.original, everything, files[0])
        expose(between.lowered, between.names, files[1])
        with (
            runtime.open_session(files[0], options, optimise=False) as original,
            runtime.open_session(files[1], options) as lowered,
        ):
            for sample in bundle.samples[:samples]:
                known = {**sample.inputs, **arrays(original(sample.inputs))}
                actual = arrays(lowered(sample.inputs))
                compared = _compare(between, known, actual, tolerance)
                yield sample, _Run(known, actual, compared)


def arrays(outputs: Arrays) -> dict[str, Array]:
    """Leave out what is no array of numbers, such as a sequence."""
    return {
        name: value
        for name, value in outputs.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    }


def _compare(
    between: Correspondence, known: Arrays, actual: Arrays, tolerance: Tolerance | None
) -> dict[str, Comparison]:
    return {
        name: compare(actual[name], known[name], name, tolerance)
        for name in between.names
        if name in known
        and name in actual
        and (name not in between.folded or actual[name].shape == known[name].shape)
    }


def _sites(between: Correspondence, merged: dict[str, Comparison]) -> Iterator[SiteError]:
    for site, lowering in between.lowerings.items():
        names = tuple(between.checkpoints(site, merged))
        comparison = worst_of(merged[name] for name in names) if names else None
        yield SiteError(site, lowering, names, comparison)


def _difference(
    between: Correspondence, sample: int, name: str, done: _Run, tolerance: Tolerance | None
) -> Difference:
    value = observable(between.original)[name]
    where, sites = between.blame(name, done.compared.keys())
    return Difference(
        sample,
        name,
        describe(value.producer()),
        where,
        sites,
        done.compared[name],
        tuple(_inputs(between.original, value, done, tolerance)),
        done.known,
        frozenset(done.compared),
    )


def _inputs(
    model: ir.Model, value: ir.Value, done: _Run, tolerance: Tolerance | None
) -> Iterator[str]:
    """Yield in words what the unlowered network's node reads at the worst element."""
    node = value.producer()
    assert node is not None, "an observable value is computed by a node"
    index = _worst(done.actual[str(value.name)], done.known[str(value.name)], tolerance)
    is_site = any(site.node is node for site in site_nodes(model).values())
    for read in node.inputs:
        if read is None:
            continue
        tensor = constant(read)
        array = done.known.get(str(read.name)) if tensor is None else tensor.numpy()
        if array is not None:
            place = _place(index, done.known[str(value.name)].shape, array.shape, doubles=is_site)
            yield _words(str(read.name), array, place)


def _worst(actual: Array, expected: Array, tolerance: Tolerance | None) -> tuple[int, ...] | None:
    """Return the index of the worst element; None where the shapes or types differ."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return None
    score = scores(actual, expected, tolerance)[1]
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(score)), score.shape))


def _place(
    index: tuple[int, ...] | None, shape: tuple[int, ...], source: tuple[int, ...], *, doubles: bool
) -> tuple[int, ...] | None:
    """Return the index of what a pointwise node reads for one element; None for other nodes.

    ``doubles`` is for a site, whose output has an axis of twice the extent.
    """
    if index is None or len(source) != len(shape):
        return None
    pairs = list(zip(shape, source, strict=True))
    pointwise = all(m in (1, n) or (doubles and n == 2 * m) for n, m in pairs)
    return tuple(i % m for i, m in zip(index, source, strict=True)) if pointwise else None


def _words(name: str, array: Array, place: tuple[int, ...] | None) -> str:
    if place is not None:
        return f"{name}[{', '.join(map(str, place))}] = {array[place]!s}"
    spread = f" from {array.min()!s} to {array.max()!s}" if array.size else ""
    return f"{name}: {array.dtype}{list(array.shape)}{spread}"
