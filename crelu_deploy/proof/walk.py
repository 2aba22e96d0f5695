"""One graph read from its inputs to its outputs: every value becomes a term."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import onnx_ir as ir

from crelu_deploy.lowerings.values import constant
from crelu_deploy.op import DOMAIN, NODE_TYPES
from crelu_deploy.proof import rules
from crelu_deploy.proof.constants import Numbers, attributes_of
from crelu_deploy.proof.extents import Dims, dims_of
from crelu_deploy.proof.inferred import Extents
from crelu_deploy.proof.matching import Register
from crelu_deploy.proof.pointwise import APPLY
from crelu_deploy.proof.terms import Terms, Vector, vector
from crelu_deploy.proof.views import whole

RANDOM = frozenset(
    {
        *("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike"),
    }
)
"""Operators of which two alike compute different values."""

FLOAT_OPERANDS: Mapping[str, tuple[int, ...]] = {
    "Resize": (2,),
    "Upsample": (1,),
    "NonMaxSuppression": (0, 1, 3, 4),
}
"""Operands that stay float32 in a reduced precision."""

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def random_functions(model: ir.Model) -> frozenset[tuple[str, str, str]]:
    """Return the functions of which two calls compute different values."""
    found, before = set[tuple[str, str, str]](), -1
    while len(found) > before:  # functions call functions
        before = len(found)
        for name, body in model.functions.items():
            nodes = ir.traversal.RecursiveGraphIterator(body)
            if any(node.op_type in RANDOM or node.op_identifier() in found for node in nodes):
                found.add(name)
    return frozenset(found)


class Walk:
    """The terms of one graph.

    Attributes:
        terms: Those of both graphs.
        numbers: How constants are read.
        register: The layers of the canonical graph.
        values: Value -> its term.
        names: The canonical nodes' names.
        inferred: Extents of values beyond those that are declared.
        mended: Values that are taken for what they should be, where a fault was found.
        roundings: Site -> how many roundings its weights are apart; of the lowered graph.
        random: The functions of which two calls compute different values.
        drift: Value -> how many roundings its scales and its shifts are from the canonical ones
            that they were taken for.
        drifting: Those of what is read and computed now.
    """

    def __init__(
        self, terms: Terms, numbers: Numbers, register: Register, names: Mapping[ir.Node, str]
    ) -> None:
        self.terms, self.numbers, self.register = terms, numbers, register
        self.values: dict[ir.Value, Vector] = {}
        self.mended: dict[ir.Value, Vector] = {}
        self.roundings: dict[str, int] = {}
        self.drift: dict[ir.Value | None, tuple[int, int]] = {}
        self.drifting = (0, 0)
        self._named: dict[str | None, Vector] = {}
        self.inferred: Extents = {}
        self.names, self._random = names, Counter[Hashable]()
        self.random: frozenset[tuple[str, str, str]] = frozenset()

    @property
    def lowered(self) -> bool:
        """Whether this is the lowered graph."""
        return self.terms.frontier is not None

    def dims(self, value: ir.Value) -> Dims | None:
        """Return the extents of a value, as far as they are known."""
        return self.inferred.get(value, dims_of(value))

    def read(self, value: ir.Value) -> Vector:
        """Return the term of a value that was computed, or of a constant."""
        if (found := self.values.get(value)) is not None:
            return found
        tensor = constant(value)
        if tensor is None:
            key, dims = ("unknown", value.name), self.dims(value)
            return vector(None, self.terms.family(key, "op", 1, dims, value.dtype).members)
        return self.constant(tensor)

    def named(self, name: str | None) -> Vector | None:
        """Return the term of the value of a name."""
        if len(self._named) != len(self.values):
            self._named = {value.name: term for value, term in self.values.items()}
        return self._named.get(name)

    def holding(self, term: Vector) -> ir.Value | None:
        """Return a value that is a term."""
        key = term.key()
        return next((value for value, one in self.values.items() if one.key() == key), None)

    def constant(self, tensor: ir.TensorProtocol, *, exact: bool = False) -> Vector:
        """Return the term of a constant."""
        key = ("constant", self.numbers.digest(tensor, exact=exact))
        dims = tuple(int(d) for d in tensor.shape.numpy())
        return vector(None, self.terms.family(key, "op", 1, dims, tensor.dtype).members)

    def formal(self, value: ir.Value, key: Hashable) -> None:
        """Give an input of a graph a term of its own."""
        more = {"what": (value.name,)}
        made = self.terms.family(("formal", key), "op", 1, self.dims(value), value.dtype, **more)
        self.values[value] = vector(None, made.members)

    def graph(self, graph: ir.Graph | ir.Function) -> None:
        """Read all nodes of a graph, whose inputs have terms."""
        for node in graph:
            self.node(node)
            if self.mended:
                self.values.update({v: self.mended[v] for v in node.outputs if v in self.mended})

    def node(self, node: ir.Node) -> None:
        """Give the outputs of a node their terms."""
        known = [(0, 0), *(self.drift.get(value, (0, 0)) for value in node.inputs)]
        self.drifting = max(one for one, _ in known), max(two for _, two in known)
        if node.domain == DOMAIN and node.op_type in NODE_TYPES:
            self.terms.site = self.names.get(node, node.name or node.op_type)
            if self.terms.site not in self.terms.sites:
                self.terms.sites.append(self.terms.site)
            self.values[node.outputs[0]] = rules.site(self, node)
            self.terms.site = ""
            return
        unread = not any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
        open_ = any(attribute.is_ref() for attribute in node.attributes.values())
        read = node.domain == "" and unread and not open_
        rule = rules.RULES.get(node.op_type) if read else None
        if node.op_type == "Constant" and constant(node.outputs[0]) is not None:
            return
        found = rule(self, node) if rule is not None else None
        if found is not None:
            self.values[node.outputs[0]] = found
            if any(self.drifting) and node.op_type not in APPLY:  # that is of atoms of its own
                self.drift[node.outputs[0]] = self.drifting
        else:
            self._opaque(node)

    def _opaque(self, node: ir.Node) -> None:
        """Name the outputs of an operator that is not looked into by what it reads."""
        inputs = tuple(
            None if v is None else self._operand(node, i) for i, v in enumerate(node.inputs)
        )
        given = {n: a for n, a in node.attributes.items() if a.type not in _GRAPHS}
        attributes = attributes_of(self.numbers, given)
        key = _key((node.domain, node.op_type, node.overload), attributes, inputs, node.outputs)
        if len(given) < len(node.attributes):
            key = (*key, self._graphs(node, key))
        if node.op_type in RANDOM or node.op_identifier() in self.random:
            self._random[key] += 1
            key = (*key, self._random[key])
        for i, output in enumerate(node.outputs):
            more = {"node": node, "inputs": inputs, "what": (node.op_type, i)}
            made = self.terms.family((*key, i), "op", 1, self.dims(output), output.dtype, **more)
            self.values[output] = vector(None, made.members)

    def binary(self, op_type: str, one: Vector, two: Vector, node: ir.Node) -> Vector:
        """Return the term of an operator on two tensors that is not looked into."""
        inputs = (whole(self.terms, one), whole(self.terms, two))
        key = _key(("", op_type, ""), (), inputs, node.outputs)
        output, more = node.outputs[0], {"node": node, "inputs": inputs, "what": (op_type, 0)}
        made = self.terms.family((*key, 0), "op", 1, self.dims(output), output.dtype, **more)
        return vector(None, made.members)

    def _operand(self, node: ir.Node, index: int) -> Vector:
        value = node.inputs[index]
        assert value is not None, "the caller has looked"
        floats = FLOAT_OPERANDS.get(node.op_type, ())
        if node.op_type == "Resize" and len(node.inputs) == 2:
            floats = (1,)  # opset 10, which has no region
        if index in floats and value not in self.values:
            tensor = constant(value)
            if tensor is not None:
                return self.constant(tensor, exact=True)
        return whole(self.terms, self.read(value))

    def _graphs(self, node: ir.Node, key: Hashable) -> Hashable:
        """Read the graphs in a node's attributes; return what they compute."""
        found = []
        for name in sorted(node.attributes):
            attribute = node.attributes[name]
            if attribute.type not in _GRAPHS:
                continue
            single = attribute.type == ir.AttributeType.GRAPH
            graphs = [attribute.as_graph()] if single else attribute.as_graphs()
            for number, graph in enumerate(graphs):
                for i, value in enumerate(graph.inputs):
                    self.formal(value, (key, name, number, i))
                self.graph(graph)
                ends = tuple(whole(self.terms, self.read(v)).key() for v in graph.outputs)
                found.append((name, number, ends))
        return tuple(found)

    def note(self, site: str, roundings: int) -> None:
        """Note that a site's numbers are so many roundings apart."""
        self.roundings[site] = max(self.roundings.get(site, 0), roundings)


def _key(
    name: tuple[str, str, str],
    attributes: Hashable,
    inputs: Sequence[Vector | None],
    outputs: Sequence[ir.Value],
) -> tuple[Hashable, ...]:
    keys = tuple(None if v is None else v.key() for v in inputs)
    return ("op", *name, attributes, keys, len(outputs))
