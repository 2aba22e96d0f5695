"""Random networks with planted sites and lookalikes, as a hypothesis strategy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from fuzz_builder import Builder, Value
from fuzz_lookalikes import LOOKALIKES
from fuzz_producers import pooled, produced
from fuzz_spellings import (
    ACTIVATIONS,
    NEGATIVE_RELU,
    RELU,
    batch_norm,
    chosen,
    dropout,
    joined,
    negated,
    scaled,
)
from hypothesis import strategies as st

from crelu_deploy.lowerings import LOWERINGS

LOOKALIKE = "lookalike_"
"""What the names of a lookalike's nodes begin with."""
EXACT = ("CReLU", "CLeakyRelu", "CClip")
"""Nothing transcendental, whose last bit depends on where in a vector a value is."""
SHAPES = {2: (5,), 3: (3, 7), 4: (3, 6, 5), 5: (2, 4, 3, 4)}
"""Rank -> the input's shape without the batch."""
LOWERED = ["fold"] * 4 + [name for name in LOWERINGS if name != "plugin"]
DTYPES = [np.float32] * 6 + [np.float64, np.float16]


@dataclass(frozen=True)
class Network:
    """A random network and what is known of it.

    Attributes:
        model: The network; its one input is ``x``.
        x: What to run it on.
        sites: Canonical node type -> how many sites were planted.
        opaque: Number of sites that no canonical node expresses.
        shapes_known: Whether the model tells its shapes; if not, a site may be missed.
        blocked: Whether a folded conv may get another kernel with optimisations on.
        exact: Whether lowering it changes no sum, so that the outputs must be the same bits.
        referable: Whether ONNX's reference evaluator computes it right.
        lowerings: What to give the sites in turn, names in ``LOWERINGS``.
    """

    model: onnx.ModelProto
    x: np.ndarray
    sites: Counter[str]
    opaque: int
    shapes_known: bool
    blocked: bool
    exact: bool
    referable: bool
    lowerings: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of all floating-point tensors."""
        return self.x.dtype

    def __repr__(self) -> str:
        text = onnx.printer.to_text(self.model)
        return f"{self.sites} lowered as {self.lowerings}, exact {self.exact}\n{text}"


def _axis(b: Builder, x: Value) -> int:
    """Return an axis on which a concat of x joins channels."""
    last = len(b.shape(x)) - 1
    return b.pick([1, last]) if x.axis is None else x.axis


def _halves_then_concat(b: Builder, x: Value, axis: int, kind: str) -> Value:
    """cat(f(x), f(-x)): each half may be written in its own way."""
    ways = ACTIVATIONS[kind](b)
    gain = _gain(b, kind)
    affine = (b.extents(x)[axis] or 1) > 1 and b.rarely(5)
    halves = []
    one_way = chosen(b, ways)
    for sign in b.pick([(1, -1), (-1, 1)]):
        if sign < 0 and kind == "CReLU" and not affine and b.rarely(4):
            halves.append(gain(chosen(b, NEGATIVE_RELU).apply(b, x.name)))
            continue
        half = x.name if sign > 0 else negated(b, x.name)
        half = _by_channel(b, half, axis) if affine else half
        way = chosen(b, ways) if kind == "CReLU" else one_way
        halves.append(gain(way.apply(b, half)))
    y = joined(b, halves[0], halves[1], axis)
    _plant(b, kind, affine=affine or gain is not _no_gain)
    return Value(y, x.axis)


def _no_gain(x: str) -> str:
    return x


def _gain(b: Builder, kind: str) -> Callable[[str], str]:
    if kind not in ("CReLU", "CLeakyRelu") or not b.rarely(10):
        return _no_gain
    return lambda x: b.op("Mul", x, b.number(0.75))


def _by_channel(b: Builder, x: str, axis: int) -> str:
    """Scale and shift one half per channel, by vectors whose entries differ."""
    channels = b.shape(x)[axis]
    x = b.op("Mul", x, b.by_channel(b.uniform(0.55, 0.95, channels), x, axis))
    return b.op("Add", x, b.by_channel(b.uniform(-1, 1, channels), x, axis))


def _concat_then_activation(b: Builder, x: Value, axis: int, kind: str) -> Value:
    """f(affine(cat(x, -x))), sometimes with two activations behind one concat."""
    halves = [x.name, negated(b, x.name)][:: b.pick([1, -1])]
    between = b.pick([None, None, None, "affine", "batch norm", "dropout"])
    way = chosen(b, ACTIVATIONS[kind](b))
    affine = between == "affine" or (between == "batch norm" and axis == 1)
    _plant(b, kind, affine=affine)
    if not affine and b.rarely(3):

        def within(b: Builder, joint: str) -> str:
            return way.apply(b, dropout(b, joint) if between == "dropout" else joint)

        return Value(joined(b, halves[0], halves[1], axis, within=within), x.axis)
    joint = joined(b, halves[0], halves[1], axis)
    if affine:
        joint = batch_norm(b, joint) if between == "batch norm" else scaled(b, joint, axis)
    y = way.apply(b, joint)
    if b.rarely(10):
        RELU[0].apply(b, joint)
        _plant(b, "CReLU", affine=affine)
    return Value(y, x.axis)


def _plant(b: Builder, kind: str, *, affine: bool) -> None:
    if kind == "CClip" and b.opset < 15:
        b.opaque += 1
        return
    b.sites.append(kind if not affine else f"Affine{kind}")
    b.exact &= not affine and kind in EXACT


def _site(b: Builder, x: Value, outputs: list[str]) -> Value:
    """Add a site behind a random producer and what lies between."""
    value = produced(b, x)
    axis = _axis(b, value)
    kind = b.pick(["CReLU"] * 6 + list(ACTIVATIONS))
    spelling = b.pick([_halves_then_concat, _concat_then_activation])
    b.seams.clear()
    y = spelling(b, value, axis, kind)
    if value is not x and b.rarely(8):
        outputs.append(value.name)
    if b.rarely(8):
        outputs += [name for name in [b.pick(b.seams)] if name != x.name]
    if b.rarely(8):
        b.op(b.pick(["Sigmoid", "Softmax"]), value.name)
    if b.rarely(8):
        spelling(b, value, axis, "CReLU")
    if b.rarely(3):  # a consumer, which the lowerings of sites may rewrite
        return produced(b, pooled(b, y) if b.rarely(3) else y, pointwise=False)
    return y


def _lookalike(b: Builder, x: Value) -> None:
    """Add a lookalike behind a producer: one of a relu's values may be no lookalike."""
    value = produced(b, x, pointwise=x.name == "x")
    axis = _axis(b, value)
    b.prefix = LOOKALIKE
    names = [name for name, (fits, _) in LOOKALIKES.items() if fits(b, value, axis)]
    LOOKALIKES[b.pick(names)][1](b, value, axis)
    b.prefix = ""


