"""What a bundle's network looks like to a server: its tensors, its batch axis, its batch sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.report import read_report
from crelu_deploy.runner import TensorSpec
from crelu_deploy.samples import Array
from crelu_deploy.targets import Target


@dataclass(frozen=True)
class Signature:
    """The tensors of a network as a server sees them.

    Attributes:
        inputs: In the network's order, the batch axis included.
        outputs: Likewise.
        batched: Whether axis 0 of every tensor is one and the same dynamic axis.
        sample: A recorded call by input name: one row of it where there is a batch axis.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    sample: dict[str, Array]

    @property
    def fixed(self) -> bool:
        """Whether every extent of every tensor is fixed."""
        return all(isinstance(d, int) for spec in self.inputs + self.outputs for d in spec.shape)


def signature(bundle: Bundle) -> Signature:
    """Return what the bundle's own model and its samples tell.

    Raises:
        UnsupportedModel: A file of the bundle cannot be read, or an output has no shape.
    """
    inputs = bundle.inputs
    outputs = tuple(_output(value) for value in bundle.model.graph.outputs)
    axes = {spec.shape[:1] for spec in inputs + outputs}
    batched = len(axes) == 1 and all(axis and isinstance(axis[0], str) for axis in axes)
    first = bundle.samples[0].inputs
    rows = {name: array[:1] if batched else array for name, array in first.items()}
    return Signature(inputs, outputs, batched, rows)


def _output(value: ir.Value) -> TensorSpec:
    if value.shape is None or value.dtype is None:
        raise UnsupportedModel(
            f"output {value.name!r} has no shape in the model, which a server must know; export "
            "the network again"
        )
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorSpec(str(value.name), np.dtype(value.dtype.numpy()).name, shape)


def preferred_sizes(bundle: Bundle, target: Target, largest: int) -> tuple[int, ...]:
    """Return the batch sizes that a server should form, ascending, from 2 to ``largest``.

    Where the bundle's bench timed the target at such sizes: those that take less time per row than
    every smaller one. Otherwise the powers of two, and ``largest``.

    Raises:
        UnsupportedModel: The record of the bench is damaged.
    """
    timed = sorted((b, ms / b) for b, ms in _timings(bundle, target).items() if b <= largest)
    if any(batch > 1 for batch, _ in timed):
        best = [min((t for _, t in timed[:i]), default=float("inf")) for i in range(len(timed))]
        return tuple(b for (b, t), least in zip(timed, best, strict=True) if b > 1 and t < least)
    powers = {2**i for i in range(1, largest.bit_length())}
    return tuple(sorted(powers | {largest} if largest > 1 else powers))


def _timings(bundle: Bundle, target: Target) -> dict[int, float]:
    """Return batch size -> milliseconds of one call, as the last bench recorded them."""
    data = read_report(bundle)
    if data is None:
        return {}
    try:
        rows = [row for row in data["bench"]["rows"] if row["target"] == str(target)]
        return {int(row["batch"]): float(row["median_ms"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModel(
            f"{bundle.path}: its report is damaged ({error!r}); run: crelu bench {bundle.path}"
        ) from error
