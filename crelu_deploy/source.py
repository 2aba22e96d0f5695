"""Where a network to export comes from, and what is known of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from crelu_deploy import checkpoint
from crelu_deploy.bundle import sha256
from crelu_deploy.errors import ExportError
from crelu_deploy.preprocessing import Changes, Preprocessing, image_input
from crelu_deploy.runner import TensorSpec
from crelu_deploy.tracing import input_names


@dataclass(frozen=True)
class Source:
    """A network to export and where it comes from.

    Attributes:
        module: The network, in evaluation mode.
        names: Its inputs in order.
        shapes: Their example shapes, where the architecture tells.
        outputs: Names of its outputs; empty where nothing tells.
        notes: What was done to get it.
        record: The manifest's entry; None for a module in memory.
        preprocessing: How it reads pixels, where that is known.
    """

    module: torch.nn.Module
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...] | None = None
    outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    record: Mapping[str, Any] | None = None
    preprocessing: Preprocessing | None = None


def find_source(
    model: str | os.PathLike[str] | torch.nn.Module,
    *,
    arch: str | None = None,
    trust: bool = False,
    ema: bool = False,
) -> Source:
    """Take a module as it is, or load a checkpoint; see ``checkpoint.load``.

    Raises:
        CheckpointError: The file cannot be loaded.
    """
    if isinstance(model, torch.nn.Module):
        return Source(model, input_names(model))
    loaded = checkpoint.load(model, arch=arch, trust=trust, ema=ema)
    path = Path(os.path.abspath(model))
    entry = {
        "path": str(path),
        "sha256": sha256(path),
        "format": loaded.format.value,
        "arch": arch or loaded.arch,
        "ema": ema,
    }
    names = loaded.input_names or input_names(loaded.module)
    return Source(
        *(loaded.module, names, loaded.input_shapes, loaded.output_names, loaded.notes, entry),
        preprocessing=loaded.preprocessing,
    )


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and every part of it back to its own mode."""
    training = [part for part in module.modules() if part.training]
    if training:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def stated_preprocessing(
    source: Source, changes: Changes, specs: Sequence[TensorSpec]
) -> Preprocessing | None:
    """Return how a network reads pixels: as the user states, else as its source tells.

    Raises:
        ExportError: What the user states does not fit its inputs.
    """
    if not changes:
        return source.preprocessing
    try:
        how = replace(source.preprocessing or Preprocessing(), **changes)
        how.check(image_input(specs))
    except ValueError as error:
        raise ExportError(f"preprocessing: {error}") from error
    return how
