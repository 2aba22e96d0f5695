"""The networks that ``bench_paper.py`` times, with the ratios that are aimed at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from crelu_deploy import Bundle, checkpoint, export, models
from crelu_deploy.models.faceboxes import ConvBN
from crelu_deploy.nn import CReLU

STEM = "paper_networks:Stem"


class Stem(nn.Module):
    """The first layers of FaceBoxes: ``(N, 3, H, W)`` to ``(N, 128, H / 32, W / 32)``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvBN(3, 24, kernel=7, stride=4, padding=3, activation=CReLU)
        self.conv2 = ConvBN(48, 64, kernel=5, stride=2, padding=2, activation=CReLU)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps behind the second pool."""
        out: Tensor = self.pool(self.conv2(self.pool(self.conv1(x))))
        return out


@dataclass(frozen=True)
class Network:
    """One network of the table.

    Attributes:
        title: What the table calls it.
        arch: A name in ``models.MODELS``, or ``module:factory``.
        shape: Of one input, without the batch.
        reach: Batch size -> the ratio of ``ort-cpu:auto`` to ``ort-cpu:primitive`` aimed at.
        against: Other target -> the ratio of ``ort-cpu:auto`` to it aimed at, at batch 1.
        trained: Whether its weights come from a file.
    """

    title: str
    arch: str
    shape: tuple[int, ...]
    reach: Mapping[int, float]
    against: Mapping[str, float] = field(default_factory=dict)
    trained: bool = False


NETWORKS = (
    Network(
        *("ConvPool-CNN-C CReLU", "convpool-c-crelu", (3, 32, 32), {1: 0.90, 8: 0.85}),
        {"torch-compile": 0.65, "openvino:primitive": 0.95},
    ),
    Network("ConvPool-CNN-C CReLU half", "convpool-c-crelu-half", (3, 32, 32), {1: 0.87}),
    Network(
        *("All-CNN-B CReLU conv1-4", "all-cnn-b-crelu-1-4", (3, 224, 224), {1: 0.88, 8: 0.88}),
        {"torch": 0.65},
    ),
    Network("FaceBoxes", "faceboxes", (3, 720, 1080), {1: 0.70}, {"torch": 0.35}, trained=True),
    Network(
        *("FaceBoxes stem", STEM, (3, 1024, 1024), {1: 0.65, 4: 0.55}),
        {"openvino:primitive": 0.65},
    ),
)


def write_bundle(network: Network, folder: Path, weights: Path | None, samples: int) -> Bundle:
    """Export a network with seeded random weights, or with those of a file.

    Args:
        network: What to export.
        folder: Where its checkpoint and its bundle go.
        weights: The file of a trained one, else None.
        samples: How many random inputs to record.
    """
    file = weights or folder / "checkpoint.pt"
    if weights is None:
        torch.manual_seed(0)
        _write_random(network, file)
    shape = "x".join(map(str, (1, *network.shape)))
    # FaceBoxes reads images in 0..255 minus a mean; a standard normal input exercises it as well.
    return export(file, folder / "bundle", arch=network.arch, inputs=[shape], samples=samples)


def _write_random(network: Network, file: Path) -> None:
    if network.arch == STEM:
        torch.save(_he(Stem()).state_dict(), file)
        return
    module = _he(models.build(network.arch))
    classes = models.MODELS[network.arch].num_classes
    checkpoint.save(file, module, arch=network.arch, num_classes=classes)


def _he(module: nn.Module) -> nn.Module:
    """Draw the weights so that a signal keeps its size, as in a trained network (He et al., 2015).

    With PyTorch's own initial weights it dies away, and the biases alone decide.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    return module
