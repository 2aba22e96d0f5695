"""Inputs and PyTorch's outputs for them, as they travel in ``samples.npz``."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.rounding import channel_axis
from crelu_deploy.runner import TensorSpec

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


UNPACKED_RATIO, UNPACKED_SLACK = 20, 64 << 20
"""An NPZ file may unpack to this many times its size, plus these bytes."""


KINDS = ("input", "output", "floor", "behind")
"""What a sample consists of."""


@dataclass(frozen=True)
class Sample:
    """One call of the network: its inputs and PyTorch's outputs, by name.

    Attributes:
        inputs: What goes in.
        outputs: What PyTorch makes of it.
        floors: The noise of each channel of an output, ``(channels, 2)``, where it was measured;
            see ``rounding``.
        behind: The same of values inside the network, those behind its sites.
    """

    inputs: Arrays
    outputs: Arrays
    floors: Arrays = field(default_factory=dict)
    behind: Arrays = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The extent of the first axis of its first input."""
        shape = next(iter(self.inputs.values())).shape
        return int(shape[0]) if shape else 1

    def check(self, inputs: Sequence[TensorSpec], outputs: Sequence[str]) -> None:
        """Refuse a sample of another network.

        Raises:
            UnsupportedModel: A name, an element type or a shape differs.
        """
        wanted, found = {spec.name for spec in inputs}, self.inputs.keys()
        if found != wanted or self.outputs.keys() != set(outputs):
            names = f"{', '.join(found)} -> {', '.join(self.outputs)}"
            raise UnsupportedModel(
                f"the samples have {names}; the network has {', '.join(wanted)} -> "
                f"{', '.join(outputs)}; export again"
            )
        for spec in inputs:
            try:
                spec.check(self.inputs[spec.name])
            except (TypeError, ValueError) as error:
                raise UnsupportedModel(f"a sample does not fit: {error}; export again") from error
        for name, floor in self.floors.items():
            axis = channel_axis(y.shape) if (y := self.outputs.get(name)) is not None else None
            if y is None or not _is_noise(floor) or len(floor) != (y.shape[axis] if axis else 1):
                raise UnsupportedModel(f"the noise of output {name!r} does not fit; export again")
        for name, floor in self.behind.items():
            if not _is_noise(floor):
                raise UnsupportedModel(f"the noise of value {name!r} does not fit; export again")


def _is_noise(array: Array) -> bool:
    whole = array.dtype == np.float64 and array.ndim == 2 and array.shape[1] == 2
    return bool(whole and np.isfinite(array).all() and (array >= 0).all())


def save_samples(path: Path, samples: tuple[Sample, ...]) -> None:
    """Write every array under ``<index>/<kind>/<name>``; see ``KINDS``."""
    arrays = {
        f"{i}/{kind}/{name}": array
        for i, sample in enumerate(samples)
        for kind, named in zip(KINDS, _parts(sample), strict=True)
        for name, array in named.items()
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy 1 has no allow_pickle here


def _parts(sample: Sample) -> tuple[Arrays, ...]:
    return sample.inputs, sample.outputs, sample.floors, sample.behind


def usual(samples: tuple[Sample, ...], searched: int) -> tuple[Sample, ...]:
    """Return the samples without the last ones, which were searched; the first at least."""
    return samples[: max(1, len(samples) - searched)]


def telling(samples: tuple[Sample, ...], searched: int) -> dict[int, Sample]:
    """Return by number the samples that make the most fire, for what is too much to do for all.

    Those that were searched, the last ones, and of the others the first with the most rows.
    """
    others = usual(samples, searched)
    first = max(range(len(others)), key=lambda i: others[i].rows)
    return {i: samples[i] for i in (first, *range(len(others), len(samples)))}


def load_samples(path: Path) -> tuple[Sample, ...]:
    """Read what ``save_samples`` wrote.

    Raises:
        UnsupportedModel: The file is damaged or holds something else.
    """
    found: dict[int, dict[str, dict[str, Array]]] = {}
    for key, array in _arrays(path).items():
        index, _, rest = key.partition("/")
        kind, _, name = rest.partition("/")
        if not (index.isdecimal() and len(index) < 10 and kind in KINDS and name):
            raise UnsupportedModel(f"{path}: {key!r} is not an array of a sample; export again")
        found.setdefault(int(index), {one: {} for one in KINDS})[kind][name] = array
    if not found:
        raise UnsupportedModel(f"{path}: no samples inside; export again")
    return tuple(Sample(*(found[i][kind] for kind in KINDS)) for i in sorted(found))


def read_inputs(path: Path, specs: tuple[TensorSpec, ...], batch: int) -> tuple[Arrays, ...]:
    """Return a user's inputs, an NPZ keyed by input name, as calls of ``batch`` rows each.

    Arrays that are no inputs, such as labels, are left out; rows that do not fill a last call too.

    Raises:
        UnsupportedModel: An input is missing or has the wrong shape or element type, or the file
            cannot be read.
    """
    arrays = _arrays(path)
    for spec in specs:
        if spec.name not in arrays:
            raise UnsupportedModel(
                f"{path}: no array named {spec.name!r}; the file has {', '.join(arrays) or 'none'}"
            )
    rows = {len(arrays[spec.name]) if arrays[spec.name].ndim else 0 for spec in specs}
    if len(rows) != 1 or min(rows) < batch:
        raise UnsupportedModel(
            f"{path}: the inputs must have one equal number of rows, at least {batch}; "
            f"got {sorted(rows)}"
        )
    calls = [
        {spec.name: arrays[spec.name][start : start + batch] for spec in specs}
        for start in range(0, rows.pop() - batch + 1, batch)
    ]
    for spec in specs:
        try:
            spec.check(calls[0][spec.name])
        except (TypeError, ValueError) as error:
            raise UnsupportedModel(f"{path}: {error}") from error
    return tuple(calls)


def wrapped(array: Array, shape: Sequence[int]) -> Array:
    """Return an array of another shape with the same values: cut, or repeated from its start."""
    for axis, extent in enumerate(shape):
        array = array.take(np.arange(extent) % array.shape[axis], axis)
    return np.ascontiguousarray(array)


def _arrays(path: Path) -> dict[str, Array]:
    try:
        # NumPy would leave a damaged file open that it opened itself.
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UnsupportedModel(f"{path}: one array; expected an NPZ file with named arrays")
            _check_unpacked(path, file.zip)
            return {key: np.asarray(file[key]) for key in file.files}
    except FileNotFoundError as error:
        raise UnsupportedModel(f"{path}: no such file") from error
    except UnsupportedModel:
        raise
    except Exception as error:  # A damaged file makes NumPy raise almost anything.
        raise UnsupportedModel(f"{path}: not a readable NPZ file: {str(error)[:200]}") from error


def _check_unpacked(path: Path, archive: zipfile.ZipFile | None) -> None:
    """Refuse an archive that would fill the memory."""
    size, unpacked = (
        path.stat().st_size,
        sum(entry.file_size for entry in (archive.infolist() if archive else ())),
    )
    if unpacked > UNPACKED_RATIO * size + UNPACKED_SLACK:
        raise UnsupportedModel(
            f"{path}: an NPZ file of {size} bytes that unpacks to {unpacked}: refused; "
            "save it with numpy.savez"
        )
