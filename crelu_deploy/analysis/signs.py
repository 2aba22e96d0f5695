"""What is lost where a layer reads both halves of a CReLU with weights of one sign.

A unit that reads ``w1 * relu(x) + w2 * relu(-x)`` is monotone in x, so that x is known from it,
where the signs of the weights differ. Where they agree it is a V: a value belongs to one positive
and one negative x. The information lost is the entropy of the sign of x given the value, 1 bit for
equal weights, less the more they differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

_SMALLEST = 1e-8
_RATIOS = torch.logspace(-8, 0, 801, dtype=torch.float64)
"""Where the loss is integrated; between these it is interpolated."""


@dataclass(frozen=True)
class Signs:
    """Signs and sizes of the weights that read the two halves of a CReLU of K channels.

    Attributes:
        same: Share of the pairs (output, channel, tap) whose two weights have one sign.
        zero: Share of the pairs with a weight of 0, whose half is not read there.
        bits: Mean loss over all pairs, in bits, for a standard Gaussian x.
        bits_same: Mean loss over the pairs of one sign; at most 1; NaN where there are none.
        dead: Halves that nothing reads: indices in 0..2K-1, negative halves from K. They can be
            pruned.
        proportional: Channels whose two halves are read with proportional weights (absolute cosine
            above the limit): one channel in place of two would do.
        norms: ``(2K,)``: size of the weights that read each half, of which small ones are the first
            to prune.
    """

    same: float
    zero: float
    bits: float
    bits_same: float
    dead: tuple[int, ...]
    proportional: tuple[int, ...]
    norms: Tensor


def compare_signs(weight: Tensor, *, cosine: float = 0.999) -> Signs:
    """Compare the weights that read the halves of a CReLU.

    Args:
        weight: ``(O, 2K, T)`` of the layer that reads the CReLU, positive halves first.
        cosine: from which absolute cosine on two halves count as proportional.

    Raises:
        ValueError: the number of channels is odd.
    """
    if weight.ndim != 3 or weight.shape[1] % 2:
        raise ValueError(f"expected (O, 2K, T), got {tuple(weight.shape)}")
    weight = weight.detach().double()
    norms = weight.movedim(1, 0).flatten(1).norm(dim=1)
    positive, negative = weight.chunk(2, dim=1)
    product = positive * negative
    same = product > 0
    bits = sign_loss(ratio(positive[same], negative[same]))
    inner = product.sum(dim=(0, 2)).abs()
    sizes = norms[: len(inner)] * norms[len(inner) :]
    return Signs(
        same=same.double().mean().item(),
        zero=(product == 0).double().mean().item(),
        bits=(bits.sum() / same.numel()).item(),
        bits_same=bits.mean().item(),
        dead=tuple(torch.nonzero(norms == 0).flatten().tolist()),
        proportional=tuple(
            torch.nonzero((inner >= cosine * sizes) & (sizes > 0)).flatten().tolist()
        ),
        norms=norms,
    )


def ratio(first: Tensor, second: Tensor) -> Tensor:
    """Return the smaller absolute value over the larger one, elementwise."""
    sizes = torch.stack((first.abs(), second.abs()))
    smaller, larger = sizes.min(dim=0).values, sizes.max(dim=0).values
    found: Tensor = smaller / larger
    return found


def sign_loss(ratios: Tensor) -> Tensor:
    """Return the entropy of the sign of x given ``y = |w1| relu(x) + |w2| relu(-x)``, in bits.

    Args:
        ratios: smaller weight over larger one, float64 in 0..1, of any shape.
    """
    table = _losses()
    ratios = ratios.clamp(_SMALLEST, 1)
    place = torch.searchsorted(_RATIOS, ratios).clamp(1, len(_RATIOS) - 1)
    low, high = _RATIOS[place - 1], _RATIOS[place]
    share = (ratios - low) / (high - low)
    return torch.lerp(table[place - 1], table[place], share)


@cache
def _losses() -> Tensor:
    """Return the loss at each of ``_RATIOS``, in bits.

    For weights 1 and r and a Gaussian x with density f, a value y has density ``f(y)`` from
    positive and ``f(y / r) / r`` from negative x; the entropy of that choice is averaged over y.
    The rule is the trapezoid's in log y, where the integrand is smooth and vanishes at both ends.
    """
    logs = torch.linspace(-40, 3, 2001, dtype=torch.float64)
    y = logs.exp()
    r = _RATIOS[:, None]
    first = _gauss(y).expand(len(r), -1)
    second = _gauss(y / r) / r
    both = first + second
    entropy = -(torch.xlogy(first, first / both) + torch.xlogy(second, second / both))
    bits = torch.nan_to_num(entropy) / torch.log(torch.tensor(2.0))
    return torch.trapezoid(bits * y, logs)


def _gauss(x: Tensor) -> Tensor:
    return (-0.5 * x * x).exp() / math.sqrt(math.tau)
