"""Export CReLU networks from PyTorch to verified, faster ONNX Runtime and TensorRT artifacts.

The stages of the command line are functions here: ``export`` a network, ``optimize`` any ONNX
file, ``build``, ``verify`` and ``bench`` targets of a bundle, ``deploy`` for all of it in one call,
and ``load``, which gives an application its runner.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crelu_deploy.bundle import Bundle
    from crelu_deploy.deployment import deploy
    from crelu_deploy.exporter import export
    from crelu_deploy.optimizer import optimize
    from crelu_deploy.pipeline import bench, build, load, verify
    from crelu_deploy.runner import Runner
    from crelu_deploy.targets import Options, Target

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "Options",
    "Runner",
    "Target",
    "bench",
    "build",
    "deploy",
    "export",
    "load",
    "optimize",
    "verify",
]

_MODULES = {
    "Bundle": "bundle",
    "Options": "targets",
    "Runner": "runner",
    "Target": "targets",
    "bench": "pipeline",
    "build": "pipeline",
    "deploy": "deployment",
    "export": "exporter",
    "load": "pipeline",
    "optimize": "optimizer",
    "verify": "pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: only ``export`` and ``deploy`` need PyTorch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"crelu_deploy.{_MODULES[name]}"), name)
