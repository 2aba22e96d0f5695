"""A network's beginning as a chain of stages, each of which can be run and inverted.

A stage is a convolution, batch norm, activation and max pool; the last three but the activation may
be absent. Inverting one goes back through all of them: pool by its argmax, CReLU by subtracting the
halves, batch norm exactly, and the convolution by the pseudo-inverse of the whole layer (Shang et
al., 2016, sections 2.2 and 4.3). What lies in the null space of the convolution is lost.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from crelu_deploy.analysis.layers import ACTIVATIONS
from crelu_deploy.analysis.leastsquares import EXACT, Filters, Solution, solve
from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.models.calls import INPUT, Call, calls, readers

M = TypeVar("M", bound=nn.Module)

View = Literal["crelu", "relu", "abs"]
"""What of a CReLU's output an inversion is given: both halves, the positive one, their sum."""


@dataclass(frozen=True)
class Stage:
    """One stage, in float64.

    Attributes:
        name: Dotted name of the convolution.
        conv: The convolution.
        norm: The batch norm behind it, in evaluation mode.
        activation: ``crelu``, ``relu`` or ``abs``.
        pool: The max pool behind that, which also returns its argmax.
    """

    name: str
    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None = None
    activation: str = ""
    pool: nn.MaxPool2d | None = None


@dataclass(frozen=True)
class Features:
    """What a stage makes of one input.

    Attributes:
        values: Its output, ``(1, C, H, W)``.
        read: Shape of its input.
        size: Height and width before the pool.
        switches: Where the pool found each value, as indices into ``H * W`` before it.
    """

    values: Tensor
    read: tuple[int, ...]
    size: tuple[int, int]
    switches: Tensor | None


def find_stages(net: nn.Module, shape: tuple[int, ...]) -> tuple[Stage, ...]:
    """Return the stages from the input on, up to the first module that is part of none.

    Args:
        net: a network in evaluation mode with one input; it is not changed.
        shape: of an input, ``(1, C, H, W)``.

    Raises:
        UnsupportedModel: the network does not begin with one.
    """
    found = calls(net, torch.zeros(shape))
    stages: list[Stage] = []
    index = INPUT
    while following := readers(found, index):
        index = following[0]
        if not _extend(stages, found[index]):
            break
    if stages and not stages[-1].activation:
        stages.pop()
    if not stages:
        raise UnsupportedModel(
            f"{type(net).__name__} begins with no convolution and CReLU, ReLU or Abs module"
        )
    return tuple(stages)


def _extend(stages: list[Stage], call: Call) -> bool:
    """Add a call to the chain in place; return False where it does not fit."""
    module = call.module
    if isinstance(module, nn.Dropout | nn.Identity):
        return True
    if isinstance(module, nn.Conv2d):
        stages.append(Stage(call.name, _double(module)))
        return len(stages) == 1 or bool(stages[-2].activation)
    if not stages or stages[-1].pool:
        return False
    last = stages[-1]
    if isinstance(module, nn.BatchNorm2d) and not last.activation:
        stages[-1] = replace(last, norm=_double(module))
    elif type(module) in ACTIVATIONS and not last.activation:
        stages[-1] = replace(last, activation=ACTIVATIONS[type(module)])
    elif isinstance(module, nn.MaxPool2d) and last.activation:
        pool = _double(module)
        pool.return_indices = True
        stages[-1] = replace(last, pool=pool)
    else:
        return False
    return True


def _double(module: M) -> M:
    return copy.deepcopy(module).double().requires_grad_(False)


def run(stage: Stage, x: Tensor) -> Features:
    """Apply a stage to ``(1, C, H, W)`` float64."""
    z = stage.conv(x)
    if stage.norm is not None:
        z = stage.norm(z)
    y = {
        "crelu": lambda: torch.cat((z.relu(), (-z).relu()), 1),
        "relu": z.relu,
        "abs": z.abs,
    }[stage.activation]()
    size = (z.shape[2], z.shape[3])
    if stage.pool is None:
        return Features(y, tuple(x.shape), size, None)
    values, switches = stage.pool(y)
    return Features(values, tuple(x.shape), size, switches)


def invert(
    stage: Stage, features: Features, view: View = "crelu", *, tolerance: float = EXACT
) -> tuple[Solution, Filters]:
    """Return the stage's input of smallest norm that explains its features best.

    Args:
        stage: the stage.
        features: its output, or an estimate of it, with the shapes and switches of a real run.
        view: what of a CReLU's output may be used; the rest is done as if there were nothing more.
        tolerance: of the solver.

    Returns:
        The solution, and the linear map that it inverts.
    """
    outputs, known = _unpooled(features)
    if stage.activation == "crelu":
        outputs, known = _joined(outputs, known, view)
    outputs, known = _without_affine(stage, outputs, known)
    operator = Filters(stage.conv, features.read, known)
    return solve(operator, outputs * known, tolerance=tolerance), operator


def _unpooled(features: Features) -> tuple[Tensor, Tensor]:
    """Put values back where the pool found them; zeros and what lost give no equation."""
    values, switches = features.values, features.switches
    if switches is None:
        return values, torch.ones_like(values)
    flat = torch.zeros(*values.shape[:2], torch.Size(features.size).numel(), dtype=values.dtype)
    where = switches.flatten(2)
    positive = values.flatten(2).clamp(min=0)
    outputs = flat.scatter(2, where, positive).reshape(*values.shape[:2], *features.size)
    return outputs, (outputs > 0).to(values.dtype)


def _joined(outputs: Tensor, known: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Return a CReLU's input, as far as the view shows it."""
    positive, negative = outputs.chunk(2, 1)
    first, second = known.chunk(2, 1)
    if view == "relu":
        return positive, first
    joined = positive - negative if view == "crelu" else positive + negative
    return joined, torch.maximum(first, second)


def _without_affine(stage: Stage, z: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Undo the batch norm and the bias; a channel that is scaled by 0 gives no equation."""
    if stage.norm is not None:
        scale, shift = _affine(stage.norm)
        alive = scale != 0
        z = (z - shift) / torch.where(alive, scale, 1)
        known = known * alive
    if stage.conv.bias is not None:
        z = z - stage.conv.bias[:, None, None]
    return z, known


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a batch norm in evaluation mode, each ``(C, 1, 1)``."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise UnsupportedModel("a batch norm without running statistics cannot be undone")
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale if norm.bias is None else norm.bias - mean * scale
    return scale[:, None, None], shift[:, None, None]
