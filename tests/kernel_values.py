"""Values that a kernel may stumble over, what CReLU makes of them, and a comparison by bits."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from crelu_deploy import op

KERNEL_TYPES = {
    "float32": (0, np.dtype(np.float32)),
    "float16": (1, np.dtype(np.float16)),
    "bfloat16": (2, np.dtype(ml_dtypes.bfloat16)),
    "int8": (3, np.dtype(np.int8)),
}
"""Name -> (its number in crelu.h, its NumPy dtype)."""

WORDS = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32)}
SPECIAL = {
    "float32": (0x0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x1, 0x80000001),
    "float16": (0x0, 0x8000, 0x7C00, 0xFC00, 0x7E00, 0xFE01, 0x1, 0x8001),
    "bfloat16": (0x0, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0xFFC1, 0x1, 0x8001),
    "int8": (0x0, 0x80, 0x7F, 0x81, 0xFF, 0x1),
}
"""The bits of +-0, +-inf, NaNs of both signs, the smallest numbers; of the ends of int8."""


def bits(x: np.ndarray) -> np.ndarray:
    """Return the values as unsigned integers of their size."""
    return np.ascontiguousarray(x).view(WORDS[x.dtype.itemsize])


def awkward(name: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Return random bits of a type, with its special values spread among them."""
    dtype = KERNEL_TYPES[name][1]
    word = WORDS[dtype.itemsize]
    generator = np.random.default_rng(seed)
    count = int(np.prod(shape))
    x = generator.integers(0, np.iinfo(word).max, count, word, endpoint=True)
    at = generator.permutation(count)[: count // 2]
    x[at] = np.resize(np.array(SPECIAL[name], word), at.size)
    return x.view(dtype).reshape(shape)


def expected(x: np.ndarray, axis: int = 1) -> np.ndarray:
    """Return CReLU(x); int8 is computed wider, and -(-128) saturates to 127."""
    if x.dtype == np.int8:
        return np.clip(op.reference(x.astype(np.int16), axis), -128, 127).astype(np.int8)
    with np.errstate(invalid="ignore"):  # comparing a signalling NaN
        return op.reference(x, axis)


def check_bits(actual: np.ndarray, wanted: np.ndarray) -> None:
    """Assert that two arrays have one shape, one dtype and the same bits."""
    assert actual.dtype == wanted.dtype
    np.testing.assert_array_equal(bits(actual), bits(wanted))
