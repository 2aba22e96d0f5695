"""Sites in a graph become canonical nodes, with one function body for each type that is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from crelu_deploy.op import ACTIVATIONS, DOMAIN, NODE_TYPES, VERSION, function
from crelu_deploy.recognition.halves import Form
from crelu_deploy.recognition.probe import Array

SPELLING = "crelu_deploy.spelling"
"""The key in a canonical node's ``metadata_props`` under which its spelling is kept."""
_FUNCTIONS_SINCE = 8  # the IR version in which a model may hold functions
_OVERRIDABLE_SINCE = 4  # the IR version in which an initializer need not be an input


@dataclass(frozen=True)
class Site:
    """One CReLU that is not yet a canonical node.

    Attributes:
        concat: The node that joins the halves.
        output: The value that the canonical node, or the Gather behind it, replaces.
        x: What the node reads.
        form: The order of the halves, and the scale and shift before the activation.
        interleaved: True where the channels of the halves alternate.
        axis: The axis as the concat wrote it.
        rank: Number of dimensions of ``x``, None if unknown.
        channels: Extent of the axis in ``x``; None if unknown and not needed.
        activation: A name in ``ACTIVATIONS``.
        attributes: Those of the activation.
        dtype: The dtype of ``x``, None if unknown, as in a function.
        spelling: How the network wrote it.
    """

    concat: ir.Node
    output: ir.Value
    x: ir.Value
    form: Form
    interleaved: bool
    axis: int
    rank: int | None
    channels: int | None
    activation: str
    attributes: Mapping[str, float]
    dtype: ir.DataType | None
    spelling: str

    @property
    def op_type(self) -> str:
        """The type of the canonical node."""
        kind = ACTIVATIONS[self.activation]
        return kind.op_type if self.form.scale is None else kind.affine_op_type


class Names:
    """Names that no node or value of a model has yet."""

    def __init__(self, nodes: Iterable[ir.Node], model: ir.Model) -> None:
        self._taken: set[str | None] = {value.name for value in model.graph.inputs}
        self._taken.update(model.graph.initializers)
        for node in nodes:
            self._taken.add(node.name)
            self._taken.update(value.name for value in node.outputs)
            self._taken.update(value.name for value in node.inputs if value is not None)

    def fresh(self, stem: str) -> str:
        """Return ``stem``, or ``stem`` with the first free number, and take it."""
        name, number = stem, 0
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name


def rewrite(model: ir.Model, sites: Iterable[Site], names: Names) -> None:
    """Put the canonical node in place of each site, in graph order, and drop what nothing reads."""
    replaced: dict[ir.Value, ir.Value] = {}
    for site in sites:
        new = _replacement(model, site, replaced.get(site.x, site.x), names)
        old = site.output.producer()
        graph = None if old is None else old.graph
        if old is None or graph is None:
            continue
        output = new[-1].outputs[0]
        output.name, output.shape = site.output.name, site.output.shape
        graph.insert_before(old, new)
        site.output.replace_all_uses_with(output, replace_graph_outputs=True)
        replaced[site.output] = output
        _drop_unread(old)


def _replacement(model: ir.Model, site: Site, x: ir.Value, names: Names) -> list[ir.Node]:
    stem = names.fresh(f"{site.concat.name or 'Concat'}_{site.op_type}")
    nodes: list[ir.Node] = []
    if x.type is None and site.dtype is not None:  # a lowering may need constants of its dtype
        x.type = ir.TensorType(site.dtype)
    if site.form.negated:
        nodes.append(_node("Neg", [x], names, f"{stem}_negated"))
        x = nodes[-1].outputs[0]
    inputs = [x]
    dtype = (site.dtype or ir.DataType.FLOAT).numpy()
    if site.form.scale is not None and site.form.shift is not None:
        for name, array in (("scale", site.form.scale), ("shift", site.form.shift)):
            tensor = np.asarray(_shaped(array, site), dtype)
            inputs.append(_constant(model, site, tensor, names.fresh(f"{stem}_{name}"), nodes))
    node = ir.node(
        site.op_type,
        inputs,
        {"axis": site.axis, **{name: float(v) for name, v in site.attributes.items()}},
        domain=DOMAIN,
        name=stem,
        metadata_props={SPELLING: site.spelling},
    )
    node.outputs[0].name, node.outputs[0].type = names.fresh(f"{stem}_output"), x.type
    nodes.append(node)
    if site.interleaved and site.channels is not None:
        order = np.arange(2 * site.channels).reshape(2, -1).T.reshape(-1)
        indices = _constant(model, site, order, names.fresh(f"{stem}_order"), nodes)
        inputs = [node.outputs[0], indices]
        nodes.append(_node("Gather", inputs, names, f"{stem}_interleaved", {"axis": site.axis}))
    return nodes


