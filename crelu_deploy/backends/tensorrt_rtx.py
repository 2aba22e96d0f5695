"""TensorRT-RTX: engines for consumer GPUs, built ahead of time on any machine."""

from __future__ import annotations

import onnx_ir as ir
import tensorrt_rtx as trt

from crelu_deploy.backends import cuda
from crelu_deploy.backends.engine_runner import EngineRunner
from crelu_deploy.backends.engines import (
    Note,
    Recipe,
    build_engine,
    command,
    engine_file,
    note_file,
)
from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BackendUnavailable, BuildError
from crelu_deploy.lowerings.plugin import has_plugins
from crelu_deploy.results import Engine
from crelu_deploy.targets import Options, Target

NAME = "TensorRT-RTX"
OLDER = ("SM75",)
DEVICES = tuple(
    name
    for name in trt.ComputeCapability.__members__
    if name.startswith("SM") and name not in OLDER
)
"""The compute capabilities that an engine is for: all that the builder knows from Ampere on.

One engine serves them all, with the kernels chosen for the oldest: with Turing among them (SM75)
even those for newer devices change.
"""


def build(bundle: Bundle, target: Target, options: Options) -> Engine:
    """Build an engine for all devices; no GPU is needed.

    Raises:
        BuildError: An option that it does not have, or the builder refuses the model.
    """
    if options.refit:
        raise BuildError(f"--refit: {NAME} can only do so for one device, not for several at once")
    if options.version_compatible:
        raise BuildError(f"--version-compatible: {NAME} {trt.__version__} has no such runtime")
    if has_plugins(ir.load(bundle.artifact(target))):
        raise BuildError(f"{target}: {NAME} has no plugins; choose another lowering for its sites")
    return build_engine(bundle, target, options, Recipe(trt.__name__, NAME, DEVICES, ahead=True))


def load(bundle: Bundle, target: Target, options: Options) -> EngineRunner:
    """Open the engine on the first GPU.

    Raises:
        BuildError: It was built by another version, or not for this GPU.
        BackendUnavailable: There is no GPU.
    """
    engine = engine_file(bundle, target)
    note = Note.read(note_file(engine))
    again = command(bundle, target, "build")
    note.check(trt.__version__, None, again)
    try:
        device = cuda.find_device()
    except BackendUnavailable as error:
        raise BackendUnavailable(
            f"built, not run: {error}; copy {bundle.path} to a machine with a GPU and "
            f"{NAME} {note.version}, and run there: crelu verify {bundle.path.name} -t {target}"
        ) from error
    note.check(trt.__version__, device.capability, again)
    return EngineRunner(trt, engine, bundle, note.ranges)
