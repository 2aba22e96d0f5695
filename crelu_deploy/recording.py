"""PyTorch's own outputs, which everything later is compared with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from crelu_deploy.errors import ExportError
from crelu_deploy.runner import TensorSpec
from crelu_deploy.samples import Array, Arrays, Sample, random_inputs, read_inputs
from crelu_deploy.shapes import Input, varied
from crelu_deploy.tensors import flatten
from crelu_deploy.tracing import cause


def run(module: torch.nn.Module, inputs: Arrays, names: Sequence[str]) -> dict[str, Any]:
    """Return PyTorch's outputs by name; the module's own names where none are given."""
    tensors = [torch.from_numpy(array) for array in inputs.values()]
    try:
        with torch.inference_mode():
            found = flatten(module(*tensors))
    except ExportError:
        raise
    except Exception as error:  # the module's own code may raise anything
        shapes = ", ".join(f"{n} {'x'.join(map(str, x.shape))}" for n, x in inputs.items())
        raise ExportError(
            f"the module fails on the input {shapes}: {cause(error)}; give its shape with --input"
        ) from error
    if not found:
        raise ExportError("the module returns no tensor")
    if names and len(names) != len(found):
        raise ExportError(f"the module returns {len(found)} outputs, expected {len(names)}")
    keys = names or _unique([name for name, _ in found], taken=inputs)
    return {key: _array(key, tensor) for key, (_, tensor) in zip(keys, found, strict=True)}


def _unique(names: Sequence[str], taken: Iterable[str]) -> list[str]:
    """Number the names that an input or an earlier output has: ONNX keeps all in one space."""
    result: list[str] = []
    for name in names:
        used = {*taken, *result}
        numbered = (f"{name}_{i}" for i in count(1))
        result.append(name if name not in used else next(n for n in numbered if n not in used))
    return result


def _array(name: str, tensor: torch.Tensor) -> Array:
    try:
        return tensor.numpy().copy()
    except TypeError as error:
        raise ExportError(
            f"output {name!r} is {str(tensor.dtype).removeprefix('torch.')}, which no NumPy array "
            "can hold; let the module return .float()"
        ) from error


def record(
    module: torch.nn.Module,
    inputs: tuple[Input, ...],
    specs: tuple[TensorSpec, ...],
    names: tuple[str, ...],
    wanted: int | str | os.PathLike[str],
    seed: int,
) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Record PyTorch's outputs for the user's inputs or for random ones.

    The last of several random samples has other extents along the dynamic axes, where PyTorch
    takes them.
    """
    if not isinstance(wanted, int):
        real = read_inputs(Path(wanted), specs, inputs[0].shape[0] if inputs[0].shape else 1)
        return tuple(Sample(call, run(module, call, names)) for call in real), ()
    shapes = {one.name: one.shape for one in inputs}
    calls = [random_inputs(specs, shapes, seed + i) for i in range(wanted)]
    recorded = [Sample(call, run(module, call, names)) for call in calls[:-1]]
    other = varied(inputs, {spec.name: spec.shape for spec in specs})
    notes: tuple[str, ...] = ()
    if other != shapes and recorded:
        last = random_inputs(specs, other, seed + wanted - 1)
        try:
            return (*recorded, Sample(last, run(module, last, names))), notes
        except ExportError as error:
            notes = (f"not sampled with other extents: {error}",)
    return (*recorded, Sample(calls[-1], run(module, calls[-1], names))), notes