def _node(
    op_type: str,
    inputs: list[ir.Value],
    names: Names,
    stem: str,
    attributes: Mapping[str, int] | None = None,
) -> ir.Node:
    node = ir.node(op_type, inputs, attributes, name=names.fresh(stem))
    node.outputs[0].name, node.outputs[0].type = names.fresh(f"{stem}_output"), inputs[0].type
    return node


def _shaped(array: Array, site: Site) -> Array:
    """Give one number per channel its place in a broadcast: the axis, then extents of one."""
    if array.ndim == 0:
        return array.reshape(1)
    behind = -site.axis - 1 if site.axis < 0 else (site.rank or 0) - site.axis - 1
    return array.reshape(-1, *(1,) * behind)


def _constant(
    model: ir.Model, site: Site, array: Array, name: str, nodes: list[ir.Node]
) -> ir.Value:
    """Return an initializer in the main graph; a Constant node where there can be none."""
    tensor = ir.tensor(array, name=name)
    if site.concat.graph is model.graph:
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        model.graph.register_initializer(value)
        return value
    node = ir.node("Constant", [], {"value": tensor}, name=name)
    node.outputs[0].name = name
    nodes.append(node)
    return node.outputs[0]


def _drop_unread(node: ir.Node) -> None:
    """Remove ``node`` and what it alone reads, as far back as nothing else needs it."""
    todo = [node]
    while todo:
        current = todo.pop()
        unread = not any(out.uses() or out.is_graph_output() for out in current.outputs)
        if current.graph is None or not unread:
            continue
        inputs = [value for value in current.inputs if value is not None]
        current.graph.remove(current, safe=True)
        for value in dict.fromkeys(inputs):
            producer = value.producer()
            if producer is not None:
                todo.append(producer)
            elif value.is_initializer() and not (value.uses() or _is_interface(value)):
                _drop_initializer(value)


def _is_interface(value: ir.Value) -> bool:
    return value.is_graph_input() or value.is_graph_output()


def _drop_initializer(value: ir.Value) -> None:
    if value.graph is not None and value.name is not None:
        del value.graph.initializers[value.name]


def attach_functions(model: ir.Model, nodes: Iterable[ir.Node]) -> bool:
    """Give every canonical node's type its body and its opset import; return whether any was new.

    A node that is meant for a TensorRT plugin keeps to that: it has no body on purpose.
    """
    used = {
        node.op_type
        for node in nodes
        if node.domain == DOMAIN and "plugin_namespace" not in node.attributes
    }
    opset = model.opset_imports.get("", 0)
    missing = [
        op_type
        for op_type in sorted(used & NODE_TYPES.keys())
        if (DOMAIN, op_type, "") not in model.functions and has_body(op_type, opset)
    ]
    others = dict(model.functions)
    model.functions.clear()  # a function comes before those that call it
    for op_type in missing:
        body = function(op_type, opset)
        model.functions[body.identifier()] = body
        model.opset_imports[DOMAIN] = VERSION
    model.functions.update(others)
    if missing and model.ir_version < _FUNCTIONS_SINCE:
        _raise_ir_version(model)
    return bool(missing)


def has_body(op_type: str, opset: int) -> bool:
    """Return whether ``function(op_type, opset)`` can be written."""
    kind = ACTIVATIONS[NODE_TYPES[op_type][0]]
    return opset >= max(kind.since, 15 if kind.limits else 0)


def _raise_ir_version(model: ir.Model) -> None:
    """Make room for functions; initializers that had to be inputs stay the constants they were."""
    if model.ir_version < _OVERRIDABLE_SINCE:
        for value in [v for v in model.graph.inputs if v.is_initializer()]:
            model.graph.inputs.remove(value)
    model.ir_version = _FUNCTIONS_SINCE


def import_domain(functions: Iterable[ir.Function]) -> None:
    """Import the domain of the canonical nodes wherever a model's own function holds one."""
    for holder in functions:
        if any(node.domain == DOMAIN for node in holder.all_nodes()):
            holder.opset_imports[DOMAIN] = VERSION