def _input(b: Builder) -> Value:
    shape = (b.pick([2, 1, 3]), *SHAPES[b.pick([4, 2, 3, 5])])
    symbols = ["N" if b.rarely(2) else None, None, "H", "W", "D"]
    if not b.rarely(3):
        symbols[2:] = [None] * 3
    return b.input("x", shape, symbols[: len(shape)])


def _feed(b: Builder, x: Value) -> np.ndarray:
    feed = b.uniform(-2, 2, b.shape(x))
    feed.flat[0] = 0
    if b.faithful and b.exact and b.rarely(3):
        feed.flat[:3] = np.nan, np.inf, -np.inf
    return feed.astype(b.dtype)


@st.composite
def networks(draw: Callable[..., Any], *, sites: bool = True) -> Network:
    """Draw a network; without ``sites``, one of lookalikes alone."""
    opset = draw(st.integers(7, 25))
    b = Builder(draw, opset, draw(st.sampled_from(DTYPES)))
    x = _input(b)
    values, outputs = [x], list[str]()
    for _ in range(b.pick([1, 2, 3])):
        source = b.pick(values[::-1])
        if sites and not b.rarely(3):
            values.append(_site(b, source, outputs))
        else:
            _lookalike(b, source)
    model = b.finished(outputs)
    onnx.checker.check_model(model, full_check=True)
    lowerings = tuple(b.pick(LOWERED) for _ in range(8))
    return Network(
        model,
        _feed(b, x),
        Counter(b.sites),
        b.opaque,
        shapes_known=b.shapes_known,
        blocked=b.blocked,
        exact=bool(b.exact),
        referable=b.referable,
        lowerings=lowerings,
    )
