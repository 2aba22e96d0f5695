"""Conditions on dynamic extents under which a traced network holds: read, tested, put in words.

PyTorch traces a network for some extents and lists what it took for granted on the way, such as
``L['x'].size()[3] <= 80``. Here an extent is a variable: ``d0_3`` is axis 3 of input 0.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from types import CodeType
from typing import Any

Shapes = Sequence[Sequence[int]]
"""One shape per input, in their order."""

LONGEST, MOST = 4000, 200
"""Characters of a condition, and conditions of a network: a manifest may come from anyone."""

_FUNCTIONS = {"max": max, "min": min, "abs": abs, "int": int, "float": float, "sym_float": float}
_FUNCTIONS |= {name: getattr(math, name) for name in ("trunc", "floor", "ceil", "sqrt")}
_VARIABLE = re.compile(r"d(\d{1,3})_(\d{1,3})")
_NODES = (
    *(ast.Expression, ast.Compare, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.USub, ast.Not),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Div, ast.Mod, ast.Load),
    *(ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Call, ast.Name, ast.Constant),
)


@dataclass(frozen=True)
class Guard:
    """One condition, such as ``d0_3 <= 80``.

    Attributes:
        text: A comparison of integers and extents, as Python writes it.

    Raises:
        ValueError: It is something else.
    """

    text: str

    def __post_init__(self) -> None:
        if len(self.text) > LONGEST:
            raise ValueError(f"a condition of {len(self.text)} characters; at most {LONGEST}")
        if wrong := [node for node in ast.walk(self._tree) if not _allowed(node)]:
            raise ValueError(f"condition {self.text!r}: {ast.dump(wrong[0])[:80]} is not allowed")
        try:
            assert self._code  # compiled here, where what is nested too deep can be refused
        except (RecursionError, MemoryError, ValueError) as error:
            raise ValueError(f"condition {self.text[:80]!r} cannot be read") from error

    @cached_property
    def _tree(self) -> ast.Expression:
        try:
            return ast.parse(self.text.strip(), mode="eval")
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"condition {self.text[:80]!r} cannot be read") from error

    @cached_property
    def _code(self) -> CodeType:
        return compile(self._tree, "<guard>", "eval")

    @cached_property
    def axes(self) -> frozenset[tuple[int, int]]:
        """The input and the axis of every extent in it."""
        found = (_VARIABLE.fullmatch(n.id) for n in ast.walk(self._tree) if isinstance(n, ast.Name))
        return frozenset((int(match[1]), int(match[2])) for match in found if match)

    def holds(self, shapes: Shapes) -> bool:
        """Tell whether inputs of these shapes meet it; they do not where it divides by zero."""
        try:
            extents = {f"d{i}_{axis}": int(shapes[i][axis]) for i, axis in self.axes}
            return bool(eval(self._code, {"__builtins__": {}, **_FUNCTIONS}, extents))
        except (ZeroDivisionError, OverflowError, ValueError, TypeError):
            return False

    def words(self, names: Sequence[Sequence[int | str]]) -> str:
        """Return it with the names of the axes; one of ``names`` per input, as a spec has them."""
        return _VARIABLE.sub(lambda m: str(names[int(m[1])][int(m[2])]), self.text)


def _allowed(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        value = node.value
        return isinstance(value, int | float) and abs(value) < 2**40
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or _VARIABLE.fullmatch(node.id) is not None
    if isinstance(node, ast.Call):
        named = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        return named and not node.keywords
    return isinstance(node, _NODES)


class _Renamer(ast.NodeTransformer):
    """``L['x'].size()[3]`` becomes ``d0_3``, and ``math.floor`` becomes ``floor``."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        found = re.fullmatch(r"L\['(.+)'\]\.size\(\)\[(\d+)\]", ast.unparse(node))
        if found is None or found[1] not in self.names:
            return self.generic_visit(node)
        return ast.Name(f"d{self.names.index(found[1])}_{found[2]}", ast.Load())

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return ast.Name(node.attr, ast.Load()) if node.attr in _FUNCTIONS else node


def from_pytorch(text: str, names: Sequence[str]) -> tuple[Guard, ...]:
    """Read one line of ``ExportedProgram._guards_code``; ``names`` are the program's inputs.

    Raises:
        ValueError: It speaks of something else than extents of these.
    """
    try:
        tree = _Renamer(names).visit(ast.parse(text.strip(), mode="eval")).body
    except SyntaxError as error:
        raise ValueError(f"condition {text!r} cannot be read") from error
    both = isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And)
    return tuple(Guard(ast.unparse(part)) for part in (tree.values if both else [tree]))


def broken(guards: Iterable[Guard], shapes: Shapes) -> tuple[Guard, ...]:
    """Return those that inputs of these shapes do not meet."""
    return tuple(guard for guard in guards if not guard.holds(shapes))


_FAR = 4096


