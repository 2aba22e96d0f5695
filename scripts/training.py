"""Train one network of the CReLU paper from one seed, by the paper's protocol where it is known."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from training_data import Data, Split

from crelu_deploy import checkpoint
from crelu_deploy.models import build
from crelu_deploy.models.sequential import Abs
from crelu_deploy.preprocessing import Preprocessing

MOMENTUM = 0.9
EVALUATED = 256
"""Images per call when nothing is learned."""


@dataclass(frozen=True)
class Protocol:
    """How a family is trained: stochastic gradient descent with momentum 0.9.

    Attributes:
        epochs: Passes over the training images.
        batch: Images per step.
        rate: The first learning rate.
        decay: Weight decay.
        drops: Shares of the epochs after which the learning rate is multiplied by ``factor``.
        factor: See ``drops``.
        mirror: Whether images are mirrored at random.
        unknown: What the paper's text at hand does not say and is chosen here.
    """

    epochs: int
    batch: int
    rate: float
    decay: float
    drops: tuple[float, ...]
    factor: float
    mirror: bool
    unknown: str


_BOTH = "initialisation (He et al. here), preprocessing (mean and deviation per channel here)"
_CONVPOOL = Protocol(
    *(350, 128, 0.01, 1e-3, (200 / 350, 250 / 350, 300 / 350), 0.1, False),
    f"which of the learning rates 0.25, 0.1, 0.05 and 0.01, batch size, {_BOTH}",
)
_ALL_CNN_B = Protocol(
    *(90, 64, 0.01, 5e-4, (1 / 3, 2 / 3), 0.1, True),
    f"the whole schedule, batch size, weight decay, {_BOTH}",
)
PROTOCOLS = {
    "convpool-c": _CONVPOOL,
    "convpool-c-9": _CONVPOOL,
    "vgg": Protocol(
        *(300, 128, 0.1, 5e-4, tuple(i / 12 for i in range(1, 12)), 0.5, True),
        f"learning rate (the Torch network's 1 needs 0.1 in PyTorch), {_BOTH}",
    ),
    "all-cnn-b": _ALL_CNN_B,
}
"""Family -> protocol."""


@dataclass(frozen=True)
class Settings:
    """One training.

    Attributes:
        arch: What to train, such as ``convpool-c-crelu@0.125``.
        seed: Of the initial weights, the order of the images and dropout.
        epochs: Passes over the training images.
        batch: Images per step.
        rate: The first learning rate.
        decay: Weight decay.
        drops: See ``Protocol``.
        factor: See ``Protocol``.
        mirror: Whether images are mirrored at random.
        dropout: What the table's dropout probabilities are multiplied by.
        data: Where the images come from.
        adam: Adam in place of stochastic gradient descent.
    """

    arch: str
    seed: int
    epochs: int
    batch: int
    rate: float
    decay: float
    drops: tuple[float, ...]
    factor: float
    mirror: bool
    dropout: float
    data: str
    adam: bool

    def rate_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        passed = sum(epoch >= round(drop * self.epochs) for drop in self.drops)
        return self.rate * self.factor**passed


Normalize = Callable[[Tensor], Tensor]
"""uint8 images -> what the network reads."""


def normalizer(data: Data) -> Normalize:
    """Return what subtracts the training images' mean and divides by their deviation."""
    mean, deviation = data.statistics()
    return lambda images: (images.float() / 255 - mean) / deviation


