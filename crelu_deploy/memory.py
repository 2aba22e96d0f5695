"""Memory given back to the system before a runtime makes its own copies of the weights."""

from __future__ import annotations

import ctypes
import gc

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_LARGE = 1 << 18


def release() -> None:
    """Collect cycles and return free memory to the system, where the C library is glibc.

    From then on blocks of 256 KiB and more are returned when they are freed; otherwise the library
    would keep room for what a runtime needs only while it opens a model.
    """
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim") and hasattr(library, "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _LARGE)
        library.malloc_trim(0)
