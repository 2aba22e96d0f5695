"""How each operator leads on from what is expected of it to what is expected of what it reads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.values import constant
from crelu_deploy.op import DOMAIN
from crelu_deploy.proof.differences import layer, operator, site
from crelu_deploy.proof.explain import Answer, Follow, Question, Told, Walks
from crelu_deploy.proof.layers import KINDS
from crelu_deploy.proof.pointwise import APPLY
from crelu_deploy.proof.telling import different
from crelu_deploy.proof.terms import Family, Vector, vector
from crelu_deploy.proof.views import along, derived


def rule_of(node: ir.Node) -> Follow | None:
    """Return how a node is followed."""
    if node.domain == DOMAIN:
        return site
    return RULES.get(node.op_type, operator) if node.domain == "" else operator


def _into(walks: Walks, asked: Question, expected: Vector, index: int = 0) -> Question | None:
    """Return the question for an input; None where it is what it should be."""
    value = asked.node.inputs[index]
    if value is None or not walks.wrong(value, expected):
        return None
    return Question(value, expected, asked.site)


def _same(walks: Walks, asked: Question, _: Vector) -> Question | None:
    return _into(walks, asked, asked.expected)


def _negated(walks: Walks, asked: Question, _: Vector) -> Question | None:
    e = asked.expected
    return _into(walks, asked, vector(e.axis, e.atoms, -e.scale, -e.shift))


def _concat(walks: Walks, asked: Question, actual: Vector) -> Question | None:
    """Which part differs? None where all that is expected is there, in another order."""
    wanted, start = asked.expected, 0
    if wanted.axis is None or _holds(actual, wanted):
        return None
    for index, value in enumerate(asked.node.inputs):
        if value is None:
            continue
        n = len(along(walks.terms, walks.lowered.read(value), wanted.axis))
        part = slice(start, start + n)
        expected = vector(wanted.axis, *(a[part] for a in wanted.arrays))
        if (found := _into(walks, asked, expected, index)) is not None:
            return found
        start += n
    return None


def _holds(value: Vector, wanted: Vector) -> bool:
    """Whether all wanted entries are somewhere in a vector."""
    there = set(zip(*(a.tolist() for a in value.arrays), strict=True))
    return there.issuperset(zip(*(a.tolist() for a in wanted.arrays), strict=True))


def _gather(walks: Walks, asked: Question, actual: Vector) -> Answer:
    """Is what is expected somewhere else in what is picked from?"""
    tensor, value, wanted = constant(asked.node.inputs[1]), asked.node.inputs[0], asked.expected
    if tensor is None or value is None or wanted.axis is None or len(tensor.shape) != 1:
        return operator(walks, asked, actual)
    source, index = along(walks.terms, walks.lowered.read(value), wanted.axis), tensor.numpy()
    if len(index) != len(wanted) or (np.abs(index) >= len(source)).any():
        return None
    if _holds(source, wanted):
        return None
    arrays = [a.copy() for a in source.arrays]
    for array, new in zip(arrays, wanted.arrays, strict=True):
        array[index] = new
    return _into(walks, asked, vector(wanted.axis, *arrays))


def _each(walks: Walks, asked: Question, actual: Vector) -> Answer:
    """What is expected of an operator on each entry says what it should have read."""
    whats = {f.what for f, _ in walks.terms.groups(actual.atoms) if f.kind == "each"}
    wanted, value = asked.expected, asked.node.inputs[0]
    if len(actual) == 1 and walks.terms.lead(actual).kind == "op":
        return operator(walks, asked, actual)
    if value is None or (wanted.scale == 0).any():
        return None
    atoms, scale = wanted.atoms.copy(), wanted.scale.copy()
    for family, at in walks.terms.groups(wanted.atoms):
        if family.source is None or family.what not in whats:
            return _attributes(whats, family)
        atoms[at] += family.source.base - family.base
        scale[at] *= family.sign
    return _into(walks, asked, vector(walks.lowered.read(value).axis, atoms, scale))


def _cast(walks: Walks, asked: Question, actual: Vector) -> Answer:
    """Into or out of a reduced type it is the value itself."""
    value = asked.node.inputs[0]
    same = value is not None and walks.lowered.read(value).key() == actual.key()
    return _same(walks, asked, actual) if same else _each(walks, asked, actual)


def _attributes(whats: set[tuple[object, ...]], family: Family) -> Told | None:
    """Say which operator was expected where one like it was found."""
    other = next((w for w in whats if w[:1] == family.what[:1]), None)
    if other is None:
        return None
    return Told(f"expected {_written(family.what)}, got {_written(other)}")


def _written(what: tuple[object, ...]) -> str:
    return f"{what[0]} with {', '.join(map(str, what[1:])) or 'no attributes'}"


def _pool(walks: Walks, asked: Question, actual: Vector) -> Answer:
    """``max(f(x))`` is written as ``f(max(x))``."""
    atoms, value = asked.expected.atoms.copy(), asked.node.inputs[0]
    kind = asked.node.op_type
    for family, at in walks.terms.groups(atoms):
        pool = family.source
        if not family.elementwise or pool is None or pool.source is None or pool.what[0] != kind:
            return _each(walks, asked, actual)
        inner = derived(
            *(walks.terms, pool.source, pool.sign, family.what, None),
            node=family.node,
            elementwise=True,
        )
        atoms[at] += inner.base - family.base
    axis = asked.expected.axis if value is None else walks.lowered.read(value).axis
    return _into(walks, asked, vector(axis, atoms))


def _arithmetic(walks: Walks, asked: Question, actual: Vector) -> Answer:
    """A wrong scale or shift, or another operand?"""
    node, wanted = asked.node, asked.expected
    values = [v for v in node.inputs[:2] if v is not None]
    fixed = [constant(v) is not None for v in values]
    if not any(fixed):
        layers = [walks.lowered.read(v).layer for v in values]
        both = len(layers) == 2 and None not in layers
        return layer(walks, asked, actual) if both else operator(walks, asked, actual)
    index = fixed.index(False) if False in fixed else 0
    given = walks.seen(values[index], wanted)
    if given is None:
        return None
    if len(different(vector(None, given.atoms), vector(None, wanted.atoms))):
        meant = vector(wanted.axis, wanted.atoms, given.scale, given.shift)
        return _into(walks, asked, meant, index)
    if node.op_type not in ("Add", "Sub") or (actual.scale == wanted.scale).all():
        return None
    shift = np.where(actual.scale == wanted.scale, wanted.shift + given.shift - actual.shift, 0)
    sign = np.where(given.scale == actual.scale, 1, -1)
    meant = vector(wanted.axis, wanted.atoms, wanted.scale * sign, shift * sign)
    return _into(walks, asked, meant, index)


RULES: Mapping[str, Follow] = {
    **dict.fromkeys(("Identity", "Dropout"), _same),
    "Neg": _negated,
    "Concat": _concat,
    "Gather": _gather,
    **dict.fromkeys(APPLY, _each),
    "Cast": _cast,
    **dict.fromkeys(("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"), _each),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "Pad"), _each),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool"), _pool),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "BatchNormalization"), _arithmetic),
    **dict.fromkeys(KINDS, layer),
}
