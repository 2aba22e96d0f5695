"""The algebra of two halves: whether they are f(x) and f(-x), and the canonical form if they are.

Each half is a ``Piece`` in the common tensor x. In reasons, numbers are those that were sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from crelu_deploy.recognition.fit import Piece
from crelu_deploy.recognition.probe import Array
from crelu_deploy.recognition.structure import Refused, Undecided


@dataclass(frozen=True)
class Pair:
    """The two halves before the activation, as affine maps of one value ``x``."""

    x: ir.Value
    first: Piece
    second: Piece


@dataclass(frozen=True)
class Form:
    """What the canonical node needs: an order of the halves, and a scale and shift or neither."""

    negated: bool
    scale: Array | None
    shift: Array | None


def same_activation(first: Piece, second: Piece) -> None:
    """Check that both halves end in the same activation, or both in none.

    Raises:
        Refused: They do not.
    """
    if first.activation == second.activation and first.attributes == second.attributes:
        return
    slopes = [_slope(half) for half in (first, second)]
    if None not in slopes:
        raise Refused(f"halves have different slopes: {slopes[0]:g} and {slopes[1]:g}")
    if first.activation == second.activation:
        numbers = zip(first.attributes.items(), second.attributes.values(), strict=True)
        name, one, other = next((n, p, q) for (n, p), q in numbers if p != q)
        raise Refused(f"halves have different {name}: {one:g} and {other:g}")
    raise Refused(f"halves have different activations: {_named(first)} and {_named(second)}")


def _named(half: Piece) -> str:
    limits = ", ".join(f"{name}={value:g}" for name, value in half.attributes.items())
    return (half.activation or "none") + (f" ({limits})" if limits else "")


def _slope(half: Piece) -> float | None:
    if half.activation == "relu":
        return 0.0
    return half.attributes["alpha"] if half.activation == "leaky_relu" else None


def pair(x: ir.Value, first: Piece, second: Piece) -> Pair:
    """Return the halves in terms of x, or of a value behind x of which one is the negative.

    Raises:
        Refused: The second half is not the first one's mirror image.
    """
    if _same(second.scale, -first.scale) and _same(second.shift, -first.shift):
        negated = bool((first.scale < 0).all())
        positive = second if negated else first
        base = x if _is_identity(positive) else positive.base
        if base is None:
            return Pair(x, first, second)
        one, minus = Piece(), Piece(np.asarray(-1.0))
        return Pair(base, minus, one) if negated else Pair(base, one, minus)
    _check_mirrored(first, second)
    return Pair(x, first, second)


def _check_mirrored(first: Piece, second: Piece) -> None:
    """Allow f(x), f(-x) for an affine f, and maps of their own only if learned by channel."""
    if not (first.scale * second.scale < 0).all():
        raise Refused("halves have the same sign: the second is not a function of -x")
    learned = first.scale.ndim == second.scale.ndim == 1
    if not learned and not _same(second.scale, -first.scale):
        ratio = np.ravel(second.scale / first.scale)[0]
        raise Refused(f"one half is scaled by {_number(ratio)} times the other, not by -1")
    learned = learned or first.shift.ndim == second.shift.ndim == 1
    if not learned and not _same(first.shift, second.shift):
        shifts = [_number(np.ravel(half.shift)[0]) for half in (first, second)]
        raise Refused(f"halves have different shifts: {shifts[0]} and {shifts[1]}")


def form(halves: Pair, tail: Piece, *, interleaved: bool, channels: int | None) -> Form:
    """Return the canonical form of ``tail`` after the halves.

    Args:
        halves: What goes into the concat.
        tail: The affine map behind the concat; its vectors have 2 * channels entries.
        interleaved: Whether the entries of the halves alternate there.
        channels: The extent of the concat's axis in x, None if unknown.

    Raises:
        Refused: A vector of scales is needed and its length is unknown or does not fit.
    """
    scales, shifts = _split(tail.scale, interleaved), _split(tail.shift, interleaved)
    first = halves.first.then(scales[0], shifts[0])
    second = halves.second.then(scales[1], shifts[1])
    if not first.shift.any() and not second.shift.any():
        for negated, sign in ((False, 1.0), (True, -1.0)):
            if (first.scale == sign).all() and (second.scale == -sign).all():
                return Form(negated, None, None)
    scale = _joined(first.scale, -second.scale, channels)
    return Form(False, scale, _joined(first.shift, second.shift, channels))


def spelled(halves: Pair, tail: Piece, into: Form, *, interleaved: bool, bare: bool) -> str:
    """Return how a network wrote the site, such as ``cat(relu(x), relu(-x))``.

    Args:
        halves: What goes into the concat.
        tail: What follows it; for activated halves just the activation.
        into: The canonical form.
        interleaved: Whether the channels of the halves alternate.
        bare: Whether the activation follows the concat.
    """
    join, name = "interleave" if interleaved else "cat", tail.activation
    signs = ["-" if (half.scale < 0).all() else "" for half in (halves.first, halves.second)]
    if bare:
        inner = f"{join}({signs[0]}x, {signs[1]}x)"
        affine = [("scale", (tail.scale != 1).any()), ("shift", tail.shift.any())]
        if into.scale is None:
            return f"{name}({inner})"
        return f"{inner} then {', '.join([word for word, used in affine if used] + [name or ''])}"
    operand = "x" if into.scale is None else "scale * x + shift"
    return f"{join}({', '.join(f'{name}({sign}{operand})' for sign in signs)})"


def _split(vector: Array, interleaved: bool) -> tuple[Array, Array]:
    if vector.ndim == 0:
        return vector, vector
    if len(vector) % 2:
        raise Refused(f"{len(vector)} numbers behind the concat do not make two halves")
    middle = len(vector) // 2
    return (vector[0::2], vector[1::2]) if interleaved else (vector[:middle], vector[middle:])


def _joined(first: Array, second: Array, channels: int | None) -> Array:
    if first.ndim == second.ndim == 0 and first == second:
        return first
    sizes = {len(half) for half in (first, second) if half.ndim}
    sizes |= set() if channels is None else {channels}
    if len(sizes) != 1:
        raise Undecided(
            "halves have their own scale or shift, and the number of channels is unknown"
        )
    shape = (sizes.pop(),)
    return np.concatenate([np.broadcast_to(first, shape), np.broadcast_to(second, shape)])


def _same(one: Array, other: Array) -> bool:
    return bool(np.all(np.abs(one - other) <= 1e-12 * np.abs(one)))


def _is_identity(half: Piece) -> bool:
    return bool((half.scale == 1).all()) and not half.shift.any()


def _number(value: float) -> str:
    return f"{value:.6g}"
