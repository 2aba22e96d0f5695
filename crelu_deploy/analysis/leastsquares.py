"""The pseudo-inverse of a layer as a whole, applied without ever forming a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import grad

EXACT = 1e-12
"""Tolerance that leaves only rounding errors, where the operator is not close to singular."""


class Linear(Protocol):
    """A linear map and its transpose."""

    def apply(self, x: Tensor) -> Tensor:
        """Map an input."""
        ...

    def transpose(self, z: Tensor) -> Tensor:
        """Map an output back by the transposed map."""
        ...


@dataclass(frozen=True)
class Filters:
    """A convolution with its filters at all positions, without its bias, as a linear map.

    Attributes:
        conv: The convolution, float64 for exact results.
        shape: Of its input, ``(1, C, H, W)``.
        known: ``(1, K, H', W')``: 1 where the output is known, 0 where there is no equation.
    """

    conv: nn.Conv2d
    shape: tuple[int, ...]
    known: Tensor

    @property
    def equations(self) -> int:
        """How many outputs are known."""
        return int(self.known.sum())

    def apply(self, x: Tensor) -> Tensor:
        """Map ``(1, C, H, W)`` to the known outputs ``(1, K, H', W')``; the others are 0."""
        c = self.conv
        outputs = nn.functional.conv2d(x, c.weight, None, c.stride, c.padding, c.dilation, c.groups)
        return outputs * self.known

    def transpose(self, z: Tensor) -> Tensor:
        """Map outputs back to ``(1, C, H, W)``."""
        c, shape = self.conv, (len(z), *self.shape[1:])
        back: Tensor = grad.conv2d_input(  # type: ignore[no-untyped-call]
            shape, c.weight, z * self.known, c.stride, c.padding, c.dilation, c.groups
        )
        return back


@dataclass(frozen=True)
class Solution:
    """The least-squares solution of smallest norm.

    Attributes:
        x: The solution.
        iterations: How many it took.
        converged: Whether the tolerance was met; it is not where singular values are close to 0.
        residual: ``|A x - z| / |z|``; 0 where z is 0.
    """

    x: Tensor
    iterations: int
    converged: bool
    residual: float


def solve(operator: Linear, z: Tensor, *, tolerance: float = EXACT, limit: int = 3000) -> Solution:
    """Return ``pinv(A) z`` by conjugate gradients on the normal equations (CGLS).

    Started at 0, every iterate is in the range of the transpose, so that the limit is the solution
    of smallest norm (Hestenes & Stiefel, 1952).

    Args:
        operator: the map A.
        z: what ``A x`` should be.
        tolerance: stop when the gradient ``A' (z - A x)`` is this small relative to ``A' z``.
        limit: stop after this many iterations.
    """
    gradient = operator.transpose(z)
    x, residual, direction = torch.zeros_like(gradient), z.clone(), gradient.clone()
    size = first = _square(gradient)
    iterations = 0
    while size > tolerance**2 * first and iterations < limit:
        image = operator.apply(direction)
        step = size / _square(image)
        x += step * direction
        residual -= step * image
        gradient = operator.transpose(residual)
        size, before = _square(gradient), size
        direction = gradient + (size / before) * direction
        iterations += 1
    norm = z.norm().item()
    left = (operator.apply(x) - z).norm().item() / norm if norm else 0.0
    return Solution(x, iterations, size <= tolerance**2 * first, left)


def _square(x: Tensor) -> float:
    return x.square().sum().item()


def _gram(operator: Linear, x: Tensor) -> Tensor:
    return operator.transpose(operator.apply(x)).flatten(1)


@dataclass(frozen=True)
class Spectrum:
    """Rank and extreme singular values of a linear map."""

    rank: int
    smallest: float
    largest: float


def spectrum(operator: Linear, shape: tuple[int, ...], *, batch: int = 64) -> Spectrum:
    """Return the rank of a map with inputs ``(1, ...)`` from its Gram matrix.

    The matrix has as many rows as an input has values: for some thousands at most. Singular values
    below about 1e-7 of the largest count as 0.
    """
    count = torch.Size(shape).numel()
    identity = torch.eye(count, dtype=torch.float64).reshape(count, *shape[1:])
    rows = [_gram(operator, part) for part in torch.split(identity, batch)]
    values = torch.linalg.eigvalsh(torch.cat(rows)).clamp(min=0)
    kept = values[values > values[-1] * count * torch.finfo(torch.float64).eps]
    smallest = kept[0].sqrt().item() if len(kept) == count else 0.0
    return Spectrum(len(kept), smallest, values[-1].sqrt().item())
