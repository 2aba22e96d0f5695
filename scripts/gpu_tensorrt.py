"""Whole networks as engines of TensorRT, built on the GPU that is here; the package runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import torch
from gpu_networks import Bench, graph, row
from gpu_rows import OK, WRONG, Missing, Row

from crelu_deploy import native, plugin_aot
from crelu_deploy.errors import BackendUnavailable
from crelu_deploy.pipeline import miscompiled
from crelu_deploy.profiles import Range
from crelu_deploy.runner import TensorSpec
from crelu_deploy.targets import CARRIED, PLUGIN, Options

LOWERINGS = ("primitive", "mirror", "fold", PLUGIN, CARRIED, "auto")


def tensorrt(bench: Bench, lowering: str, folder: Path) -> Iterator[Row]:
    """Build and time one lowering.

    Args:
        bench: Input and reference.
        lowering: One of ``LOWERINGS``.
        folder: Where the builder keeps its timings of tactics, for the next engine.
    """
    import tensorrt as trt

    if bench.case.device.type != "cuda":
        raise Missing("TensorRT needs a GPU")
    runner, layers = _engine(trt, bench, lowering, folder)
    with runner:
        y = runner(bench.x)
        outputs = tuple(torch.as_tensor(y[name], device="cuda") for name in runner.outputs)
        call = runner.prepare(bench.x.cpu().numpy())
        found = row(bench, f"trt {lowering}", call, lambda: outputs)
    note = f"{found.note}; layers: {', '.join(f'{n} {kind}' for kind, n in layers.items())}"
    yield Row(found.part, found.case, found.status, found.value, note)


def miscompilations(backend: str) -> Iterator[Row]:
    """Run the reproducers of known miscompilations on one of the package's backends."""
    try:
        wrong = miscompiled(backend)
    except BackendUnavailable as error:
        raise Missing(str(error)) from error
    yield Row("miscompilations", backend, WRONG if wrong else OK, note="; ".join(wrong))


def _engine(trt: Any, bench: Bench, lowering: str, folder: Path) -> tuple[Any, dict[str, int]]:
    """Return a runner of the engine, and its final layers."""
    from crelu_deploy.backends import cuda, engines
    from crelu_deploy.backends.engine_runner import EngineRunner

    model = graph(bench.case, PLUGIN if lowering == CARRIED else lowering, "trt-fp16")
    source, engine = folder / "model.onnx", folder / "engine"
    ir.save(model, source)
    shapes = {"x": Range(*[bench.case.shape] * 3)}
    plugins = _plugins(trt, lowering)
    recipe = engines.Recipe(
        *("tensorrt", "TensorRT", (cuda.find_device().capability,)),
        ahead=False,
        plugins=plugins,
        carried=lowering == CARRIED,
    )
    told = engines.run_worker(engines.make_job(source, engine, shapes, recipe, Options()))
    note = engines.Note("", "", (), shapes, tuple(told["layers"]), ())
    kind = str(bench.case.dtype).removeprefix("torch.")
    spec = TensorSpec("x", kind, bench.case.shape)
    names = tuple(value.name for value in model.graph.outputs)
    bundle = SimpleNamespace(inputs=(spec,), outputs=names)
    return EngineRunner(trt, engine, bundle, shapes), note.kinds


def _plugins(trt: Any, lowering: str) -> tuple[Path, ...]:
    """Return the libraries that an engine needs, loaded into this process too."""
    try:
        if lowering == CARRIED:
            plugin_aot.ptx()
        if lowering != PLUGIN:
            return ()
        library = native.library("tensorrt")
    except BackendUnavailable as error:
        raise Missing(str(error)) from error
    trt.get_plugin_registry().load_library(str(library))
    return (library,)
