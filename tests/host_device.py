"""A CUDA device in the memory of the host, and an engine whose layers ONNX Runtime computes.

What runs on it is the package's own code around the device: memory, streams, addresses, events. A
stream does its work when it is waited for, so that whoever reads too early or frees too early is
found out. The file of such an engine is an ONNX file.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

OK = 0


class HostRuntime:
    """In place of ``cuda.bindings.runtime``; each function returns a status, then its results."""

    cudaError_t = SimpleNamespace(cudaSuccess=OK)
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice="to", cudaMemcpyDeviceToHost="from", cudaMemcpyDeviceToDevice="in"
    )
    cudaMemoryType = SimpleNamespace(cudaMemoryTypeDevice=2, cudaMemoryTypeManaged=3)

    def __init__(self, *, deferred: bool = True) -> None:
        """Run a stream's work when it is waited for, or at once."""
        self.deferred = deferred
        self.memory: dict[int, Any] = {}
        self.queue: list[Callable[[], object]] = []
        self.events: dict[int, float] = {}
        self.copies: list[str] = []
        self.waited: list[int] = []
        self.gpus: dict[int, int] = {}

    def enqueue(self, work: Callable[[], object]) -> None:
        """Do it on the stream."""
        if self.deferred:
            self.queue.append(work)
        else:
            work()

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        room = ctypes.create_string_buffer(b"\xa5" * size, size)
        self.memory[ctypes.addressof(room)] = room
        return OK, ctypes.addressof(room)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.memory[address]
        return (OK,)

    def cudaMemcpyAsync(
        self, to: int, source: int, size: int, kind: str, stream: int
    ) -> tuple[int]:
        self.copies.append(kind)
        self.enqueue(lambda: ctypes.memmove(to, source, size))
        return (OK,)

    def cudaStreamCreate(self) -> tuple[int, int]:
        return OK, 64

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        self.waited.append(stream)
        work, self.queue = self.queue, []
        for step in work:
            step()
        return (OK,)

    def cudaEventCreate(self) -> tuple[int, int]:
        self.events[len(self.events)] = 0.0
        return OK, len(self.events) - 1

    def cudaEventDestroy(self, event: int) -> tuple[int]:
        return (OK,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:
        self.enqueue(lambda: self.events.update({event: time.perf_counter()}))
        return (OK,)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[int, float]:
        return OK, (self.events[end] - self.events[start]) * 1e3

    def cudaPointerGetAttributes(self, address: int) -> tuple[int, Any]:
        gpu = self.gpus.get(address, 0)
        return OK, SimpleNamespace(type=0 if gpu < 0 else 2, device=gpu)


class OnGpu:
    """An array of another library: the host's memory, offered as a device's."""

    def __init__(self, array: np.ndarray, **told: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": None if array.flags.c_contiguous else array.strides,
            "version": 3,
            **told,
        }


def read(array: Any) -> np.ndarray:
    """Return what an array that is offered as a device's holds."""
    told = array.__cuda_array_interface__
    count = int(np.prod(told["shape"])) * np.dtype(told["typestr"]).itemsize
    data = ctypes.string_at(told["data"][0], count)
    return np.frombuffer(data, told["typestr"]).reshape(told["shape"])


def engines(device: HostRuntime) -> Any:
    """Return what stands in for the module ``tensorrt``."""

    class Logger:
        ERROR = 1

        def __init__(self, severity: int) -> None:
            self.severity = severity

    class Runtime:
        def __init__(self, logger: Logger) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            return Engine(data, device) if data else None

    return SimpleNamespace(Logger=Logger, Runtime=Runtime, nptype=np.dtype)


class Engine:
    """A network, its tensors and one execution context."""

    def __init__(self, data: bytes, device: HostRuntime) -> None:
        self.session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
        self.device = device
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.fails = False

    def create_execution_context(self) -> Engine:
        return self

    def get_tensor_name(self, i: int) -> str:
        return [*self.inputs, *self.outputs][i]

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        zeros = {n: np.zeros(self.shapes[n], np.float32) for n in self.inputs}
        return self.session.run([name], zeros)[0].shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        shapes, addresses = dict(self.shapes), dict(self.addresses)

        def run() -> None:
            feeds = {name: _at(addresses[name], shapes[name]) for name in self.inputs}
            for name, y in zip(self.outputs, self.session.run(None, feeds), strict=True):
                _at(addresses[name], y.shape)[...] = y

        self.device.enqueue(run)
        return not self.fails


def _at(address: int, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape))
    room = (ctypes.c_float * size).from_address(address)
    return np.frombuffer(room, np.float32, size).reshape(shape)
