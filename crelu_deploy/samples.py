"""Inputs and PyTorch's outputs for them, as they travel in ``samples.npz``."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.runner import TensorSpec

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


UNPACKED_RATIO, UNPACKED_SLACK = 20, 64 << 20
"""An NPZ file may unpack to this many times its size, plus these bytes."""


@dataclass(frozen=True)
class Sample:
    """One call of the network: its inputs and PyTorch's outputs, by name."""

    inputs: Arrays
    outputs: Arrays

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


def save_samples(path: Path, samples: tuple[Sample, ...]) -> None:
    """Write every array under ``<index>/input/<name>`` or ``<index>/output/<name>``."""
    arrays = {
        f"{i}/{kind}/{name}": array
        for i, sample in enumerate(samples)
        for kind, named in (("input", sample.inputs), ("output", sample.outputs))
        for name, array in named.items()
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy 1 has no allow_pickle here


def load_samples(path: Path) -> tuple[Sample, ...]:
    """Read what ``save_samples`` wrote.

    Raises:
        UnsupportedModel: The file is damaged or holds something else.
    """
    found: dict[int, dict[str, dict[str, Array]]] = {}
    for key, array in _arrays(path).items():
        index, _, rest = key.partition("/")
        kind, _, name = rest.partition("/")
        if not (index.isdecimal() and len(index) < 10 and kind in ("input", "output") and name):
            raise UnsupportedModel(f"{path}: {key!r} is not an array of a sample; export again")
        found.setdefault(int(index), {"input": {}, "output": {}})[kind][name] = array
    if not found:
        raise UnsupportedModel(f"{path}: no samples inside; export again")
    return tuple(Sample(found[i]["input"], found[i]["output"]) for i in sorted(found))


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


def random_inputs(
    specs: tuple[TensorSpec, ...], shapes: Mapping[str, tuple[int, ...]], seed: int
) -> dict[str, Array]:
    """Return one call: standard normal floats, integers in 0..1, booleans."""
    generator = np.random.default_rng(seed)
    result: dict[str, Array] = {}
    for spec in specs:
        shape = shapes[spec.name]
        dtype = np.dtype(spec.dtype)
        if dtype.kind in "iub":
            result[spec.name] = generator.integers(0, 2, shape).astype(dtype)
        else:
            result[spec.name] = generator.standard_normal(shape, np.float32).astype(dtype)
    return result


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