def _extents(guards: Sequence[Guard], axis: tuple[int, int], most: int) -> list[int]:
    """Return which of the extents 1 to ``most`` of one axis the conditions on it alone allow."""
    own = [guard for guard in guards if guard.axes == {axis}]
    i, j = axis
    shape = [1] * (j + 1)

    def fits(extent: int) -> bool:
        return not broken(own, [(*shape[:j], extent)] * (i + 1))

    return [extent for extent in range(1, most + 1) if fits(extent)]


def statements(guards: Sequence[Guard], names: Sequence[Sequence[int | str]]) -> tuple[str, ...]:
    """Put conditions into words: ``width at most 80``, ``height a multiple of 4``."""
    single = {axis for guard in guards if len(guard.axes) == 1 for axis in guard.axes}
    found = [
        f"{names[i][j]} {_allowing(_extents(guards, (i, j), _FAR))}" for i, j in sorted(single)
    ]
    return (*found, *(guard.words(names) for guard in guards if len(guard.axes) > 1))


def _allowing(extents: list[int]) -> str:
    if not extents:
        return "of no extent"
    low, high = extents[0], extents[-1]
    if len(extents) == high - low + 1:
        if high == _FAR:
            return f"at least {low}"
        return (
            f"exactly {low}"
            if low == high
            else f"from {low} to {high}" * (low > 1) or (f"at most {high}")
        )
    if len(extents) < 9:
        return f"one of {', '.join(map(str, extents))}"
    allowed = set(extents)
    for step in range(2, 257):
        inside = range(low, min(high, _FAR) - step)
        if all((n in allowed) == (n + step in allowed) for n in inside):
            rests = sorted({n % step for n in extents})
            if rests == [0]:
                return f"a multiple of {step}"
            return f"{' or '.join(map(str, rests))} more than a multiple of {step}"
    return f"one of {', '.join(map(str, extents[:8]))}, ..."


@dataclass(frozen=True)
class Limits:
    """What a network demands of the extents of its inputs; nothing where it is empty.

    Attributes:
        guards: The conditions.
        inputs: The names of the inputs, in their order.
        names: The shape of each as its spec has it.
    """

    guards: tuple[Guard, ...] = ()
    inputs: tuple[str, ...] = ()
    names: tuple[tuple[int | str, ...], ...] = ()

    def __str__(self) -> str:
        return ", ".join(statements(self.guards, self.names))

    def check(self, shapes: Shapes) -> None:
        """Refuse inputs of shapes that the network was not traced for.

        Raises:
            ValueError: A condition does not hold; the message has extents that fit.
        """
        wrong = broken(self.guards, shapes)
        if not wrong:
            return
        axes = sorted({axis for guard in wrong for axis in guard.axes})
        got = ", ".join(f"{self.names[i][j]} {shapes[i][j]}" for i, j in axes)
        near = nearest(shapes, lambda moved: not broken(self.guards, moved), axes)
        fits = ", ".join(f"{self.names[i][j]} {near[i][j]}" for i, j in axes) if near else "none"
        raise ValueError(
            f"this network needs {', '.join(statements(wrong, self.names))}; got {got}; "
            f"nearest that fits: {fits}"
        )

    @classmethod
    def parse(cls, entry: Any, inputs: Sequence[Mapping[str, Any]]) -> Limits:
        """Read what a manifest has, a list of texts, for inputs as it has them.

        Raises:
            ValueError: It is something else, or speaks of axes that the inputs do not have.
        """
        if not isinstance(entry, list) or len(entry) > MOST or not all(map(_is_text, entry)):
            raise ValueError(f"its conditions are no list of at most {MOST} texts")
        guards = tuple(Guard(text) for text in entry)
        shapes = tuple(tuple(one["shape"]) for one in inputs)
        for i, axis in (pair for guard in guards for pair in guard.axes):
            if i >= len(shapes) or axis >= len(shapes[i]):
                raise ValueError(f"a condition on axis {axis} of input {i}, which there is not")
        return cls(guards, tuple(one["name"] for one in inputs), shapes)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


REACH = 40
"""How far from wanted extents others are looked for."""


def nearest(
    shapes: Shapes, fits: Callable[[Shapes], bool], axes: Sequence[tuple[int, int]]
) -> tuple[tuple[int, ...], ...] | None:
    """Return the shapes nearest to these, along some axes of some inputs, that fit; or None."""
    for moves in _moves(len(axes)):
        moved = [list(shape) for shape in shapes]
        for (i, axis), move in zip(axes, moves, strict=True):
            moved[i][axis] += move
        if all(moved[i][axis] > 0 for i, axis in axes) and fits(moved):
            return tuple(map(tuple, moved))
    return None


def _moves(axes: int) -> Iterator[tuple[int, ...]]:
    """Yield steps along the axes, the shortest first."""
    if axes > 2:  # all by one step
        yield from ((step * sign,) * axes for step in range(REACH) for sign in (1, -1))
        return
    for radius in range(REACH):
        ring = sorted(range(-radius, radius + 1), key=lambda step: (abs(step), -step))
        yield from (m for m in product(ring, repeat=axes) if not m or max(map(abs, m)) == radius)
        if not axes:
            return
