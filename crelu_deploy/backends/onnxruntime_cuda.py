"""ONNX Runtime on an NVIDIA GPU, and never anywhere else: the provider in use is checked."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from crelu_deploy import native
from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BackendUnavailable, BuildError
from crelu_deploy.runner import Runner
from crelu_deploy.targets import Options, Target

Array = np.ndarray[Any, Any]

PROVIDER = "CUDAExecutionProvider"
DEVICE = "cuda"
FATAL_ONLY, EVERYTHING = 4, 0  # severities of ONNX Runtime's log


class CudaRunner(Runner):
    """A session whose inputs and outputs are bound to memory of the GPU; callers take turns."""

    def __init__(self, session: ort.InferenceSession, bundle: Bundle) -> None:
        self.inputs, self.outputs = bundle.inputs, bundle.outputs
        self._session = session
        self._lock = threading.Lock()
        self._binding = session.io_binding()
        self._values: dict[str, ort.OrtValue] = {}
        for output in session.get_outputs():
            self._binding.bind_output(output.name, DEVICE)

    def _run(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        with self._lock:
            try:
                for name, array in feeds.items():
                    self._write(name, np.ascontiguousarray(array))
                self._session.run_with_iobinding(self._binding)
                found: Sequence[Array] = self._binding.copy_outputs_to_cpu()
            except Exception as error:  # its exceptions share no public base class
                raise BuildError(f"ONNX Runtime failed on it: {first_line(error)}") from error
        return found

    def _write(self, name: str, array: Array) -> None:
        """Copy an input into the memory that is bound to it; other shapes get memory anew."""
        value = self._values.get(name)
        if value is not None and tuple(value.shape()) == array.shape:
            value.update_inplace(array)
            return
        self._values[name] = ort.OrtValue.ortvalue_from_numpy(array, DEVICE, 0)
        self._binding.bind_ortvalue_input(name, self._values[name])

    def close(self) -> None:
        """Free the session and its memory on the GPU."""
        super().close()
        for name in ("_binding", "_session", "_values"):
            self.__dict__.pop(name, None)


class GraphRunner(CudaRunner):
    """A session of fixed shapes, whose kernels are launched together as one CUDA graph.

    The graph is captured at the first call; it reads and writes the same memory at every call.
    """

    def __init__(self, session: ort.InferenceSession, bundle: Bundle) -> None:
        super().__init__(session, bundle)
        for output in session.get_outputs():
            value = ort.OrtValue.ortvalue_from_shape_and_type(
                output.shape, _dtype(output.type), DEVICE, 0
            )
            self._binding.bind_ortvalue_output(output.name, value)


def build(bundle: Bundle, target: Target, options: Options) -> None:
    """Check that the file opens on the GPU: what ONNX Runtime reads is the lowered file itself.

    Raises:
        BackendUnavailable: ONNX Runtime cannot use a GPU here, or the custom op is not built.
        BuildError: ONNX Runtime refuses the file.
    """
    load(bundle, target, options).close()


def load(bundle: Bundle, target: Target, options: Options) -> CudaRunner:
    """Open a session on the first GPU, with a CUDA graph where all shapes are fixed.

    Raises:
        BackendUnavailable: ONNX Runtime cannot use a GPU here, or the custom op is not built.
        BuildError: ONNX Runtime refuses the file.
    """
    require_provider()
    path, settings = bundle.artifact(target), _settings(target, options)
    session = open_session(path, settings, options, graph=False)
    require_used(session)
    if not _is_fixed(session):
        return CudaRunner(session, bundle)
    try:
        captured = open_session(path, settings, options, graph=True)
    except BuildError:  # A node of it runs on the CPU, which a graph cannot hold.
        return CudaRunner(session, bundle)
    return GraphRunner(captured, bundle)


def open_session(
    path: Path, settings: ort.SessionOptions, options: Options, *, graph: bool
) -> ort.InferenceSession:
    """Open a session that asks for the GPU.

    Raises:
        BuildError: ONNX Runtime refuses the file, or cannot make a CUDA graph of it.
    """
    asked = {
        "cudnn_conv_algo_search": "HEURISTIC",  # the default tries all, at each new shape
        "use_tf32": str(int(options.tf32)),
        "enable_cuda_graph": str(int(graph)),
    }
    try:
        session = ort.InferenceSession(path, settings, providers=[(PROVIDER, asked)])
    except Exception as error:  # its exceptions share no public base class
        raise BuildError(f"{path}: ONNX Runtime refuses it: {first_line(error)}") from error
    session.disable_fallback()
    return session


def require_provider() -> None:
    """Refuse a build of ONNX Runtime that cannot use a GPU.

    Raises:
        BackendUnavailable: It cannot.
    """
    found = ort.get_available_providers()
    if PROVIDER not in found:
        raise BackendUnavailable(
            f"onnxruntime {ort.__version__} has no {PROVIDER}; run: "
            "pip uninstall -y onnxruntime && pip install 'crelu-deploy[ort-cuda]'"
        )
    # CUDA and cuDNN from their Python packages; what it prints is said by ``require_used``.
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()


def require_used(session: ort.InferenceSession) -> None:
    """Refuse a session that runs elsewhere: without its libraries the provider is left out.

    Raises:
        BackendUnavailable: It does.
    """
    used = session.get_providers()
    if PROVIDER not in used:
        raise BackendUnavailable(
            f"ONNX Runtime could not load {PROVIDER} and took {used[0]}; it needs an "
            "NVIDIA driver, CUDA and cuDNN, run: pip install 'onnxruntime-gpu[cuda,cudnn]', "
            "and with -v for its log"
        )


def _settings(target: Target, options: Options) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.cores
    settings.log_severity_level = EVERYTHING if options.verbose else FATAL_ONLY
    ort.set_default_logger_severity(settings.log_severity_level)  # of loading the provider
    if target.lowering == "plugin":
        settings.register_custom_ops_library(str(native.library("onnxruntime")))
    return settings


def _is_fixed(session: ort.InferenceSession) -> bool:
    values = (*session.get_inputs(), *session.get_outputs())
    return all(isinstance(extent, int) for value in values for extent in value.shape)


def _dtype(type_: str) -> type[Any]:
    """Return NumPy's type for one of ONNX Runtime's, such as ``tensor(float)``."""
    kind = type_.removeprefix("tensor(").removesuffix(")")
    names = {"float": "float32", "double": "float64"}
    return np.dtype(names.get(kind, kind)).type


def first_line(error: Exception) -> str:
    """Return what an error says first."""
    return (str(error).splitlines() or [type(error).__name__])[0]
