"""What a pointwise piece of a graph computes: an affine map, then one activation of the table.

Everything is read off samples: at zero and at a power of two for the affine map, at the points
that ``ACTIVATIONS`` names for the parameters, and then verified at all probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import onnx_ir as ir

from crelu_deploy.op import ACTIVATIONS
from crelu_deploy.recognition.constants import Frame
from crelu_deploy.recognition.probe import Array, rounded
from crelu_deploy.recognition.structure import Refused, Regions, Step

_FAR, _NEAR = 2.0**100, 2.0**15  # powers of two: what is divided by them is not rounded
_GRID = (
    0.0625,
    0.25,
    0.5,
    1.0,
    1.5,
    2.0,
    3.0,
    4.0,
    5.5,
    6.0,
    6.5,
    9.0,
    21.0,
    88.0,
    104.0,
    1e3,
    1e4,
)
_TINY_AND_HUGE = (1e-3, 1e-6, 1e-20, 1e-35, 6e4, 1e10, 1e30, _FAR, _NEAR, 3e38)
_EXACT = frozenset({"relu", "leaky_relu", "clip"})
"""Activations that compute nothing transcendental: a sample has to agree at all magnitudes."""
_STRAIGHT = frozenset(
    {"Add", "BatchNormalization", "Div", "Dropout", "Identity", "Mul", "Neg", "Sub"}
)
"""Operators that bend a straight line nowhere, whatever their constants are."""
_MOST_BENDS = 16
_TOLERANCE = 1e-12
_EPSILON = 2.0**-48  # some roundings of float64
_LOOSE, _NEAR_ZERO = 1e-9, 1e-14  # relative and absolute, for what is transcendental


@dataclass(frozen=True)
class Piece:
    """``activation(scale * x + shift)``.

    Attributes:
        scale: Shape () or (channels,), never all zero.
        shift: Shape () or (channels,).
        activation: A name in ``ACTIVATIONS``; None if the piece is affine.
        attributes: Those of the activation.
        base: The value in the graph that equals ``scale * x + shift``, None if there is none.
    """

    scale: Array = field(default_factory=lambda: np.asarray(1.0))
    shift: Array = field(default_factory=lambda: np.asarray(0.0))
    activation: str | None = None
    attributes: Mapping[str, float] = field(default_factory=dict)
    base: ir.Value | None = None

    def then(self, scale: Array, shift: Array, base: ir.Value | None = None) -> Piece:
        """Return this affine piece with ``scale * . + shift`` behind it, which makes ``base``."""
        return Piece(self.scale * scale, self.shift * scale + shift, base=base)


@dataclass(frozen=True)
class Fit:
    """An activation that agrees with samples ``h``: ``h(v) = activation(gain * v)``."""

    activation: str
    attributes: Mapping[str, float]
    gain: float


@lru_cache(maxsize=8)
def probes(dtype: ir.DataType) -> Array:
    """Return sorted values of ``dtype``, as float64, symmetric about zero; shape (n,)."""
    random = np.random.default_rng(20160616)
    drawn = (random.normal(0, 3, 24), 10.0 ** random.uniform(-5, 5, 24))
    return _symmetric(np.concatenate([_GRID, _TINY_AND_HUGE, *drawn]), dtype)


def _symmetric(values: Array, dtype: ir.DataType) -> Array:
    positive = rounded(np.abs(values), dtype)
    positive = np.unique(positive[np.isfinite(positive) & (positive > 0)])
    return np.concatenate([-positive[::-1], [0.0], positive])


def probes_about(regions: Regions, nodes: Sequence[ir.Node], dtype: ir.DataType) -> Array:
    """Return the probes and, where numbers in ``nodes`` may be bends, those about and between."""
    if all(node.op_type in _STRAIGHT for node in nodes):
        return probes(dtype)
    numbers = {abs(float(n)) for node in nodes for n in _numbers(regions, node)} - {0.0, 1.0}
    if not numbers:
        return probes(dtype)
    bends = np.array([0.0, 1.0, *sorted(numbers)])
    middles = (bends[:, np.newaxis] + bends).reshape(-1) / 2
    more = [probes(dtype), bends, bends * (1 + 1e-3), bends * (1 - 1e-3), middles]
    return _symmetric(np.concatenate(more), dtype)


def _numbers(regions: Regions, node: ir.Node) -> list[float]:
    constants = [regions.constant(value) for value in node.inputs if value is not None]
    stored = [n for c in constants if c is not None for n in c.reshape(-1)[:_MOST_BENDS]]
    floats = (ir.AttributeType.FLOAT,)
    return stored + [a.value for a in node.attributes.values() if a.type in floats and a.value]


def line(
    regions: Regions, source: ir.Value, step: Step, frame: Frame, dtype: ir.DataType
) -> tuple[Array, Array] | None:
    """Return scale and shift, shape () or (channels,), if ``step`` is affine in ``source``."""
    at = probes_about(regions, step.nodes, dtype)
    samples = regions.sample(step.nodes, source, at, frame)
    return _affine(samples, at, _rounding(regions, step.nodes))


def _rounding(regions: Regions, nodes: Sequence[ir.Node]) -> float:
    """Return by how much terms that cancel, as of a batch norm, may miss, for a scale of one."""
    if any(node.op_type not in _STRAIGHT for node in nodes):
        return 0.0
    constants = [regions.constant(v) for node in nodes for v in node.inputs if v is not None]
    largest = (float(np.abs(c).max(initial=0)) for c in constants if c is not None)
    return _EPSILON * max(largest, default=0.0)


def _affine(samples: Array, at: Array, rounding: float) -> tuple[Array, Array] | None:
    """Return scale and shift if samples, shape (n, channels or 1), are affine in ``at``, (n,)."""
    shift = samples[len(at) // 2]
    top = int(np.searchsorted(at, _FAR if at[-1] >= _FAR else _NEAR))
    if not np.isfinite(samples).all():
        return None
    scale = (samples[top] - shift) / at[top]
    expected = at[:, np.newaxis] * scale
    bound = _TOLERANCE * (np.abs(expected) + np.abs(shift)) + rounding * (1 + np.abs(scale))
    if not (scale != 0).any():
        return None
    if not (np.abs(samples - (expected + shift)) <= bound).all():
        return None
    return _squeezed(scale), _squeezed(shift)


def fit(samples: Array, at: Array, function: Callable[[float], float]) -> Fit | None:
    """Return the activation, parameters and gain that agree with ``samples``, None if none does.

    Args:
        samples: Shape (n,), the values at ``at``.
        at: Shape (n,), symmetric about zero.
        function: The sampled function, for the points at which parameters are read.
    """
    one = len(at) // 2 + int(np.searchsorted(at[len(at) // 2 :], 1.0))
    above, below = float(samples[one]), float(samples[-one - 1])
    for gain in (1.0, -1.0, above, -below):
        usable = math.isfinite(gain) and gain != 0 and (gain > 0) == (gain in (1.0, above))
        found = _fit_at_gain(samples, at, function, gain) if usable else None
        if found is not None:
            return found
    return None


def _fit_at_gain(
    samples: Array, at: Array, function: Callable[[float], float], gain: float
) -> Fit | None:
    """Fit ``h(v) = f(gain * v)``; a gain other than -1 and 1 passes through relu-like f only."""
    size, sign = abs(gain), math.copysign(1.0, gain)
    scaled = samples[:: int(sign)] / size

    def unscaled(value: float) -> float:
        return function(sign * value) / size

    for name, kind in ACTIVATIONS.items():
        if size != 1 and name not in ("relu", "leaky_relu"):
            continue
        attributes = {n: _parameter(read(unscaled)) for n, read in kind.fits.items()}
        if _agrees(name, attributes, scaled, at):
            return Fit(name, attributes, gain)
    return None


def _parameter(value: float) -> float:
    """Return a parameter; a limit as far as the points it is read at is no limit."""
    value = float(value)
    return math.copysign(math.inf, value) if abs(value) >= 1e30 else value + 0.0


def _agrees(name: str, attributes: Mapping[str, float], samples: Array, at: Array) -> bool:
    if any(math.isnan(value) for value in attributes.values()):
        return False
    if name == "leaky_relu" and (attributes["alpha"] <= -1 or attributes["alpha"] == 1):
        return False  # the absolute value and its like, and the identity
    if name == "clip" and not attributes["min"] < attributes["max"]:
        return False
    expected = _expected(name, tuple(attributes.items()), at.tobytes())
    relative, absolute = (_TOLERANCE, 0.0) if name in _EXACT else (_LOOSE, _NEAR_ZERO)
    bound = np.maximum(relative * np.abs(expected), absolute)
    with np.errstate(invalid="ignore"):
        return bool((np.abs(samples - expected) <= bound).all())


@lru_cache(maxsize=256)
def _expected(name: str, attributes: tuple[tuple[str, float], ...], at: bytes) -> Array:
    with np.errstate(all="ignore"):
        return ACTIVATIONS[name].apply(np.frombuffer(at), **dict(attributes))


def piece(
    regions: Regions, source: ir.Value, steps: Sequence[Step], frame: Frame, dtype: ir.DataType
) -> Piece:
    """Return what ``steps``, from ``source``, compute: an affine part, then the rest as one.

    Raises:
        Refused: The rest is no activation of the table, or it differs between channels.
    """
    found, done = Piece(base=source), 0
    for step in steps:
        start = source if done == 0 else steps[done - 1].output
        straight = line(regions, start, step, frame, dtype)
        if straight is None:
            break
        found = found.then(*straight, step.output)
        done += 1
    if done == len(steps):
        return found
    start = source if done == 0 else steps[done - 1].output
    nodes = [node for step in steps[done:] for node in step.nodes]
    return _activated(found, activation(regions, start, nodes, frame, dtype))


def activation(
    regions: Regions, source: ir.Value, nodes: Sequence[ir.Node], frame: Frame, dtype: ir.DataType
) -> Fit:
    """Return the activation that ``nodes`` compute.

    Raises:
        Refused: They compute none of the table, or not the same on all channels.
    """
    at = probes_about(regions, nodes, dtype)
    samples = regions.sample(nodes, source, at, frame)
    operators = ", ".join(dict.fromkeys(node.op_type for node in nodes))
    if not np.array_equal(samples, np.broadcast_to(samples[:, :1], samples.shape), equal_nan=True):
        raise Refused(f"the activation ({operators}) differs between channels")

    def function(value: float) -> float:
        return float(regions.sample(nodes, source, np.array([value]), frame)[0, 0])

    found = fit(samples[:, 0], at, function)
    if found is None:
        raise Refused(f"{operators} compute none of {', '.join(ACTIVATIONS)}")
    return found


def _activated(before: Piece, found: Fit) -> Piece:
    base = before.base if found.gain == 1 else None
    scale, shift = before.scale * found.gain, before.shift * found.gain
    return Piece(scale, shift, found.activation, found.attributes, base)


def _squeezed(row: Array) -> Array:
    """Return one number as shape () where all channels have the same."""
    return np.asarray(row[0] if (row == row[0]).all() else row)
