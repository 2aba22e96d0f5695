"""``MODELS``, the one list of known architectures, and ``build``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from crelu_deploy.errors import CheckpointError
from crelu_deploy.models.faceboxes import FaceBoxes
from crelu_deploy.models.sequential import build_sequential
from crelu_deploy.models.tables import (
    ALL_CNN_B_ROWS,
    CONVPOOL_ROWS,
    DIGITS,
    VGG_ROWS,
    Row,
    nine,
)


@dataclass(frozen=True)
class Model:
    """One known architecture.

    Attributes:
        name: What ``--arch`` calls it.
        family: The table it is a row of.
        num_classes: How many classes it has unless told otherwise.
        input_shape: An example input ``(1, C, H, W)``, float32.
        make: Number of classes -> a freshly initialised module.
        head: Key of the tensor whose first extent is the number of classes.
        reported: The number of parameters its paper reports, as printed there, or None.
        verdict: How the real number of parameters compares with that, in words.
        input_names: Names of the inputs, in order.
        output_names: Names of the outputs, in order.
    """

    name: str
    family: str
    num_classes: int
    input_shape: tuple[int, ...]
    make: Callable[[int], nn.Module]
    head: str
    reported: str | None = None
    verdict: str = "no count reported"
    input_names: tuple[str, ...] = ("input",)
    output_names: tuple[str, ...] = ("logits",)


def _sequential(
    name: str, family: str, row: Row, shape: tuple[int, ...], num_classes: int, unit: str = "conv"
) -> Model:
    make = partial(build_sequential, row.layers, row.widths, shape[1])
    head = f"{unit}{len(row.widths.split())}.weight"
    return Model(name, family, num_classes, shape, make, head, row.reported, row.verdict)


def _models() -> list[Model]:
    cifar, imagenet = (1, 3, 32, 32), (1, 3, 224, 224)
    digits = Row(DIGITS, "16c 16c 32c 32c 32c 24c n-")
    return [
        *(_sequential(k, "convpool-c", row, cifar, 10) for k, row in CONVPOOL_ROWS.items()),
        *(
            _sequential(f"{k}-9", "convpool-c-9", nine(row), cifar, 10)
            for k, row in CONVPOOL_ROWS.items()
        ),
        *(_sequential(k, "vgg", row, cifar, 10, "fc") for k, row in VGG_ROWS.items()),
        *(_sequential(k, "all-cnn-b", row, imagenet, 1000) for k, row in ALL_CNN_B_ROWS.items()),
        Model(
            *("faceboxes", "faceboxes", 2, (1, 3, 720, 1080), FaceBoxes, "conf.1.weight"),
            output_names=("loc", "conf"),
        ),
        _sequential("digits-crelu", "digits", digits, (1, 1, 28, 28), 10),
    ]


MODELS: Mapping[str, Model] = {model.name: model for model in _models()}
"""Name -> architecture, for every architecture that ``build`` makes and ``identify`` knows."""


def find(name: str) -> Model:
    """Return ``MODELS[name]``.

    Raises:
        CheckpointError: ``name`` is not known; the message has the closest names.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.5)
        hint = f"closest: {', '.join(close)}" if close else f"known: {', '.join(MODELS)}"
        raise CheckpointError(f"unknown architecture {name!r} ({hint})")
    return MODELS[name]


def build(name: str, *, num_classes: int | None = None) -> nn.Module:
    """Return a freshly initialised module in training mode.

    Args:
        name: a key of ``MODELS``.
        num_classes: the number of classes, 1 or more; None for the architecture's own.

    Raises:
        CheckpointError: ``name`` is not known.
        ValueError: ``num_classes`` is below 1.
    """
    model = find(name)
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"{name}: num_classes must be at least 1, got {num_classes}")
    return model.make(model.num_classes if num_classes is None else num_classes)
