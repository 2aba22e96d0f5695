"""Every known architecture with what it costs, beside what its paper reports."""

from __future__ import annotations

from dataclasses import dataclass

from crelu_deploy.models.counting import Cost, cost
from crelu_deploy.models.zoo import MODELS, Model

CIFAR = (1, 3, 32, 32)


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        name: Its name in ``MODELS``.
        classes: The number of classes that was counted.
        cost: Parameters and multiply-adds.
        reported: The number of parameters in its paper, as printed there, or None.
        verdict: How the real number compares with that, in words.
        shape: Of the example input.
    """

    name: str
    classes: int
    cost: Cost
    reported: str | None
    verdict: str
    shape: tuple[int, ...]


def entries(*, classes: int = 10) -> tuple[Entry, ...]:
    """Count every architecture, those for CIFAR with a number of classes, the others with theirs.

    Raises:
        ValueError: ``classes`` is below 1.
    """
    return tuple(_entry(model, classes) for model in MODELS.values())


def _entry(model: Model, classes: int) -> Entry:
    count = classes if model.input_shape == CIFAR else model.num_classes
    found = cost(model.name, num_classes=count)
    verdict = model.verdict.format(gap=_gap(found.params, model.reported))
    return Entry(model.name, count, found, model.reported, verdict, model.input_shape)


def _gap(params: int, reported: str | None) -> str:
    """Return ``8.1% under`` for a report such as ``1.4M``; nothing where there is none."""
    if reported is None:
        return ""
    gap = params / (1e6 * float(reported.removesuffix("M"))) - 1
    return f"{abs(gap):.1%} {'over' if gap > 0 else 'under'}"
