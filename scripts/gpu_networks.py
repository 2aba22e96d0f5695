"""Whole networks on a GPU: PyTorch, and ONNX Runtime with each lowering. Latencies are wall time.

Inputs and outputs stay on the device; a call ends when its result is complete.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import onnx_ir as ir
import torch
from gpu_rows import OK, WRONG, Check, Missing, Row

from crelu_deploy import native
from crelu_deploy.errors import BackendUnavailable
from crelu_deploy.latency import Effort, measure
from crelu_deploy.lowerings import lower
from crelu_deploy.models import find
from crelu_deploy.passes import clean
from crelu_deploy.recognition import recognize
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
    bench: Bench, case: str, call: Call, outputs: Callable[[], tuple[torch.Tensor, ...]]
) -> Row:
    """Check a call's outputs, then time it; a wrong result has no time."""
    call()
    error = bench.error(outputs())
    right = error <= LIMITS[bench.case.dtype]  # NaN is not
    if not right:
        return Row(bench.case.label, case, WRONG, note=f"relative error {error:.1e}")
    effort = Effort(runs=2, warmup=1, seconds=1) if bench.case.dry else Effort(200, 10, 3)
    latency = measure({case: call}, effort)[case]
    note = f"ms; p10 {latency.p10:.3f}, p90 {latency.p90:.3f}; relative error {error:.1e}"
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


# --- ONNX Runtime ---------------------------------------------------------------------------------


def graph(case: Case, lowering: str) -> ir.Model:
    """Export the network and lower it; ``function`` is the node that the custom op replaces."""
    inputs = [Input("x", case.shape, batch=False)]
    module = case.module().to(case.dtype)
    outputs = find(case.name).output_names
    model = trace(
        module, [torch.zeros(case.shape, dtype=case.dtype)], inputs, outputs=outputs, opset=20
    )
    recognize(model)
    return lower(clean(model), lowering).model


def onnxruntime(bench: Bench, lowering: str, *, cuda_graph: bool = False) -> Iterator[Row]:
    """Time one lowering on the provider of the device; ``custom op`` is the native kernel."""
    import onnxruntime as ort

    case = bench.case
    wanted = "CUDAExecutionProvider" if case.device.type == "cuda" else "CPUExecutionProvider"
    if case.device.type == "cuda":
        ort.preload_dlls()  # CUDA and cuDNN as PyTorch brought them
    if wanted not in ort.get_available_providers():
        raise Missing(
            f"onnxruntime has no {wanted}; run: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if lowering == "custom op":
        options.register_custom_ops_library(str(_custom_op()))
    settings = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    settings["enable_cuda_graph"] = str(int(cuda_graph))
    provider = (wanted, settings) if case.device.type == "cuda" else wanted
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(graph(case, "function" if lowering == "custom op" else lowering), path)
        session = ort.InferenceSession(path, options, providers=[provider])
    if session.get_providers()[0] != wanted:
        raise Missing(f"onnxruntime fell back to {session.get_providers()[0]}")
    outputs = tuple(torch.empty_like(y, dtype=case.dtype) for y in bench.wanted)
    name = f"ort {lowering}{', CUDA graph' if cuda_graph else ''}"
    yield row(bench, name, _bound(session, bench, outputs), lambda: outputs)


def _custom_op() -> Path:
    try:
        return native.library("onnxruntime")
    except BackendUnavailable as error:
        raise Missing(str(error)) from error


def _bound(session: Any, bench: Bench, outputs: tuple[torch.Tensor, ...]) -> Call:
    """Return a call that reads and writes these tensors in place."""
    binding = session.io_binding()
    place, kind = bench.case.device.type, str(bench.case.dtype).removeprefix("torch.")
    x = bench.x.contiguous()
    binding.bind_input("x", place, 0, kind, tuple(x.shape), x.data_ptr())
    for value, y in zip(session.get_outputs(), outputs, strict=True):
        binding.bind_output(value.name, place, 0, kind, tuple(y.shape), y.data_ptr())

    def call(_: torch.Tensor = x) -> None:  # x must live as long as its address is bound
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


# --- TensorRT -------------------------------------------------------------------------------------


def tensorrt(bench: Bench) -> NoReturn:
    """Say what is missing: there is no TensorRT backend to build an engine with."""
    import tensorrt as trt

    label = bench.case.label
    raise Missing(
        f"{label}: TensorRT {trt.__version__} is here, crelu-deploy has no backend for it"
    )


def _checks(case: Case) -> list[Check]:
    bench: list[Bench] = []

    def on_bench(
        check: Callable[..., Iterator[Row]], *arguments: str, **options: bool
    ) -> Iterator[Row]:
        if not bench:
            bench.append(prepared(case))
        return check(bench[0], *arguments, **options)

    made: list[Check] = [
        (case.label, f"torch {form}", partial(on_bench, pytorch, form))
        for form in ("eager", "channels_last", "compile")
    ]
    for lowering in ("primitive", "mirror", "fold", "custom op"):
        for cuda_graph in (False, True) if case.device.type == "cuda" else (False,):
            name = f"ort {lowering}{', CUDA graph' if cuda_graph else ''}"
            check = partial(on_bench, onnxruntime, lowering, cuda_graph=cuda_graph)
            made.append((case.label, name, check))
    return [*made, (case.label, "tensorrt", partial(on_bench, tensorrt))]


def checks(device: torch.device, *, dry: bool) -> list[Check]:
    """Return the checks of every network; a dry run takes one small network."""
    if dry:
        return _checks(Case("convpool-c-crelu", 1, torch.float32, device, dry))
    return [
        check
        for name, (_, batches) in NETWORKS.items()
        for batch in batches
        for dtype in (torch.float16, torch.float32)
        for check in _checks(Case(name, batch, dtype, device, dry))
    ]
