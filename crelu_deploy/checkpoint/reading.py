"""A file of a known format becomes the Python object inside it, without running code unasked."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError

import safetensors
import safetensors.torch
import torch

from crelu_deploy.checkpoint.format import Format
from crelu_deploy.errors import CheckpointError

_CORRUPT = "is a {} that is corrupt or cut off: copy or download it again"
_SHOWN = 5


def read(path: Path, kind: Format, *, trust: bool) -> object:
    """Return the content of ``path``: a mapping, a module, an exported program, or anything else.

    Args:
        path: a file that ``detect`` found to be of this kind.
        kind: its format.
        trust: allow loading that can run code from the file.

    Raises:
        CheckpointError: the file is damaged, or needs code and is not trusted; the message has no
            path and names the code that a pickle asks for.
    """
    if kind.runs_code and not trust:
        raise CheckpointError(
            f"is a {kind.value}, and loading it can run code from the file: pass --trust if you "
            "trust its source, or save a state_dict"
        )
    with _silence():
        return _READERS[kind](path, kind, trust)


def _read_safetensors(path: Path, kind: Format, trust: bool) -> object:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(_CORRUPT.format(kind.value)) from error


def _read_pickle(path: Path, kind: Format, trust: bool) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if trust:
            return _read_trusted(path, kind)
        raise CheckpointError(_refusal(path, kind, str(error))) from error
    except Exception as error:  # A damaged file makes it raise almost anything.
        raise CheckpointError(_CORRUPT.format(kind.value)) from error


def _read_trusted(path: Path, kind: Format) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"is a {kind.value} that needs code which is not here ({error}): run from the folder "
            "that holds its source"
        ) from error
    except Exception as error:  # It runs the file's code, which can raise anything.
        raise CheckpointError(_failure(kind, error)) from error


def _read_torchscript(path: Path, kind: Format, trust: bool) -> object:
    try:
        return torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # As above.
        raise CheckpointError(_failure(kind, error)) from error


def _read_program(path: Path, kind: Format, trust: bool) -> object:
    try:
        with path.open("rb") as file:  # A path must end in .pt2, an open file need not.
            return torch.export.load(file)
    except Exception as error:  # As above.
        raise CheckpointError(_failure(kind, error)) from error


_READERS: Mapping[Format, Callable[[Path, Format, bool], object]] = {
    Format.SAFETENSORS: _read_safetensors,
    Format.ZIP: _read_pickle,
    Format.LEGACY: _read_pickle,
    Format.TORCHSCRIPT: _read_torchscript,
    Format.EXPORTED: _read_program,
}


def _refusal(path: Path, kind: Format, message: str) -> str:
    """Say which code a pickle asks for; PyTorch's own advice to switch the check off is dropped."""
    named = re.findall(r"GLOBAL (\S+)", message)
    if not named:
        return f"{_CORRUPT.format(kind.value)}, or save it again with torch.save's own protocol"
    names = _globals(path, kind) or named
    shown = ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
    return (
        f"is a {kind.value} that needs code ({shown}): save model.state_dict() or safetensors, "
        "or pass --trust if you trust its source"
    )


def _globals(path: Path, kind: Format) -> list[str]:
    """List all that a pickle asks for beyond tensors; empty where the scan cannot read it."""
    if kind is not Format.ZIP:  # The scan knows no older format.
        return []
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # Damaged as well: PyTorch's message still has the first name.
        return []


def _failure(kind: Format, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return (
        f"is a {kind.value} that PyTorch {torch.__version__} cannot load "
        f"({type(error).__name__}: {reason}): damaged, or of another version; save a state_dict"
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep PyTorch's warnings and logged tracebacks off the terminal: the error says it all."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
