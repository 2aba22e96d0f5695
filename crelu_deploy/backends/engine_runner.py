"""Runs an engine of TensorRT or TensorRT-RTX on a stream, with buffers that stay on the device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crelu_deploy.backends import cuda
from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BuildError
from crelu_deploy.ondevice import DeviceArray
from crelu_deploy.profiles import Range
from crelu_deploy.runner import Runner

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]
TensorRT = Any
"""The module ``tensorrt`` or ``tensorrt_rtx``: neither has types."""


class EngineRunner(Runner):
    """An engine with one execution context; calls from several threads take turns.

    Buffers for arrays of the host are made at the first call, and anew when the shapes change.
    """

    def __init__(
        self,
        trt: TensorRT,
        engine: Path,
        bundle: Bundle,
        ranges: Mapping[str, Range],
        *,
        brings_code: bool = False,
    ) -> None:
        """Read the engine, which may bring its own runtime's code where it is compatible."""
        self.inputs, self.outputs = bundle.inputs, bundle.outputs
        self._ranges = ranges
        self._lock = threading.Lock()
        self._trt, self._logger = trt, trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        if brings_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(engine.read_bytes())
        if self._engine is None:
            raise BuildError(f"{engine}: cannot be read on this machine; build it again")
        self._context = self._engine.create_execution_context()
        self._stream = cuda.Stream()
        self._buffers: dict[str, DeviceArray] = {}

    def _run(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        shapes = self._require_ranges(feeds)
        with self._lock:
            if any(n not in self._buffers or self._buffers[n].shape != shapes[n] for n in shapes):
                self._buffers.clear()
                self._buffers = self._allocate(shapes)
            # Kept in a name: the copies are still under way when the next line runs.
            sources = self._upload(feeds, self._buffers)
            self._bind(self._buffers)
            self._enqueue()
            results = [cuda.download(self._buffers[name], self._stream) for name in self.outputs]
            self._stream.wait()
            del sources
        return results

    def _run_on_device(self, feeds: Mapping[str, DeviceArray]) -> Sequence[DeviceArray]:
        shapes = self._require_ranges(feeds)
        for name, array in feeds.items():
            cuda.await_writer(name, array)
        with self._lock:
            made = self._allocate(shapes, feeds)
            self._bind(made)
            self._enqueue()
            self._stream.wait()
        return [made[name] for name in self.outputs]

    def prepare(self, *arrays: Array | Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that runs the engine on inputs that are on the device by then."""
        feeds = self._host(self._named(arrays))
        shapes = self._require_ranges(feeds)
        with self._lock:
            buffers = self._allocate(shapes)
            sources = self._upload(feeds, buffers)
            self._stream.wait()
            del sources
        stopwatch = cuda.Stopwatch(self._stream)

        def run() -> float:
            with self._lock:
                self._bind(buffers)
                return stopwatch.time(self._enqueue)

        return run

    def _require_ranges(self, feeds: Mapping[str, Array] | Mapping[str, DeviceArray]) -> Shapes:
        shapes = {name: array.shape for name, array in feeds.items()}
        for name, shape in shapes.items():
            if not self._ranges[name].holds(shape):
                raise ValueError(
                    f"input {name!r}: shape {shape} is outside {self._ranges[name]}, which the "
                    "engine was built for; build it again with --shapes"
                )
        return shapes

    def _allocate(
        self, shapes: Shapes, given: Mapping[str, DeviceArray] | None = None
    ) -> dict[str, DeviceArray]:
        """Return memory for every tensor at these shapes of the inputs, but for those given."""
        found = dict(given or {})
        for name, shape in shapes.items():
            self._context.set_input_shape(name, shape)
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            if name not in found:
                dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
                found[name] = cuda.allocate(tuple(self._context.get_tensor_shape(name)), dtype)
        return found

    def _upload(
        self, feeds: Mapping[str, Array], buffers: Mapping[str, DeviceArray]
    ) -> list[Array]:
        return [cuda.upload(a, buffers[name], self._stream) for name, a in feeds.items()]

    def _bind(self, buffers: Mapping[str, DeviceArray]) -> None:
        """Let the engine read and write these arrays."""
        for spec in self.inputs:
            self._context.set_input_shape(spec.name, buffers[spec.name].shape)
        for name, array in buffers.items():
            self._context.set_tensor_address(name, array.address)

    def _enqueue(self) -> None:
        """Start the engine."""
        if not self._context.execute_async_v3(self._stream.address):
            raise BuildError("the engine failed to run; build it again with -v for its log")

    def close(self) -> None:
        """Free the engine and what it holds on the device."""
        if not self._closed:
            self._buffers.clear()
            del self._context, self._engine, self._runtime
        super().close()
