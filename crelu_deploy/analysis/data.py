"""What the analyses look at: pictures and arrays from files, or noise."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crelu_deploy.errors import BackendUnavailable, UnsupportedModel

PHOTO = "photo:"
"""Before the name of a photo that scikit-learn ships: ``photo:china`` or ``photo:flower``."""


def load_images(source: str, shape: tuple[int, ...]) -> Tensor:
    """Return images ``(N, C, H, W)`` float32 for a network with inputs of a shape.

    Args:
        source: an NPZ file with an array ``input``, a picture file, or ``photo:NAME``. Pictures are
            cropped about the centre to the shape's proportions, resized, and scaled to 0..1; where
            the network reads one channel they are made grey.
        shape: of an input, ``(1, C, H, W)``.

    Raises:
        UnsupportedModel: the file cannot be read, or holds arrays of another shape.
        BackendUnavailable: a package for pictures is missing.
    """
    path = Path(source)
    images = _array(path) if path.suffix.lower() == ".npz" else _picture(source, shape)
    if images.shape[1:] != shape[1:] or not len(images):
        raise UnsupportedModel(
            f"{source}: images have shape {_times(images.shape)}, the network reads {_times(shape)}"
        )
    return images


def noise(count: int, shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    """Return ``count`` Gaussian images of a shape."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape[1:], generator=rng)


def _array(path: Path) -> Tensor:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return torch.from_numpy(arrays["input"]).float()
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UnsupportedModel(f"{path}: no NPZ file with an array 'input' ({error})") from error


def _picture(source: str, shape: tuple[int, ...]) -> Tensor:
    try:
        from crelu_deploy.analysis import pictures
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"{source}: reading pictures needs {error.name}, which is not installed; "
            "run: pip install 'crelu-deploy[analysis]'"
        ) from error
    if source.startswith(PHOTO):
        return pictures.read(pictures.photo(source.removeprefix(PHOTO)), shape)
    return pictures.read(Path(source), shape)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
