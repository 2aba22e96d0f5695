"""A PyTorch network run in float64, whatever it casts inside: the exact result."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from crelu_deploy.accuracy import Tolerance, compare
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
    floors = _shared(found, [sample.outputs for sample in samples])
    return tuple(replace(s, floors=floors[i]) for i, s in enumerate(samples)), ""


def _floors(
    module: torch.nn.Module, sample: Sample, names: Sequence[str], *, batched: bool
) -> dict[str, Array]:
    inputs = {k: x[:1] for k, x in sample.inputs.items()} if batched else sample.inputs
    with Wide():  # type: ignore[no-untyped-call]
        exact = run(module, inputs, tuple(sample.outputs))
    rounded = {k: y[:1] if batched and y.ndim else y for k, y in sample.outputs.items()}
    if any(rounded[name].shape != exact[name].shape for name in names):  # rows are not on axis 0
        return _floors(module, sample, names, batched=False)
    return {name: noise(rounded[name], exact[name]) for name in names}


def with_noise(
    module: torch.nn.Module,
    program: Program | None,
    named: Mapping[str, ir.Value],
    samples: tuple[Sample, ...],
    searched: int,
) -> tuple[tuple[Sample, ...], str]:
    """Return samples with the noise of each output and of values inside, and why not, in words.

    A captured program tells both in one run, because its values have the names that they keep in
    the model; those inside are read for the samples that are ``telling``.

    Args:
        module: The network, in evaluation mode.
        program: The network as it was captured; of values inside nothing is measured without.
        named: The model's values; those that the program does not have are left out.
        samples: The network's inputs and its outputs.
        searched: How many of the last were searched.
    """
    if program is None:
        return with_floors(module, samples, batched=False)
    chosen = telling(samples, searched)
    try:
        found = {i: _Noise.measured(program, named, sample) for i, sample in chosen.items()}
        others = [i for i in range(len(samples)) if i not in found]
        found |= {i: _Noise.measured(program, {}, samples[i]) for i in others}
    except Exception as error:  # operators of the module's own may raise anything
        known, why = with_floors(module, samples, batched=program.batched)
        return known, why or f"no noise behind the sites was measured: {cause(error)}"
    each = [found[i] for i in range(len(samples))]
    outputs = _shared([one.outputs for one in each], [s.outputs for s in samples])
    inner = _shared([found[i].inner for i in chosen], [found[i].values for i in chosen])
    behind = dict(zip(chosen, inner, strict=True))
    return tuple(
        replace(sample, floors=outputs[i], behind=behind.get(i, {}))
        for i, sample in enumerate(samples)
    ), ""


def _shared(floors: Sequence[Arrays], values: Sequence[Arrays]) -> list[dict[str, Array]]:
    """Let samples share the noise of what has few elements, name by name."""
    columns = {
        name: shared([one[name] for one in floors], [one[name] for one in values])
        for name in floors[0]
    }
    return [{name: column[i] for name, column in columns.items()} for i in range(len(floors))]


@dataclass(frozen=True)
class _Noise:
    """What one sample tells.

    Attributes:
        outputs: The noise of each output in float32.
        inner: That of values inside.
        values: These values in float32.
    """

    outputs: Arrays
    inner: Arrays
    values: Arrays

    @classmethod
    def measured(cls, program: Program, named: Mapping[str, ir.Value], sample: Sample) -> _Noise:
        """Run a program in float64, and in float32 where values inside are asked for.

        Raises:
            ValueError: The program's outputs are not the recorded ones.
        """
        one = program.batched
        inputs = {k: x[:1] for k, x in sample.inputs.items()} if one else sample.inputs
        ends = _ends(program)
        with Wide():  # type: ignore[no-untyped-call]
            exact = _read(program, {*named, *ends}, inputs)
        rounded = _read(program, named, inputs) if named else {}
        kept = {k: y for k, y in rounded.items() if y.dtype == np.float32 and k in exact}
        outputs = {}
        for (name, y), end in zip(sample.outputs.items(), ends, strict=True):
            y = y[:1] if one and y.shape[:1] == next(iter(sample.inputs.values())).shape[:1] else y
            if y.dtype == np.float32:
                _check_alike(name, y, exact[end])
                outputs[name] = noise(y, exact[end])
        inner = {k: _paired(noise(y, exact[k]), named[k], y) for k, y in kept.items()}
        return cls(outputs, inner, kept)


def _check_alike(name: str, y: Array, exact: Array) -> None:
    """Refuse what is another value: its distance would be no noise."""
    loose = Tolerance(0.1, 0.1)
    if y.shape != exact.shape or not compare(exact.astype(y.dtype), y, name, loose).passed:
        raise ValueError(f"output {name!r} is another one in the captured program")


def _ends(program: Program) -> list[str]:
    """Return the names of a program's outputs, in order."""
    (values,) = next(n for n in program.module.graph.nodes if n.op == "output").args
    return [str(value) for value in values]


def _read(program: Program, names: Collection[str], inputs: Arrays) -> dict[str, Array]:
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
