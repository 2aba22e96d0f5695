"""A PyTorch network run in float64, whatever it casts inside: the exact result."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from crelu_deploy.errors import ExportError
from crelu_deploy.exciting import Program, Reader, tensors
from crelu_deploy.op import DOMAIN
from crelu_deploy.recording import run
from crelu_deploy.rounding import channel_axis, noise, shared
from crelu_deploy.samples import Array, Arrays, Sample, telling
from crelu_deploy.tracing import cause

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


def with_inner_floors(
    program: Program | None,
    named: Mapping[str, ir.Value],
    samples: Sequence[Sample],
    searched: int,
) -> tuple[tuple[Sample, ...], str]:
    """Return samples with the noise of values inside a network in float32, and why not, in words.

    It is measured on a captured program, whose values have the names that they keep in the model,
    and for the samples that are ``telling``.

    Args:
        program: The network as it was captured; nothing is measured without.
        named: The model's values; those that the program does not have are left out.
        samples: Its inputs and its outputs.
        searched: How many of the last were searched.
    """
    if program is None or not named:
        return tuple(samples), ""
    chosen, found, values = telling(samples, searched), list[Arrays](), list[Arrays]()
    for sample in chosen.values():
        inputs = {k: x[:1] for k, x in sample.inputs.items()} if program.batched else sample.inputs
        try:
            rounded = _inner(program, named, inputs)
            with Wide():  # type: ignore[no-untyped-call]
                exact = _inner(program, named, inputs)
        except Exception as error:  # operators of the module's own may raise anything
            return tuple(samples), f"no noise behind the sites was measured: {cause(error)}"
        kept = {k: y for k, y in rounded.items() if y.dtype == np.float32 and k in exact}
        values.append(kept)
        found.append({k: _paired(noise(y, exact[k]), named[k], y) for k, y in kept.items()})
    floors = {k: shared([f[k] for f in found], [y[k] for y in values]) for k in found[0]}
    order = {number: position for position, number in enumerate(chosen)}
    return tuple(
        replace(s, behind={k: f[order[i]] for k, f in floors.items()}) if i in order else s
        for i, s in enumerate(samples)
    ), ""


def _inner(program: Program, names: Collection[str], inputs: Arrays) -> dict[str, Array]:
    known = {node.name for node in program.module.graph.nodes}
    reader = Reader(program, known.intersection(names))
    with torch.inference_mode():  # so that ``Wide`` sees whole operators
        reader.run(*tensors(inputs), enable_io_processing=False)
    return {name: np.asarray(value) for name, value in reader.found.items()}


def _paired(floor: Array, value: ir.Value, array: Array) -> Array:
    """Give both halves of a site's channel the larger noise.

    One that never fires is zero without any; rounding may let it fire a little.
    """
    node, axis = value.producer(), channel_axis(array.shape)
    if node is None or node.domain != DOMAIN or axis is None:
        return floor
    if node.attributes.get_int("axis", 1) % array.ndim != axis:
        return floor
    return np.maximum(floor, np.roll(floor, len(floor) // 2, 0))
