"""PyTorch itself, eager and compiled: what every artifact is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crelu_deploy import checkpoint, recording
from crelu_deploy.bundle import Bundle, sha256
from crelu_deploy.errors import BackendUnavailable, CheckpointError
from crelu_deploy.runner import Runner
from crelu_deploy.samples import Arrays, Sample
from crelu_deploy.targets import Options, Target
from crelu_deploy.tensors import flatten
from crelu_deploy.widening import with_floors

Array = np.ndarray[Any, Any]


class ModuleRunner(Runner):
    """A module in evaluation mode; it takes and gives NumPy arrays without a copy."""

    def __init__(self, call: Callable[..., Any], bundle: Bundle) -> None:
        self._call = call
        self.inputs, self.outputs = bundle.inputs, bundle.outputs

    def _run(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        tensors = [torch.from_numpy(feeds[spec.name]) for spec in self.inputs]
        with torch.inference_mode():
            return [tensor.numpy() for _, tensor in flatten(self._call(*tensors))]


def build(bundle: Bundle, target: Target, options: Options) -> None:
    """Check that the module behind the bundle can be loaded: there is nothing to build."""
    _module(bundle, target, options)


def load(bundle: Bundle, target: Target, options: Options) -> ModuleRunner:
    """Load the checkpoint that the bundle was exported from.

    Raises:
        BackendUnavailable: The bundle records no checkpoint, or it is gone or has changed.
        CheckpointError: It, or the architecture that the bundle names, can run code, and
            ``options.trust`` is not set.
    """
    module = _module(bundle, target, options)
    torch.set_num_threads(options.cores)
    if target.backend == "torch-compile":
        return ModuleRunner(torch.compile(module, dynamic=False), bundle)
    return ModuleRunner(module, bundle)


def record(bundle: Bundle, calls: Sequence[Arrays], options: Options) -> tuple[Sample, ...]:
    """Run the checkpoint that the bundle was exported from; its rounding is measured too.

    Raises:
        BackendUnavailable, CheckpointError: As for ``load``.
        ExportError: It refuses a call, or gives what is not finite.
    """
    module = _module(bundle, Target("torch", ""), options)
    samples = recording.record(module, calls, bundle.outputs)
    if not bundle.allow_nan:
        recording.check_finite(samples)
    return with_floors(module, samples, batched=False)[0]


def _module(bundle: Bundle, target: Target, options: Options) -> torch.nn.Module:
    source = bundle.manifest.get("source")
    if not source:
        raise BackendUnavailable(
            f"{target}: {bundle.path} was exported from a module in memory, not from a file; "
            "save a checkpoint and export that to compare with PyTorch"
        )
    path = Path(source["path"])
    if not path.is_file() or sha256(path) != source["sha256"]:
        raise BackendUnavailable(
            f"{target}: the checkpoint {path} that {bundle.path} was exported from is gone or "
            "has changed; put it back or export again"
        )
    if ":" in (source["arch"] or "") and not options.trust:
        raise CheckpointError(
            f"{target}: {bundle.path} names the code {source['arch']!r} as the architecture: pass "
            "--trust if you trust its source"
        )
    loaded = checkpoint.load(path, arch=source["arch"], trust=options.trust, ema=source["ema"])
    return loaded.module
