"""How much of an input a layer's features, and a stack of layers' features, determine.

Shang et al. (2016), sections 2.2 and 4.3: what a CReLU layer keeps is the projection of its input
on the range of its transposed filters, which the pseudo-inverse recovers. The same with half of the
CReLU, or with the sum of its halves, shows what ReLU and the absolute value lose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crelu_deploy.analysis.leastsquares import EXACT, Spectrum, solve, spectrum
from crelu_deploy.analysis.stages import Features, Stage, View, invert, run

CONTROLS: tuple[View, ...] = ("relu", "abs")

EARLY = 0.03
"""Tolerance for features that are themselves estimates.

They lie partly outside of the operator's range, and small singular values would blow that part up:
stopping conjugate gradients early is the regularisation against it.
"""

RANK_LIMIT = 3 * 32 * 32
"""Up to this many unknowns the rank of a layer's operator is computed."""


@dataclass(frozen=True)
class LayerInverse:
    """How well one layer's input follows from its features.

    Attributes:
        name: The layer.
        activation: What follows it.
        equations: Outputs that are known; behind a max pool those that won and are not 0.
        unknowns: Values of its input.
        spectrum: Rank and singular values of the operator; None where it is too large.
        iterations: Of the solver.
        converged: Whether it met its tolerance; if not, the next three are upper limits.
        error: ``|x' - x| / |x|`` for the real input x: 0 for full rank.
        residual: ``|A x' - z| / |z|``: about 0, because z is in the range of A.
        idempotence: ``|x'' - x'| / |x'|`` for the reconstruction x'' of x': about 0.
        controls: ``error`` when half of a CReLU, or the halves' sum, is all that is known.
    """

    name: str
    activation: str
    equations: int
    unknowns: int
    spectrum: Spectrum | None
    iterations: int
    converged: bool
    error: float
    residual: float
    idempotence: float
    controls: Mapping[View, float]


@dataclass(frozen=True)
class StackInverse:
    """The picture, reconstructed from the features of one layer through all layers before it.

    Attributes:
        name: The layer whose features are known.
        error: ``|x' - x| / |x|`` of the picture.
        picture: The reconstruction ``(1, C, H, W)``, float64.
        controls: What half of the CReLU in this layer, or the halves' sum, gives.
        control_errors: Their errors.
    """

    name: str
    error: float
    picture: Tensor
    controls: Mapping[View, Tensor]
    control_errors: Mapping[View, float]


def invert_layers(stages: Sequence[Stage], image: Tensor) -> tuple[LayerInverse, ...]:
    """Reconstruct the input of every stage from its output, each on its own.

    Args:
        stages: those of ``find_stages``, or the first few of them.
        image: ``(1, C, H, W)``.
    """
    x, found = image.double(), []
    for stage in stages:
        features = run(stage, x)
        found.append(_invert_layer(stage, x, features))
        x = features.values
    return tuple(found)


def _invert_layer(stage: Stage, x: Tensor, features: Features) -> LayerInverse:
    solution, operator = invert(stage, features)
    again = solve(operator, operator.apply(solution.x))
    unknowns = x.numel()
    return LayerInverse(
        name=stage.name,
        activation=stage.activation,
        equations=operator.equations,
        unknowns=unknowns,
        spectrum=spectrum(operator, tuple(x.shape)) if unknowns <= RANK_LIMIT else None,
        iterations=solution.iterations,
        converged=solution.converged and again.converged,
        error=_distance(solution.x, x),
        residual=solution.residual,
        idempotence=_distance(again.x, solution.x),
        controls={v: _control_error(stage, x, features, v) for v in _controls(stage)},
    )


def _control_error(stage: Stage, x: Tensor, features: Features, view: View) -> float:
    return _distance(invert(stage, features, view, tolerance=EARLY)[0].x, x)


def invert_stacks(stages: Sequence[Stage], image: Tensor) -> tuple[StackInverse, ...]:
    """Reconstruct the picture from the output of every stage, back through all before it.

    On the way down the estimate of a stage's output takes the place of the real one; of the forward
    run only the shapes and the pools' switches are used. Features are inverted exactly as long as
    every layer has as many equations as unknowns; then, and for the controls, up to ``EARLY``.
    """
    image = image.double()
    features = list(_forward(stages, image))
    return tuple(_invert_stack(stages[: i + 1], features, image) for i in range(len(stages)))


def _forward(stages: Sequence[Stage], x: Tensor) -> list[Features]:
    found = []
    for stage in stages:
        found.append(run(stage, x))
        x = found[-1].values
    return found


def _invert_stack(
    stages: Sequence[Stage], features: Sequence[Features], image: Tensor
) -> StackInverse:
    picture = _descend(stages, features, "crelu")
    controls = {view: _descend(stages, features, view) for view in _controls(stages[-1])}
    errors = {view: _distance(control, image) for view, control in controls.items()}
    return StackInverse(stages[-1].name, _distance(picture, image), picture, controls, errors)


def _descend(stages: Sequence[Stage], features: Sequence[Features], view: View) -> Tensor:
    """Invert the last stage with a view of its features, the ones before it with all of theirs."""
    exact = view == "crelu"
    estimate = features[len(stages) - 1].values
    for stage, real in zip(reversed(stages), reversed(features[: len(stages)]), strict=True):
        known = replace(real, values=estimate)
        solution, operator = invert(stage, known, view, tolerance=EXACT if exact else EARLY)
        estimate, view = solution.x, "crelu"
        exact = exact and solution.converged and operator.equations >= estimate.numel()
    return estimate


def _controls(stage: Stage) -> tuple[View, ...]:
    return CONTROLS if stage.activation == "crelu" else ()


def _distance(estimate: Tensor, real: Tensor) -> float:
    """Relative Euclidean distance; that to 0 counts as it is."""
    norm = real.norm().item()
    return torch.dist(estimate, real).item() / (norm or 1.0)
