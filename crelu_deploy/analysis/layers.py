"""The convolutions of a network with what follows them and who reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.models.calls import Call, calls, follow, readers
from crelu_deploy.models.sequential import Abs
from crelu_deploy.nn import CReLU

ACTIVATIONS: dict[type[nn.Module], str] = {CReLU: "crelu", nn.ReLU: "relu", Abs: "abs"}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
TRANSPARENT = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten),
)
"""Modules whose output has its channels in the order of their input."""


@dataclass(frozen=True)
class Reader:
    """A layer that reads the output of another, perhaps through pools or dropout.

    Attributes:
        name: Its dotted name.
        weight: ``(O, C, T)``: outputs, channels read, taps of the filter (and, behind a flatten,
            positions of the map).
    """

    name: str
    weight: Tensor


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer.

    Attributes:
        name: Its dotted name.
        module: The layer.
        activation: ``crelu``, ``relu``, ``abs``, or ``""`` for any other or none.
        output: Dotted name of the last module of the layer: its activation, batch norm or itself.
        readers: Who reads it; grouped convolutions are left out.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    activation: str
    output: str
    readers: tuple[Reader, ...]


def find_layers(net: nn.Module, shape: tuple[int, ...]) -> tuple[Layer, ...]:
    """Return the convolutions and linear layers of ``net`` in the order in which they run.

    Args:
        net: a network in evaluation mode with one input.
        shape: of an input, ``(N, C, H, W)``.

    Raises:
        UnsupportedModel: it has none.
    """
    found = calls(net, torch.zeros(shape))
    layers = tuple(
        _layer(found, i, call.module)
        for i, call in enumerate(found)
        if isinstance(call.module, nn.Conv2d | nn.Linear)
    )
    if not layers:
        raise UnsupportedModel(
            f"{type(net).__name__} has no convolution or linear layer among its modules; "
            "the analyses need a network of modules, not an exported program"
        )
    return layers


def crelu_layers(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return the layers that end in a CReLU.

    Raises:
        UnsupportedModel: there are none.
    """
    found = tuple(layer for layer in layers if layer.activation == "crelu")
    if not found:
        raise UnsupportedModel(
            f"none of the {len(layers)} layers ends in a crelu_deploy.nn.CReLU module, "
            "which this analysis is about"
        )
    return found


def _layer(found: tuple[Call, ...], index: int, module: nn.Conv2d | nn.Linear) -> Layer:
    norm = follow(found, index, lambda m: isinstance(m, NORMS))
    last = index if norm is None else norm
    act = follow(found, last, lambda m: type(m) in ACTIVATIONS)
    activation = "" if act is None else ACTIVATIONS[type(found[act].module)]
    last = last if act is None else act
    channels = found[last].written[1]
    reading = tuple(_readers(found, last, channels))
    return Layer(found[index].name, module, activation, found[last].name, reading)


def _readers(found: tuple[Call, ...], index: int, channels: int) -> Iterator[Reader]:
    for i in readers(found, index):
        module = found[i].module
        if isinstance(module, TRANSPARENT):
            yield from _readers(found, i, channels)
        elif isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and module.groups == 1
        ):
            weight = module.weight.detach()
            yield Reader(found[i].name, weight.reshape(weight.shape[0], channels, -1))
