"""Do a layer's filters come in pairs of opposite phase? The observation that led to CReLU.

Shang et al. (2016), section 2.1: a filter's pairing filter is the one with the smallest cosine to
it. If filters formed opposite pairs these cosines would be near -1. Filters of few weights are
never far from some opposite one by chance alone, so every number stands beside that of Gaussian
filters of the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairing:
    """The pairing of one layer's filters.

    Attributes:
        cosines: Of each filter with its pairing filter, ``(K,)`` float64 in -1..1.
        baseline: The same of Gaussian filters, all draws, ``(draws * K,)``.
        zeros: Filters left out because all their weights are 0.
    """

    cosines: Tensor
    baseline: Tensor
    zeros: int

    @property
    def opposite(self) -> float:
        """Share of the filters whose cosine is below -0.5."""
        return (self.cosines < -0.5).double().mean().item()

    @property
    def distances(self) -> tuple[float, float]:
        """Kolmogorov-Smirnov and Wasserstein distance of the cosines from the baseline."""
        return distances(self.cosines, self.baseline)


def pair(weight: Tensor, *, draws: int = 5, seed: int = 0) -> Pairing:
    """Pair the filters of a layer and of ``draws`` Gaussian layers of its shape.

    Args:
        weight: ``(K, ...)``, a filter per row; two or more must be other than 0.
        draws: how many Gaussian layers.
        seed: of the Gaussian weights.

    Raises:
        ValueError: there are fewer than two filters other than 0.
    """
    filters = weight.detach().double().flatten(1)
    filters = filters[filters.norm(dim=1) > 0]
    if len(filters) < 2:
        raise ValueError(f"pairing needs two filters other than 0, got {len(filters)}")
    rng = torch.Generator().manual_seed(seed)
    noise = (torch.randn(filters.shape, dtype=torch.float64, generator=rng) for _ in range(draws))
    baseline = torch.cat([pairing_cosines(x) for x in noise])
    return Pairing(pairing_cosines(filters), baseline, len(weight) - len(filters))


def pairing_cosines(filters: Tensor) -> Tensor:
    """Return each filter's smallest cosine to another one: ``(K, D)`` becomes ``(K,)``."""
    unit = filters / filters.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    cosines.fill_diagonal_(2.0)  # A filter does not pair with itself.
    smallest: Tensor = cosines.min(dim=1).values
    return smallest.clamp(-1, 1)


def distances(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return the Kolmogorov-Smirnov and the Wasserstein distance of two samples.

    They are the largest difference of the two empirical distribution functions, and the area
    between them.
    """
    points = torch.cat((first, second)).sort().values
    gap = _shares(first, points).sub_(_shares(second, points)).abs()
    return gap.max().item(), (gap[:-1] * points.diff()).sum().item()


def _shares(sample: Tensor, points: Tensor) -> Tensor:
    """Return the share of the sample at or below each point."""
    return torch.searchsorted(sample.sort().values, points, right=True).double() / len(sample)
