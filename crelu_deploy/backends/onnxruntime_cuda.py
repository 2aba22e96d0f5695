"""ONNX Runtime on an NVIDIA GPU, and never anywhere else: the provider in use is checked."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

from crelu_deploy import native
from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BackendUnavailable, BuildError
from crelu_deploy.targets import Options, Target

if TYPE_CHECKING:
    from crelu_deploy.backends.cuda_runner import CudaRunner

PROVIDER = "CUDAExecutionProvider"
FATAL_ONLY, EVERYTHING = 4, 0  # severities of ONNX Runtime's log


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
    from crelu_deploy.backends import cuda  # after the provider, the more likely to be missing
    from crelu_deploy.backends.cuda_runner import CudaRunner, GraphRunner

    cuda.find_device()
    stream = cuda.Stream()
    path, settings = bundle.artifact(target), _settings(target, options)
    session = open_session(path, settings, options, stream.address, graph=False)
    require_used(session)
    if not _is_fixed(session):
        return CudaRunner(session, bundle, stream)
    try:
        captured = open_session(path, settings, options, stream.address, graph=True)
    except BuildError:  # A node of it runs on the CPU, which a graph cannot hold.
        return CudaRunner(session, bundle, stream)
    return GraphRunner(captured, bundle, stream)


def open_session(
    path: Path, settings: ort.SessionOptions, options: Options, stream: int, *, graph: bool
) -> ort.InferenceSession:
    """Open a session that asks for the GPU and computes on a stream.

    Raises:
        BuildError: ONNX Runtime refuses the file, or cannot make a CUDA graph of it.
    """
    asked = provider_settings(options, stream, graph=graph)
    try:
        session = ort.InferenceSession(path, settings, providers=[(PROVIDER, asked)])
    except Exception as error:  # its exceptions share no public base class
        raise BuildError(f"{path}: ONNX Runtime refuses it: {first_line(error)}") from error
    session.disable_fallback()
    return session


def provider_settings(options: Options, stream: int, *, graph: bool) -> dict[str, str]:
    """Return what the provider is told."""
    return {
        "cudnn_conv_algo_search": "HEURISTIC",  # the default tries all, at each new shape
        "use_tf32": str(int(options.tf32)),
        "enable_cuda_graph": str(int(graph)),
        "prefer_nhwc": str(int(options.channels_last)),
        "user_compute_stream": str(stream),
    }


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


def first_line(error: Exception) -> str:
    """Return what an error says first."""
    return (str(error).splitlines() or [type(error).__name__])[0]
