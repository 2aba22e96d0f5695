"""Whole networks in ONNX Runtime on a GPU: each lowering, with and without a CUDA graph."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from gpu_networks import Bench, Call, graph, row
from gpu_rows import Missing, Row

from crelu_deploy import native
from crelu_deploy.errors import BackendUnavailable

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
PLAIN, CUSTOM = "plain", "custom op"
FORMS = {PLAIN: "primitive", CUSTOM: "function"}
"""The lowering of what is no lowering's name."""


def onnxruntime(bench: Bench, lowering: str, *, cuda_graph: bool = False) -> Iterator[Row]:
    """Time one lowering on the provider of the device.

    ``plain`` is what torch.onnx writes, ``primitive``, with the provider's own settings, TF32 among
    them; with ``custom op`` the native kernel takes the place of the function's body.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(graph(bench.case, FORMS.get(lowering, lowering)), path)
        session = _session(bench, path, lowering, cuda_graph)
    outputs = tuple(torch.empty_like(y, dtype=bench.case.dtype) for y in bench.wanted)
    name = f"ort {lowering}{', CUDA graph' if cuda_graph else ''}"
    call = _bound(session, bench, outputs)
    yield row(bench, name, call, lambda: outputs, tf32=lowering == PLAIN)


def _session(bench: Bench, path: Path, lowering: str, cuda_graph: bool) -> Any:
    import onnxruntime as ort

    on_gpu = bench.case.device.type == "cuda"
    wanted = CUDA if on_gpu else CPU
    if on_gpu:
        ort.preload_dlls()  # CUDA and cuDNN as PyTorch brought them
    if wanted not in ort.get_available_providers():
        raise Missing(
            f"onnxruntime has no {wanted}; run: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if lowering == CUSTOM:
        options.register_custom_ops_library(str(_custom_op()))
    settings = {"enable_cuda_graph": str(int(cuda_graph))}
    if lowering != PLAIN:
        settings |= {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    provider = (wanted, settings) if on_gpu else wanted
    session = ort.InferenceSession(path, options, providers=[provider])
    if session.get_providers()[0] != wanted:
        raise Missing(f"onnxruntime fell back to {session.get_providers()[0]}")
    return session


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
