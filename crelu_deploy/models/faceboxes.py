"""FaceBoxes, a CPU real-time face detector with a CReLU stem (Zhang et al., IJCB 2017).

The layers and the names of their tensors are those of the trained weights in use with PyTorch, in
which a CReLU follows the batch norm of the first two convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crelu_deploy.nn import CReLU

ANCHORS = (21, 1, 1)
"""Boxes per position of the three maps: 16 + 4 + 1 densified ones on the first."""

MAP_CHANNELS = (128, 256, 256)


class ConvBN(nn.Module):
    """Convolution without a bias, batch norm (eps 1e-5), activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        padding: int = 0,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-5)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, C', H', W')``; C' is twice ``out_channels`` under CReLU."""
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class Inception(nn.Module):
    """Four branches of 32 channels from one input of 128, concatenated; height and width stay."""

    def __init__(self) -> None:
        super().__init__()
        self.branch1x1 = ConvBN(128, 32)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1)
        self.branch1x1_2 = ConvBN(128, 32)
        self.branch3x3_reduce = ConvBN(128, 24)
        self.branch3x3 = ConvBN(24, 32, kernel=3, padding=1)
        self.branch3x3_reduce_2 = ConvBN(128, 24)
        self.branch3x3_2 = ConvBN(24, 32, kernel=3, padding=1)
        self.branch3x3_3 = ConvBN(32, 32, kernel=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches side by side, ``(N, 128, H, W)``."""
        branches = (
            self.branch1x1(x),
            self.branch1x1_2(self.pool(x)),
            self.branch3x3(self.branch3x3_reduce(x)),
            self.branch3x3_3(self.branch3x3_2(self.branch3x3_reduce_2(x))),
        )
        return torch.cat(branches, 1)


class FaceBoxes(nn.Module):
    """Input ``(N, 3, H, W)`` of any height and width: BGR, 0..255, minus (104, 117, 123).

    Outputs ``loc (N, A, 4)``, the box offsets, and ``conf (N, A, num_classes)``, probabilities,
    for A = 21*h1*w1 + h2*w2 + h3*w3 anchors over maps of stride 32, 64 and 128.
    """

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = ConvBN(3, 24, kernel=7, stride=4, padding=3, activation=CReLU)
        self.conv2 = ConvBN(48, 64, kernel=5, stride=2, padding=2, activation=CReLU)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.inception1 = Inception()
        self.inception2 = Inception()
        self.inception3 = Inception()
        self.conv3_1 = ConvBN(128, 128)
        self.conv3_2 = ConvBN(128, 256, kernel=3, stride=2, padding=1)
        self.conv4_1 = ConvBN(256, 128)
        self.conv4_2 = ConvBN(128, 256, kernel=3, stride=2, padding=1)
        self.loc = _heads(4)
        self.conf = _heads(num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``loc`` and ``conf`` as in the class's docstring."""
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(x))
        first = self.inception3(self.inception2(self.inception1(x)))
        second = self.conv3_2(self.conv3_1(first))
        third = self.conv4_2(self.conv4_1(second))
        maps = (first, second, third)
        conf = _per_anchor(self.conf, maps, self.num_classes)
        return _per_anchor(self.loc, maps, 4), torch.softmax(conf, dim=-1)


def _heads(values: int) -> nn.ModuleList:
    """One 3x3 convolution per map, with ``values`` channels for each anchor."""
    pairs = zip(MAP_CHANNELS, ANCHORS, strict=True)
    return nn.ModuleList(nn.Conv2d(c, a * values, 3, padding=1) for c, a in pairs)


def _per_anchor(heads: nn.ModuleList, maps: tuple[Tensor, ...], values: int) -> Tensor:
    """Apply each head to its map: ``(N, A, values)``, map by map, row by row, anchor by anchor."""
    outs = (head(x).permute(0, 2, 3, 1) for head, x in zip(heads, maps, strict=True))
    return torch.cat([out.reshape(out.shape[0], -1, values) for out in outs], 1)
