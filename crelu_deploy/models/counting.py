"""What a known architecture costs: parameters and multiply-adds, as it is and folded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from crelu_deploy.models.calls import Call, calls, follow
from crelu_deploy.models.zoo import build, find
from crelu_deploy.nn import CReLU


@dataclass(frozen=True)
class Cost:
    """Size and work of one network.

    Attributes:
        params: Parameters, batch norm's included.
        weights: The same without biases.
        params_folded: Parameters with batch norm folded away and each convolution or linear layer
            in front of a CReLU duplicated, which makes the CReLU a ReLU.
        macs: Multiply-adds of convolutions and linear layers, batch 1, at the example input.
        macs_folded: The same with those layers duplicated.
    """

    params: int
    weights: int
    params_folded: int
    macs: int
    macs_folded: int


def cost(name: str, *, num_classes: int | None = None) -> Cost:
    """Count an architecture without allocating it.

    Raises:
        CheckpointError: ``name`` is not known.
        ValueError: ``num_classes`` is below 1.
    """
    with torch.device("meta"):
        net = build(name, num_classes=num_classes).eval()
        x = torch.empty(find(name).input_shape)
    found = calls(net, x)
    units = [(i, c) for i, c in enumerate(found) if isinstance(c.module, nn.Conv2d | nn.Linear)]
    parameters = list(net.named_parameters())
    return Cost(
        params=sum(p.numel() for _, p in parameters),
        weights=sum(p.numel() for key, p in parameters if not key.endswith("bias")),
        params_folded=sum(_size(c.module) * _copies(found, i) for i, c in units),
        macs=sum(_macs(c) for _, c in units),
        macs_folded=sum(_macs(c) * _copies(found, i) for i, c in units),
    )


def _size(module: nn.Module) -> int:
    """Parameters once a batch norm behind it is folded in, which leaves it a bias."""
    weight = module.get_parameter("weight")
    return weight.numel() + weight.shape[0]


def _macs(call: Call) -> int:
    """One multiply-add per weight and output position."""
    positions = torch.Size(call.written[2:]).numel()
    return call.module.get_parameter("weight").numel() * positions


def _copies(found: tuple[Call, ...], index: int) -> int:
    """2 where a CReLU follows, with or without a batch norm between, else 1."""
    norm = follow(found, index, lambda m: isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d))
    last = index if norm is None else norm
    return 1 if follow(found, last, lambda m: isinstance(m, CReLU)) is None else 2
