"""PyTorch's own outputs, which everything later is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

import torch

from crelu_deploy.accuracy import compare, not_finite
from crelu_deploy.errors import ExportError
from crelu_deploy.samples import Array, Arrays, Sample
from crelu_deploy.tensors import flatten
from crelu_deploy.tracing import cause


def run(module: torch.nn.Module, inputs: Arrays, names: Sequence[str]) -> dict[str, Any]:
    """Return PyTorch's outputs by name; the module's own names where none are given."""
    # In copies: the module may write to them.
    tensors = [torch.from_numpy(array.copy()) for array in inputs.values()]
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


def run_twice(module: torch.nn.Module, inputs: Arrays, names: Sequence[str]) -> dict[str, Array]:
    """Return PyTorch's outputs by name, which must be the same a second time.

    Raises:
        ExportError: The module fails, or gives two answers to one input.
    """
    first = run(module, inputs, names)
    again = run(module, inputs, tuple(first))
    differ = [name for name in first if not compare(again[name], first[name], name, None).passed]
    if differ:
        raise ExportError(
            f"the module gives two answers to the same input: {', '.join(map(repr, differ))} "
            "differs the second time; it is random, such as a dropout whose training is not "
            "self.training, or keeps something between calls: let forward depend on its inputs"
        )
    return first


def check_finite(samples: Sequence[Sample]) -> None:
    """Refuse outputs with which nothing can be compared.

    Raises:
        ExportError: An element is NaN or infinite; the first such output and sample.
    """
    for i, sample in enumerate(samples):
        for name, output in sample.outputs.items():
            if count := not_finite(output):
                raise ExportError(
                    f"PyTorch's output {name!r} is NaN or infinite in {count} of {output.size} "
                    f"elements on sample {i}: such elements are equal whatever went wrong before; "
                    "check the weights and the inputs, or accept it with --allow-nan"
                )


def finite(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return the samples of which every output is finite."""
    return tuple(s for s in samples if not any(map(not_finite, s.outputs.values())))


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
    calls: Iterable[Arrays],
    names: Sequence[str],
) -> tuple[Sample, ...]:
    """Record PyTorch's outputs for some inputs.

    Raises:
        ExportError: The module refuses one.
    """
    return tuple(Sample(call, run(module, call, names)) for call in calls)
