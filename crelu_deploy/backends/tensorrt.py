"""TensorRT from 10.12 on: engines built and tuned on the GPU that they are for.

Networks are strongly typed: the precision is in the graph, and no flag asks for another one.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import tensorrt as trt

from crelu_deploy import native, plugin_aot
from crelu_deploy.backends import cuda
from crelu_deploy.backends.engine_runner import EngineRunner
from crelu_deploy.backends.engines import (
    COMPATIBLE,
    Note,
    Recipe,
    build_engine,
    command,
    engine_file,
    note_file,
)
from crelu_deploy.bundle import Bundle
from crelu_deploy.lowerings.plugin import has_plugins
from crelu_deploy.results import Engine
from crelu_deploy.targets import CARRIED, Options, Target

NAME = "TensorRT"


def build(bundle: Bundle, target: Target, options: Options) -> Engine:
    """Build an engine for the first GPU.

    Raises:
        BackendUnavailable: There is no GPU, or the plugin that the graph asks for is not built.
        BuildError: The builder refuses the model.
    """
    device = _identity(cuda.find_device())
    plugins, carried = _plugins(bundle, target), target.lowering == CARRIED
    if carried:
        plugin_aot.ptx()  # refused here, and not in the process that builds
    recipe = Recipe(trt.__name__, NAME, (device,), ahead=False, plugins=plugins, carried=carried)
    return build_engine(bundle, target, options, recipe)


def load(bundle: Bundle, target: Target, options: Options) -> EngineRunner:
    """Open the engine on the first GPU.

    Raises:
        BackendUnavailable: There is no GPU, or the plugin that it does not carry is not built.
        BuildError: The engine was built by another version, or on another GPU.
    """
    engine = engine_file(bundle, target)
    note = Note.read(note_file(engine))
    device = _identity(cuda.find_device())
    note.check(trt.__version__, device, command(bundle, target, "build"))
    for plugin in _plugins(bundle, target):
        trt.get_plugin_registry().load_library(str(plugin))
    compatible = COMPATIBLE in note.flags
    return EngineRunner(trt, engine, bundle, note.ranges, brings_code=compatible)


def _identity(device: cuda.Device) -> str:
    """Return what an engine is bound to: tactics are tuned on one kind of GPU."""
    return f"{device.name} ({device.capability})"


def _plugins(bundle: Bundle, target: Target) -> tuple[Path, ...]:
    """Return the library that the engine needs to be built, and to run."""
    uses = target.lowering != CARRIED and has_plugins(ir.load(bundle.artifact(target)))
    return (native.library("tensorrt"),) if uses else ()
