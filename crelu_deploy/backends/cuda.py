"""The CUDA runtime, as far as running a network needs it: a device, memory, copies, a stream."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from crelu_deploy.errors import BackendUnavailable, BuildError
from crelu_deploy.ondevice import DeviceArray

try:
    from cuda.bindings import runtime
except ModuleNotFoundError as missing:
    raise BackendUnavailable(
        "a GPU target needs the package cuda-bindings, which is not installed; "
        "run: pip install cuda-bindings"
    ) from missing

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


class Memory:
    """Memory on the device, given back when nothing refers to it any more."""

    def __init__(self, nbytes: int) -> None:
        self.address = int(call("cudaMalloc", max(nbytes, 1)))
        freed = weakref.finalize(self, runtime.cudaFree, self.address)
        freed.atexit = False  # the driver frees it then


def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
    """Return an array on the device whose values are not set."""
    memory = Memory(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    return DeviceArray(shape, dtype, memory.address, memory)


class Stream:
    """What is enqueued here runs in order, and after what the default stream has by then."""

    def __init__(self) -> None:
        self.address = int(call("cudaStreamCreate"))
        weakref.finalize(self, runtime.cudaStreamDestroy, self.address).atexit = False

    def wait(self) -> None:
        """Wait until all of it is done."""
        call("cudaStreamSynchronize", self.address)


def upload(array: Array, to: DeviceArray, stream: Stream) -> Array:
    """Start to copy an array to the device; return what must stay alive until that is done."""
    source = np.ascontiguousarray(array)
    kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
    call("cudaMemcpyAsync", to.address, source.ctypes.data, to.nbytes, kind, stream.address)
    return source


def download(array: DeviceArray, stream: Stream) -> Array:
    """Start to copy from the device into a new array, valid once the stream is done."""
    result = np.empty(array.shape, array.dtype)
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
    call("cudaMemcpyAsync", result.ctypes.data, array.address, array.nbytes, kind, stream.address)
    return result


def copy(array: DeviceArray, to: DeviceArray, stream: Stream) -> None:
    """Start to copy between two arrays on the device."""
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    call("cudaMemcpyAsync", to.address, array.address, array.nbytes, kind, stream.address)


def await_writer(name: str, array: DeviceArray) -> None:
    """Wait until another library's array is written, and refuse one that lies elsewhere.

    A stream that blocks, as those here do, waits by itself for the default stream.

    Raises:
        ValueError: It is not in the memory of the first GPU.
    """
    if array.nbytes:
        found = call("cudaPointerGetAttributes", array.address)
        kinds = runtime.cudaMemoryType
        if found.type not in (kinds.cudaMemoryTypeDevice, kinds.cudaMemoryTypeManaged):
            raise ValueError(f"input {name!r}: its address is not in the memory of a GPU")
        if found.device != 0:
            raise ValueError(f"input {name!r} is on GPU {found.device}, the target runs on GPU 0")
    if array.stream is not None:
        call("cudaStreamSynchronize", array.stream)


class Stopwatch:
    """Time on the device between two points of a stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._events = [call("cudaEventCreate") for _ in range(2)]
        for event in self._events:
            weakref.finalize(self, runtime.cudaEventDestroy, event).atexit = False

    def time(self, work: Callable[[], object]) -> float:
        """Return the milliseconds of what ``work`` enqueues, once that is done."""
        start, end = self._events
        call("cudaEventRecord", start, self._stream.address)
        work()
        call("cudaEventRecord", end, self._stream.address)
        self._stream.wait()
        return float(call("cudaEventElapsedTime", start, end))
