"""Arrays that lie on a GPU, as libraries hand them to each other without a copy.

The protocol is ``__cuda_array_interface__``, version 2 or 3, of Numba's documentation
(https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html). PyTorch, CuPy, JAX and
Numba offer it, and read it by ``torch.as_tensor(y, device="cuda")`` or ``cupy.asarray(y)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

CUDA = 2
"""DLPack's number for the memory of an NVIDIA GPU."""


class OnDevice(Protocol):
    """What offers its memory on a GPU."""

    @property
    def __cuda_array_interface__(self) -> Mapping[str, Any]:
        """Address, shape, element type and strides."""


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous array on the GPU; offers ``__cuda_array_interface__``.

    Attributes:
        shape: Its extents.
        dtype: NumPy's element type.
        address: Of its first element.
        owner: What keeps the memory alive.
        stream: The CUDA stream that still writes it, None where the values are there.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int
    owner: object
    stream: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Address, shape and element type; contiguous, and no stream to wait for."""
        pointer = (self.address if self.nbytes else 0, False)
        return {"shape": self.shape, "typestr": self.dtype.str, "data": pointer, "version": 3}

    @classmethod
    def view(cls, name: str, array: OnDevice) -> DeviceArray:
        """Look at the memory of another library's array.

        Raises:
            ValueError: It is not contiguous, or masked.
        """
        told = array.__cuda_array_interface__
        shape, dtype = tuple(told["shape"]), np.dtype(told["typestr"])
        strides = told.get("strides")
        if strides is not None and tuple(strides) != _packed(shape, dtype.itemsize):
            raise ValueError(
                f"input {name!r}: shape {shape} with strides {tuple(strides)} is not contiguous; "
                "pass x.contiguous(), or cupy.ascontiguousarray(x)"
            )
        if told.get("mask") is not None:
            raise ValueError(f"input {name!r}: a masked array is not taken; fill its gaps")
        return cls(shape, dtype, int(told["data"][0]), array, told.get("stream"))


def _packed(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the bytes from one index to the next on each axis, the last one's are adjacent."""
    behind = [int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape))]
    return tuple(itemsize * elements for elements in behind)


def is_on_device(name: str, array: object) -> bool:
    """Whether an array lies on a GPU.

    Raises:
        TypeError: It does, and does not say where.
    """
    if hasattr(array, "__cuda_array_interface__"):
        return True
    told = getattr(array, "__dlpack_device__", None)
    if told is not None and told()[0] == CUDA:
        raise TypeError(
            f"input {name!r}: a {type(array).__name__} on a GPU without __cuda_array_interface__; "
            "pass torch.from_dlpack(x)"
        )
    return False
