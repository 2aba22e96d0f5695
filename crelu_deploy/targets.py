"""What can be built, verified and timed: the table of backends, and ``BACKEND[:LOWERING]``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import ModuleType

from crelu_deploy.errors import BackendUnavailable
from crelu_deploy.lowerings import LOWERINGS, NATIVE

Progress = Callable[[str], None]
"""Told in a few words what is being done."""

AUTO = "auto"
"""In place of a lowering: the plan chooses one for every site."""

FUNCTION = "function"
"""The lowering that a bundle's own model has."""

PLUGIN, CARRIED = "plugin", "plugin-aot"
"""Nodes for the compiled kernel, which is in a library, or in the engine that carries it as PTX.

The graph is the same.
"""

FLOAT32, FLOAT16, BFLOAT16, INT8 = "float32", "float16", "bfloat16", "int8"
"""What a backend computes in: ``FLOAT32`` stands for the network's own type."""


@dataclass(frozen=True)
class Backend:
    """A runtime at a precision.

    Attributes:
        name: As written in a target.
        module: The module in ``crelu_deploy.backends`` that owns the runtime.
        extra: The extra of this package that installs the runtime.
        lowered: Whether it reads a lowered ONNX file, and not the PyTorch module itself.
        summary: One line for people.
        precision: ``FLOAT32``, or the reduced one that it is named for.
        functions: Whether it reads functions inside a model, as the lowering ``function`` has them.
        typed: Whether it computes in the types of the graph, which then hold its precision.
        plugins: Whether it reads nodes that a compiled library computes.
        carries: Whether what it builds can carry the kernel of such nodes instead.
        symmetric: Whether its int8 has no zero points but 0.
    """

    name: str
    module: str
    extra: str
    lowered: bool
    summary: str
    precision: str = FLOAT32
    functions: bool = True
    typed: bool = False
    plugins: bool = False
    carries: bool = False
    symmetric: bool = False

    @property
    def lowerings(self) -> tuple[str, ...]:
        """The lowerings that it reads, and ``auto``."""
        native = (*NATIVE, CARRIED) if self.carries else NATIVE if self.plugins else ()
        return (AUTO, *(n for n in LOWERINGS if self.functions or n != FUNCTION), *native)

    def implementation(self) -> ModuleType:
        """Import the module that owns the runtime.

        Raises:
            BackendUnavailable: The runtime is not installed.
        """
        return self._import(f"crelu_deploy.backends.{self.module}")

    def quantizer(self) -> ModuleType:
        """Import the module that quantises a lowered file, which only a build needs.

        Raises:
            BackendUnavailable: ONNX Runtime, which calibrates, is not installed.
        """
        return self._import("crelu_deploy.quantization")

    def _import(self, module: str) -> ModuleType:
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise BackendUnavailable(
                f"{self.name} needs the package {error.name}, which is not installed; "
                f"run: pip install 'crelu-deploy[{self.extra}]'"
            ) from error


def _gpu(
    name: str, module: str, extra: str, runtime: str, precision: str, *, plugins: bool = True
) -> Backend:
    """Return a backend on a GPU; where it is reduced, functions are written out to be converted."""
    summary, whole = f"{runtime}, NVIDIA GPU, {precision}", precision == FLOAT32
    return Backend(
        *(name, module, extra, True, summary, precision),
        functions=whole,
        typed=True,
        plugins=plugins,
        carries=module == "tensorrt",
        symmetric=precision == INT8,
    )


GPU = (
    _gpu("ort-cuda", "onnxruntime_cuda", "ort-cuda", "ONNX Runtime", FLOAT32),
    _gpu("ort-cuda-fp16", "onnxruntime_cuda", "ort-cuda", "ONNX Runtime", FLOAT16),
    _gpu("trt-fp32", "tensorrt", "tensorrt", "TensorRT", FLOAT32),
    _gpu("trt-fp16", "tensorrt", "tensorrt", "TensorRT", FLOAT16),
    _gpu("trt-bf16", "tensorrt", "tensorrt", "TensorRT", BFLOAT16),
    _gpu("trt-int8", "tensorrt", "tensorrt", "TensorRT", INT8),
    _gpu("trt-rtx", "tensorrt_rtx", "tensorrt-rtx", "TensorRT-RTX", FLOAT32, plugins=False),
    _gpu("trt-rtx-fp16", "tensorrt_rtx", "tensorrt-rtx", "TensorRT-RTX", FLOAT16, plugins=False),
)

