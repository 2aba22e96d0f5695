"""Inputs of sizes that the user names, made of the values that a bundle's samples have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.runner import TensorSpec
from crelu_deploy.samples import Array, Arrays, Sample, wrapped
from crelu_deploy.shapes import parse_shape

Shape = tuple[int, ...]


def parse_sizes(text: str) -> tuple[str, tuple[Shape, ...]]:
    """Read ``[NAME:]SIZES,SIZES,...`` as a name, empty where none is given, and shapes.

    Raises:
        ValueError: One of them is no shape; see ``parse_shape``.
    """
    name, colon, sizes = text.rpartition(":")
    if colon and not name:
        raise ValueError(
            f"sizes {text!r}: expected [NAME:]SIZES,SIZES such as 2x3x96x128,1x3x64x64"
        )
    return name, tuple(parse_shape(one)[1] for one in sizes.split(","))


def resized(bundle: Bundle, sizes: Sequence[str]) -> tuple[Arrays, ...]:
    """Return one call for each of the sizes.

    Args:
        bundle: Its usual samples give the values: cut or repeated, other rows first in each call.
        sizes: What ``parse_sizes`` reads, one text for each input; an input without one keeps the
            shape of the first sample.

    Raises:
        UnsupportedModel: An unknown input, unequally many sizes, or extents that the network does
            not take.
    """
    samples = bundle.usual
    shapes = _shapes(bundle, sizes, samples[0])
    rows = {spec.name: _rows(spec, samples) for spec in bundle.inputs}
    return tuple(
        {name: wrapped(np.roll(rows[name], -number, 0), shape) for name, shape in call.items()}
        for number, call in enumerate(shapes)
    )


def _shapes(bundle: Bundle, sizes: Sequence[str], first: Sample) -> list[Mapping[str, Shape]]:
    names = [spec.name for spec in bundle.inputs]
    given = dict[str, tuple[Shape, ...]]()
    for name, shapes in map(parse_sizes, sizes):
        key = name or next((n for n in names if n not in given), "")
        if key not in names or key in given:
            wrong = f"a second time for {key!r}" if key in given else f"for no input {name!r}"
            raise UnsupportedModel(f"sizes are given {wrong}; the inputs are: {', '.join(names)}")
        given[key] = shapes
    if len({len(shapes) for shapes in given.values()}) > 1:
        counts = ", ".join(f"{len(shapes)} for {name!r}" for name, shapes in given.items())
        raise UnsupportedModel(f"every input needs as many sizes; got {counts}")
    calls = list[Mapping[str, Shape]]()
    for one in zip(*given.values(), strict=True):
        named = {**_shapes_of(first), **dict(zip(given, one, strict=True))}
        call = {name: named[name] for name in names}
        _check(bundle, call)
        calls.append(call)
    return calls


def _shapes_of(sample: Sample) -> dict[str, Shape]:
    return {name: array.shape for name, array in sample.inputs.items()}


def _check(bundle: Bundle, call: Mapping[str, Shape]) -> None:
    said = ", ".join("x".join(map(str, shape)) for shape in call.values())
    try:
        for spec in bundle.inputs:
            spec.check(np.broadcast_to(np.zeros((), spec.dtype), call[spec.name]))
    except ValueError as error:
        raise UnsupportedModel(
            f"{bundle.path}: size {said}: {error}; export with --dynamic for axes that vary"
        ) from error
    try:
        bundle.limits.check(list(call.values()))
    except ValueError as error:
        raise UnsupportedModel(f"{bundle.path}: size {said}: {error}") from error


def _rows(spec: TensorSpec, samples: Sequence[Sample]) -> Array:
    """Return the values of an input in all samples of the first one's extents, in one array."""
    arrays = [sample.inputs[spec.name] for sample in samples]
    first = arrays[0]
    if not first.ndim:
        return first[None]
    return np.concatenate([a for a in arrays if a.shape[1:] == first.shape[1:]])
