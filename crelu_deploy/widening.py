"""A PyTorch network run in float64, whatever it casts inside: the exact result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from crelu_deploy.errors import ExportError
from crelu_deploy.recording import run
from crelu_deploy.rounding import noise, shared
from crelu_deploy.samples import Array, Sample

NARROW = (torch.float32, torch.float16, torch.bfloat16)


class Wide(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of its metaclass
    """Every operator gets float64 in place of narrower floats, and casts go to float64."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call an operator with its arguments widened."""
        return func(*tree_map(_widened, args), **tree_map(_widened, kwargs or {}))


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.dtype in NARROW else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value in NARROW else value
    return value


def with_floors(
    module: torch.nn.Module, samples: Sequence[Sample], *, batched: bool
) -> tuple[tuple[Sample, ...], str]:
    """Return samples with the noise of each output in float32, and why not, in words.

    Args:
        module: The network, in evaluation mode.
        samples: Its inputs and its outputs.
        batched: Whether it takes the first row of a sample alone, which is enough.
    """
    names = [name for name, y in samples[0].outputs.items() if y.dtype == np.float32]
    try:
        found = [_floors(module, sample, names, batched=batched) for sample in samples]
    except ExportError as error:
        return tuple(samples), f"the noise of the outputs was not measured: {error}"
    floors = {
        name: shared([one[name] for one in found], [s.outputs[name] for s in samples])
        for name in names
    }
    return tuple(
        replace(sample, floors={name: floors[name][i] for name in names})
        for i, sample in enumerate(samples)
    ), ""


def _floors(
    module: torch.nn.Module, sample: Sample, names: Sequence[str], *, batched: bool
) -> dict[str, Array]:
    inputs = {k: x[:1] for k, x in sample.inputs.items()} if batched else sample.inputs
    with Wide():  # type: ignore[no-untyped-call]
        exact = run(module, inputs, tuple(sample.outputs))
    rounded = {k: y[:1] if batched else y for k, y in sample.outputs.items()}
    if any(rounded[name].shape != exact[name].shape for name in names):  # rows are not on axis 0
        return _floors(module, sample, names, batched=False)
    return {name: noise(rounded[name], exact[name]) for name in names}
