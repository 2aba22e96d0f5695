"""A convolution and CReLU in one kernel: a module, a function, ``crelu_deploy::conv_crelu``.

On a GPU the operator is one Triton kernel, which writes both halves while a convolution would write
its one output. On the CPU it is PyTorch's convolution followed by CReLU, the same numbers up to
rounding. ``torch.compile`` keeps it as it is; ``torch.export`` sees a convolution and a CReLU.

Nothing in this package chooses it: its values are checked, its speed on a GPU is not yet known.
``scripts/gpu_check.py`` times it against the convolution alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crelu_deploy.errors import BackendUnavailable
from crelu_deploy.nn import crelu

OPERATOR = "crelu_deploy::conv_crelu"
"""Qualified name of the operator."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernel computes with; sums are float32."""

MAX_PIXELS = 2**31 - 2**10
"""Most output pixels of a batch: they are counted in 32 bits, and the last tile goes beyond."""

torch.library.define(
    OPERATOR,
    "(Tensor x, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding,"
    " SymInt[2] dilation, bool allow_tf32) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if any(t.dtype != x.dtype for t in tensors) or x.dtype not in DTYPES:
        found = ", ".join(str(t.dtype) for t in tensors)
        raise TypeError(f"conv_crelu needs one type of {DTYPES}, got {found}")
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(
            f"conv_crelu needs x [N, C, H, W] and weight [O, C, KH, KW],"
            f" got {x.ndim} and {weight.ndim} axes"
        )
    if x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"conv_crelu: x has {x.shape[1]} channels, the weight is for {weight.shape[1]};"
            " grouped convolutions are not supported"
        )
    if bias is not None and (bias.ndim != 1 or bias.shape[0] != weight.shape[0]):
        raise ValueError(
            f"conv_crelu: the bias has shape {tuple(bias.shape)}, expected ({weight.shape[0]},)"
        )


def _output(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    allow_tf32: bool,
) -> Tensor:
    """Check the arguments and return the output, uninitialised, in channels-last memory."""
    _check(x, weight, bias)
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        raise ValueError(
            f"conv_crelu: stride {list(stride)}, padding {list(padding)} or dilation"
            f" {list(dilation)} is out of range"
        )
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    room = [size + 2 * p for size, p in zip(x.shape[2:], padding, strict=True)]
    if any(r > size for r, size in zip(reach, room, strict=True)):
        raise ValueError(f"conv_crelu: a kernel of {reach} does not fit into an input of {room}")
    extents = [(size - r) // s + 1 for size, r, s in zip(room, reach, stride, strict=True)]
    shape = (x.shape[0], 2 * weight.shape[0], *extents)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    allow_tf32: bool,
) -> Tensor:
    y = _output(x, weight, bias, stride, padding, dilation, allow_tf32)
    return y.copy_(crelu(nn.functional.conv2d(x, weight, bias, stride, padding, dilation)))


def _triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    allow_tf32: bool,
) -> Tensor:
    try:
        from crelu_deploy.fused_kernel import Conv, launch
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"{OPERATOR} on a GPU needs the package {error.name}, which is not installed; "
            f"run: pip install {error.name}"
        ) from error
    y = _output(x, weight, bias, stride, padding, dilation, allow_tf32)
    if y.numel() // max(y.shape[1], 1) > MAX_PIXELS:
        raise ValueError(f"conv_crelu: {tuple(y.shape)} has more than {MAX_PIXELS} pixels")
    if y.numel() == 0:
        return y
    conv = Conv(
        weight.shape[1],
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        (stride[0], stride[1]),
        (padding[0], padding[1]),
        (dilation[0], dilation[1]),
        "tf32" if allow_tf32 else "ieee",
    )
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    with torch.cuda.device(x.get_device()):  # Triton launches on the current device
        launch(x, weight, bias if bias is None else bias.contiguous(), y, conv)
    return y


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.stride, ctx.padding, ctx.dilation, _ = inputs
    ctx.bias_shape = None if bias is None else list(bias.shape)
    ctx.save_for_backward(x, weight, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, y = ctx.saved_tensors
    # Masks as in the backward of torch.relu: 0 at the kink, and NaN lets the gradient through.
    positive, negative = grad.masked_fill(y <= 0, 0).chunk(2, 1)
    needed = [*ctx.needs_input_grad[:2], ctx.bias_shape is not None and ctx.needs_input_grad[2]]
    gradients = torch.ops.aten.convolution_backward(
        positive - negative,
        x,
        weight,
        ctx.bias_shape,
        ctx.stride,
        ctx.padding,
        ctx.dilation,
        False,
        [0, 0],
        1,
        needed,
    )
    return *gradients, None, None, None, None


torch.library.impl(OPERATOR, "CPU", _reference)
torch.library.impl(OPERATOR, "CUDA", _triton)
torch.library.register_fake(OPERATOR, _output)
torch.library.register_autograd(OPERATOR, _backward, setup_context=_save)


def conv_crelu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    allow_tf32: bool = False,
) -> Tensor:
    """Return ``crelu(conv2d(x, weight, bias))`` with both halves written by one kernel.

    Args:
        x: ``[N, C, H, W]``, float32, float16 or bfloat16. Anything but channels-last memory is
            copied first; so is ``weight``.
        weight: ``[O, C, KH, KW]`` of the same type.
        bias: ``[O]`` of the same type, or none.
        stride: As in ``torch.nn.functional.conv2d``, but always two numbers; so are the next two.
        padding: Rows and columns of zeros on each side.
        dilation: Distance of the kernel's elements.
        allow_tf32: Let a GPU round float32 factors to TF32; PyTorch's own switches do not count.

    Returns:
        ``[N, 2 O, HO, WO]`` in channels-last memory, positive phases first; NaN stays NaN.

    Raises:
        TypeError: Types differ, or are none of ``DTYPES``.
        ValueError: Shapes do not fit, or more than ``MAX_PIXELS`` output pixels on a GPU.
        BackendUnavailable: On a GPU, where Triton is not installed.
    """
    if torch.compiler.is_exporting():
        return crelu(nn.functional.conv2d(x, weight, bias, stride, padding, dilation))
    result: Tensor = torch.ops.crelu_deploy.conv_crelu.default(
        x, weight, bias, stride, padding, dilation, allow_tf32
    )
    return result


class ConvCReLU(nn.Module):
    """A convolution and the CReLU of its channels; takes the place of both.

    Input ``[N, C, H, W]``, output ``[N, 2 O, HO, WO]``. The weights are those of ``conv`` itself,
    which is put into channels-last memory.
    """

    def __init__(self, conv: nn.Conv2d, *, allow_tf32: bool = False) -> None:
        """Wrap ``conv``.

        Raises:
            ValueError: It is grouped, pads with anything but zeros, or names its padding.
        """
        super().__init__()
        if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(f"no kernel for {conv}: it takes one group and numbered zero padding")
        conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
        self.conv, self.padding, self.allow_tf32 = conv, conv.padding, allow_tf32

    def forward(self, x: Tensor) -> Tensor:
        """Return CReLU of the convolution of ``x``."""
        return conv_crelu(
            x,
            self.conv.weight,
            self.conv.bias,
            stride=self.conv.stride,
            padding=self.padding,
            dilation=self.conv.dilation,
            allow_tf32=self.allow_tf32,
        )
