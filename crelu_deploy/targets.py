"""What can be built, verified and timed: the table of backends, and ``BACKEND[:LOWERING]``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import ModuleType

from crelu_deploy.errors import BackendUnavailable
from crelu_deploy.lowerings import LOWERINGS

AUTO = "auto"
"""In place of a lowering: the plan chooses one for every site."""

FUNCTION = "function"
"""The lowering that a bundle's own model has."""


@dataclass(frozen=True)
class Backend:
    """A runtime at a precision.

    Attributes:
        name: As written in a target.
        module: The module in ``crelu_deploy.backends`` that owns the runtime.
        extra: The extra of this package that installs the runtime.
        lowered: Whether it reads a lowered ONNX file, and not the PyTorch module itself.
        summary: One line for people.
    """

    name: str
    module: str
    extra: str
    lowered: bool
    summary: str

    def implementation(self) -> ModuleType:
        """Import the module that owns the runtime.

        Raises:
            BackendUnavailable: The runtime is not installed.
        """
        try:
            return importlib.import_module(f"crelu_deploy.backends.{self.module}")
        except ModuleNotFoundError as error:
            raise BackendUnavailable(
                f"{self.name} needs the package {error.name}, which is not installed; "
                f"run: pip install 'crelu-deploy[{self.extra}]'"
            ) from error


BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("ort-cpu", "onnxruntime", "ort", True, "ONNX Runtime, CPU, float32"),
        Backend("torch", "pytorch", "torch", False, "PyTorch eager, CPU"),
        Backend("torch-compile", "pytorch", "torch", False, "torch.compile (inductor), CPU"),
    )
}


@dataclass(frozen=True)
class Target:
    """The unit that is built, verified and timed; ``str`` gives ``BACKEND[:LOWERING]``.

    ``lowering`` is a name in ``LOWERINGS``, ``auto`` for the plan's choice, and empty for a
    backend that runs the PyTorch module.
    """

    backend: str
    lowering: str

    def __str__(self) -> str:
        return f"{self.backend}:{self.lowering}" if self.lowering else self.backend

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``BACKEND[:LOWERING]``; a lowering left out means ``auto``.

        Raises:
            ValueError: An unknown backend or lowering, with the names there are.
        """
        name, colon, lowering = text.partition(":")
        if name not in BACKENDS:
            raise ValueError(unknown("target", name, BACKENDS))
        if not BACKENDS[name].lowered:
            if colon:
                raise ValueError(f"target {text!r}: {name} runs the PyTorch module, no lowering")
            return cls(name, "")
        if colon and lowering not in (AUTO, *LOWERINGS):
            raise ValueError(unknown("lowering", lowering, (AUTO, *LOWERINGS)))
        return cls(name, lowering or AUTO)


BASELINE = Target("ort-cpu", "primitive")
"""What a plain ``torch.onnx`` export does on ONNX Runtime: every table compares with it."""

TORCH = Target("torch", "")


@dataclass(frozen=True)
class Options:
    """How an artifact is run.

    Attributes:
        threads: Threads of one call; every usable core when None.
        trust: Allow a checkpoint that can run code to be loaded (PyTorch targets).
        verbose: Let the runtime print its own log.
    """

    threads: int | None = None
    trust: bool = False
    verbose: bool = False

    @property
    def cores(self) -> int:
        """The number of threads that is used."""
        if self.threads:
            return self.threads
        usable = getattr(os, "sched_getaffinity", None)  # absent on macOS and Windows
        return len(usable(0)) if usable else os.cpu_count() or 1


def unknown(what: str, name: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    """Return a message about an unknown name, with the nearest known one first."""
    near = get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {name!r}; {hint}known: {', '.join(known)}"
