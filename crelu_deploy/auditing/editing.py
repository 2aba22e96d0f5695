"""What planting a fault needs: spots in a graph, and changes of constants and nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.values import constant, describe, is_onnx
from crelu_deploy.op import ACTIVATIONS, DOMAIN, Array

T = TypeVar("T")

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
POINTWISE = tuple(kind.onnx for kind in ACTIVATIONS.values())


@dataclass(frozen=True)
class Graph:
    """A model that faults are planted in, and what chooses the spots.

    Attributes:
        model: The model, which is changed.
        random: Chooses.
    """

    model: ir.Model
    random: np.random.Generator

    def pick(self, options: Sequence[T]) -> T | None:
        """Return one of some spots; None where there is none."""
        return options[int(self.random.integers(len(options)))] if options else None

    def nodes(self, *op_types: str) -> list[ir.Node]:
        """Return the nodes of some types in the graph."""
        return [node for node in self.model.graph if is_onnx(node, *op_types)]

    def layers(self, *, bias: bool = False) -> list[ir.Node]:
        """Return the layers with constant weights, or those that have a bias too."""
        found = [n for n in self.nodes(*LAYERS) if _is_float(constant(n.inputs[1]))]
        if not bias:
            return found
        return [n for n in found if len(n.inputs) > 2 and _is_float(constant(n.inputs[2]))]

    def activated(self) -> list[ir.Value]:
        """Return what activations and canonical nodes compute, where the channels are known."""
        nodes = [n for n in self.model.graph if n.domain == DOMAIN or is_onnx(n, *POINTWISE)]
        return [n.outputs[0] for n in nodes if (channels(n.outputs[0]) or 0) > 1]

    def replace(self, node: ir.Node, index: int, array: Array) -> None:
        """Give a node another constant; other readers of the old one keep it."""
        node.replace_input_with(index, self.constant(array))

    def behind(self, value: ir.Value, *make: Callable[[ir.Value], ir.Node]) -> None:
        """Put nodes behind a value, one after the other: its readers read the last."""
        readers = list(value.uses())
        node, end = value.producer(), value
        assert node is not None, "a node computes it"
        assert node.graph is not None, "the node is in a graph"
        for number, build in enumerate(make):
            new = build(end)
            new.outputs[0].name = f"{value.name}_fault_{number}"
            new.outputs[0].shape, new.outputs[0].type = value.shape, value.type
            node.append(new)
            node, end = new, new.outputs[0]
        if value.is_graph_output():
            place = list(self.model.graph.outputs).index(value)
            value.name, end.name = f"{value.name}_before", value.name
            self.model.graph.outputs[place] = end
        for reader, index in readers:
            reader.replace_input_with(index, end)

    def constant(self, array: Array) -> ir.Value:
        """Return a new constant."""
        name = f"fault_{len(self.model.graph.initializers)}"
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self.model.graph.register_initializer(value)
        return value


def _is_float(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.dtype.is_floating_point()


def array_of(node: ir.Node, index: int) -> Array:
    """Return a copy of a constant that a node reads."""
    tensor = constant(node.inputs[index])
    assert tensor is not None, "the caller has looked"
    return tensor.numpy().copy()


def rows_axis(node: ir.Node) -> int:
    """Return the axis of the output channels in a layer's weight, in its group."""
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}[node.op_type]


def columns_axis(node: ir.Node) -> int:
    """Return the axis of the input channels in a layer's weight."""
    if node.op_type == "Gemm":
        return 1 if node.attributes.get_int("transB", 0) else 0
    return {"Conv": 1, "ConvTranspose": 0, "MatMul": -2}[node.op_type]


def channels(value: ir.Value) -> int | None:
    """Return the extent of the channels of an activation, on axis 1 of images, else on the last."""
    if value.shape is None or len(value.shape) < 2:
        return None
    extent = value.shape[channel_axis(value)]
    return extent if isinstance(extent, int) else None


def channel_axis(value: ir.Value) -> int:
    """Return the axis of the channels, from the end."""
    rank = 2 if value.shape is None else len(value.shape)
    return 1 - rank if rank > 3 else -1


def per_channel(value: ir.Value, numbers: Array) -> Array:
    """Return numbers so that they broadcast along the channels, in the value's type."""
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    return numbers.astype(dtype).reshape(-1, *[1] * (-channel_axis(value) - 1))


def named(node: ir.Node | None, what: str) -> str:
    """Return where a fault is."""
    return f"{describe(node)}: {what}"
