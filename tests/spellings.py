"""How networks write CReLU in PyTorch, and what only looks like it.

Each entry makes a module for a number of channels C; the module maps (N, C, ...) to (N, 2C, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 4


class Written(nn.Module):
    """A plain expression in x."""

    def __init__(self, expression: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.expression = expression

    def forward(self, x: Tensor) -> Tensor:
        return self.expression(x)


class Scaled(nn.Module):
    """PVANet: a learned scale and shift, different per half, between concat and activation."""

    def __init__(self, channels: int, *, negative_first: bool = False, flat: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        shape = (2 * channels, 1, 1) if flat else (1, 2 * channels, 1, 1)
        self.scale = nn.Parameter(0.5 + torch.rand(shape, generator=generator))
        self.shift = nn.Parameter(torch.randn(shape, generator=generator))
        self.negative_first = negative_first

    def forward(self, x: Tensor) -> Tensor:
        halves = (-x, x) if self.negative_first else (x, -x)
        return F.relu(torch.cat(halves, 1) * self.scale + self.shift)


class ScaledHalves(nn.Module):
    """A learned scale and shift for each half, before the concat."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(8)
        shape = (1, channels, 1, 1)
        self.scales = nn.Parameter(0.5 + torch.rand((2, *shape), generator=generator))
        self.shifts = nn.Parameter(torch.randn((2, *shape), generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        positive = F.relu(x * self.scales[0] + self.shifts[0])
        negative = F.relu(-x * self.scales[1] + self.shifts[1])
        return torch.cat((positive, negative), 1)


class Normed(nn.Module):
    """A norm over the joined channels, then an activation."""

    def __init__(self, norm: nn.Module, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.activation = norm, activation
        generator = torch.Generator().manual_seed(9)
        for tensor in (*norm.parameters(), *norm.buffers()):
            if tensor.is_floating_point():
                tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(torch.cat((x, -x), 1)))


class BeforeHalves(nn.Module):
    """A batch norm that the exporter does not fold, called once for each half."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.norm.running_var.data.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        return torch.cat((F.relu(self.norm(x)), F.relu(-self.norm(x))), 1)


class Slopes(nn.Module):
    """A PReLU on the joined channels."""

    def __init__(self, slopes: int) -> None:
        super().__init__()
        self.act = nn.PReLU(slopes)
        self.act.weight.data = torch.linspace(0.1, 0.3, slopes)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(torch.cat((x, -x), 1))


@dataclass(frozen=True)
class Spelling:
    """A way to write CReLU.

    Attributes:
        module: The module for a number of channels.
        activation: The activation's name in ``ACTIVATIONS``.
        affine: Whether a scale and shift lie before the activation.
    """

    module: Callable[[int], nn.Module]
    activation: str = "relu"
    affine: bool = False


def _plain(expression: Callable[[Tensor], Tensor], activation: str = "relu") -> Spelling:
    return Spelling(lambda channels: Written(expression), activation)


def _cat(*parts: Tensor) -> Tensor:
    return torch.cat(parts, 1)


def _leaky_by_max(x: Tensor) -> Tensor:
    return torch.maximum(x, 0.25 * x)


def _elu_by_where(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.exp(torch.clamp(x, max=0)) - 1)


def _above(x: Tensor, threshold: float) -> Tensor:
    return torch.where(x > threshold, x, 0.0)


_SHARED = nn.ReLU()
_INPLACE = nn.ReLU(inplace=True)

SPELLINGS: dict[str, Spelling] = {
    "relu of halves": _plain(lambda x: _cat(F.relu(x), F.relu(-x))),
    "relu of cat": _plain(lambda x: F.relu(_cat(x, -x))),
    "relu in place": _plain(lambda x: _INPLACE(_cat(x, -x))),
    "shared module": _plain(lambda x: _cat(_SHARED(x), _SHARED(-x))),
    "torch.neg": _plain(lambda x: _cat(x, torch.neg(x)).relu()),
    "times -1": _plain(lambda x: _cat(F.relu(x), F.relu(x * -1))),
    "-1.0 times": _plain(lambda x: F.relu(_cat(x, -1.0 * x))),
    "divided by -1": _plain(lambda x: F.relu(_cat(x, x / -1))),
    "zero minus": _plain(lambda x: F.relu(_cat(x, 0 - x))),
    "zeros minus": _plain(lambda x: F.relu(_cat(x, torch.zeros_like(x) - x))),
    "times -ones": _plain(lambda x: F.relu(_cat(x, x * -torch.ones_like(x)))),
    "negative first": _plain(lambda x: F.relu(_cat(-x, x))),
    "negative first, halves": _plain(lambda x: _cat(F.relu(-x), F.relu(x))),
    "last axis counted back": _plain(lambda x: F.relu(torch.cat((x, -x), 1 - x.dim()))),
    "clamp min": _plain(lambda x: _cat(x.clamp(min=0), (-x).clamp(min=0))),
    "clamp_min": _plain(lambda x: _cat(x, -x).clamp_min(0.0)),
    "negated clamp max": _plain(lambda x: _cat(x.clamp(min=0), -x.clamp(max=0))),
    "maximum zero": _plain(
        lambda x: _cat(torch.maximum(x, torch.tensor(0.0)), torch.maximum(-x, torch.tensor(0.0)))
    ),
    "maximum zeros": _plain(lambda x: torch.maximum(_cat(x, -x), torch.zeros_like(_cat(x, -x)))),
    "negated minimum": _plain(lambda x: _cat(F.relu(x), -torch.minimum(x, torch.zeros_like(x)))),
    "where": _plain(lambda x: _cat(torch.where(x > 0, x, 0.0), torch.where(x < 0, -x, 0.0))),
    "where of cat": _plain(lambda x: (lambda z: torch.where(z >= 0, z, 0.0 * z))(_cat(x, -x))),
    "threshold": _plain(lambda x: F.threshold(_cat(x, -x), 0.0, 0.0)),
    "masked": _plain(lambda x: _cat(x * (x > 0), -x * (x < 0))),
    "half of sum": _plain(lambda x: _cat((x.abs() + x) / 2, (x.abs() - x) / 2)),
    "relu minus x": _plain(lambda x: _cat(F.relu(x), F.relu(x) - x)),
    "masked fill": _plain(lambda x: (lambda z: z.masked_fill(z < 0, 0.0))(_cat(x, -x))),
    "hardtanh": _plain(lambda x: F.hardtanh(_cat(x, -x), 0.0, 6.0), "clip"),
    "relu6 of cat": _plain(lambda x: F.relu6(_cat(x, -x)), "clip"),
    "relu6 of halves": _plain(lambda x: _cat(F.relu6(x), F.relu6(-x)), "clip"),
    "clamp to six": _plain(lambda x: _cat(x.clamp(0, 6), (-x).clamp(0, 6)), "clip"),
    "relu then minimum": _plain(
        lambda x: torch.minimum(F.relu(_cat(x, -x)), torch.tensor(6.0)), "clip"
    ),
    "leaky of halves": _plain(lambda x: _cat(F.leaky_relu(x), F.leaky_relu(-x)), "leaky_relu"),
    "leaky of cat": _plain(lambda x: F.leaky_relu(_cat(x, -x), 0.2), "leaky_relu"),
    "leaky by max": _plain(lambda x: _cat(_leaky_by_max(x), _leaky_by_max(-x)), "leaky_relu"),
    "leaky by max of cat": _plain(lambda x: _leaky_by_max(_cat(x, -x)), "leaky_relu"),
    "leaky by where": _plain(
        lambda x: (lambda z: torch.where(z > 0, z, 0.125 * z))(_cat(x, -x)), "leaky_relu"
    ),
    "prelu with one slope": Spelling(lambda channels: Slopes(1), "leaky_relu"),
    "elu of halves": _plain(lambda x: _cat(F.elu(x), F.elu(-x)), "elu"),
    "elu of cat": _plain(lambda x: F.elu(_cat(x, -x), 0.5), "elu"),
    "elu by where": _plain(lambda x: _cat(_elu_by_where(x), _elu_by_where(-x)), "elu"),
    "celu": _plain(lambda x: F.celu(_cat(x, -x)), "elu"),
    "selu": _plain(lambda x: F.selu(_cat(x, -x)), "selu"),
    "softplus": _plain(lambda x: _cat(F.softplus(x), F.softplus(-x)), "softplus"),
    "sigmoid": _plain(lambda x: torch.sigmoid(_cat(x, -x)), "sigmoid"),
    "tanh": _plain(lambda x: _cat(torch.tanh(x), torch.tanh(-x)), "tanh"),
    "softsign": _plain(lambda x: F.softsign(_cat(x, -x)), "softsign"),
    "dropout between": _plain(lambda x: F.relu(F.dropout(_cat(x, -x), 0.5, training=False))),
    "interleaved": _plain(lambda x: F.relu(torch.stack((x, -x), 2).flatten(1, 2))),
    "interleaved halves": _plain(lambda x: torch.stack((F.relu(x), F.relu(-x)), 2).flatten(1, 2)),
    "stacked": _plain(lambda x: F.relu(torch.stack((x, -x), 1)).flatten(1, 2)),
    "scale and shift": Spelling(Scaled, affine=True),
    "scale and shift, negative first": Spelling(
        lambda channels: Scaled(channels, negative_first=True), affine=True
    ),
    "scale and shift of rank 3": Spelling(
        lambda channels: Scaled(channels, flat=True), affine=True
    ),
    "scale and shift of halves": Spelling(ScaledHalves, affine=True),
    "batch norm between": Spelling(
        lambda channels: Normed(nn.BatchNorm2d(2 * channels), F.relu), affine=True
    ),
    "batch norm between, leaky": Spelling(
        lambda channels: Normed(nn.BatchNorm2d(2 * channels), nn.LeakyReLU(0.1)),
        "leaky_relu",
        affine=True,
    ),
    "batch norm called twice": Spelling(BeforeHalves),
    "same offset in both halves": Spelling(
        lambda channels: Written(lambda x: _cat(F.relu(x + 0.5), F.relu(0.5 - x))), affine=True
    ),
    "same gain in both halves": Spelling(
        lambda channels: Written(lambda x: _cat(0.5 * F.relu(x), 0.5 * F.relu(-x))), affine=True
    ),
}


OPAQUE: dict[str, Callable[[int], nn.Module]] = {
    "instance norm between": lambda channels: Normed(
        nn.InstanceNorm2d(2 * channels, affine=True), nn.LeakyReLU(0.1)
    ),
}
"""Sites that no canonical node expresses: reported, and left as they are."""


class Twice(nn.Module):
    """Two producers, each with CReLU on an axis behind it, in both common spellings."""

    def __init__(self, first: nn.Module, second: nn.Module, axis: int = 1) -> None:
        super().__init__()
        self.first, self.second, self.axis = first, second, axis

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = self.second(F.relu(torch.cat((y, -y), self.axis)))
        return torch.cat((F.relu(y), F.relu(-y)), self.axis)


class Last(nn.Module):
    """A module for channels in front, between transposes from and to channels last."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _linears() -> tuple[nn.Module, nn.Module]:
    return nn.Linear(5, CHANNELS), nn.Linear(2 * CHANNELS, 3)


PRODUCERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "conv1d": lambda: (Twice(nn.Conv1d(3, 4, 3), nn.Conv1d(8, 4, 2)), torch.randn(2, 3, 9)),
    "conv2d": lambda: (Twice(nn.Conv2d(3, 4, 3), nn.Conv2d(8, 4, 2)), torch.randn(2, 3, 7, 6)),
    "conv3d": lambda: (Twice(nn.Conv3d(3, 4, 2), nn.Conv3d(8, 4, 2)), torch.randn(1, 3, 4, 4, 5)),
    "transposed": lambda: (
        Twice(nn.ConvTranspose2d(3, 4, 3), nn.ConvTranspose2d(8, 6, 2, groups=2)),
        torch.randn(2, 3, 4, 4),
    ),
    "channels last": lambda: (
        Twice(Last(nn.Conv2d(3, 4, 3)), Last(nn.Conv2d(8, 4, 2)), axis=-1),
        torch.randn(2, 7, 6, 3),
    ),
    "linear": lambda: (Twice(*_linears()), torch.randn(2, 5)),
    "linear, last axis": lambda: (Twice(*_linears(), axis=-1), torch.randn(2, 5)),
    "linear on sequences": lambda: (Twice(*_linears(), axis=-1), torch.randn(2, 7, 5)),
    "linear on sequences, axis 2": lambda: (Twice(*_linears(), axis=2), torch.randn(2, 7, 5)),
    "no producer": lambda: (Twice(nn.Tanh(), nn.BatchNorm2d(6)), torch.randn(2, 3, 4, 4)),
}
"""Networks with two sites behind what computes channels, and an input for each."""


LOOKALIKES: dict[str, Callable[[Tensor], Tensor]] = {
    "NCReLU": lambda x: _cat(F.relu(x), -F.relu(-x)),
    "clamps": lambda x: _cat(x.clamp(min=0), x.clamp(max=0)),
    "height axis": lambda x: torch.cat((F.relu(x), F.relu(-x)), 2),
    "width axis": lambda x: F.relu(torch.cat((x, -x), 3)),
    "width axis counted back": lambda x: F.relu(torch.cat((x, -x), -1)),
    "batch axis": lambda x: F.relu(torch.cat((x, -x), 0)),
    "softmax": lambda x: torch.softmax(_cat(x, -x), 1),
    "layer norm": lambda x: F.relu(F.layer_norm(_cat(x, -x), (6,))),
    "group norm": lambda x: F.relu(F.group_norm(_cat(x, -x), 2)),
    "no activation": lambda x: _cat(x, -x),
    "different slopes": lambda x: _cat(F.leaky_relu(x, 0.01), F.leaky_relu(-x, 0.2)),
    "relu and leaky": lambda x: _cat(F.relu(x), F.leaky_relu(-x, 0.2)),
    "relu and elu": lambda x: _cat(F.relu(x), F.elu(-x)),
    "negative half times two": lambda x: _cat(F.relu(x), F.relu(-2 * x)),
    "negative half times half, cat first": lambda x: F.relu(_cat(x, -0.5 * x)),
    "negative half nearly -1": lambda x: F.relu(_cat(x, -0.9999 * x)),
    "positive half times two": lambda x: _cat(F.relu(2 * x), F.relu(-x)),
    "negative half scaled after": lambda x: _cat(F.relu(x), 0.5 * F.relu(-x)),
    "negative half shifted": lambda x: _cat(F.relu(x), F.relu(-x + 1)),
    "both positive": lambda x: _cat(F.relu(x), F.relu(x)),
    "both negative": lambda x: _cat(F.relu(-x), F.relu(-x)),
    "x beside relu": lambda x: _cat(x, F.relu(x)),
    "three parts": lambda x: _cat(F.relu(x), F.relu(-x), x),
    "three parts, relu after": lambda x: F.relu(_cat(x, -x, x)),
    "sum is abs": lambda x: F.relu(x) + F.relu(-x),
    "abs twice": lambda x: torch.abs(_cat(x, -x)),
    "squared": lambda x: _cat(F.relu(x) ** 2, F.relu(-x) ** 2),
    "threshold above zero": lambda x: _cat(
        torch.where(x > 0.1, x, 0.0), torch.where(-x > 0.1, -x, 0.0)
    ),
    "tiny threshold": lambda x: _above(_cat(x, -x), 1e-6),
    "different offsets": lambda x: _cat(F.relu(x - 0.1), F.relu(-x - 0.2)),
    "different tensors": lambda x: _cat(F.relu(x), F.relu(-x.flip(1))),
    "shifted pixels": lambda x: _cat(F.relu(x), F.relu(-x.roll(1, 3))),
    "scale by pixel": lambda x: F.relu(_cat(x, -x) * torch.linspace(0.5, 2, 6)),
    "softmax stacked": lambda x: torch.softmax(torch.stack((x, -x), 2).flatten(1, 2), 1),
    "stack mixed up": lambda x: F.relu(torch.stack((x, -x), 4).flatten(2, 3).flatten(3, 3)),
    "max pool of halves": lambda x: _cat(F.max_pool2d(x, 1), -F.avg_pool2d(x, 1)),
    "rounded to half": lambda x: F.relu(_cat(x, -x.half().float())),
}
"""Expressions in x of shape (N, C, H, W) that must stay as they are; (6,) is the last extent."""
