"""Whole networks on a GPU: what is compared with what, and how one row is made; and PyTorch.

Inputs and outputs stay on the device; a call ends when its result is complete. Latencies are wall
time; the note has the device's own time where it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import onnx_ir as ir
import torch
from gpu_rows import OK, WRONG, Row

from crelu_deploy.latency import Effort, measure
from crelu_deploy.lowerings import lower
from crelu_deploy.models import find
from crelu_deploy.passes import clean
from crelu_deploy.recognition import recognize
from crelu_deploy.rules import choice
from crelu_deploy.shapes import Input
from crelu_deploy.tracing import trace

Call = Callable[[], object]

NETWORKS = {
    "convpool-c-crelu": ((3, 32, 32), (1, 32, 256)),
    "all-cnn-b-crelu-1-4": ((3, 224, 224), (1, 32, 256)),
    "faceboxes": ((3, 720, 1080), (1,)),
}
"""Architecture -> shape of one image, batch sizes."""

LIMITS = {torch.float32: 1e-3, torch.float16: 3e-2}
"""Largest difference from PyTorch's float32 outputs, relative to their largest value."""


@dataclass(frozen=True)
class Case:
    """One network, batch and precision on one device."""

    name: str
    batch: int
    dtype: torch.dtype
    device: torch.device
    dry: bool

    @property
    def label(self) -> str:
        """Network, batch, precision."""
        return f"{self.name} batch {self.batch} {str(self.dtype).removeprefix('torch.')}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The input's shape."""
        return (self.batch, *NETWORKS[self.name][0])

    def module(self) -> torch.nn.Module:
        """Return the network in evaluation mode on the CPU, seeded."""
        torch.manual_seed(0)
        return find(self.name).make(find(self.name).num_classes).eval()


@dataclass
class Bench:
    """A case with its input and what PyTorch makes of it in float32; outputs are tuples."""

    case: Case
    x: torch.Tensor
    wanted: tuple[torch.Tensor, ...]

    def error(self, outputs: tuple[torch.Tensor, ...]) -> float:
        """Return the largest difference, relative to its output's largest value; NaN for NaN."""
        pairs = zip(outputs, self.wanted, strict=True)
        errors = [(actual.float() - y).abs().max() / y.abs().max() for actual, y in pairs]
        return float(torch.stack(errors).max())  # unlike Python's max, it keeps NaN


def prepared(case: Case) -> Bench:
    """Run PyTorch in float32 for the reference."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(1)).to(case.device)
    with torch.inference_mode():
        wanted = _tuple(case.module().to(case.device)(x))
    return Bench(case, x.to(case.dtype), wanted)


def _tuple(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)


def row(
    bench: Bench,
    case: str,
    call: Call,
    outputs: Callable[[], tuple[torch.Tensor, ...]],
    *,
    tf32: bool = False,
) -> Row:
    """Check a call's outputs, then time it; a wrong result has no time.

    Args:
        bench: Input and reference.
        case: The row's name.
        call: What to time; it may return the milliseconds that the device took.
        outputs: What it computed.
        tf32: Whether its factors have float16's precision, whatever the type.
    """
    call()
    error = bench.error(outputs())
    right = error <= LIMITS[torch.float16 if tf32 else bench.case.dtype]  # NaN is not
    if not right:
        return Row(bench.case.label, case, WRONG, note=f"relative error {error:.1e}")
    effort = Effort(runs=2, warmup=1, seconds=1) if bench.case.dry else Effort(200, 10, 1)
    latency = measure({case: call}, effort)[case]
    device = "" if latency.gpu is None else f"; on the device {latency.gpu:.3f}"
    note = f"ms; p10 {latency.p10:.3f}, p90 {latency.p90:.3f}{device}; relative error {error:.1e}"
    return Row(bench.case.label, case, OK, latency.median, note)


# --- PyTorch --------------------------------------------------------------------------------------


def pytorch(bench: Bench, form: str) -> Iterator[Row]:
    """Time the module as it is, in channels-last memory, or compiled."""
    module = bench.case.module().to(bench.case.device, bench.case.dtype)
    x = bench.x
    if form == "channels_last":
        module, x = (
            module.to(memory_format=torch.channels_last),
            x.to(memory_format=torch.channels_last),
        )
    run: Callable[..., object] = module
    if form == "compile":
        run = torch.compile(module, mode="default" if bench.case.dry else "max-autotune")
    kept: list[tuple[torch.Tensor, ...]] = []

    def call() -> None:
        with torch.inference_mode():
            kept[:] = [_tuple(run(x))]
        _synchronize(bench.case.device)

    yield row(bench, f"torch {form}", call, lambda: kept[0])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# --- graphs ---------------------------------------------------------------------------------------


@cache
def _traced(case: Case) -> ir.Model:
    inputs = [Input("x", case.shape, batch=False)]
    examples = [torch.zeros(case.shape, dtype=case.dtype)]
    names = find(case.name).output_names
    return trace(case.module().to(case.dtype), examples, inputs, outputs=names, opset=20)


def graph(case: Case, lowering: str, backend: str = "ort-cuda") -> ir.Model:
    """Export the network and lower it.

    Args:
        case: Network, batch and precision.
        lowering: One of the package's, or ``auto`` for the rule of the backend.
        backend: Whose rule.
    """
    model = _traced(case).clone()
    recognize(model)
    model = clean(model)
    return lower(model, choice(model, backend) if lowering == "auto" else lowering).model
