"""What a network reads in place of pixels: ``(pixel - mean) / scale``, channel first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from crelu_deploy.runner import TensorSpec

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Channels of an image to Pillow's name of them."""


class Changes(TypedDict, total=False):
    """Fields of ``Preprocessing`` that the user states; those left out stay as they are known."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    bgr: bool


@dataclass(frozen=True)
class Preprocessing:
    """What is done with the pixels, which are 0 to 255, of the network's channels in order.

    Attributes:
        mean: Subtracted first: one number, or one per channel.
        scale: Divided by then: one number, or one per channel. None is zero.
        bgr: Blue first; red first otherwise.

    Raises:
        ValueError: There are no numbers or more than channels, one is not finite, or pixels would
            be divided by 0.
    """

    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (255.0,)
    bgr: bool = False

    def __post_init__(self) -> None:
        for name, numbers in (("mean", self.mean), ("scale", self.scale)):
            if not 1 <= len(numbers) <= max(MODES) or not all(map(math.isfinite, numbers)):
                shown = numbers[: max(MODES) + 1]
                raise ValueError(
                    f"{name} {shown}: expected a finite number, or one for each of at most "
                    f"{max(MODES)} channels"
                )
        if 0 in self.scale:
            raise ValueError(f"scale {self.scale}: pixels cannot be divided by 0")

    @classmethod
    def parse(cls, entry: Any) -> Preprocessing:
        """Read what ``dataclasses.asdict`` wrote, from a file that may come from anyone.

        Raises:
            ValueError: It is something else.
        """
        try:
            mean, scale = (tuple(map(float, entry[name])) for name in ("mean", "scale"))
            bgr = entry["bgr"]
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise ValueError("its preprocessing has no mean, scale and bgr") from error
        if not isinstance(bgr, bool):
            raise ValueError("its preprocessing's bgr is neither true nor false")
        return cls(mean, scale, bgr)

    def __str__(self) -> str:
        mean, scale = (",".join(f"{x:g}" for x in numbers) for numbers in (self.mean, self.scale))
        return f"(pixel - {mean}) / {scale}{', blue first' * self.bgr}"

    def check(self, spec: TensorSpec) -> None:
        """Refuse an input that no image can be made into.

        Raises:
            ValueError: The input is no batch of images with 1, 3 or 4 channels first, or there are
                more or fewer numbers than channels, or the element type does not hold 0 to 255.
        """
        channels = spec.shape[1] if len(spec.shape) == 4 else None
        if channels not in MODES:
            raise ValueError(
                f"input {spec}: images go to inputs (N, C, H, W) with {list(MODES)} channels; "
                "give arrays instead"
            )
        if not np.can_cast(np.uint8, spec.dtype):
            raise ValueError(f"input {spec}: its type does not hold 0 to 255; give arrays instead")
        if self.bgr and channels != 3:
            raise ValueError(f"--bgr: input {spec} has {channels} channels, not 3")
        for name, numbers in (("mean", self.mean), ("scale", self.scale)):
            if len(numbers) not in (1, channels):
                raise ValueError(f"--{name}: {len(numbers)} numbers for {channels} channels")


def image_input(inputs: Sequence[TensorSpec]) -> TensorSpec:
    """Return the one input of a network that reads images.

    Raises:
        ValueError: It has several.
    """
    if len(inputs) != 1:
        raise ValueError(
            f"an image is one input, the network has {len(inputs)}; give .npz or Parquet"
        )
    return inputs[0]


def read_numbers(text: str) -> tuple[float, ...]:
    """Read ``104,117,123``.

    Raises:
        ValueError: No finite numbers with commas between them.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{text!r}: expected a number, or one per channel such as 104,117,123")
    return numbers


def read_divisors(text: str) -> tuple[float, ...]:
    """Read numbers of which none is 0.

    Raises:
        ValueError: One is 0, or they are no numbers.
    """
    numbers = read_numbers(text)
    if 0 in numbers:
        raise ValueError(f"{text!r}: pixels cannot be divided by 0")
    return numbers
