"""The extents that an engine is built for: smallest, most likely and largest, for every input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crelu_deploy.errors import BuildError
from crelu_deploy.runner import TensorSpec

LARGEST_BATCH = 64
"""Up to which batch an engine is built unless told otherwise."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """The shapes of one input, from the smallest to the largest; tuned for ``likely``."""

    smallest: Shape
    likely: Shape
    largest: Shape

    def __str__(self) -> str:
        return "/".join("x".join(map(str, s)) for s in (self.smallest, self.likely, self.largest))

    def holds(self, shape: Shape) -> bool:
        """Whether every extent of a shape of this rank lies in the range."""
        bounds = zip(self.smallest, shape, self.largest, strict=True)
        return all(low <= extent <= high for low, extent, high in bounds)


def parse_range(text: str) -> tuple[str, Range]:
    """Read ``[NAME:]MIN/LIKELY/MAX``, such as ``1x3x32x32/8x3x32x32/64x3x32x32``.

    Returns:
        The input's name, empty where there is none, and the range.

    Raises:
        ValueError: Not three shapes of one rank in ascending order.
    """
    name, _, sizes = text.rpartition(":")
    try:
        shapes = [tuple(int(extent) for extent in part.split("x")) for part in sizes.split("/")]
    except ValueError:
        shapes = []
    if len(shapes) != 3 or len({len(shape) for shape in shapes}) != 1:
        raise ValueError(
            f"shapes {text!r}: expected MIN/LIKELY/MAX such as 1x3x32x32/8x3x32x32/..."
        )
    if any(not 0 < a <= b <= c for a, b, c in zip(*shapes, strict=True)):
        raise ValueError(f"shapes {text!r}: extents must be positive and ascend from MIN to MAX")
    return name, Range(*shapes)


def ranges(
    specs: Sequence[TensorSpec], samples: Mapping[str, Shape], texts: Sequence[str] = ()
) -> dict[str, Range]:
    """Return the range of every input.

    Where nothing is said, axis 0 may be 1 to ``LARGEST_BATCH`` if it is dynamic; every other
    dynamic axis has the extent of the samples.

    Args:
        specs: The network's inputs.
        samples: The shape of each in a sample.
        texts: What the user said, as ``parse_range`` reads it.

    Raises:
        BuildError: A range of an unknown input, or one that does not fit its input.
    """
    said = _said(specs, texts)
    found = {}
    for spec in specs:
        found[spec.name] = said.get(spec.name) or _assumed(spec, samples[spec.name])
        _require_fit(spec, found[spec.name])
    return found


def _said(specs: Sequence[TensorSpec], texts: Sequence[str]) -> dict[str, Range]:
    said = dict(parse_range(text) for text in texts)
    names = [spec.name for spec in specs]
    if "" in said:
        if len(specs) > 1:
            raise BuildError(f"shapes without a name, but the inputs are {', '.join(names)}")
        said[names[0]] = said.pop("")
    if unknown := sorted(said.keys() - set(names)):
        raise BuildError(f"shapes of {unknown[0]!r}: the inputs are {', '.join(names)}")
    return said


def _assumed(spec: TensorSpec, sample: Shape) -> Range:
    if not spec.shape or isinstance(spec.shape[0], int):
        return Range(sample, sample, sample)
    largest = max(LARGEST_BATCH, sample[0])
    return Range((1, *sample[1:]), sample, (largest, *sample[1:]))


def _require_fit(spec: TensorSpec, found: Range) -> None:
    fits = len(found.likely) == len(spec.shape) and all(
        isinstance(extent, str) or low == extent == high
        for extent, low, high in zip(spec.shape, found.smallest, found.largest, strict=True)
    )
    if not fits:
        raise BuildError(f"shapes {found} do not fit the input {spec}")
