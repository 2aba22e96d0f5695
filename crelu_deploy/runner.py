"""What a loaded artifact is to an application: named arrays in, named arrays out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self, overload

import numpy as np

from crelu_deploy.guards import Limits
from crelu_deploy.ondevice import DeviceArray, OnDevice, is_on_device

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

    def check(self, array: Array | DeviceArray) -> None:
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

    The result maps each output's name to its array. On a GPU target, arrays that lie on the GPU are
    read where they are, and give arrays there. Use it as a context manager, or ``close`` it, to
    free what the runtime holds.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    limits = Limits()
    """What the network demands of the extents of its inputs, where its bundle tells."""
    _closed = False

    @overload
    def __call__(self, *arrays: Array | Mapping[str, Array]) -> dict[str, Array]: ...

    @overload
    def __call__(self, *arrays: OnDevice | Mapping[str, OnDevice]) -> dict[str, DeviceArray]: ...

    def __call__(self, *arrays: Any) -> dict[str, Any]:
        """Run the network once.

        Raises:
            TypeError: Too few or too many inputs, an unknown name, a wrong element type, or an
                array on a GPU where the target does not run on one.
            ValueError: A wrong shape, extents that the network was not traced for, or the runner
                is closed.
        """
        feeds = self._named(arrays)
        on_device = {n: DeviceArray.view(n, x) for n, x in feeds.items() if is_on_device(n, x)}
        if not on_device:
            return self._outputs(self._run(self._host(feeds)))
        if host := sorted(feeds.keys() - on_device.keys()):
            raise TypeError(f"inputs {', '.join(host)} are on the host, the others on the GPU")
        self._check(on_device)
        return self._outputs(self._run_on_device(on_device))

    def prepare(self, *arrays: Array | Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that is worth timing: on a GPU, with its inputs there and nothing copied.

        It ends when the result is complete. On a GPU it returns the milliseconds that the GPU took.

        Raises:
            TypeError, ValueError: As for a call.
        """
        return partial(self, *arrays)

    def _named(self, arrays: tuple[Any, ...]) -> dict[str, Any]:
        if self._closed:
            raise ValueError("the runner is closed: load the artifact again")
        names = [spec.name for spec in self.inputs]
        wanted = ", ".join(map(str, self.inputs))
        if len(arrays) == 1 and isinstance(arrays[0], Mapping):
            if arrays[0].keys() != set(names):
                got = ", ".join(arrays[0]) or "none"
                raise TypeError(f"expected the inputs {wanted}; got {got}")
            return dict(arrays[0])
        if len(arrays) != len(names):
            raise TypeError(f"expected {len(names)} inputs ({wanted}), got {len(arrays)}")
        return dict(zip(names, arrays, strict=True))

    def _host(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        arrays = {name: np.asarray(array) for name, array in feeds.items()}
        self._check(arrays)
        return arrays

    def _check(self, feeds: Mapping[str, Array] | Mapping[str, DeviceArray]) -> None:
        for spec in self.inputs:
            spec.check(feeds[spec.name])
        if self.limits.guards:
            self.limits.check([feeds[name].shape for name in self.limits.inputs])

    def _outputs(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.outputs, values, strict=True))

    @abstractmethod
    def _run(self, feeds: Mapping[str, Array]) -> Sequence[Array]:
        """Return the outputs in the order of ``self.outputs``; the feeds have been checked."""

    def _run_on_device(self, feeds: Mapping[str, DeviceArray]) -> Sequence[DeviceArray]:
        """Do the same where inputs and outputs are on the GPU."""
        names = ", ".join(feeds)
        raise TypeError(
            f"inputs on a GPU ({names}), but this target runs on the CPU; pass x.cpu(), or load a "
            "target such as ort-cuda"
        )

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
