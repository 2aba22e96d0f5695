"""The order of the channels in a doubled tensor.

Of ``concat(x, -x)`` with d channels in x, channel ``i < d`` is ``x[i]`` and ``d + i`` is ``-x[i]``.
An order is an int64 array of length 2d that says which of these is at each position.
"""

from __future__ import annotations

import numpy as np

from crelu_deploy.op import Array


def natural(channels: int) -> Array:
    """Return the order of ``concat(x, -x)`` itself."""
    return np.arange(2 * channels)


def grouped(channels: int, groups: int) -> Array:
    """Return the order in which each group's channels are followed by their negations."""
    return natural(channels).reshape(2, groups, -1).swapaxes(0, 1).ravel()


def is_within_groups(order: Array, channels: int, groups: int) -> bool:
    """Whether each position holds a channel of the group that a grouped operator computes there."""
    group = order % channels // (channels // groups)
    return bool((group == np.repeat(np.arange(groups), 2 * channels // groups)).all())


def negated(order: Array) -> Array:
    """Return the order in terms of -x of what has this order in terms of x."""
    return (order + len(order) // 2) % len(order)


def widened(order: Array, extent: int) -> Array:
    """Return the order after each channel has been flattened with others of its own elements."""
    block = 2 * extent // len(order)
    return (order[:, None] * block + np.arange(block)).ravel()


def positions(order: Array, wanted: Array) -> Array:
    """Return where in a tensor of this order the wanted channels are, for a Gather."""
    return np.asarray(np.argsort(order)[wanted])


def doubled(array: Array, order: Array, axis: int, *, signed: bool) -> Array:
    """Return the per-channel values for a doubled tensor: ``[a; a]`` or, signed, ``[a; -a]``.

    ``axis`` is counted from the end. An array with one value for all channels stays as it is
    where the sign does not change.
    """
    channels = len(order) // 2
    array = array.reshape((1,) * max(0, -axis - array.ndim) + array.shape)
    if array.shape[axis] == 1 and channels != 1:
        if not signed:
            return array
        array = array.repeat(channels, axis)
    rows = np.moveaxis(array.take(order % channels, axis), axis, 0)
    if signed:
        rows[order >= channels] *= -1
    return np.moveaxis(rows, 0, axis)
