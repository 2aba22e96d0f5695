"""A folder that shows a located difference with ONNX Runtime and Polygraphy, without this package.

model.onnx      the part of the target's model that computes the first differing value
inputs.json     what the unlowered network has at the part's inputs
expected.json   what it has at the part's output
run.sh          the command; it fails as long as the difference is there
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir

from crelu_deploy.accuracy import TOLERANCES, Tolerance, compare, rms
from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BackendUnavailable, BuildError
from crelu_deploy.locating import Difference
from crelu_deploy.modelfile import read_file
from crelu_deploy.samples import Array, Arrays
from crelu_deploy.staging import reason, staged_file, write_text
from crelu_deploy.targets import BACKENDS, Options, Target
from crelu_deploy.writing import save_model

MODEL, INPUTS, EXPECTED, SCRIPT = "model.onnx", "inputs.json", "expected.json", "run.sh"
OPTIONS = Options(threads=1)


def reproduce(
    bundle: Bundle,
    target: Target,
    difference: Difference,
    folder: Path,
    *,
    tolerance: Tolerance | None = None,
) -> str:
    """Write the folder and return the command that runs it.

    The part begins at the values that agree; where the difference does not show in it alone, the
    model begins at the network's inputs.

    Args:
        bundle: Where the target is.
        target: What differs.
        difference: Where it differs.
        folder: Files in it of the same names are replaced, others are kept.
        tolerance: What counts as equal, instead of what the value's element type tells.

    Raises:
        BackendUnavailable: Polygraphy is not installed.
        BuildError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"{folder}: cannot be written: {reason(error)}") from error
    lowered = read_file(bundle.artifact(target))
    feeds = _write_part(lowered, bundle, difference, folder / MODEL, tolerance)
    expected = {difference.value: difference.known[difference.value]}
    _write_arrays(folder, feeds, expected)
    command = _command(expected[difference.value], tolerance)
    write_text(folder / SCRIPT, f'#!/bin/sh\ncd "$(dirname "$0")" && exec {command}\n')
    return f"cd {shlex.quote(str(folder))} && {command}"


def _write_part(
    lowered: ir.Model,
    bundle: Bundle,
    difference: Difference,
    path: Path,
    tolerance: Tolerance | None,
) -> Arrays:
    """Write the smallest model in which the difference shows; return its inputs."""
    network = [spec.name for spec in bundle.inputs]
    known = [name for name in difference.compared if name != difference.value]
    for ends in ([*known, *network], network):
        feeds = _cut(lowered, difference, ends, path)
        if not _agrees(path, feeds, difference, tolerance):
            break
    return feeds


def _cut(lowered: ir.Model, difference: Difference, ends: Collection[str], path: Path) -> Arrays:
    """Write the part of a model between some values and the differing one."""
    names = _boundary(lowered, difference.value, set(ends))
    graph = ir.convenience.extract(lowered.graph, inputs=names, outputs=[difference.value])
    for value in (*graph.inputs, *graph.outputs):
        array = difference.known[str(value.name)]
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        value.shape = value.shape or ir.Shape([None] * array.ndim)
    functions = [function.clone() for function in lowered.functions.values()]
    part = ir.Model(graph, ir_version=lowered.ir_version, functions=functions)
    save_model(part, path)
    return {name: difference.known[name] for name in names}


def _boundary(model: ir.Model, name: str, ends: set[str]) -> list[str]:
    """Return the nearest values above one at which a part of a model can begin."""
    (first,) = (v for node in model.graph for v in node.outputs if v.name == name)
    waiting, found = [first], list[str]()
    for value in waiting:
        node = value.producer()
        for read in _read(node) if node is not None else ():
            if read.name in ends:
                found.append(str(read.name))
            elif read not in waiting:
                waiting.append(read)
    return list(dict.fromkeys(found))


def _read(node: ir.Node) -> list[ir.Value]:
    """Return what a node reads, what its subgraphs read from outside included."""
    graphs = list[ir.Graph]()
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs += attribute.as_graphs()
    inner = [n for graph in graphs for n in ir.traversal.RecursiveGraphIterator(graph)]
    return [value for n in (node, *inner) for value in n.inputs if value is not None]


def _agrees(path: Path, feeds: Arrays, difference: Difference, tolerance: Tolerance | None) -> bool:
    runtime = BACKENDS["ort-cpu"].implementation()
    with runtime.open_session(path, OPTIONS) as runner:
        actual = runner(feeds)[difference.value]
    return compare(actual, difference.known[difference.value], "", tolerance).passed


def _write_arrays(folder: Path, feeds: Arrays, expected: Arrays) -> None:
    try:
        from polygraphy.comparator import RunResults
        from polygraphy.json import save_json
        from polygraphy.logger import G_LOGGER
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            "inputs and outputs are written by Polygraphy, which is not installed; "
            "run: pip install 'crelu-deploy[locate]'"
        ) from error
    results = RunResults()
    results.add([dict(expected)], runner_name="unlowered")
    with (
        G_LOGGER.verbosity(G_LOGGER.CRITICAL),  # it logs to stdout
        staged_file(folder / INPUTS) as inputs,
        staged_file(folder / EXPECTED) as outputs,
    ):
        save_json([dict(feeds)], str(inputs))
        results.save(str(outputs))


def _command(expected: Array, tolerance: Tolerance | None) -> str:
    """Return Polygraphy's command line with the tolerance of ``accuracy`` for this value."""
    allowed = tolerance or TOLERANCES.get(expected.dtype.name, Tolerance(0.0, 0.0))
    atol = allowed.atol * rms(np.asarray(expected, np.float64))
    return (
        f"polygraphy run {MODEL} --onnxrt --load-inputs {INPUTS} --load-outputs {EXPECTED} "
        f"--atol {atol:.3g} --rtol {allowed.rtol:.3g}"
    )
