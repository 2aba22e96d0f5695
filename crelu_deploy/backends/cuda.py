"""The CUDA runtime, as far as running an engine needs it: a device, memory, copies, a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda.bindings import runtime

from crelu_deploy.errors import BackendUnavailable, BuildError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Device:
    """The first GPU."""

    name: str
    capability: str
    """Its compute capability, such as ``SM86``."""


def call(function: str, *arguments: Any) -> Any:
    """Call one function of the CUDA runtime and return its result, None where it has none.

    Raises:
        BuildError: It failed.
    """
    status, *results = getattr(runtime, function)(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        raise BuildError(f"{function}: {status.name}")
    return results[0] if results else None


def find_device() -> Device:
    """Return the first GPU.

    Raises:
        BackendUnavailable: There is no GPU, or no driver for it.
    """
    try:
        found = call("cudaGetDeviceProperties", 0) if call("cudaGetDeviceCount") else None
    except BuildError as error:
        raise BackendUnavailable(f"no NVIDIA GPU with a driver here ({error})") from error
    if found is None:
        raise BackendUnavailable("no NVIDIA GPU here")
    return Device(found.name.decode().rstrip("\0"), f"SM{found.major}{found.minor}")


class Buffer:
    """Memory on the device for one array of a fixed shape and element type."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.address = int(call("cudaMalloc", max(self.nbytes, 1)))

    def write(self, array: Array, stream: int) -> Array:
        """Start to copy an array to the device; return what must stay alive until that is done."""
        source = np.ascontiguousarray(array)
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        call("cudaMemcpyAsync", self.address, source.ctypes.data, self.nbytes, kind, stream)
        return source

    def read(self, stream: int) -> Array:
        """Start to copy the device's memory into a new array, valid once the stream is done."""
        result = np.empty(self.shape, self.dtype)
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("cudaMemcpyAsync", result.ctypes.data, self.address, self.nbytes, kind, stream)
        return result

    def free(self) -> None:
        """Give the memory back."""
        call("cudaFree", self.address)