def create(settings: Settings, classes: int) -> nn.Module:
    """Return the untrained network; torch's global seed must be set."""
    net = build(settings.arch, num_classes=classes)
    absolute = any(isinstance(module, Abs) for module in net.modules())
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # A ReLU or half of a CReLU passes half of the variance, an absolute value all of it.
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if absolute else "relu")
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Dropout):
            module.p *= settings.dropout
    *_, last = (m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    if isinstance(last, nn.Conv2d) and settings.arch.startswith("convpool"):
        # Its scores pass a ReLU: a class whose scores begin below 0 would never learn.
        nn.init.ones_(last.bias)
    return net


def optimizer_for(net: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return the optimizer at its first learning rate."""
    if settings.adam:
        return torch.optim.Adam(net.parameters(), settings.rate, weight_decay=settings.decay)
    return torch.optim.SGD(
        net.parameters(), settings.rate, momentum=MOMENTUM, weight_decay=settings.decay
    )


@dataclass
class Run:
    """A training that can be stopped after any epoch and taken up again with the same outcome.

    Attributes:
        settings: Which training.
        folder: Where its state is kept.
        net: The network.
        optimizer: With its momentum.
        rng: Order of the images and mirroring.
        epoch: How many are done.
    """

    settings: Settings
    folder: Path
    net: nn.Module
    optimizer: torch.optim.Optimizer
    rng: torch.Generator
    epoch: int = 0

    @classmethod
    def open(cls, settings: Settings, folder: Path, classes: int) -> Run:
        """Start a training, or take up the one in ``folder``.

        Raises:
            SystemExit: the one in the folder has other settings.
        """
        torch.manual_seed(settings.seed)
        net = create(settings, classes)
        optimizer = optimizer_for(net, settings)
        rng = torch.Generator().manual_seed(settings.seed)
        run = cls(settings, folder, net, optimizer, rng)
        if run.file.exists():
            run._resume()
        return run

    @property
    def file(self) -> Path:
        """The state."""
        return self.folder / "state.pt"

    @property
    def text(self) -> str:
        """The settings as text."""
        return json.dumps(asdict(self.settings))

    def _resume(self) -> None:
        state: dict[str, Any] = torch.load(self.file, weights_only=True)
        if state["settings"] != self.text:
            raise SystemExit(
                f"{self.file} is of a training with other settings\n"
                f"  there: {state['settings']}\n  asked: {self.text}\n  fix: another -o"
            )
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"])
        torch.set_rng_state(state["global_rng"])
        self.epoch = state["epoch"]

    def save(self) -> None:
        """Write the state, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "settings": self.text,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "global_rng": torch.get_rng_state(),
            "epoch": self.epoch,
        }
        temporary = self.file.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.file)

    def learn(self, split: Split, normalize: Normalize) -> None:
        """Pass over the images once and save the state.

        Raises:
            SystemExit: the loss is no longer a number.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate_at(self.epoch)
        self.net.train()
        for picked in torch.randperm(len(split.labels), generator=self.rng).split(
            self.settings.batch
        ):
            images = normalize(split.images[picked])
            if self.settings.mirror:
                images = mirrored(images, self.rng)
            loss = nn.functional.cross_entropy(self.net(images), split.labels[picked])
            if not loss.isfinite():
                raise SystemExit(f"{self.settings.arch}: the loss is {loss.item()}; lower --lr")
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.epoch += 1
        self.save()

    def write_checkpoint(self, data: Data) -> Path:
        """Write the network as a file that ``crelu-export`` reads, with how it reads pixels."""
        path = self.folder / "checkpoint.pt"
        mean, deviation = (tuple((255 * x).flatten().tolist()) for x in data.statistics())
        how = Preprocessing(mean, deviation)
        arch, classes = self.settings.arch, data.classes
        checkpoint.save(path, self.net, arch=arch, num_classes=classes, preprocessing=how)
        return path


def mirrored(images: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror each image with probability one half."""
    chosen = torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5
    return torch.where(chosen, images.flip(-1), images)


@torch.no_grad()
def probabilities(net: nn.Module, images: Tensor, normalize: Normalize) -> Tensor:
    """Return the class probabilities ``(N, classes)`` of uint8 images."""
    net.eval()
    scores = [net(normalize(part)) for part in images.split(EVALUATED)]
    return torch.cat(scores).softmax(dim=1)


def error(scores: Tensor, labels: Tensor) -> float:
    """Return the share of images whose highest score is not their label's, in per cent."""
    return 100 * (scores.argmax(dim=1) != labels).double().mean().item()


def patches(images: Tensor, size: int, *, mirror: bool) -> list[Tensor]:
    """Return the four corners and the centre of images, and with ``mirror`` these mirrored too.

    Images of the crop's own size are first padded by a sixteenth on each side with their border.
    """
    if images.shape[-1] == size:
        pad = (size // 16,) * 4
        images = nn.functional.pad(images.float(), pad, mode="replicate").byte()
    far = images.shape[-1] - size
    places = [(0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2)]
    crops = [images[..., y : y + size, x : x + size] for y, x in places]
    return crops + [crop.flip(-1) for crop in crops] * mirror


def centre(images: Tensor, size: int) -> Tensor:
    """Return the middle ``size`` x ``size`` of images."""
    start = (images.shape[-1] - size) // 2
    return images[..., start : start + size, start : start + size]
