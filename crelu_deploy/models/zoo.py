"""``MODELS``, the one list of known architectures, and ``build``.

``NAME@WIDTH``, such as ``convpool-c-crelu@0.125``, is a network of the paper's tables with all its
numbers of filters times ``WIDTH``. Such networks train in minutes; they are built by that name and
a checkpoint that carries it is loaded by it, but ``identify`` does not guess it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
    scaled,
)
from crelu_deploy.preprocessing import Preprocessing


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
        verdict: How the real number of parameters compares with that, in words; ``{gap}`` stands
            for the difference.
        input_names: Names of the inputs, in order.
        output_names: Names of the outputs, in order.
        row: Its layers, where it is a row of a table.
        preprocessing: How its published weights were trained to read pixels, where it is known.
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
    row: Row | None = None
    preprocessing: Preprocessing | None = None


def _sequential(
    name: str, family: str, row: Row, shape: tuple[int, ...], num_classes: int, unit: str = "conv"
) -> Model:
    make = partial(build_sequential, row.layers, row.widths, shape[1])
    head = f"{unit}{len(row.widths.split())}.weight"
    verdict = row.verdict
    return Model(name, family, num_classes, shape, make, head, row.reported, verdict, row=row)


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
            preprocessing=Preprocessing((104.0, 117.0, 123.0), (1.0,), bgr=True),
        ),
        replace(
            _sequential("digits-crelu", "digits", digits, (1, 1, 28, 28), 10),
            preprocessing=Preprocessing(),
        ),
    ]


MODELS: Mapping[str, Model] = {model.name: model for model in _models()}
"""Name -> architecture, for every architecture that ``build`` makes and ``identify`` knows."""


def find(name: str) -> Model:
    """Return the architecture of that name, ``NAME@WIDTH`` included.

    Raises:
        CheckpointError: ``name`` is not known; the message has the closest names.
    """
    base, at, width = name.partition("@")
    if base not in MODELS:
        close = difflib.get_close_matches(base, MODELS, n=3, cutoff=0.5)
        hint = f"closest: {', '.join(close)}" if close else f"known: {', '.join(MODELS)}"
        raise CheckpointError(f"unknown architecture {name!r} ({hint})")
    return _narrowed(MODELS[base], width) if at else MODELS[base]


def _narrowed(model: Model, width: str) -> Model:
    """Return a row of a table at ``width``, a decimal number above 0 and at most 1."""
    name = f"{model.name}@{width}"
    if model.row is None:
        raise CheckpointError(f"unknown architecture {name!r}: {model.name} has one width only")
    try:
        factor = float(width)
    except ValueError as error:
        raise CheckpointError(f"unknown architecture {name!r}: {width!r} is no width") from error
    if not 0 < factor <= 1:
        raise CheckpointError(f"unknown architecture {name!r}: the width must be in 0..1")
    unit = "fc" if model.head.startswith("fc") else "conv"
    row = scaled(model.row, factor)
    return _sequential(name, model.family, row, model.input_shape, model.num_classes, unit)


def build(name: str, *, num_classes: int | None = None) -> nn.Module:
    """Return a freshly initialised module in training mode.

    Args:
        name: a key of ``MODELS``, or ``NAME@WIDTH``.
        num_classes: the number of classes, 1 or more; None for the architecture's own.

    Raises:
        CheckpointError: ``name`` is not known.
        ValueError: ``num_classes`` is below 1.
    """
    model = find(name)
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"{name}: num_classes must be at least 1, got {num_classes}")
    return model.make(model.num_classes if num_classes is None else num_classes)
