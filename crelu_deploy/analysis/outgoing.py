"""Does the next layer use both halves of a CReLU? Correlation of what reads them.

Shang et al. (2016), table 6: the weights that read ``relu(x_i)`` are compared with those that read
``relu(-x_i)``, and with those that read the negative half of another channel. A pair with
correlation 1 would make the CReLU an absolute value, one with -1 would make it linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outgoing:
    """Correlations of the weights that read the two halves of a CReLU of K channels.

    A channel with a half that is read with constant weights (dead ones, for example) has no
    correlation and is left out.

    Attributes:
        pairs: ``(K,)``: both halves of one channel, float64 in -1..1.
        others: Positive half of one channel, negative half of another: at most ``K * (K - 1)``.
    """

    pairs: Tensor
    others: Tensor


def correlate(weight: Tensor) -> Outgoing:
    """Compare the outgoing weights of the halves.

    Args:
        weight: ``(O, 2K, T)`` of the layer that reads the CReLU, positive halves first. At least
            two weights, ``O * T``, must read a channel.

    Raises:
        ValueError: the number of channels is odd, or one weight reads a channel.
    """
    outputs, channels, taps = weight.shape
    if channels % 2 or outputs * taps < 2:
        raise ValueError(f"expected (O, 2K, T) with O*T of 2 or more, got {tuple(weight.shape)}")
    columns = weight.detach().double().movedim(1, 0).flatten(1)
    columns = columns - columns.mean(dim=1, keepdim=True)
    norms = columns.norm(dim=1, keepdim=True)
    positive, negative = (columns / norms).chunk(2)
    alive = (norms > 0).chunk(2)
    cosines = (positive @ negative.T).clamp(-1, 1)
    known = alive[0] & alive[1].T
    same = torch.eye(len(cosines), dtype=torch.bool)
    return Outgoing(cosines[same & known], cosines[~same & known])
