"""``config.pbtxt``: one model's configuration, written through Triton's own protobuf schema.

The meaning of every field: https://github.com/triton-inference-server/common, model_config.proto.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import text_format

from crelu_deploy.errors import BackendUnavailable, UnsupportedModel
from crelu_deploy.runner import TensorSpec
from crelu_deploy.serving.signature import Signature

try:
    from tritonclient.grpc import model_config_pb2 as schema
except ModuleNotFoundError as error:
    raise BackendUnavailable(
        f"a model repository needs the package {error.name}, which is not installed; "
        "run: pip install 'crelu-deploy[serve]'"
    ) from error

Config = Any
"""A ``ModelConfig`` message: the generated module has no types."""

WARMUP = "warmup"
"""The folder in a model's own where Triton looks for the inputs of its warm-up."""

_TYPES = {
    "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    **{f"int{bits}": f"TYPE_INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"TYPE_UINT{bits}" for bits in (8, 16, 32, 64)},
}


def model_config(
    name: str,
    backend: str,
    signature: Signature,
    *,
    sizes: Sequence[int],
    gpu: bool,
    instances: int = 1,
) -> Config:
    """Return what every model has: tensors, batching, instances, versions, warm-up.

    Args:
        name: The model's name, which is its folder's too.
        backend: The name of Triton's backend.
        signature: The network's tensors and a sample.
        sizes: The batch sizes to form, ascending; the last is the largest allowed. Without any, or
            without a batch axis, requests are run one by one.
        gpu: Whether it runs on the first GPU.
        instances: Copies of it that run at a time; of several, each has one thread.

    Raises:
        UnsupportedModel: Triton has no such element type.
    """
    batch = max(sizes, default=1) if signature.batched else 0
    config = schema.ModelConfig(name=name, backend=backend, max_batch_size=batch)
    config.version_policy.latest.num_versions = 1
    for spec in signature.inputs:
        config.input.add(name=spec.name, data_type=_type(spec), dims=_dims(spec, signature.batched))
    for spec in signature.outputs:
        dims = _dims(spec, signature.batched)
        config.output.add(name=spec.name, data_type=_type(spec), dims=dims)
    if batch > 1:
        # Without a delay: a batch is what has queued while the one before it ran.
        config.dynamic_batching.preferred_batch_size.extend(sizes)
    kinds = schema.ModelInstanceGroup
    place = {"kind": kinds.KIND_GPU, "gpus": [0]} if gpu else {"kind": kinds.KIND_CPU}
    config.instance_group.add(count=instances, **place)
    for size in dict.fromkeys((1, max(batch, 1))):
        _warm_up(config, signature, size)
    return config


def _warm_up(config: Config, signature: Signature, size: int) -> None:
    """Ask for one call with the sample's row, ``size`` times over."""
    entry = config.model_warmup.add(name=f"batch {size}", batch_size=size, count=1)
    for index, spec in enumerate(signature.inputs):
        tensor = entry.inputs[spec.name]
        tensor.data_type = _type(spec)
        tensor.dims.extend(signature.sample[spec.name].shape[int(signature.batched) :])
        tensor.input_data_file = warmup_file(index)


def warmup_file(index: int) -> str:
    """Return the file of an input's warm-up; names of inputs may hold what a path cannot."""
    return f"input-{index}.raw"


def _type(spec: TensorSpec) -> int:
    if spec.dtype not in _TYPES:
        raise UnsupportedModel(f"tensor {spec}: Triton has no element type {spec.dtype}")
    return int(schema.DataType.Value(_TYPES[spec.dtype]))


def _dims(spec: TensorSpec, batched: bool) -> list[int]:
    return [d if isinstance(d, int) else -1 for d in spec.shape[int(batched) :]]


def set_parameters(config: Config, **values: str) -> None:
    """Set what a backend reads from ``parameters``."""
    for key, value in values.items():
        config.parameters[key].string_value = value


def use_onnxruntime(config: Config, file: str) -> None:
    """Name the file; all graph optimisations are on unless a configuration says otherwise."""
    config.default_model_filename = file
    # 0: ONNX Runtime takes every core; operators run one after the other.
    threads = "0" if config.instance_group[0].count == 1 else "1"
    set_parameters(config, intra_op_thread_count=threads, execution_mode="0")


def use_cuda(config: Config) -> None:
    """Spell out the CUDA provider's options, as the target was verified with them."""
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add()
    accelerator.name = "cuda"
    accelerator.parameters["use_tf32"] = "0"
    # A graph reads and writes the same addresses at each call; Triton's buffers change.
    accelerator.parameters["enable_cuda_graph"] = "0"
    # 1 is HEURISTIC. Triton's backend overrides what the accelerator says with this parameter,
    # and takes EXHAUSTIVE, which tries all algorithms at every new shape, where it is missing.
    set_parameters(config, cudnn_conv_algo_search="1")


def use_tensorrt(config: Config, file: str, *, fixed: bool) -> None:
    """Name the engine; its kernels are launched as one CUDA graph where all shapes are fixed."""
    config.default_model_filename = file
    config.optimization.cuda.graphs = fixed


def use_library(config: Config, path: str) -> None:
    """Name a library of custom operators, by its path on the server's machine."""
    config.model_operations.op_library_filename.append(path)


def use_runner(config: Config, target: str) -> None:
    """Tell ``triton_model`` which target it runs; the Runner takes arrays in host memory."""
    set_parameters(config, target=target, FORCE_CPU_ONLY_INPUT_TENSORS="yes")


def to_text(config: Config) -> str:
    """Return the content of ``config.pbtxt``."""
    return str(text_format.MessageToString(config))
