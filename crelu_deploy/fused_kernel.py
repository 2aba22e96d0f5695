"""The Triton kernel behind ``crelu_deploy.fused``: a convolution that writes both halves of CReLU.

An implicit matrix product over channels-last tensors: the M axis counts output pixels, the N axis
output channels, and the K axis the inputs of one output, ordered as channels-last weights are
stored: kernel row, kernel column, channel. Sums are float32.

Importing it needs Triton. On tensors of the CPU the kernel runs in Triton's interpreter, which is
for checking it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

Pair = tuple[int, int]
"""Two numbers: for rows, for columns."""


class Tile(NamedTuple):
    """How much one program computes, and how.

    Attributes:
        m: Output pixels, a power of two.
        n: Output channels before CReLU, a power of two.
        k: Terms of the sums in one step, a power of two from 16.
        warps: Warps of 32 threads.
        stages: Steps whose loads are in flight together.
    """

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3


class Conv(NamedTuple):
    """What is known of a convolution when its kernel is compiled.

    Attributes:
        inputs: Channels of the input.
        outputs: Channels of the convolution's output; CReLU writes twice as many.
        kernel: Rows and columns of the filters.
        stride: Of the output's pixels in the input.
        padding: Rows and columns of zeros on each side.
        dilation: Distance of the filters' elements.
        precision: How float32 factors are multiplied: ``ieee``, or rounded to ``tf32``.
    """

    inputs: int
    outputs: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    precision: str


TILES = (
    Tile(128, 128, 32, warps=8),
    Tile(128, 64, 64),
    Tile(128, 64, 32),
    Tile(64, 64, 64),
    Tile(64, 32, 64),
    Tile(128, 32, 32),
    Tile(64, 64, 16),
)
"""Those that are worth trying for a layer; which is best, a GPU must tell."""


def choose_tile(channels: int, terms: int, itemsize: int) -> Tile:
    """Return the tile for ``channels`` outputs, sums of ``terms`` and values of ``itemsize`` bytes.

    A first guess: as wide as the channels up to 64, narrower for float32, which keeps all its sums
    in registers, and steps no longer than the sums. No GPU has confirmed it.
    """
    n = 32 if channels <= 32 else 64
    k = min(64 if itemsize == 2 else 16, max(16, triton.next_power_of_2(terms)))
    return Tile(128 if itemsize == 2 else 64, n, k)


@triton.jit
def conv_crelu(x, weight, bias, y, pixels, size, CONV: tl.constexpr, TILE: tl.constexpr):
    """Compute one tile of y[pixels, 2, CONV.outputs].

    ``pixels`` counts those of all images; ``size`` is height and width of the input, then of the
    output. The tensors are as in ``launch``.
    """
    TERMS: tl.constexpr = CONV.kernel[0] * CONV.kernel[1] * CONV.inputs
    WIDE: tl.constexpr = (CONV.outputs + TILE.n - 1) // TILE.n
    height, width, out_height, out_width = size
    # Neighbouring programs share their pixels: x is larger than the weights.
    m = tl.program_id(0) // WIDE * TILE.m + tl.arange(0, TILE.m)
    n = tl.program_id(0) % WIDE * TILE.n + tl.arange(0, TILE.n)
    row = m // out_width % out_height * CONV.stride[0] - CONV.padding[0]
    column = m % out_width * CONV.stride[1] - CONV.padding[1]
    image = (m // (out_width * out_height)).to(tl.int64)
    corner = x + ((image * height + row) * width + column) * CONV.inputs
    filters = weight + n.to(tl.int64) * TERMS
    total = tl.full((TILE.m, TILE.n), 0.0, tl.float32)
    for start in range(0, TERMS, TILE.k):
        k = start + tl.arange(0, TILE.k)
        down = k // CONV.inputs // CONV.kernel[1] * CONV.dilation[0]
        right = k // CONV.inputs % CONV.kernel[1] * CONV.dilation[1]
        rows, columns = row[:, None] + down[None, :], column[:, None] + right[None, :]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        inside &= (m < pixels)[:, None] & (k < TERMS)[None, :]
        offsets = (down * width + right) * CONV.inputs + k % CONV.inputs
        a = tl.load(corner[:, None] + offsets[None, :], mask=inside, other=0.0)
        known = (k < TERMS)[:, None] & (n < CONV.outputs)[None, :]
        b = tl.load(filters[None, :] + k[:, None], mask=known, other=0.0)
        total = tl.dot(a, b, total, input_precision=CONV.precision)
    if bias is not None:
        total += tl.load(bias + n, mask=n < CONV.outputs, other=0.0).to(tl.float32)[None, :]
    out = y + m.to(tl.int64)[:, None] * (2 * CONV.outputs) + n[None, :]
    known = (m < pixels)[:, None] & (n < CONV.outputs)[None, :]
    # Comparisons instead of maxima: they keep NaN, and give +0 for both zeros.
    tl.store(out, tl.where(total <= 0, 0.0, total), mask=known)
    tl.store(out + CONV.outputs, tl.where(total >= 0, 0.0, -total), mask=known)


def launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, conv: Conv, tile: Tile | None = None
) -> None:
    """Write CReLU of a convolution of ``x`` into ``y``; enqueued on the current stream.

    Args:
        x: ``[N, CI, H, W]``, float32, float16 or bfloat16, in channels-last memory.
        weight: ``[CO, CI, KH, KW]``, likewise.
        bias: ``[CO]`` or none.
        y: ``[N, 2 CO, HO, WO]`` in channels-last memory, at least one element.
        conv: What fits these shapes.
        tile: ``choose_tile`` decides where it is left out.

    Raises:
        TypeError: bfloat16 on the CPU: the interpreter multiplies its bits as integers.
    """
    if x.dtype == torch.bfloat16 and not x.is_cuda:
        raise TypeError("Triton's interpreter cannot multiply bfloat16; give it float32 values")
    terms = conv.inputs * conv.kernel[0] * conv.kernel[1]
    tile = tile or choose_tile(conv.outputs, terms, x.element_size())
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    programs = triton.cdiv(pixels, tile.m) * triton.cdiv(conv.outputs, tile.n)
    run = conv_crelu if x.is_cuda else InterpretedFunction(conv_crelu.fn)
    size = (*x.shape[2:], *y.shape[2:])
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    run[(programs,)](x, weight, bias, y, pixels, size, CONV=conv, TILE=tile, **options)
