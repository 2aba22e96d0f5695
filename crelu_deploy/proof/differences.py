"""What is wrong with a layer, an operator or a canonical node of a lowered graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.values import constant
from crelu_deploy.proof.columns import OFFSETS
from crelu_deploy.proof.constants import attributes_of
from crelu_deploy.proof.explain import Question, Walks
from crelu_deploy.proof.layers import Layer
from crelu_deploy.proof.linear import combined
from crelu_deploy.proof.matching import aligned, match
from crelu_deploy.proof.telling import atom, different, positions
from crelu_deploy.proof.terms import Vector, vector
from crelu_deploy.proof.views import whole

GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def layer(walks: Walks, asked: Question, actual: Vector) -> Question | str | None:
    """Wrong weights, strides or pads of a layer, or other channels that it reads?"""
    made, other = _layer(walks, asked), _expected_layer(walks, asked, actual)
    if made is None or (made.entries is None and asked.node.op_type != "Add"):
        return _scale(walks, asked, actual)
    if other is None:
        return operator(walks, asked, actual)
    if (what := _attributes(made, other)) is not None:
        return what
    if len(asked.node.inputs) and asked.node.op_type != "Add":
        for data in _guesses(made, other):
            if match(
                replace(made, data=data), walks.lowered.register, walks.lowered.numbers
            ).complete:
                value = asked.node.inputs[0]
                assert value is not None, "a layer reads data"
                return Question(value, data, asked.site)
    return _weights(walks, made, other, asked.expected, actual)


def _layer(walks: Walks, asked: Question) -> Layer | None:
    """Return the layer of a node, or of the two that it adds."""
    if asked.node.op_type != "Add":
        return walks.lowered.read(asked.value).layer
    layers = [walks.lowered.read(v).layer for v in asked.node.inputs if v is not None]
    one, two = layers
    return None if one is None or two is None else combined(one, two)


def _expected_layer(walks: Walks, asked: Question, actual: Vector) -> Layer | None:
    for number in asked.expected.atoms[different(asked.expected, actual)]:
        family = walks.terms.of(int(number))
        if family.layer is not None:
            return family.layer
    return None


def _scale(walks: Walks, asked: Question, actual: Vector) -> Question | str | None:
    """A convolution that only multiplies each channel."""
    value, wanted = asked.node.inputs[0], asked.expected
    given = None if value is None else walks.seen(value, wanted)
    if value is None or given is None or (given.atoms == wanted.atoms).all():
        return None
    factor = np.divide(given.scale, actual.scale, where=actual.scale != 0, out=np.ones(len(given)))
    expected = vector(wanted.axis, wanted.atoms, wanted.scale * factor)
    return Question(value, expected, asked.site) if walks.wrong(value, expected) else None


def _attributes(made: Layer, other: Layer) -> str | None:
    names = ("operator", "rank of the weight", "kernel")
    one, two = (dict(_named(one.what, names)) for one in (made, other))
    one["group"], two["group"] = made.groups, other.groups
    for name in dict.fromkeys([*two, *one]):
        if one.get(name) != two.get(name):
            return f"{name}: expected {two.get(name)}, got {one.get(name)}"
    return None


def _named(what: tuple[object, ...], names: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    yield from zip(names, what, strict=False)
    for pair in what[len(names) :]:
        assert isinstance(pair, tuple), "an attribute has a name"
        yield str(pair[0]), pair[1]


def _guesses(made: Layer, other: Layer) -> Iterator[Vector]:
    """Yield what a layer may have been meant to read."""
    data = made.data
    if len(data) == len(other.data):
        yield other.data
    half = len(data) // 2
    yield vector(data.axis, *(np.roll(a, half) for a in (data.atoms, data.scale, data.shift)))
    known = set(other.columns().keys.ravel().tolist())
    foreign = [i for i, a in enumerate(data.atoms.tolist()) if not _known(made, a, known)]
    own = {int(k) // OFFSETS for k in made.columns().keys.ravel()}
    missing = sorted({k // OFFSETS for k in known if k >= 0} - own)
    if foreign and len(foreign) == len(missing):
        atoms, scale = data.atoms.copy(), data.scale.copy()
        atoms[foreign], scale[foreign] = missing, 1
        yield vector(data.axis, atoms, scale)


def _known(made: Layer, number: int, known: set[int]) -> bool:
    family = made.terms.of(number)
    parts = [part for _, part in family.parts] or [family]
    return all((number - family.base + part.base) * OFFSETS in known for part in parts)


def _weights(
    walks: Walks, made: Layer, other: Layer, expected: Vector, actual: Vector
) -> str | None:
    """Say which weight or bias of which output channel is wrong."""
    at = different(expected, actual)
    at = at[[walks.terms.of(int(n)).layer is other for n in expected.atoms[at]]]
    if not len(at):
        return None
    first, row = at[:1], expected.atoms[at[:1]] - other.base
    scale, shift = float(expected.scale[first[0]]), float(expected.shift[first[0]])
    where = f"output channel {positions(at)}: "
    bias = made.shifts()[first[0]].ravel(), (other.shifts()[row[0]] * scale + shift).ravel()
    basis = None if made.data.key() == other.data.key() else made.basis
    got, wanted, _ = aligned(made, other, first, row, basis)
    wanted = wanted * scale
    wrong = np.argwhere(~np.isclose(got[0], wanted[0], rtol=4 * made.unit, atol=0))
    if not len(wrong):
        wrong = np.argwhere(got[0] != wanted[0])
    if len(wrong):
        column, kernel = wrong[0]
        both = [one.columns(basis) for one in (made, other)]
        keys = np.union1d(both[0].keys[0], both[1].keys[0])
        keys = keys if made.groups == 1 else both[0].keys[made.group(first)[0]]
        name = atom(walks.terms, int(keys[column]) // OFFSETS)
        numbers = f"expected {wanted[0, column, kernel]:.9g}, got {got[0, column, kernel]:.9g}"
        return f"{where}weight of {name} at {kernel} {numbers} ({len(wrong)} of them differ)"
    if (bias[0] != bias[1]).any():
        return f"{where}bias expected {bias[1][0]:.9g}, got {bias[0][0]:.9g}"
    return None


def operator(walks: Walks, asked: Question, _: Vector) -> Question | str | None:
    """Another operator, other attributes or other operands?"""
    node, single = asked.node, whole(walks.terms, asked.expected)
    family = walks.terms.lead(single)
    other = family.node
    if family.kind != "op" or other is None or single.scale[0] != 1:
        return None
    if (other.domain, other.op_type) != (node.domain, node.op_type):
        return f"expected {other.op_type}, got {node.op_type}"
    if (what := _other_attributes(walks, node, other)) is not None:
        return what
    for value, expected in zip(node.inputs, family.inputs, strict=False):
        if value is None or expected is None:
            if (value is None) != (expected is None):
                return "another number of operands than expected"
        elif constant(value) is not None:
            if walks.lowered.read(value).key() != expected.key():
                return f"another constant {value.name!r} than expected"
        elif walks.wrong(value, expected):
            return Question(value, expected, asked.site)
    return _inner(walks, node, other, asked.site)


def _other_attributes(walks: Walks, node: ir.Node, other: ir.Node) -> str | None:
    given = [{k: a for k, a in n.attributes.items() if a.type not in GRAPHS} for n in (node, other)]
    one, two = (dict(attributes_of(walks.lowered.numbers, some)) for some in given)
    for name in dict.fromkeys([*two, *one]):
        if one.get(name) != two.get(name):
            return f"{name}: expected {two.get(name)}, got {one.get(name)}"
    return None


def _inner(walks: Walks, node: ir.Node, other: ir.Node, at: str) -> Question | str | None:
    """Compare the graphs in two nodes' attributes."""
    for name, attribute in other.attributes.items():
        if attribute.type != ir.AttributeType.GRAPH:
            continue
        mine = node.attributes[name].as_graph()
        for value, meant in zip(mine.outputs, attribute.as_graph().outputs, strict=True):
            expected = whole(walks.terms, walks.canonical.read(meant))
            if walks.wrong(value, expected):
                return Question(value, expected, at)
    return None


def site(walks: Walks, asked: Question, _: Vector) -> Question | str | None:
    """A canonical node: does it read what the one of its name reads?"""
    node = asked.node
    name = walks.lowered.names.get(node)
    other = next((n for n, known in walks.canonical.names.items() if known == name), None)
    if other is None:
        return None
    if (node.op_type, node.attributes["axis"].value) != (
        other.op_type,
        other.attributes["axis"].value,
    ):
        return (
            f"expected {other.op_type} on axis {other.attributes['axis'].value}, "
            f"got {node.op_type} on axis {node.attributes['axis'].value}"
        )
    for value, meant in zip(node.inputs, other.inputs, strict=True):
        if value is not None and meant is not None:
            expected = walks.canonical.read(meant)
            if walks.wrong(value, expected):
                return Question(value, expected, name or asked.site)
    return None
