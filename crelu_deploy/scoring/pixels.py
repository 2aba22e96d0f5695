"""Encoded images become inputs."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from crelu_deploy.preprocessing import MODES, Preprocessing
from crelu_deploy.runner import TensorSpec
from crelu_deploy.scoring.inputs import Array

EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
"""Modes with at most 8 bits a channel: of others, Pillow would cut the values off."""


def decode(content: bytes, spec: TensorSpec, how: Preprocessing) -> Array:
    """Return one row of an input, shape (C, H, W), in its element type; nothing is resized.

    An integer input takes the pixels as they are. Float arithmetic is in float32.

    Raises:
        ValueError: No image that Pillow can decode, one with more than 8 bits a channel, or an
            input that ``check`` refuses.
    """
    how.check(spec)
    pixels = _pixels(content, MODES[int(spec.shape[1])])
    dtype = np.dtype(spec.dtype)
    if how.bgr:
        pixels = pixels[:, :, ::-1]
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    if dtype.kind != "f":
        return planes.astype(dtype)
    mean, scale = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (how.mean, how.scale))
    values = planes.astype(np.float32)
    values -= mean  # in place: new memory would cost as much as the arithmetic
    values /= scale
    return values.astype(dtype, copy=False)


def _pixels(content: bytes, mode: str) -> Array:
    """Return (H, W, C) uint8."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Its doubts about a file's metadata are no errors.
            with Image.open(io.BytesIO(content)) as image:
                if image.mode not in EIGHT_BIT:
                    raise ValueError(f"mode {image.mode}: more than 8 bits a channel")
                pixels = np.asarray(image.convert(mode))
    except UnidentifiedImageError as error:
        raise ValueError("no image of a format that Pillow knows") from error
    except ValueError:
        raise
    except Exception as error:  # A damaged image makes Pillow's decoders raise almost anything.
        raise ValueError(f"no image that can be decoded: {str(error)[:200]}") from error
    return pixels.reshape(*pixels.shape[:2], -1)
