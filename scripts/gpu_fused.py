"""The fused convolution on a GPU: its values, then its time against the convolution alone.

Times are the device's, from CUDA graphs of many calls: a launch from Python takes longer than most
of these kernels. On a dry run the kernel computes in Triton's interpreter and nothing is timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from gpu_rows import OK, WRONG, Check, Row

from crelu_deploy.fused import ConvCReLU
from crelu_deploy.nn import CReLU

if TYPE_CHECKING:
    from crelu_deploy.fused_kernel import Tile

Call = Callable[[], torch.Tensor]

PART = "fused"
ROUNDS = 3
LIMITS = {"float32": 1e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Largest difference from float64, relative to the largest value."""


@dataclass(frozen=True)
class Layer:
    """A convolution before a CReLU: input ``[C, H, W]``, channels out, square kernel."""

    name: str
    x: tuple[int, int, int]
    out: int
    kernel: int
    stride: int
    padding: int
    batches: tuple[int, ...] = (1, 32)


LAYERS = (
    Layer("convpool-c conv1", (3, 32, 32), 96, 3, 1, 1, (1, 32, 256)),
    Layer("convpool-c conv2", (192, 32, 32), 96, 3, 1, 1, (1, 32, 256)),
    Layer("convpool-c conv4", (384, 16, 16), 192, 3, 1, 1, (1, 32, 256)),
    Layer("convpool-c conv7", (384, 8, 8), 192, 1, 1, 1),
    Layer("all-cnn-b conv1", (3, 224, 224), 96, 11, 4, 0),
    Layer("all-cnn-b conv2", (192, 54, 54), 96, 1, 1, 0),
    Layer("all-cnn-b conv4", (192, 26, 26), 256, 5, 1, 2),
    Layer("faceboxes conv1", (3, 720, 1080), 24, 7, 4, 3, (1,)),
    Layer("faceboxes conv2", (48, 90, 135), 64, 5, 2, 2, (1,)),
)
SMALL = (
    Layer("3x3", (16, 6, 6), 8, 3, 1, 1, (2,)),
    Layer("7x7", (3, 13, 11), 12, 7, 4, 3, (1,)),
    Layer("1x1", (40, 5, 4), 33, 1, 2, 0, (3,)),
)


class Bench:
    """A layer with its weights and an input in channels-last memory, and its output in float64."""

    def __init__(self, layer: Layer, batch: int, kind: str, device: torch.device) -> None:
        """Make seeded values of a kind in ``LIMITS``."""
        torch.manual_seed(0)
        self.kind = kind
        dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
        shape = layer.x[0], layer.out, layer.kernel, layer.stride, layer.padding
        self.conv = torch.nn.Conv2d(*shape).to(device, dtype).requires_grad_(False)
        self.conv.to(memory_format=torch.channels_last)
        x = torch.randn(batch, *layer.x).to(device, dtype)
        self.x = x.contiguous(memory_format=torch.channels_last)
        wide = torch.nn.Conv2d(*shape).to(device, torch.float64).requires_grad_(False)
        wide.load_state_dict(self.conv.state_dict())
        self.wanted = CReLU()(wide(x.double()))

    def fused(self, tile: Tile | None = None) -> torch.Tensor:
        """Run the kernel itself; on the CPU in Triton's interpreter."""
        from crelu_deploy.fused_kernel import Conv, launch

        conv, last = self.conv, torch.channels_last
        like = {"dtype": self.x.dtype, "device": self.x.device}
        y = torch.empty(self.wanted.shape, memory_format=last, **like)
        sizes = conv.kernel_size, conv.stride, conv.padding, conv.dilation
        precision = "tf32" if self.kind == "tf32" else "ieee"
        described = Conv(conv.in_channels, conv.out_channels, *sizes, precision)
        launch(self.x, conv.weight, conv.bias, y, described, tile)
        return y

    def error(self, y: torch.Tensor) -> float:
        """Return the largest difference, relative to the largest value; NaN for NaN."""
        return float((y.double() - self.wanted).abs().max() / self.wanted.abs().max())

    def row(self, case: str, y: torch.Tensor, value: float | None = None, note: str = "") -> Row:
        """Return a row with the error; a wrong result has no time."""
        error = self.error(y)
        text = f"relative error {error:.1e}"
        if not error <= LIMITS[self.kind]:  # NaN is not
            return Row(PART, case, WRONG, note=text)
        return Row(PART, case, OK, value, f"{note}; {text}" if note else text)


def values(device: torch.device) -> Iterator[Row]:
    """Compare with float64; the interpreter knows neither bfloat16 nor TF32."""
    for kind in LIMITS if device.type == "cuda" else ("float32", "float16"):
        for layer in SMALL:
            bench = Bench(layer, layer.batches[0], kind, device)
            yield bench.row(f"{kind} {layer.name}", bench.fused())


def compiled(device: torch.device) -> Iterator[Row]:
    """Run the operator in a compiled model."""
    bench = Bench(SMALL[0], 2, "float16" if device.type == "cuda" else "float32", device)
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    with torch.inference_mode():
        y = torch.compile(ConvCReLU(bench.conv), backend=backend, fullgraph=True)(bench.x)
    yield bench.row(f"torch.compile, {backend}", y)


def times(layer: Layer, batch: int, device: torch.device) -> Iterator[Row]:
    """Time float16 against the convolution alone, and against it with one pass behind it."""
    bench = Bench(layer, batch, "float16", device)
    case, y = f"{layer.name} batch {batch}", bench.fused()
    if device.type != "cuda":
        yield bench.row(case, y, note="ran; nothing is timed in the interpreter")
        return
    one_pass = torch.compile(torch.nn.Sequential(bench.conv, CReLU()))
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        calls: dict[str, Call] = {
            "fused": bench.fused,
            "convolution alone": lambda: bench.conv(bench.x),
            "and one pass": lambda: one_pass(bench.x),
        }
        found = interleaved(calls)
        best, tile = fastest_tile(bench)
    note = ", ".join(f"{name} {1e3 * ms:.1f} us" for name, ms in found.items())
    note += f", best tile {tuple(tile)} {1e3 * best:.1f} us"
    ratio = found["fused"] / found["convolution alone"]
    yield bench.row(case, y, ratio, f"of the convolution alone; {note}")


def interleaved(calls: dict[str, Call]) -> dict[str, float]:
    """Return the device's time of each call in ms, the median of rounds in turn."""
    from triton.testing import do_bench_cudagraph

    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # whatever is compiled on the first call
    for _ in range(ROUNDS):
        for name, call in calls.items():
            rounds[name].append(do_bench_cudagraph(call, rep=20, return_mode="median"))
    return {name: statistics.median(ms) for name, ms in rounds.items()}


def fastest_tile(bench: Bench) -> tuple[float, Tile]:
    """Return the best time of all tiles in ms, and that tile."""
    from triton.runtime.errors import OutOfResources

    from crelu_deploy.fused_kernel import TILES

    found: list[tuple[float, Tile]] = []
    for tile in TILES:
        try:
            found.append((interleaved({"": partial(bench.fused, tile)})[""], tile))
        except OutOfResources:
            continue  # this GPU has no room for it
    return min(found)


def checks(device: torch.device) -> list[Check]:
    """Return the checks of the fused convolution."""
    layers = LAYERS if device.type == "cuda" else SMALL[:1]
    timed = [(layer, batch) for layer in layers for batch in layer.batches]
    return [
        (PART, "values", partial(values, device)),
        (PART, "torch.compile", partial(compiled, device)),
        *((PART, f"{la.name} batch {n}", partial(times, la, n, device)) for la, n in timed),
    ]
