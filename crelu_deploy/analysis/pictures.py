"""Pictures from files, by Pillow."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from crelu_deploy.errors import BackendUnavailable, UnsupportedModel

MODES = {1: "L", 3: "RGB"}
"""Channels -> what Pillow calls such a picture."""


def read(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Return a picture as ``(1, C, H, W)`` float32 in 0..1, cropped and resized to ``shape``.

    Raises:
        UnsupportedModel: the file is no picture, or C is neither 1 nor 3.
    """
    _, channels, height, width = shape
    if channels not in MODES:
        raise UnsupportedModel(
            f"{path}: the network reads {channels} channels, pictures have 1 or 3"
        )
    try:
        with Image.open(path) as opened:
            picture = ImageOps.fit(opened.convert(MODES[channels]), (width, height))
    except (OSError, UnidentifiedImageError) as error:
        raise UnsupportedModel(f"{path}: cannot be read as a picture ({error})") from error
    array = np.asarray(picture, np.float32).reshape(height, width, channels) / 255
    return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()


def photo(name: str) -> Path:
    """Return the file of one of scikit-learn's photos, without importing scikit-learn.

    Raises:
        BackendUnavailable: scikit-learn is not installed, or has no photo of that name.
    """
    spec = importlib.util.find_spec("sklearn")
    folders = [Path(p) for p in spec.submodule_search_locations or ()] if spec else []
    for folder in folders:
        path = folder / "datasets" / "images" / f"{name}.jpg"
        if path.is_file():
            return path
    raise BackendUnavailable(
        f"scikit-learn's photo {name!r} is not here; it ships china and flower; give a picture "
        "of your own, or run: pip install --no-deps scikit-learn"
    )
