"""Checkpoint files for tests: one small network, written in every way that is met."""

from __future__ import annotations

import io
import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from crelu_deploy.models import build

ARCH = "digits-crelu"
RAN = Path("ran")


class Payload:
    """Leaves a trace in the working directory when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(RAN),)


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(ARCH).eval()


def weights() -> dict[str, torch.Tensor]:
    return dict(net().state_dict())


def changed(**entries: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weights with other values under keys in which ``__`` stands for a dot."""
    return {**weights(), **{k.replace("__", "."): v for k, v in entries.items()}}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in weights().items()}


def dump(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def legacy(content: object) -> bytes:
    return dump(content, _use_new_zipfile_serialization=False)


def zipped(compression: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    """A zip archive; ``__`` in a name stands for a slash."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/"), content)
    return file.getvalue()


def scripted() -> bytes:
    return torch.jit.trace(net(), torch.zeros(1, 1, 28, 28)).save_to_buffer()


def exported() -> bytes:
    file = io.BytesIO()
    torch.export.save(torch.export.export(net(), (torch.zeros(2, 1, 28, 28),)), file)
    return file.getvalue()


def quantised() -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # Deprecated, and still in people's files.
        return torch.quantize_per_tensor(torch.zeros(16), 0.1, 0, torch.qint8)


def index() -> bytes:
    files = {f"conv{i}.weight": f"part-{i}.safetensors" for i in range(5)}
    return json.dumps({"metadata": {}, "weight_map": files}).encode()


HUGE_HEADER = (1 << 60).to_bytes(8, "little") + b'{"a":1}'
NAN = torch.tensor([float("nan")] * 2 + [0.0] * 14)
