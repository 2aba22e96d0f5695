"""Feed-forward networks as tables: a tuple of layers, and a row of widths with activations.

A row such as ``"96c 96c 192 n"`` gives each convolution or linear layer, in order, its number of
filters and what follows it: ``c`` CReLU (which doubles the channels that the next layer reads),
``a`` the absolute value, ``-`` nothing, no mark ReLU. ``n`` is the number of classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crelu_deploy.nn import CReLU


class Abs(nn.Module):
    """Absolute value rectification, ``relu(x) + relu(-x)``: keeps the modulus, drops the sign."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``abs(x)``."""
        return torch.abs(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"c": CReLU, "a": Abs, "-": nn.Identity, "": nn.ReLU}


@dataclass(frozen=True)
class Conv:
    """A square 2-d convolution with a bias; ``bn`` puts batch normalisation (eps 1e-3) after it."""

    kernel: int
    stride: int = 1
    padding: int = 0
    bn: bool = False


@dataclass(frozen=True)
class Linear:
    """A fully connected layer with a bias; ``bn`` as in ``Conv``."""

    bn: bool = False


@dataclass(frozen=True)
class MaxPool:
    """A max pool without padding; a last, partial window counts (``ceil_mode``), as in Caffe."""

    kernel: int
    stride: int


@dataclass(frozen=True)
class Dropout:
    """Zero each element with this probability while training."""

    p: float


@dataclass(frozen=True)
class Average:
    """The mean over height and width, of whatever size: ``(N, C, H, W)`` becomes ``(N, C)``."""


@dataclass(frozen=True)
class Flatten:
    """``(N, C, H, W)`` becomes ``(N, C*H*W)``; the tables use it on 1x1 maps only."""


Layer = Conv | Linear | MaxPool | Dropout | Average | Flatten
Named = Iterator[tuple[str, nn.Module]]


def build_sequential(
    layers: tuple[Layer, ...], widths: str, in_channels: int, num_classes: int
) -> nn.Sequential:
    """Build the network of a table.

    Args:
        layers: the layers in order.
        widths: one entry per ``Conv`` and ``Linear``, as described in the module's docstring.
        in_channels: channels of the input ``(N, C, H, W)``.
        num_classes: what ``n`` stands for in ``widths``.

    Returns:
        A ``Sequential`` with the names ``conv1, bn1, act1, pool1, drop1, ...``, each counted from
        1; batch norms and activations carry the number of their convolution or linear layer, and
        these two are counted as one series (``conv13`` may be followed by ``fc14``).
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    entries, channels, unit = iter(widths.split()), in_channels, 0
    for layer in layers:
        if isinstance(layer, Conv | Linear):
            unit += 1
            width, mark = _parse(next(entries), num_classes)
            modules.update(_unit(layer, unit, channels, width, mark))
            channels = 2 * width if mark == "c" else width
        else:
            kind = type(layer).__name__.lower()
            count = 1 + sum(name.startswith(kind) for name in modules)
            modules[f"{kind}{count}"] = _plain(layer)
    return nn.Sequential(modules)


def _parse(entry: str, num_classes: int) -> tuple[int, str]:
    width = entry.rstrip("ca-")
    return num_classes if width == "n" else int(width), entry[len(width) :]


def _unit(layer: Conv | Linear, number: int, channels: int, width: int, mark: str) -> Named:
    if isinstance(layer, Conv):
        yield (
            f"conv{number}",
            nn.Conv2d(channels, width, layer.kernel, layer.stride, layer.padding),
        )
    else:
        yield f"fc{number}", nn.Linear(channels, width)
    if layer.bn:
        norm = nn.BatchNorm2d if isinstance(layer, Conv) else nn.BatchNorm1d
        yield f"bn{number}", norm(width, eps=1e-3)
    if mark != "-":
        yield f"act{number}", ACTIVATIONS[mark]()


def _plain(layer: MaxPool | Dropout | Average | Flatten) -> nn.Module:
    match layer:
        case MaxPool(kernel, stride):
            return nn.MaxPool2d(kernel, stride, ceil_mode=True)
        case Dropout(p):
            return nn.Dropout(p)
        case Average():
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        case Flatten():
            return nn.Flatten()
