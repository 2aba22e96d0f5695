"""What is wrong with a layer, an operator or a canonical node of a lowered graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.values import constant
from crelu_deploy.op import Array
from crelu_deploy.proof.columns import OFFSETS, Basis
from crelu_deploy.proof.constants import attributes_of
from crelu_deploy.proof.explain import Answer, Question, Told, Walks, site_of
from crelu_deploy.proof.layers import Layer
from crelu_deploy.proof.matching import aligned, match
from crelu_deploy.proof.telling import atom, different, positions
from crelu_deploy.proof.terms import Family, Vector, vector
from crelu_deploy.proof.views import whole

GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def layer(walks: Walks, asked: Question, actual: Vector) -> Answer:
    """Wrong weights, strides or pads of a layer, or other channels that it reads?"""
    made = walks.lowered.read(asked.value).layer
    other = _expected_layer(walks, asked, actual)
    if made is None or (made.entries is None and asked.node.op_type != "Add"):
        return _scale(walks, asked, actual)
    if other is None:
        return operator(walks, asked, actual)
    if (what := _attributes(made, other)) is not None:
        return Told(what)
    found = _other_data(walks, asked, made, other)
    if found is not None:
        return found
    told = _weights(walks, made, other, asked.expected, actual)
    split = asked.node.op_type == "Add" and told is not None and not told.site
    return replace(told, site=min(other.sites, default="")) if split and told else told


def _other_data(walks: Walks, asked: Question, made: Layer, other: Layer) -> Answer:
    """Return the question for what is read, where the weights fit what should be read."""
    inputs = [asked.node.inputs[0]]
    if asked.node.op_type == "Add":
        nodes = [v.producer() for v in asked.node.inputs if v is not None]
        inputs = [node.inputs[0] for node in nodes if node is not None]
    for data, extents in _guesses(made, other):
        guess, part = replace(made, data=data, extents=extents), len(data) // len(inputs)
        if not match(guess, walks.lowered.register, walks.lowered.numbers).complete:
            continue
        for number, value in enumerate(inputs):
            at = slice(number * part, (number + 1) * part)
            meant = vector(data.axis, data.atoms[at], data.scale[at], data.shift[at])
            if value is None or not walks.wrong(value, meant):
                continue
            right = walks.lowered.holding(meant)
            read = walks.lowered.read(value)
            new = any(walks.terms.is_new(f) for f, _ in walks.terms.groups(read.atoms))
            if right is not None and not (new and _is_before(right, value)):
                return Told(f"expected to read {right.name!r}, got {value.name!r}")
            return Question(value, meant, asked.site)
    return None


def _expected_layer(walks: Walks, asked: Question, actual: Vector) -> Layer | None:
    for number in asked.expected.atoms[different(asked.expected, actual)]:
        family = walks.terms.of(int(number))
        if family.layer is not None:
            return family.layer
    return None


def _scale(walks: Walks, asked: Question, actual: Vector) -> Answer:
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


def _is_before(one: ir.Value, two: ir.Value) -> bool:
    """Whether a value is computed from another by a few operators."""
    near = {two}
    for _ in range(4):
        nodes = [node for value in near if (node := value.producer()) is not None]
        near |= {value for node in nodes for value in node.inputs if value is not None}
    return one in near


def _guesses(made: Layer, other: Layer) -> Iterator[tuple[Vector, Array]]:
    """Yield what a layer may have been meant to read, and how many channels each entry has."""
    data, half = made.data, len(made.data) // 2
    if made.weight.shape[1:] == other.weight.shape[1:]:
        yield other.data, other.extents
    rolled = vector(data.axis, *(np.roll(a, half) for a in (data.atoms, data.scale, data.shift)))
    for guess in (*_complemented(made, other), rolled, _substituted(made, other)):
        yield guess, made.extents


def _complemented(made: Layer, other: Layer) -> Iterator[Vector]:
    """Yield ``[x, relu(x)]`` where the canonical layer reads ``[relu(x), relu(-x)]``."""
    data, half = other.data, len(other.data) // 2
    atoms, scale = data.atoms[:half].copy(), data.scale[:half].copy()
    for family, at in made.terms.groups(data.atoms[:half]):
        if family.source is None:
            return
        atoms[at] += family.source.base - family.base
        scale[at] *= family.sign
    if len(made.data) == 2 * half:
        joined = np.concatenate([atoms, data.atoms[:half]])
        yield vector(data.axis, joined, np.concatenate([scale, data.scale[:half]]))


def _substituted(made: Layer, other: Layer) -> Vector:
    """Put what the canonical layer reads in the place of what only the lowered graph has."""
    terms, data = made.terms, made.data
    atoms, scale, shift = data.atoms.copy(), data.scale.copy(), data.shift.copy()
    families = {f.base: f for f, _ in terms.groups(other.data.atoms)}
    for family in list(families.values()):
        near = [part for _, part in family.parts] + [family.opposite]
        families |= {f.base: f for f in near if f is not None}
    for family, at in terms.groups(data.atoms):
        meant = max(families.values(), key=lambda one: _likeness(family, one))
        index = data.atoms[at] - family.base
        if terms.is_new(family) and _likeness(family, meant) > 0 and (index < meant.size).all():
            atoms[at], scale[at], shift[at] = meant.base + index, np.sign(scale[at]), 0
    return vector(data.axis, atoms, scale, shift)


def _likeness(new: Family, meant: Family) -> int:
    """Return how likely a family is meant by one that only the lowered graph has."""
    if new.source is meant:
        return 4
    same = new.kind == meant.kind and new.sign == meant.sign
    if new.kind == "each" and new.source is meant.source:
        return 3 * same
    paths = [_path(one) for one in (new, meant)]
    return 2 if paths[0] == paths[1] else int(same and new.what == meant.what)


def _path(family: Family) -> list[tuple[object, ...]]:
    """Return the operators that a family was made with, from the last to the first."""
    found, one = list[tuple[object, ...]](), family
    while one.kind == "each" and one.source is not None:
        found.append((one.what, one.sign))
        one = one.source
    return [*found, (one.kind,)]


def _weights(
    walks: Walks, made: Layer, other: Layer, expected: Vector, actual: Vector
) -> Told | None:
    """Say which weight or bias of which output channel is wrong."""
    at = different(expected, actual)
    at = at[[walks.terms.of(int(n)).layer is other for n in expected.atoms[at]]]
    if not len(at):
        return None
    first, row = at[:1], expected.atoms[at[:1]] - other.base
    scale, shift = float(expected.scale[first[0]]), float(expected.shift[first[0]])
    where = f"output channel {positions(at)}: "
    basis = None if made.data.key() == other.data.key() else made.basis
    pair = aligned(made, other, first, row, basis)
    got, wanted = pair.got, pair.expected
    bias = (other.shifts()[row[0]] * scale + shift).ravel(), made.shifts()[first[0]].ravel()
    for limit in (4 * made.unit, 0.0):
        wrong = np.argwhere(~np.isclose(got[0], wanted[0] * scale, rtol=limit, atol=0))
        if len(wrong):
            name, site = _column(walks, made, other, basis, int(first[0]), int(wrong[0][0]))
            cell = (0, *wrong[0])
            numbers = f"expected {wanted[cell] * scale:.9g}, got {got[cell]:.9g}"
            many = f"({len(wrong)} of them differ)"
            return Told(f"{where}weight of {name} at {wrong[0][1]} {numbers} {many}", site)
        if not np.isclose(*bias, rtol=limit, atol=0).all() and made.node.op_type != "MatMul":
            return Told(f"{where}bias expected {bias[0][0]:.9g}, got {bias[1][0]:.9g}")
    return None


def _column(
    walks: Walks, made: Layer, other: Layer, basis: Basis | None, row: int, column: int
) -> tuple[str, str]:
    """Return the name of what a weight multiplies, and its site where the weight was rewritten."""
    both = [one.columns(basis).keys for one in (made, other)]
    group = int(made.group(np.array([row]))[0])
    keys = np.union1d(both[0][0], both[1][0]) if made.groups == 1 else both[0][group]
    number = int(keys[column]) // OFFSETS
    rewritten = basis is not None and bool(other.sites)
    site = site_of(walks.terms, number) or min(other.sites, default="")
    return atom(walks.terms, number), site if rewritten else ""


def operator(walks: Walks, asked: Question, _: Vector) -> Answer:
    """Another operator, other attributes or other operands?"""
    node, single = asked.node, whole(walks.terms, asked.expected)
    family = walks.terms.lead(single)
    other = family.node
    if family.kind != "op" or other is None or single.scale[0] != 1:
        return None
    if (other.domain, other.op_type) != (node.domain, node.op_type):
        return Told(f"expected {other.op_type}, got {node.op_type}")
    if (what := _other_attributes(walks, node, other)) is not None:
        return Told(what)
    for value, expected in zip(node.inputs, family.inputs, strict=False):
        if value is None or expected is None:
            if (value is None) != (expected is None):
                return Told("another number of operands than expected")
        elif constant(value) is not None:
            if walks.lowered.read(value).key() != expected.key():
                return Told(f"another constant {value.name!r} than expected")
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


def _inner(walks: Walks, node: ir.Node, other: ir.Node, at: str) -> Answer:
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


def site(walks: Walks, asked: Question, _: Vector) -> Answer:
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
        return Told(
            f"expected {other.op_type} on axis {other.attributes['axis'].value}, "
            f"got {node.op_type} on axis {node.attributes['axis'].value}"
        )
    for value, meant in zip(node.inputs, other.inputs, strict=True):
        if value is not None and meant is not None:
            expected = walks.canonical.read(meant)
            if walks.wrong(value, expected):
                return Question(value, expected, name or asked.site)
    return None
