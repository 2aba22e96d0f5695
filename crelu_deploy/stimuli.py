"""Inputs that are made: pictures where a network reads pixels, noise elsewhere, by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from crelu_deploy.op import Array
from crelu_deploy.preprocessing import MODES, Preprocessing
from crelu_deploy.runner import TensorSpec

COARSEST = 64
"""Pixels along the largest patch of a made picture."""

GAINS = (1, 5, 25)
"""Sizes of noise that a search starts from where nobody said what the network reads."""


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


def varied_inputs(
    specs: Sequence[TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
    generator: np.random.Generator,
) -> Iterator[dict[str, Array]]:
    """Yield calls of every kind, where nobody said what the network reads.

    Noise of each of ``GAINS``, the largest first, then where an input may be an image, pictures as
    they are, around zero, and both in the size of noise. Integers are from the whole range of their
    type, from 0 to 255 and from 0 to 1, single bytes from their whole range always.
    """
    for number, gain in reversed(list(enumerate(GAINS))):
        yield {s.name: _noise(s, shapes[s.name], gain, number, generator) for s in specs}
    if any(_may_be_picture(spec, shapes[spec.name]) for spec in specs):
        for middle, scale in READINGS:
            yield {s.name: _read(s, shapes[s.name], middle, scale, generator) for s in specs}


READINGS = ((0.0, 1.0), (127.5, 1.0), (0.0, 255.0), (127.5, 64.0))
"""Ways to read pixels that are common: what is subtracted, and what that is divided by."""


def _noise(
    spec: TensorSpec, shape: tuple[int, ...], gain: int, number: int, generator: np.random.Generator
) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        whole = dtype.itemsize == 1 or number == 2
        low, high = (info.min, info.max) if whole else (0, (1, 255)[number])
        return generator.integers(low, high, shape, dtype, endpoint=True)
    return (gain * generator.standard_normal(shape, np.float32)).astype(dtype)


def _may_be_picture(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    dtype = np.dtype(spec.dtype)
    return len(shape) == 4 and (dtype.kind == "f" or dtype == np.uint8)


def _read(
    spec: TensorSpec,
    shape: tuple[int, ...],
    middle: float,
    scale: float,
    generator: np.random.Generator,
) -> Array:
    """Return pictures; channels are last where they are few there and not on axis 1."""
    if not _may_be_picture(spec, shape):
        return _noise(spec, shape, 1, 0, generator)
    if shape[3] in MODES and shape[1] not in MODES:
        channels_first = (shape[0], shape[3], *shape[1:3])
        pixels = np.moveaxis(pictures(channels_first, generator), 1, 3)
    else:
        pixels = pictures(shape, generator)
    if spec.dtype == "uint8":
        return pixels.astype(np.uint8)
    return ((pixels - np.float32(middle)) / np.float32(scale)).astype(spec.dtype)
