"""Numbers of bytes as text."""

from __future__ import annotations

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def read_size(text: str) -> int:
    """Read a number of bytes such as ``4GiB``.

    Raises:
        ValueError: Not a positive integer with a unit behind it.
    """
    number = text.rstrip("BKMGi")
    if not number.isdecimal() or not int(number) or text.removeprefix(number) not in UNITS:
        raise ValueError(f"size {text!r}: expected a number and {', '.join(UNITS)}, such as 4GiB")
    return int(number) * UNITS[text.removeprefix(number)]
