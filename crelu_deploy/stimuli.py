"""Inputs that are made: pictures where a network reads pixels, noise elsewhere, by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crelu_deploy.preprocessing import MODES, Preprocessing
from crelu_deploy.runner import TensorSpec

Array = np.ndarray[Any, Any]

COARSEST = 64
"""Pixels along the largest patch of a made picture."""


def made_inputs(
    specs: Sequence[TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    how: Preprocessing | None = None,
) -> dict[str, Array]:
    """Return one call.

    Args:
        specs: The inputs.
        shapes: The shape of each.
        seed: Of everything random.
        how: How the network reads pixels: its one image is made of them then.

    Returns:
        By name: pictures, standard normal floats, bytes from 0 to 255, other integers from 0 to 1,
        booleans.
    """
    generator = np.random.default_rng(seed)
    result: dict[str, Array] = {}
    for spec in specs:
        shape, dtype = shapes[spec.name], np.dtype(spec.dtype)
        if dtype == np.uint8:
            result[spec.name] = generator.integers(0, 256, shape, np.uint8)
        elif dtype.kind in "iub":
            result[spec.name] = generator.integers(0, 2, shape).astype(dtype)
        elif how is not None and is_picture(shape, how):
            result[spec.name] = prepared(pictures(shape, generator), how).astype(dtype)
        else:
            result[spec.name] = generator.standard_normal(shape, np.float32).astype(dtype)
    return result


def is_picture(shape: Sequence[int], how: Preprocessing) -> bool:
    """Tell whether an input of this shape is a batch of images that are read so."""
    if len(shape) != 4 or shape[1] not in MODES:
        return False
    return all(len(numbers) in (1, shape[1]) for numbers in (how.mean, how.scale))


def prepared(pixels: Array, how: Preprocessing) -> Array:
    """Return what the network reads of pixels ``(N, C, H, W)``, in float32."""
    mean, scale = (
        np.asarray(numbers, np.float32)[:, None, None] for numbers in (how.mean, how.scale)
    )
    return (pixels.astype(np.float32) - mean) / scale


def pictures(shape: Sequence[int], generator: np.random.Generator) -> Array:
    """Return whole numbers from 0 to 255, of the statistics of photos: patches of every size.

    Each picture has a brightness and a contrast of its own for each channel, dark and bright ones
    among them, and uses the whole range of values.
    """
    rows, channels, height, width = shape
    total = np.zeros((rows, channels, height, width), np.float32)
    size = 1
    while size <= COARSEST and size <= 2 * max(height, width):
        patches = (rows, channels, -(-height // size) + 1, -(-width // size) + 1)
        coarse = generator.standard_normal(patches, np.float32)
        fine = coarse.repeat(size, 2).repeat(size, 3)
        top, left = generator.integers(0, size, 2)
        total += size**0.5 * fine[:, :, top : top + height, left : left + width]
        size *= 2
    total /= max(float(total.std()), 1e-6)
    contrast = generator.uniform(20, 120, (rows, channels, 1, 1)).astype(np.float32)
    brightness = generator.uniform(40, 215, (rows, channels, 1, 1)).astype(np.float32)
    result: Array = np.clip(np.rint(total * contrast + brightness), 0, 255)
    return result
