"""The noise of an output: how far PyTorch's own rounding takes it from the exact result.

A runtime rounds as PyTorch does, in another order. Its distance from PyTorch is judged in units of
PyTorch's distance from float64, per channel, so that no channel's size hides another's error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crelu_deploy.op import Array

ENOUGH = 16
"""Elements of one row that a channel must have for a noise of its own."""

NARROW = 64
"""Extents up to which the last axis counts as one of channels."""

ULPS = 4
"""Roundings of an element itself that are allowed for beside the noise of its channel."""


def channel_axis(shape: Sequence[int]) -> int | None:
    """Return the axis of an output's channels, None where it has no channels of enough elements.

    ``(N, C, ...)`` has them on axis 1, ``(N, A, k)`` with a few values per anchor on its last.
    """
    if len(shape) < 3:
        return None
    rest = int(np.prod(shape[2:]))
    if rest >= ENOUGH:
        return 1
    if len(shape) == 3 and shape[2] <= NARROW and shape[1] >= ENOUGH:
        return 2
    return None


def noise(rounded: Array, exact: Array) -> Array:
    """Return the rounding of each channel, ``(channels, 2)``; there is one without channels.

    The first is its root mean square. Errors beyond ten times the median are taken as that: a few
    huge elements must not widen what is allowed for the others. The second is the largest error,
    in ``units`` of the first: an output that saturates nearly everywhere, such as a softmax, has
    few elements that are rounded at all.
    """
    axis = channel_axis(rounded.shape)
    e = np.asarray(exact, np.float64)
    with np.errstate(invalid="ignore"):
        error = np.abs(np.asarray(rounded, np.float64) - e)
    errors, sizes = (channels(np.where(np.isfinite(x), x, 0), axis) for x in (error, np.abs(e)))
    ulp = float(np.finfo(rounded.dtype).eps) / 2
    typical = np.array([_typical(*pair, ulp) for pair in zip(errors, sizes, strict=True)])
    with np.errstate(divide="ignore", invalid="ignore"):
        found = errors / (typical[:, None] + ULPS * ulp * sizes)
    return np.stack([typical, np.where(errors > 0, found, 0).max(1, initial=0.0)], 1)


def channels(x: Array, axis: int | None) -> Array:
    """Return an array as one row per channel."""
    result: Array = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) if axis else x.reshape(1, -1)
    return result


def _typical(error: Array, size: Array, ulp: float) -> float:
    seen = error[error > 0]
    least = ulp * float(np.median(size[size > 0])) if size.any() else 0.0
    if seen.size == 0:
        return least
    capped = np.minimum(error, 10 * np.median(seen))
    return max(float(np.sqrt(np.mean(capped**2))), least)


def shared(floors: Sequence[Array], outputs: Sequence[Array]) -> list[Array]:
    """Let the samples in which an output has few elements have one noise, the largest of theirs.

    A few errors tell little: they may be small by chance. They count as eight roundings of the
    output's size at least.
    """
    few = [i for i, y in enumerate(outputs) if int(np.prod(y.shape[1:])) < ENOUGH]
    if not few:
        return list(floors)
    ulp = float(np.finfo(outputs[0].dtype).eps) / 2
    finite = [np.where(np.isfinite(y), y, 0) for y in outputs]
    sizes = [float(np.sqrt(np.mean(np.square(finite[i], dtype=np.float64)))) for i in few]
    least = max(2 * ULPS * ulp * size for size in sizes)
    largest = np.maximum(np.max([floors[i].max(0) for i in few], 0), (least, 0))
    return [
        np.broadcast_to(largest, one.shape).copy() if i in few else one
        for i, one in enumerate(floors)
    ]


def units(actual: Array, expected: Array, floor: Array) -> Array:
    """Return each element's error over its noise: its channel's, and four roundings of itself."""
    axis = channel_axis(expected.shape)
    e, a = (np.asarray(x, np.float64) for x in (expected, actual))
    shape = [1] * e.ndim
    if axis:
        shape[axis] = -1
    own = ULPS * float(np.finfo(expected.dtype).eps) / 2 * np.abs(e)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        result: Array = np.abs(a - e) / (floor[:, 0].reshape(shape) + own)
    return result


def scales(expected: Array) -> Array:
    """Return what the errors of each element are relative to, of a shape that broadcasts.

    The root mean square of its channel, at least that of the median channel. Where there are no
    channels, of all elements, each counted as ten times the median at most. NaN and infinities do
    not count.
    """
    axis = channel_axis(expected.shape)
    sizes = np.where(np.isfinite(expected), np.abs(np.asarray(expected, np.float64)), 0.0)
    if axis is None:
        return np.array(_size(sizes[sizes > 0]))
    found = np.array([_rms(row) for row in channels(sizes, axis)])
    shape = [1] * expected.ndim
    shape[axis] = -1
    result: Array = np.maximum(found, np.median(found)).reshape(shape)
    return result


def _size(sizes: Array) -> float:
    return _rms(np.minimum(sizes, 10 * np.median(sizes))) if sizes.size else 0.0


def _rms(sizes: Array) -> float:
    """Return the root mean square, which is not above the largest even if a square overflows."""
    with np.errstate(over="ignore"):
        return min(float(np.sqrt(np.mean(sizes**2))), float(sizes.max())) if sizes.size else 0.0
