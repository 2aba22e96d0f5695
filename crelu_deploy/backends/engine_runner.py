"""Runs an engine of TensorRT or TensorRT-RTX on a stream, with buffers that stay on the device."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crelu_deploy.backends import cuda
from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BuildError
from crelu_deploy.profiles import Range
from crelu_deploy.runner import Runner

Array = np.ndarray[Any, Any]
TensorRT = Any
"""The module ``tensorrt`` or ``tensorrt_rtx``: neither has types."""


class EngineRunner(Runner):
    """An engine with one execution context; calls from several threads take turns.

    Buffers are made at the first call and anew when the shapes change.
    """

    def __init__(
        self, trt: TensorRT, engine: Path, bundle: Bundle, ranges: Mapping[str, Range]
    ) -> None:
        self.inputs, self.outputs = bundle.inputs, bundle.outputs
        self._ranges = ranges
        self._lock = threading.Lock()
        self._trt, self._logger = trt, trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine.read_bytes())
        if self._engine is None:
            raise BuildError(f"{engine}: cannot be read on this machine; build it again")
        self._context = self._engine.create_execution_context()
        self._stream = int(cuda.call("cudaStreamCreate"))
        self._buffers: dict[str, cuda.Buffer] = {}

    def _run(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        for name, array in feeds.items():
            self._require_range(name, array.shape)
        with self._lock:
            self._fit({name: array.shape for name, array in feeds.items()})
            # Kept in a name: the copies are still under way when the next line runs.
            sources = [self._buffers[n].write(a, self._stream) for n, a in feeds.items()]
            if not self._context.execute_async_v3(self._stream):
                raise BuildError("the engine failed to run; build it again with -v for its log")
            results = [self._buffers[name].read(self._stream) for name in self.outputs]
            cuda.call("cudaStreamSynchronize", self._stream)
            del sources
        return results

    def _require_range(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._ranges[name].holds(shape):
            raise ValueError(
                f"input {name!r}: shape {shape} is outside {self._ranges[name]}, which the engine "
                "was built for; build it again with --shapes"
            )

    def _fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make buffers for these shapes of the inputs, unless they are there."""
        if shapes == {n: self._buffers[n].shape for n in shapes if n in self._buffers}:
            return
        self._free()
        for name, shape in shapes.items():
            self._context.set_input_shape(name, shape)
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
            shape = tuple(self._context.get_tensor_shape(name))
            self._buffers[name] = cuda.Buffer(shape, dtype)
            self._context.set_tensor_address(name, self._buffers[name].address)

    def _free(self) -> None:
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers.clear()

    def close(self) -> None:
        """Free the engine and what it holds on the device."""
        if not self._closed:
            self._free()
            cuda.call("cudaStreamDestroy", self._stream)
            del self._context, self._engine, self._runtime
        super().close()
