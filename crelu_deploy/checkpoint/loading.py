"""A checkpoint becomes a module in eval mode, safely, and a module becomes a checkpoint.

A state dict has no graph, so it needs an architecture: the one its own file names, the one of
``models`` that its tensors identify, or the caller's. Files that can run code when loaded (pickled
modules, TorchScript, exported programs) are refused unless the caller trusts them.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from crelu_deploy.checkpoint.format import Format, detect, located
from crelu_deploy.checkpoint.reading import read
from crelu_deploy.checkpoint.weights import (
    KEY,
    VERSION,
    check_finite,
    fit,
    named_arch,
    named_preprocessing,
    stripped,
    tensors_of,
    unwrap,
)
from crelu_deploy.errors import BuildError, CheckpointError
from crelu_deploy.models import build, classes, find, identify
from crelu_deploy.preprocessing import Preprocessing


@dataclass(frozen=True)
class Loaded:
    """A network out of a file.

    Attributes:
        module: The network on the CPU, in eval mode. For an exported program it is the graph
            module of that program, in the mode that it was exported in.
        arch: Its name in ``models.MODELS``, or the factory, or None when the file has the graph.
        format: What kind of file it was.
        input_shapes: An example shape per input, or None where nothing tells.
        input_names: A name per input; empty where nothing tells.
        output_names: A name per output; empty where nothing tells.
        notes: What was done on the way, such as ``stripped prefix module.``
        preprocessing: How it reads pixels, or None where nothing tells.
    """

    module: nn.Module
    arch: str | None
    format: Format
    input_shapes: tuple[tuple[int, ...], ...] | None = None
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None


def load(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    trust: bool = False,
    ema: bool = False,
) -> Loaded:
    """Load the network in a file, whose format is told by its content.

    Args:
        path: a file of any ``Format``.
        arch: a key of ``models.MODELS``, or ``package.module:factory`` with a callable that
            returns an ``nn.Module`` when called without arguments; modules in the working
            directory are found. None: the file's own name, or what its tensors identify.
        trust: allow files that run code when loaded.
        ema: take the moving average of the weights, which some trainers save beside them.

    Raises:
        CheckpointError: in every case in which that cannot be done, in one line that starts with
            the path.
    """
    kind = detect(path)
    try:
        loaded = _load(Path(path), kind, arch=arch, trust=trust, ema=ema)
        check_finite(loaded.module)
    except CheckpointError as error:
        raise located(path, error) from error
    return loaded


def save(
    path: str | os.PathLike[str],
    module: nn.Module,
    *,
    arch: str,
    num_classes: int,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Write a checkpoint that ``load`` needs no hints for; an earlier file is replaced at once.

    Args:
        path: the file to write.
        module: the network; its state dict is written.
        arch: the key of ``models.MODELS`` that ``module`` was built from.
        num_classes: its number of classes.
        preprocessing: how it was trained to read pixels.

    Raises:
        BuildError: the file cannot be written.
    """
    path = Path(path)
    header: dict[str, Any] = {"arch": arch, "num_classes": num_classes, "version": VERSION}
    if preprocessing is not None:
        header["preprocessing"] = asdict(preprocessing)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({KEY: header, "state_dict": module.state_dict()}, file)
        os.replace(temporary, path)
    except OSError as error:
        raise BuildError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path, kind: Format, *, arch: str | None, trust: bool, ema: bool) -> Loaded:
    with _working_directory() if trust else contextlib.nullcontext():
        content = read(path, kind, trust=trust)
    inner, notes = unwrap(content, ema=ema)
    if not isinstance(inner, ExportedProgram | nn.Module):
        tensors, done = tensors_of(inner)
        own = named_arch(content)
        loaded = _from_weights(tensors, arch, own, kind, (*notes, *done))
        return replace(loaded, preprocessing=named_preprocessing(content) or loaded.preprocessing)
    if arch is not None:
        raise CheckpointError(f"is a {kind.value} with its own graph: leave out --arch {arch}")
    notes += (f"ran code of the {kind.value}",)
    if isinstance(inner, ExportedProgram):
        return _from_program(inner, kind, notes)
    return Loaded(inner.eval(), None, kind, notes=notes)


@contextlib.contextmanager
def _working_directory() -> Iterator[None]:
    """Let imports find modules in the working directory, as ``python -m`` does.

    Only around code that the caller chose to run, for what lies there could shadow any module.
    """
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def _from_program(program: ExportedProgram, kind: Format, notes: tuple[str, ...]) -> Loaded:
    signature = program.graph_signature
    examples = program.example_inputs[0] if program.example_inputs else ()
    shapes = tuple(tuple(x.shape) for x in examples if isinstance(x, torch.Tensor))
    names = tuple(str(name) for name in signature.user_inputs)
    module = program.module()
    for part in module.modules():
        part.training = False  # Its mode was fixed by its export, and .eval() would raise.
    return Loaded(
        module,
        None,
        kind,
        input_shapes=shapes if len(shapes) == len(names) else None,
        input_names=names,
        output_names=tuple(str(name) for name in signature.user_outputs),
        notes=notes,
    )


def _from_weights(
    tensors: Mapping[str, Tensor],
    arch: str | None,
    own_arch: str | None,
    kind: Format,
    notes: tuple[str, ...],
) -> Loaded:
    """Load ``tensors`` into ``arch``, which the caller wants, or ``own_arch``, which the file says.

    Only the caller may name a factory: a file that could would run code.
    """
    if arch is not None and ":" in arch:
        module = _call_factory(arch).eval()
        return Loaded(module, arch, kind, notes=notes + fit(module, tensors))
    *_, (_, bare) = stripped(tensors)
    name = arch or own_arch or identify(bare)[0]
    module = build(name, num_classes=classes(name, bare)).eval()
    model, notes = find(name), notes + fit(module, tensors)
    return Loaded(
        *(module, name, kind, (model.input_shape,), model.input_names, model.output_names, notes),
        preprocessing=model.preprocessing,
    )


def _call_factory(arch: str) -> nn.Module:
    """Return what ``package.module:factory`` makes."""
    module_name, _, attribute = arch.partition(":")
    try:
        with _working_directory():
            factory: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                factory = getattr(factory, part)
            module = factory()
    except Exception as error:  # It is the user's code and may raise anything.
        raise CheckpointError(f"--arch {arch} failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise CheckpointError(
            f"--arch {arch} must return a torch.nn.Module, got {type(module).__name__}"
        )
    return module
