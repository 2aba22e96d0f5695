"""Runs a session of ONNX Runtime on the GPU, with inputs and outputs bound to its memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from crelu_deploy.backends import cuda
from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BuildError
from crelu_deploy.ondevice import DeviceArray
from crelu_deploy.runner import Runner

Array = np.ndarray[Any, Any]
Binding = Any
"""ONNX Runtime's ``IOBinding``."""

DEVICE = "cuda"
UNSYNCHRONISED = "disable_synchronize_execution_providers"


class CudaRunner(Runner):
    """A session of any shapes; callers take turns.

    A binding serves one call, or one shape: what it once wrote, it writes again.
    """

    def __init__(self, session: ort.InferenceSession, bundle: Bundle, stream: cuda.Stream) -> None:
        self.inputs, self.outputs = bundle.inputs, bundle.outputs
        self._session, self._stream = session, stream
        self._lock = threading.Lock()
        self._started = ort.RunOptions()
        self._started.add_run_config_entry(UNSYNCHRONISED, "1")

    def _run(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        with self._lock:
            binding = self._bound(feeds)
            self._start(binding)
            self._stream.wait()
            found: Sequence[Array] = binding.copy_outputs_to_cpu()
        return found

    def _run_on_device(self, feeds: Mapping[str, DeviceArray]) -> Sequence[DeviceArray]:
        for name, array in feeds.items():
            cuda.await_writer(name, array)
        with self._lock:
            binding = self._session.io_binding()
            for name, x in feeds.items():
                binding.bind_input(name, DEVICE, 0, x.dtype.type, x.shape, x.address)
            self._bind_outputs(binding)
            self._start(binding)
            self._stream.wait()
        return [_view(value) for value in binding.get_outputs()]

    def prepare(self, *arrays: Array | Mapping[str, Array]) -> Callable[[], object]:
        """Return a call of the session on inputs that are on the device by then."""
        feeds = self._host(self._named(arrays))
        with self._lock:
            binding = self._bound(feeds)
        stopwatch = cuda.Stopwatch(self._stream)

        def run() -> float:
            with self._lock:
                return stopwatch.time(lambda: self._start(binding))

        return run

    def _bound(self, feeds: Mapping[str, Array]) -> Binding:
        """Return a binding of inputs that are copied to the device, and of outputs there."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), DEVICE, 0)
            binding.bind_ortvalue_input(name, value)
        self._bind_outputs(binding)
        return binding

    def _bind_outputs(self, binding: Binding) -> None:
        for name in self.outputs:
            binding.bind_output(name, DEVICE)

    def _start(self, binding: Binding) -> None:
        try:
            self._session.run_with_iobinding(binding, self._started)
        except Exception as error:  # its exceptions share no public base class
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BuildError(f"ONNX Runtime failed on it: {reason}") from error

    def close(self) -> None:
        """Free the session and its memory on the GPU."""
        super().close()
        self.__dict__.pop("_session", None)


class GraphRunner(CudaRunner):
    """A session of fixed shapes, whose kernels are launched together as one CUDA graph.

    The graph is captured at the first call. It reads and writes the same memory at every call, so
    that arrays on the GPU are copied there and back, on the GPU.
    """

    def __init__(self, session: ort.InferenceSession, bundle: Bundle, stream: cuda.Stream) -> None:
        super().__init__(session, bundle, stream)
        self._binding = session.io_binding()
        self._values = {
            value.name: ort.OrtValue.ortvalue_from_shape_and_type(
                value.shape, _dtype(value.type), DEVICE, 0
            )
            for value in (*session.get_inputs(), *session.get_outputs())
        }
        for spec in self.inputs:
            self._binding.bind_ortvalue_input(spec.name, self._values[spec.name])
        for name in self.outputs:
            self._binding.bind_ortvalue_output(name, self._values[name])

    def _bound(self, feeds: Mapping[str, Array]) -> Binding:
        for name, array in feeds.items():
            self._values[name].update_inplace(np.ascontiguousarray(array))
        return self._binding

    def _run_on_device(self, feeds: Mapping[str, DeviceArray]) -> Sequence[DeviceArray]:
        for name, array in feeds.items():
            cuda.await_writer(name, array)
        with self._lock:
            for name, array in feeds.items():
                cuda.copy(array, _view(self._values[name]), self._stream)
            self._start(self._binding)
            results = []
            for name in self.outputs:
                fixed = _view(self._values[name])
                results.append(cuda.allocate(fixed.shape, fixed.dtype))
                cuda.copy(fixed, results[-1], self._stream)
            self._stream.wait()
        return results

    def close(self) -> None:
        """Free the session and its memory on the GPU."""
        super().close()
        for name in ("_binding", "_values"):
            self.__dict__.pop(name, None)


def _view(value: ort.OrtValue) -> DeviceArray:
    """Look at the memory of a value of ONNX Runtime."""
    dtype = np.dtype(_dtype(value.data_type()))
    return DeviceArray(tuple(value.shape()), dtype, value.data_ptr(), value)


def _dtype(type_: str) -> type[Any]:
    """Return NumPy's type for one of ONNX Runtime's, such as ``tensor(float)``."""
    kind = type_.removeprefix("tensor(").removesuffix(")")
    names = {"float": "float32", "double": "float64"}
    return np.dtype(names.get(kind, kind)).type
