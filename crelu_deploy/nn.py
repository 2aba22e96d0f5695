"""CReLU in PyTorch: a module, a function, and the registered operator ``crelu_deploy::crelu``.

The operator is opaque to ``torch.export``, so that an exported program holds one node per CReLU; it
has a fake kernel and a backward formula that can itself be differentiated. ``torch.compile`` sees
what it computes, and fuses it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

OPERATOR = "crelu_deploy::crelu"
"""Qualified name of the PyTorch operator, ``(Tensor x, int dim) -> Tensor``."""

torch.library.define(OPERATOR, "(Tensor x, int dim) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def _forward(x: Tensor, dim: int) -> Tensor:
    _check(x, dim)
    return torch.relu(torch.cat((x, -x), dim))


def _check(x: Tensor, dim: int) -> None:
    if not x.is_floating_point():
        raise TypeError(f"CReLU needs a floating-point tensor, got {x.dtype}")
    if not -x.ndim <= dim < x.ndim:
        raise IndexError(f"CReLU: dim {dim} is outside the {x.ndim} dimensions of the input")


def _save_input(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    x, ctx.dim = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    positive, negative = grad.chunk(2, ctx.dim)
    # Masks as in the backward of torch.relu: 0 at the kink, and NaN lets the gradient through.
    return positive.masked_fill(x <= 0, 0) - negative.masked_fill(x >= 0, 0), None


# One body for every device and for shape inference, so that both agree on strides and errors.
torch.library.impl(OPERATOR, "default", _forward)
torch.library.register_fake(OPERATOR, _forward)
torch.library.register_autograd(OPERATOR, _backward, setup_context=_save_input)

OVERLOAD = torch.ops.crelu_deploy.crelu.default
"""The operator as it appears in an exported program."""


def crelu(x: Tensor, dim: int = 1) -> Tensor:
    """Return ``cat(relu(x), relu(-x), dim)``: the extent of ``dim`` doubles.

    Args:
        x: floating-point tensor on any device, of any rank but 0; may be empty.
        dim: the axis to concatenate on, counted from the end when negative.

    Returns:
        A tensor of the dtype and device of ``x``; NaN stays NaN, as in ``torch.relu``.

    Raises:
        TypeError: ``x`` is not floating-point.
        IndexError: ``dim`` is not an axis of ``x``.
    """
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        # An opaque operator would keep the compiler from fusing what it can fuse.
        return _forward(x, dim)
    result: Tensor = OVERLOAD(x, dim)
    return result


class CReLU(nn.Module):
    """Concatenated rectified linear unit (Shang et al., ICML 2016): ``crelu`` as a module.

    Input ``(..., C, ...)`` with ``C`` at ``dim``, output ``(..., 2C, ...)``: positive phases first.
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Apply ``crelu`` to ``x`` along ``self.dim``."""
        return crelu(x, self.dim)

    def extra_repr(self) -> str:
        """Show the axis in the module's ``repr``."""
        return f"dim={self.dim}"
