"""Image files: one row each, read here and decoded later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from crelu_deploy.runner import TensorSpec
from crelu_deploy.scoring.inputs import Raw, Span
from crelu_deploy.staging import reason


def count(path: str, inputs: tuple[TensorSpec, ...]) -> int:
    """Return 1: of an animation the first frame is taken."""
    return 1


def read(span: Span, inputs: tuple[TensorSpec, ...]) -> Iterator[Raw]:
    """Yield the file's bytes, for a network with one input."""
    if len(inputs) != 1:
        yield f"an image; the network has the inputs {', '.join(map(str, inputs))}"
        return
    try:
        yield {inputs[0].name: Path(span.path).read_bytes()}
    except OSError as error:
        yield f"cannot be read: {reason(error)}"
