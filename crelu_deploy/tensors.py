"""The outputs of a module as a flat list, in the order that the ONNX exporter gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from crelu_deploy.errors import ExportError


def flatten(value: Any, name: str = "output") -> list[tuple[str, torch.Tensor]]:
    """Return the tensors in ``value`` with a name for each: its key, or its place.

    A single tensor is ``output``, several are ``output_0``, ``output_1``, and so on; entries of a
    mapping, a named tuple or a dataclass carry their own names; None is left out.

    Raises:
        ExportError: Something that is no tensor.
    """
    if value is None:
        return []
    if isinstance(value, torch.Tensor):
        return [(name, value)]
    parts: list[tuple[str, Any]]
    if isinstance(value, Mapping):
        parts = [(_joined(name, str(key)), part) for key, part in value.items()]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
        parts = [(_joined(name, field), getattr(value, field)) for field in fields]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = list(value._fields)
        parts = [(_joined(name, f), part) for f, part in zip(fields, value, strict=True)]
    elif isinstance(value, list | tuple):
        parts = [(f"{name}_{i}", part) for i, part in enumerate(value)]
    else:
        raise ExportError(
            f"the module returns a {type(value).__name__} in {name!r}; expected tensors, or "
            "lists, tuples and mappings of tensors"
        )
    return [pair for key, part in parts for pair in flatten(part, key)]


def _joined(prefix: str, key: str) -> str:
    return key if prefix == "output" else f"{prefix}_{key}"
