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

LARGE = 1 << 13
"""Bytes from which constants are compared rather than hashed."""

TYPES = ("to", "dtype")
"""Attributes that name an element type."""


class Numbers:
    """Reads constants, in a reduced precision where the lowered file has one.

    Attributes:
        reduced: The type that float32 became; None where it stayed.
        folded: Whether rows of zeros are read as the constants that they compute.
    """

    def __init__(self, reduced: ir.DataType | None, *, folded: bool = True) -> None:
        self.reduced, self.folded = reduced, folded
        self._digests: dict[int, tuple[ir.TensorProtocol, Hashable]] = {}
        self._alike: dict[Hashable, list[ir.TensorProtocol]] = {}

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
        """Return what is equal for constants of one type, shape and content.

        The content is that in the reduced type, unless exact.
        """
        if exact:
            return digest(tensor.numpy())
        if (known := self._digests.get(id(tensor))) is None:
            array, more = self.rounded(tensor.numpy()), (str(self.type_of(tensor.dtype)),)
            large = self.reduced is None and array.dtype != object and array.nbytes >= LARGE
            found = self._number(tensor, array, more) if large else digest(array, more)
            known = self._digests[id(tensor)] = tensor, found
        return known[1]

    def _number(
        self, tensor: ir.TensorProtocol, array: Array, more: tuple[Hashable, ...]
    ) -> Hashable:
        """Return a number for a large constant: it is compared with those alike in some bytes."""
        data = _bytes(array)
        key = (*more, array.shape, digest(data[:: (data.size // LARGE) | 1]))
        alike = self._alike.setdefault(key, [])
        for number, other in enumerate(alike):
            if np.array_equal(_bytes(other.numpy()), data):
                return (*key, number)
        alike.append(tensor)
        return (*key, len(alike) - 1)

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


def _bytes(array: Array) -> Array:
    return np.atleast_1d(np.ascontiguousarray(array)).view(np.uint8).ravel()


def digest(array: Array, more: tuple[Hashable, ...] = ()) -> Hashable:
    """Return a hash of an array's content, with its type and shape."""
    data = np.ascontiguousarray(array)
    if data.dtype == object:
        return ("strings", data.shape, repr(data.tolist()))
    content = hashlib.blake2b(_bytes(data).data, digest_size=20)
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