ENGINES = ("tensorrt", "tensorrt_rtx")
"""Modules of runtimes that compile a network as a whole."""

BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("ort-cpu", "onnxruntime", "ort", True, "ONNX Runtime, CPU, float32"),
        Backend(
            *("ort-cpu-int8", "onnxruntime", "ort", True, "ONNX Runtime, CPU, int8"),
            precision=INT8,
            functions=False,
        ),
        Backend(
            *("openvino", "openvino", "openvino", True, "OpenVINO, CPU, float32"), functions=False
        ),
        Backend(
            *("openvino-bf16", "openvino", "openvino", True, "OpenVINO, CPU, bfloat16"),
            precision=BFLOAT16,
            functions=False,
        ),
        Backend(
            *("openvino-int8", "openvino", "openvino", True, "OpenVINO, CPU, int8"),
            precision=INT8,
            functions=False,
        ),
        *GPU,
        Backend("torch", "pytorch", "torch", False, "PyTorch eager, CPU"),
        Backend("torch-compile", "pytorch", "torch", False, "torch.compile (inductor), CPU"),
    )
}


@dataclass(frozen=True)
class Target:
    """The unit that is built, verified and timed; ``str`` gives ``BACKEND[:LOWERING]``.

    ``lowering`` is a name in ``LOWERINGS``, ``auto`` for the plan's choice, and empty for a
    backend that runs the PyTorch module.
    """

    backend: str
    lowering: str

    def __str__(self) -> str:
        return f"{self.backend}:{self.lowering}" if self.lowering else self.backend

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``BACKEND[:LOWERING]``; a lowering left out means ``auto``.

        Raises:
            ValueError: An unknown backend or lowering, with the names there are.
        """
        name, colon, lowering = text.partition(":")
        if name not in BACKENDS:
            raise ValueError(unknown("target", name, BACKENDS))
        if not BACKENDS[name].lowered:
            if colon:
                raise ValueError(f"target {text!r}: {name} runs the PyTorch module, no lowering")
            return cls(name, "")
        if colon and lowering not in (AUTO, *LOWERINGS, *NATIVE, CARRIED):
            raise ValueError(unknown("lowering", lowering, BACKENDS[name].lowerings))
        if lowering in NATIVE and not BACKENDS[name].plugins:
            raise ValueError(f"target {text!r}: {name} reads no plugins; choose another lowering")
        if lowering == CARRIED and not BACKENDS[name].carries:
            raise ValueError(
                f"target {text!r}: {name} builds nothing that carries a plugin; choose another "
                "lowering"
            )
        if lowering == FUNCTION and not BACKENDS[name].functions:
            raise ValueError(f"target {text!r}: {name} reads no functions; choose another lowering")
        return cls(name, lowering or AUTO)


BASELINE = Target("ort-cpu", "primitive")
"""What a plain ``torch.onnx`` export does on ONNX Runtime: every table compares with it."""

TORCH = Target("torch", "")


def silent(_: str) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Options:
    """How an artifact is built and run.

    Attributes:
        threads: Threads of one call; every usable core when None.
        trust: Allow a checkpoint that can run code to be loaded (PyTorch targets).
        verbose: Let the runtime print its own log.
        shapes: For engines, ``[NAME:]MIN/LIKELY/MAX`` for each input that is to vary.
        tf32: Let a GPU round the factors of float32 products to 11 bits.
        workspace: Bytes of device memory that a layer of an engine may use; all where None.
        refit: Let the weights of an engine be replaced.
        version_compatible: Let later versions of the runtime read an engine.
        channels_last: Let ONNX Runtime's CUDA provider compute in NHWC.
        progress: Told how far a long build is.
    """

    threads: int | None = None
    trust: bool = False
    verbose: bool = False
    shapes: tuple[str, ...] = ()
    tf32: bool = False
    workspace: int | None = None
    refit: bool = False
    version_compatible: bool = False
    channels_last: bool = False
    progress: Progress = field(default=silent, compare=False, repr=False)

    @property
    def cores(self) -> int:
        """The number of threads that is used."""
        if self.threads:
            return self.threads
        usable = getattr(os, "sched_getaffinity", None)  # absent on macOS and Windows
        return len(usable(0)) if usable else os.cpu_count() or 1


def unknown(what: str, name: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    """Return a message about an unknown name, with the nearest known one first."""
    near = get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {name!r}; {hint}known: {', '.join(known)}"
