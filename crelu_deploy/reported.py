"""Results that the CReLU paper reports (Shang et al., ICML 2016, tables 1, 2, 4 and 5), as data.

Nothing here was measured by this project. Errors are in per cent; names are those of
``models.MODELS`` where the network is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Error:
    """A test error over repeated trainings.

    Attributes:
        mean: Average over the runs.
        deviation: Its printed spread.
        vote: Error of the runs' joint vote.
    """

    mean: float
    deviation: float
    vote: float


@dataclass(frozen=True)
class Cifar:
    """Errors of one network on CIFAR-10 and on CIFAR-100, over 10 runs."""

    cifar10: Error
    cifar100: Error


@dataclass(frozen=True)
class ImageNet:
    """Validation errors of one network, for one crop and for the mean of ten patches.

    None stands where the paper prints a dash.
    """

    top1: float
    top5: float | None
    top1_patches: float | None
    top5_patches: float | None
    params: str


CONVPOOL: Mapping[str, Cifar] = {
    "convpool-c-relu": Cifar(Error(10.20, 0.09, 7.55), Error(38.52, 0.12, 31.26)),
    "convpool-c-double": Cifar(Error(9.87, 0.09, 7.28), Error(36.73, 0.15, 28.34)),
    "convpool-c-avr": Cifar(Error(10.26, 0.10, 7.76), Error(37.24, 0.20, 29.77)),
    "convpool-c-crelu": Cifar(Error(9.39, 0.11, 7.09), Error(33.76, 0.12, 27.60)),
    "convpool-c-crelu-half": Cifar(Error(9.44, 0.09, 7.09), Error(36.20, 0.18, 29.93)),
}
"""Table 1."""

VGG: Mapping[str, Cifar] = {
    "vgg-relu": Cifar(Error(6.90, 0.03, 5.43), Error(30.27, 0.09, 26.85)),
    "vgg-crelu-1": Cifar(Error(6.45, 0.05, 5.22), Error(28.43, 0.11, 24.67)),
    "vgg-crelu-1-3": Cifar(Error(6.45, 0.05, 5.09), Error(27.79, 0.08, 23.93)),
    "vgg-crelu-1-3-5": Cifar(Error(6.45, 0.05, 5.16), Error(27.67, 0.07, 23.66)),
}
"""Table 2. The three equal averages on CIFAR-10 are as printed, and may be a slip."""

ALL_CNN_B: Mapping[str, ImageNet] = {
    "all-cnn-b-relu": ImageNet(41.81, 19.74, 38.03, 17.17, "9.37M"),
    "all-cnn-b-avr-1-4": ImageNet(41.12, 19.25, 37.32, 16.49, "9.37M"),
    "all-cnn-b-avr-1-7": ImageNet(42.36, 20.05, 38.21, 17.42, "9.37M"),
    "all-cnn-b-crelu-all-half": ImageNet(40.93, 19.39, 37.28, 16.72, "4.68M"),
    "all-cnn-b-crelu-1-4": ImageNet(39.82, 18.28, 36.20, 15.72, "10.14M"),
    "all-cnn-b-crelu-1-7": ImageNet(39.97, 18.33, 36.53, 16.01, "11.62M"),
    "all-cnn-b-crelu-1-4-7-half": ImageNet(40.45, 18.58, 35.70, 15.32, "8.60M"),
    "AlexNet": ImageNet(42.6, 19.6, 40.7, 18.2, "61M"),
    "FriedNet": ImageNet(41.93, None, None, None, "32.8M"),
    "PrunedNet": ImageNet(42.77, 19.67, None, None, "6.7M"),
}
"""Tables 4 and 5; the last three are other people's, as the paper cites them."""

COMPARED: Mapping[str, tuple[float, float]] = {
    "Rippel et al.": (8.60, 31.60),
    "Snoek et al.": (6.37, 27.40),
    "Liang & Hu": (7.09, 31.75),
    "Lee et al.": (6.05, 32.37),
    "Srivastava et al.": (7.60, 32.24),
}
"""Test errors on CIFAR-10 and CIFAR-100 that the paper cites for other methods."""

TRAIN_TEST: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "convpool-c-relu": ((1.09, 9.17), (13.68, 36.30)),
    "convpool-c-crelu": ((4.23, 8.43), (14.25, 31.48)),
}
"""Training and test error on CIFAR-10, then on CIFAR-100: CReLU narrows the gap."""
