"""What a loaded artifact is to an application: named arrays in, named arrays out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: Name in the ONNX model.
        dtype: NumPy's name of the element type, such as ``float32``.
        shape: An int per fixed axis, a name per dynamic one.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"

    def check(self, array: Array) -> None:
        """Refuse an array that this tensor cannot hold.

        Raises:
            TypeError: The element type differs.
            ValueError: The rank or a fixed extent differs.
        """
        if array.dtype != np.dtype(self.dtype):  # the byte order included
            raise TypeError(
                f"input {self.name!r}: expected {self.dtype}, got {array.dtype}; "
                f"convert it with .astype({self.dtype!r})"
            )
        fits = len(array.shape) == len(self.shape) and all(
            isinstance(want, str) or want == got
            for want, got in zip(self.shape, array.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"input {self.name!r}: expected shape ({', '.join(map(str, self.shape))}), "
                f"got {array.shape}"
            )


class Runner(ABC):
    """A loaded artifact: call it with arrays by position, or with one name -> array mapping.

    The result maps each output's name to its array. Use it as a context manager, or ``close`` it,
    to free what the runtime holds.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    _closed = False

    def __call__(self, *arrays: Array | Mapping[str, Array]) -> dict[str, Array]:
        """Run the network once.

        Raises:
            TypeError: Too few or too many inputs, an unknown name, or a wrong element type.
            ValueError: A wrong shape, or the runner is closed.
        """
        if self._closed:
            raise ValueError("the runner is closed: load the artifact again")
        feeds = self._named(arrays)
        for spec in self.inputs:
            spec.check(feeds[spec.name])
        return dict(zip(self.outputs, self._run(feeds), strict=True))

    def _named(self, arrays: tuple[Array | Mapping[str, Array], ...]) -> dict[str, Array]:
        names = [spec.name for spec in self.inputs]
        wanted = ", ".join(map(str, self.inputs))
        if len(arrays) == 1 and isinstance(arrays[0], Mapping):
            feeds = {name: np.asarray(array) for name, array in arrays[0].items()}
            if feeds.keys() != set(names):
                raise TypeError(f"expected the inputs {wanted}; got {', '.join(feeds) or 'none'}")
            return feeds
        if len(arrays) != len(names):
            raise TypeError(f"expected {len(names)} inputs ({wanted}), got {len(arrays)}")
        return {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}

    @abstractmethod
    def _run(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        """Return the outputs in the order of ``self.outputs``; the feeds have been checked."""

    def close(self) -> None:
        """Free what the runtime holds; a call afterwards is refused."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
