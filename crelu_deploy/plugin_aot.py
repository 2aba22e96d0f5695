"""CReLU as TensorRT's ahead-of-time plugin: the engine carries the kernel as PTX.

``register`` makes the creator known to TensorRT's registry in this process; an engine that is built
then needs neither Python nor a library to run. Name, namespace and version are those of the native
plugin, so that the same model finds the one or the other.

TensorRT launches ``kernel(x, elements, row, y)``: addresses of the inputs, then the numbers that
``launch`` returns, in 32 bits, then addresses of the outputs. The entries are in
``plugins/crelu_aot.cu``; ``make plugins`` compiles them to ``crelu.ptx`` for the oldest GPU, from
which a driver makes machine code for its own. The target ``trt-fp16:plugin-aot`` builds so.

No engine has been built with it yet: the signatures, formats and launch sizes are checked by
TensorRT's own Python layer, the kernel is checked on the host.
"""

# Without `from __future__ import annotations`: TensorRT reads those of its callbacks as objects.

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from crelu_deploy import native
from crelu_deploy.errors import BackendUnavailable, BuildError
from crelu_deploy.op import ACTIVATIONS, DOMAIN

NAME, VERSION = ACTIVATIONS["relu"].op_type, "1"

FILE = "crelu.ptx"
"""The kernels, compiled from ``plugins/crelu_aot.cu`` and found where the libraries are."""

THREADS, LOAD = 256, 16
"""Threads of a block, and bytes of x that each of them reads; as in ``plugins/crelu.h``."""

ENTRIES = {
    "FLOAT": ("crelu_float32", 4),
    "HALF": ("crelu_float16", 2),
    "BF16": ("crelu_bfloat16", 2),
}
"""TensorRT's data type -> kernel, bytes of a value."""

LINEAR = "LINEAR"

LAYOUTS = (
    ("FP32", "HWC", 2, 1),
    ("FP16", "HWC8", 2, 8),
    ("FP16", "HWC16", 2, 16),
    ("BF16", "HWC8", 2, 8),
    ("FP32", "DHWC", 3, 1),
    ("FP16", "DHWC8", 3, 8),
    ("BF16", "DHWC8", 3, 8),
)
"""Channels-last formats: type, format, axes behind the channels, divisor of the channels."""

Axis = npt.NDArray[np.int32]
"""One number. An array, because scalar attributes fail with NumPy 2.4 before TensorRT 11.2."""


def ptx() -> str:
    """Return the kernels as PTX.

    Raises:
        BackendUnavailable: They are not compiled.
    """
    for folder in native.search_path():
        if (folder / FILE).is_file():
            return (folder / FILE).read_text()
    places = ", ".join(str(folder) for folder in native.search_path())
    raise BackendUnavailable(
        f"{FILE} is not built; looked in: {places}; "
        f"run: make plugins (in the source tree), or set {native.VARIABLE} to its folder"
    )


def front_axis(axis: Axis, rank: int) -> int:
    """Return the axis counted from the front.

    Raises:
        ValueError: A tensor of this rank has no such axis.
    """
    given = int(axis.item())
    if not -rank <= given < rank:
        raise ValueError(f"{NAME}: axis {given} is outside rank {rank} of its input")
    return given % rank


def formats(shape: tuple[int, ...], axis: int) -> list[tuple[str, str]]:
    """Return the pairs of type and format in which the axis can be doubled; -1: unknown extent."""
    linear = [(dtype, LINEAR) for dtype in ("FP32", "FP16", "BF16")]
    return linear + [
        (dtype, layout)
        for dtype, layout, behind, vector in LAYOUTS
        if axis == len(shape) - behind - 1 and shape[axis] % vector == 0
    ]


def _registry() -> Any:
    """Return TensorRT's plugin registry."""
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"the ahead-of-time plugin needs the package {error.name}, which is not installed; "
            "run: pip install 'crelu-deploy[tensorrt]'"
        ) from error
    if not hasattr(tensorrt, "QuickPluginCreationRequest"):
        raise BackendUnavailable(
            f"the ahead-of-time plugin needs TensorRT 10.9 or newer, found {tensorrt.__version__}"
        )
    return tensorrt.get_plugin_registry()


@functools.cache
def register() -> None:
    """Register the plugin with TensorRT in this process; a second call does nothing.

    A network takes it from the ONNX parser, or from ``add_plugin(..., aot=True)``.

    Raises:
        BackendUnavailable: TensorRT is missing or too old, or the PTX is not built.
        BuildError: This process has loaded the native plugin, which has the same name.
    """
    registry, kernels = _registry(), ptx()
    if registry.get_creator(NAME, VERSION, DOMAIN) is not None:
        raise BuildError(
            f"{DOMAIN}::{NAME} is registered in this process already, by the native plugin; "
            "build the two in separate processes"
        )
    _declare(kernels)


def _declare(kernels: str) -> None:
    """Hand TensorRT the callbacks, whose names and annotations it checks."""
    import tensorrt.plugin as layer
    from tensorrt.plugin import AutoTuneCombination, KernelLaunchParams, SymIntExprs, TensorDesc

    name = f"{DOMAIN}::{NAME}"

    def describe(x: TensorDesc, axis: Axis) -> TensorDesc:
        y = x.like()
        at = front_axis(axis, x.ndim)
        y.shape_expr[at] = x.shape_expr[at] * 2
        return y

    def autotune(
        x: TensorDesc, axis: Axis, outputs: tuple[TensorDesc]
    ) -> list[AutoTuneCombination]:
        pairs = formats(tuple(x.shape), front_axis(axis, x.ndim))
        return [AutoTuneCombination(f"{t}, {t}", f"{f}, {f}") for t, f in pairs]

    def launch(
        x: TensorDesc, axis: Axis, outputs: tuple[TensorDesc], tactic: int
    ) -> tuple[str, str, KernelLaunchParams, SymIntExprs]:
        entry, size = ENTRIES[x.dtype.name]
        elements, row = _numbers(x, front_axis(axis, x.ndim))
        # An empty tensor has no block, which CUDA refuses to launch.
        blocks = layer.max(layer.cdiv(elements, THREADS * LOAD // size), 1)
        numbers = SymIntExprs.from_tuple((layer.SymInt32(elements), layer.SymInt32(row)))
        return entry, kernels, KernelLaunchParams(grid_x=blocks, block_x=THREADS), numbers

    layer.register(name)(describe)
    layer.autotune(name)(autotune)
    layer.aot_impl(name)(launch)


def _numbers(x: Any, axis: int) -> tuple[Any, Any]:
    """Return the values of x, and those of one row in its format, as expressions of its extents."""
    row = x.shape_expr[axis]
    if x.format.name == LINEAR:
        for extent in list(x.shape_expr)[axis + 1 :]:
            row = row * extent
    return x.shape_expr.numel(), row
