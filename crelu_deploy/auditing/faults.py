"""Kinds of faults, one function each.

A function changes a graph in one place and says where, or returns None where the graph has no
place for it or the change would be none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from crelu_deploy.auditing.editing import (
    Graph,
    array_of,
    channel_axis,
    channels,
    columns_axis,
    named,
    per_channel,
    rows_axis,
)
from crelu_deploy.lowerings.values import constant
from crelu_deploy.op import Array

Fault = Callable[[Graph], str | None]


def _changed(graph: Graph, node: ir.Node, index: int, new: Array, what: str) -> str | None:
    """Give a node another constant, unless it is the same."""
    if np.array_equal(new, array_of(node, index), equal_nan=True):
        return None
    graph.replace(node, index, new)
    return named(node, what)


def _masked(graph: Graph, number: float, what: str) -> str | None:
    value = graph.pick(graph.activated())
    if value is None:
        return None
    n = channels(value) or 1
    factors, at = np.ones(n), int(graph.random.integers(n))
    factors[at] = number
    scale = graph.constant(per_channel(value, factors))
    graph.behind(value, lambda v: ir.node("Mul", [v, scale]))
    return named(value.producer(), f"channel {at} {what}")


def dead_half(graph: Graph) -> str | None:
    """One channel of an activation is zero: half of a filter of a site."""
    return _masked(graph, 0.0, "is zero")


def dropped_scale(graph: Graph) -> str | None:
    """One channel of an activation lost a factor."""
    return _masked(graph, 0.5, "is half as large")


def swapped_halves(graph: Graph) -> str | None:
    """The second half of the channels comes first."""
    values = [v for v in graph.activated() if (channels(v) or 1) % 2 == 0]
    value = graph.pick(values)
    if value is None:
        return None
    n = channels(value) or 2
    order = graph.constant(np.roll(np.arange(n), n // 2))
    axis = channel_axis(value) + len(value.shape or ())
    graph.behind(value, lambda v: ir.node("Gather", [v, order], {"axis": axis}))
    return named(value.producer(), "its halves are swapped")


def _rows(graph: Graph, what: str, change: Callable[[Array, int], None]) -> str | None:
    """Change one output channel of a layer: its weights, and its bias where it has one."""
    node = graph.pick(graph.layers())
    if node is None:
        return None
    weight = np.moveaxis(array_of(node, 1), rows_axis(node), 0).copy()
    at = int(graph.random.integers(len(weight)))
    change(weight, at)
    weight = np.ascontiguousarray(np.moveaxis(weight, 0, rows_axis(node)))
    return _changed(graph, node, 1, weight, f"output channel {at} {what}")


def wrong_sign(graph: Graph) -> str | None:
    """The weights of one output channel are negated."""

    def change(rows: Array, at: int) -> None:
        rows[at] *= -1

    return _rows(graph, "is negated", change)


def dead_filter(graph: Graph) -> str | None:
    """The weights of one output channel are zero."""

    def change(rows: Array, at: int) -> None:
        rows[at] = 0

    return _rows(graph, "has no weights", change)


def neighbours_weights(graph: Graph) -> str | None:
    """One output channel has the weights of the next one."""

    def change(rows: Array, at: int) -> None:
        rows[at] = rows[(at + 1) % len(rows)]

    return _rows(graph, "has the weights of the next", change)


def one_weight(graph: Graph) -> str | None:
    """A single weight is a tenth larger."""

    def change(rows: Array, at: int) -> None:
        flat = rows[at].reshape(-1)
        flat[int(graph.random.integers(flat.size))] *= 1.1
        rows[at] = flat.reshape(rows[at].shape)

    return _rows(graph, "has one weight that is a tenth larger", change)


def neighbours_bias(graph: Graph) -> str | None:
    """One output channel has the bias of the next one."""
    node = graph.pick(graph.layers(bias=True))
    if node is None:
        return None
    bias = array_of(node, 2)
    if bias.ndim != 1:
        return None
    at = int(graph.random.integers(len(bias)))
    bias[at] = bias[(at + 1) % len(bias)]
    return _changed(graph, node, 2, bias, f"output channel {at} has the bias of the next")


def dropped_bias(graph: Graph) -> str | None:
    """A layer has no bias."""
    node = graph.pick(graph.layers(bias=True))
    if node is None:
        return None
    return _changed(graph, node, 2, np.zeros_like(array_of(node, 2)), "its bias is zero")


def rounded_weights(graph: Graph) -> str | None:
    """The weights of a layer went through float16."""
    node = graph.pick(graph.layers())
    if node is None:
        return None
    weight = array_of(node, 1)
    with np.errstate(over="ignore"):
        rounded = weight.astype(np.float16).astype(weight.dtype)
    return _changed(graph, node, 1, rounded, "its weights are rounded to float16")


def shifted_slice(graph: Graph) -> str | None:
    """A layer reads its input channels off by one."""
    node = graph.pick(graph.layers())
    if node is None:
        return None
    columns = np.roll(array_of(node, 1), 1, columns_axis(node))
    return _changed(graph, node, 1, columns, "its columns are off by one")


def shifted_pad(graph: Graph) -> str | None:
    """A convolution or pool pads one side more and the other less."""
    nodes = [n for n in graph.nodes("Conv", "MaxPool", "AveragePool") if _padded(n)]
    node = graph.pick(nodes)
    if node is None:
        return None
    pads = list(node.attributes["pads"].as_ints())
    half, axis = len(pads) // 2, int(np.argmax(pads)) % (len(pads) // 2)
    pads[axis], pads[half + axis] = pads[axis] + 1, pads[half + axis] - 1
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    return named(node, f"it pads {pads}")


def _padded(node: ir.Node) -> bool:
    pads = node.attributes.get_ints("pads", ())
    half = len(pads) // 2
    kernel = node.attributes.get_ints("kernel_shape", ())
    if not kernel and node.op_type == "Conv" and (weight := constant(node.inputs[1])) is not None:
        kernel = [int(d) for d in weight.shape.numpy()[2:]]
    if not any(pads) or len(kernel) < half:
        return False
    axis = int(np.argmax(pads)) % half
    return pads[half + axis] >= 1 and pads[axis] + 1 < kernel[axis]


def leaky_half(graph: Graph) -> str | None:
    """A relu lets a tenth of what is negative pass."""
    node = graph.pick(graph.nodes("Relu"))
    if node is None:
        return None
    value = node.inputs[0]
    new = ir.node("LeakyRelu", [value], {"alpha": 0.1}, name=f"{node.name}_fault")
    return _instead(graph, node, new, "is a LeakyRelu")


def _instead(graph: Graph, node: ir.Node, new: ir.Node, what: str) -> str:
    """Put a node in the place of another."""
    old, end = node.outputs[0], new.outputs[0]
    end.shape, end.type = old.shape, old.type
    end.name = f"{old.name}_fault"
    node.append(new)
    if old.is_graph_output():
        place = list(graph.model.graph.outputs).index(old)
        old.name, end.name = f"{old.name}_before", old.name
        graph.model.graph.outputs[place] = end
    old.replace_all_uses_with(end)
    graph.model.graph.remove(node, safe=True)
    return named(node, what)


def clipped(graph: Graph) -> str | None:
    """An activation is cut off above."""
    values = graph.activated()
    value = graph.pick(values)
    if value is None or graph.model.graph.opset_imports.get("", 0) < 12:
        return None
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    limit = graph.constant(np.array(0.05, dtype))
    graph.behind(value, lambda v: ir.node("Min", [v, limit]))
    return named(value.producer(), "is cut off at 0.05")


def lost_negation(graph: Graph) -> str | None:
    """The second half is made of x instead of -x."""
    node = graph.pick(graph.nodes("Neg"))
    if node is None:
        return None
    new = ir.node("Identity", [node.inputs[0]], name=f"{node.name}_fault")
    return _instead(graph, node, new, "passes its input on")


def averaged(graph: Graph) -> str | None:
    """A max pool averages."""
    nodes = [n for n in graph.nodes("MaxPool") if not n.attributes.get_ints("dilations", ())]
    node = graph.pick([n for n in nodes if len(n.outputs) == 1])
    if node is None:
        return None
    kept = {k: a for k, a in node.attributes.items() if k != "storage_order"}
    new = ir.node("AveragePool", [node.inputs[0]], kept, name=f"{node.name}_fault")
    return _instead(graph, node, new, "is an AveragePool")


def wrong_row(graph: Graph) -> str | None:
    """A runtime that computes the later rows of a batch wrong, written as a graph."""
    value = graph.pick(graph.activated())
    if value is None or value.dtype is None or graph.model.graph.opset_imports.get("", 0) < 10:
        return None  # before opset 10, where a Slice ends is an attribute
    producer, first = value.producer(), int(graph.random.integers(1, 3))
    assert producer is not None, "a node computes it"
    numbers = (first, 0, np.iinfo(np.int64).max)
    here, zero, end = (graph.constant(np.array([n], np.int64)) for n in numbers)
    factor = graph.constant(np.array(0.5, value.dtype.numpy()))
    parts = list[ir.Node]()

    def joined(v: ir.Value) -> ir.Node:
        good, bad = ir.node("Slice", [v, zero, here, zero]), ir.node("Slice", [v, here, end, zero])
        wrong = ir.node("Mul", [bad.outputs[0], factor])
        parts.extend((good, bad, wrong))
        return ir.node("Concat", [good.outputs[0], wrong.outputs[0]], {"axis": 0})

    graph.behind(value, joined)
    for number, node in enumerate(parts):
        node.outputs[0].name = f"{value.name}_part_{number}"
    producer.append(parts)
    return named(producer, f"is wrong from row {first} of a batch on")


KINDS: Mapping[str, Fault] = {
    "dead half-channel": dead_half,
    "swapped halves": swapped_halves,
    "wrong sign": wrong_sign,
    "lost negation": lost_negation,
    "shifted pad": shifted_pad,
    "neighbour's bias": neighbours_bias,
    "dropped bias": dropped_bias,
    "neighbour's weights": neighbours_weights,
    "dead filter": dead_filter,
    "one weight": one_weight,
    "rounded weights": rounded_weights,
    "off-by-one slice": shifted_slice,
    "dropped scale": dropped_scale,
    "leaky half": leaky_half,
    "clipped": clipped,
    "average for maximum": averaged,
    "wrong batch row": wrong_row,
}
"""Kind -> what plants a fault of it."""

SIMULATED = ("wrong batch row",)
"""Kinds that are a runtime's fault, written as a change of the graph."""
