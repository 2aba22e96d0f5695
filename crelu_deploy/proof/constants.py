"""Constants and attributes as keys that are equal where their content is."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from crelu_deploy.op import Array

FLOAT = ir.DataType.FLOAT

TYPES = ("to", "dtype")
"""Attributes that name an element type."""


class Numbers:
    """Reads constants, in a reduced precision where the lowered file has one.

    Attributes:
        reduced: The type that float32 became; None where it stayed.
    """

    def __init__(self, reduced: ir.DataType | None) -> None:
        self.reduced = reduced
        self._digests: dict[int, tuple[ir.TensorProtocol, Hashable]] = {}

    def type_of(self, dtype: ir.DataType | None) -> ir.DataType | None:
        """Return the type that a type of the canonical graph became."""
        return self.reduced if self.reduced is not None and dtype in (FLOAT, None) else dtype

    def transparent(self, before: ir.DataType | None, after: ir.DataType) -> bool:
        """Whether a cast only leads into or out of the reduced type."""
        return self.reduced is not None and {before, after} <= {FLOAT, self.reduced, None}

    def rounded(self, array: Array) -> Array:
        """Return a float32 array in the reduced type, finite numbers kept finite."""
        if self.reduced is None or array.dtype != np.float32:
            return array
        return cast(array, self.reduced)

    def digest(self, tensor: ir.TensorProtocol, *, exact: bool = False) -> Hashable:
        """Return a hash of a constant with its type and shape, in the reduced type unless exact."""
        if (known := self._digests.get(id(tensor))) is not None and not exact:
            return known[1]
        array = tensor.numpy() if exact else self.rounded(tensor.numpy())
        found = digest(array, () if exact else (str(self.type_of(tensor.dtype)),))
        if not exact:
            self._digests[id(tensor)] = tensor, found
        return found

    def attribute(self, attribute: ir.Attr) -> Hashable:
        """Return the content of an attribute other than a graph."""
        if attribute.is_ref():
            return ("ref", attribute.ref_attr_name)
        value: Any = attribute.value
        if isinstance(value, ir.TensorProtocol):
            return self.digest(value)
        if attribute.type == ir.AttributeType.TENSORS:
            return tuple(self.digest(one) for one in value)
        if attribute.name in TYPES and attribute.type == ir.AttributeType.INT:
            return str(self.type_of(ir.DataType(value)))
        if isinstance(value, list | tuple):
            return tuple(_scalar(one) for one in value)
        return _scalar(value)


def _scalar(value: Any) -> Hashable:
    if isinstance(value, float):
        return float(np.float32(value)).hex()
    return value if isinstance(value, int | str | bytes | None) else repr(value)


def digest(array: Array, more: tuple[Hashable, ...] = ()) -> Hashable:
    """Return a hash of an array's content, with its type and shape."""
    data = np.ascontiguousarray(array)
    if data.dtype == object:
        return ("strings", data.shape, repr(data.tolist()))
    content = hashlib.blake2b(np.atleast_1d(data).view(np.uint8).data, digest_size=20)
    return (*more, str(array.dtype), array.shape, content.digest())


def cast(array: Array, to: ir.DataType) -> Array:
    """Return an array in another type: rounded to nearest, finite numbers kept finite."""
    if to == ir.DataType.FLOAT16:
        limit = np.finfo(np.float16).max
        array = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
    with np.errstate(all="ignore"):
        return np.asarray(array.astype(to.numpy()))


def unit_of(dtype: np.dtype[Any]) -> float:
    """Return the largest relative error of one rounding to a type."""
    return max(float(ml_dtypes.finfo(dtype).eps) / 2, 2.0**-50)  # type: ignore[no-untyped-call]


def smallest_of(dtype: np.dtype[Any]) -> float:
    """Return half of the smallest number of a type: what a rounding to zero may lose."""
    return float(ml_dtypes.finfo(dtype).smallest_subnormal) / 2  # type: ignore[no-untyped-call]


def attributes_of(
    numbers: Numbers, attributes: Mapping[str, ir.Attr]
) -> tuple[tuple[str, Hashable], ...]:
    """Return the content of attributes that hold no graphs, by name."""
    return tuple((name, numbers.attribute(attributes[name])) for name in sorted(attributes))
