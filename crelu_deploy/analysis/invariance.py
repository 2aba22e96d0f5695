"""How invariant are a layer's units to small movements of the picture?

The score of Goodfellow et al. (2009), which Shang et al. (2016), section 4.2, apply to CReLU. A
unit fires when it exceeds its own threshold, which is set so that it fires on a share g of the
pictures. Its score is the share of firings on moved copies of the pictures that fire it, over g: 1
is no better than chance, 1/g is perfect. A layer's score is the mean over its best units.

The transformations, g and the share of units behind the paper's figure are in a supplement that
is not at hand; those here are the ones stated in ``MOVES`` and in the arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crelu_deploy.analysis.layers import Layer

MINIMUM = 20
"""Pictures that must fire a unit for it to have a score."""

FEW = 2000
"""Below this many pictures the default g is 0.05, else 0.01."""

BATCH = 256

ANGLES = (-15.0, -10.0, -5.0, 5.0, 10.0, 15.0)
SHIFTS = (-4, -3, -2, -1, 1, 2, 3, 4)
Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]

MOVES = (
    "shifts by 1 to 4 pixels along either axis, rotations by 5, 10 and 15 degrees either way, "
    "left-right flip; what moves in repeats the border"
)


@dataclass(frozen=True)
class Invariance:
    """Invariance of one layer's units.

    Attributes:
        scores: Of the units that enough pictures fire, best first; 0 to 1/g.
        skipped: Units that too few pictures fire.
        best: Share of the scored units that make the layer's score.
    """

    scores: Tensor
    skipped: int
    best: float

    @property
    def score(self) -> float:
        """Mean over the best units; NaN where no unit has a score."""
        return self.scores[: math.ceil(self.best * len(self.scores))].mean().item()


def default_rate(pictures: int) -> float:
    """Return the share g of the pictures on which a unit fires."""
    return 0.05 if pictures < FEW else 0.01


def score_units(
    still: Tensor, moved: Tensor, *, rate: float, best: float = 0.2, minimum: int = MINIMUM
) -> Invariance:
    """Score units by their outputs.

    Args:
        still: ``(N, U)``: each unit's output for each picture.
        moved: ``(T, N, U)``: the same for T moved copies of each picture.
        rate: g, the share of pictures on which a unit fires.
        best: share of the scored units whose mean is the layer's score.
        minimum: pictures that must fire a unit for it to have a score.

    Raises:
        ValueError: a share is outside 0..1.
    """
    if not 0 < rate < 1 or not 0 < best <= 1:
        raise ValueError(f"expected shares in 0..1, got rate {rate} and best {best}")
    # The threshold is an output itself, so that ties with it, such as zeros, do not fire.
    count = round(rate * len(still))
    threshold = still.sort(dim=0, descending=True).values[count]
    fires = still > threshold
    firing = fires.sum(dim=0)
    kept = (moved > threshold).double().mean(dim=0)
    local = torch.where(fires, kept, 0).sum(dim=0) / firing
    scored = firing >= max(minimum, 1)
    scores = (local * len(still) / firing)[scored]
    return Invariance(scores.sort(descending=True).values, int((~scored).sum()), best)


@torch.no_grad()
def responses(net: nn.Module, images: Tensor, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Return what each layer puts out at the centre of its map: layer -> ``(N, U)`` float32.

    A CReLU's two halves are units of their own. Images are ``(N, C, H, W)``.
    """
    found: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    modules = dict(net.named_modules())
    handles = [
        modules[layer.output].register_forward_hook(_keep(found[layer.name])) for layer in layers
    ]
    try:
        for batch in torch.split(images, BATCH):
            net(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def _keep(into: list[Tensor]) -> Hook:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        middle = (
            output if output.ndim == 2 else output[..., output.shape[2] // 2, output.shape[3] // 2]
        )
        into.append(middle.clone())

    return hook


def score_layers(
    net: nn.Module,
    images: Tensor,
    layers: Sequence[Layer],
    *,
    rate: float | None = None,
    best: float = 0.2,
) -> dict[str, Invariance]:
    """Score the units of layers on pictures and their moved copies.

    Args:
        net: the network, in evaluation mode.
        images: ``(N, C, H, W)``; N times the rate should be ``MINIMUM`` or more.
        layers: those of ``find_layers`` to score.
        rate: g; None for ``default_rate``.
        best: share of the scored units whose mean is the layer's score.
    """
    rate = default_rate(len(images)) if rate is None else rate
    still = responses(net, images, layers)
    copies = [responses(net, copy, layers) for copy in moves(images)]
    return {
        layer.name: score_units(
            still[layer.name],
            torch.stack([copy[layer.name] for copy in copies]),
            rate=rate,
            best=best,
        )
        for layer in layers
    }


def moves(images: Tensor) -> Iterator[Tensor]:
    """Yield the copies of ``(N, C, H, W)`` images that ``MOVES`` describes, one move at a time."""
    for pixels in SHIFTS:
        for shift in ((pixels, 0), (0, pixels)):
            yield _warped(images, torch.eye(2), shift)
    for angle in ANGLES:
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        yield _warped(images, torch.tensor([[cosine, -sine], [sine, cosine]]), (0, 0))
    yield images.flip(-1)


def _warped(images: Tensor, turn: Tensor, shift: tuple[int, int]) -> Tensor:
    """Turn about the centre, then shift by (right, down) pixels."""
    height, width = images.shape[2:]
    size = torch.tensor([width, height])
    # Coordinates run from -1 to 1 along each axis, so a turn must know the shape of the picture.
    matrix = turn * size / size[:, None]
    offset = -2 * torch.tensor(shift) / size
    affine = torch.cat((matrix, offset[:, None]), dim=1)
    grid = nn.functional.affine_grid(
        affine.expand(len(images), 2, 3), list(images.shape), align_corners=False
    )
    return nn.functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
