"""Train networks of the CReLU paper from several seeds and print their errors.

The defaults are the paper's protocol where it is known; what is not known is printed. A training
that was stopped goes on where it was when the same command is given again, and ends with the same
numbers. Progress goes to stderr, the table to stdout; each network is left in the output folder as
``NAME/seedN/checkpoint.pt``, which crelu-export reads.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import training
import training_data
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from crelu_deploy.errors import CheckpointError
from crelu_deploy.models import build, find
from crelu_deploy.reported import CONVPOOL, VGG

Result = dict[str, float]


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="names as in crelu zoo")
    add("--data", required=True, help="digits, cifar10:DIR, cifar100:DIR or folder:DIR")
    add("--width", type=float, default=1.0, help="factor of all numbers of filters (default: 1)")
    add("--seeds", type=int, default=3, help="how many trainings of each (default: 3)")
    add("--epochs", type=int, help="default: the paper's; the schedule is scaled with it")
    add("--batch", type=int, help="images per step (default: the family's)")
    add("--lr", type=float, help="first learning rate (default: the family's)")
    add("--adam", action="store_true", help="Adam in place of SGD with momentum")
    add("--decay", type=float, help="weight decay (default: the family's)")
    add("--dropout", type=float, default=1.0, help="factor of the table's dropout (default: 1)")
    add("--threads", type=int, help="of PyTorch")
    add("-o", "--out", type=Path, default=Path("out", "train"), help="folder (default: out/train)")
    return parser.parse_args(arguments)


def settings_for(
    name: str, seed: int, options: argparse.Namespace, mirror: bool
) -> training.Settings:
    """Return the family's protocol with what the command line changes."""
    protocol = training.PROTOCOLS[find(name).family]
    return training.Settings(
        arch=name if options.width == 1 else f"{name}@{options.width:g}",
        seed=seed,
        epochs=options.epochs or protocol.epochs,
        batch=options.batch or protocol.batch,
        rate=options.lr or protocol.rate,
        decay=protocol.decay if options.decay is None else options.decay,
        drops=protocol.drops,
        factor=protocol.factor,
        mirror=protocol.mirror and mirror,
        dropout=options.dropout,
        data=options.data,
        adam=options.adam,
    )


def train(
    settings: training.Settings, data: training_data.Data, folder: Path, progress: Progress
) -> tuple[Result, torch.Tensor]:
    """Train or take up one network; return its errors and its probabilities for the test images."""
    size = find(settings.arch).input_shape[-1]
    normalize = training.normalizer(data)
    run = training.Run.open(settings, folder, data.classes)
    label = f"{settings.arch} seed {settings.seed}"
    task = progress.add_task(label, total=settings.epochs, completed=run.epoch)
    fit = training_data.Split(training.centre(data.train.images, size), data.train.labels)
    while run.epoch < settings.epochs:
        run.learn(fit, normalize)
        progress.update(task, completed=run.epoch)
    run.write_checkpoint(data)
    test = training.probabilities(run.net, training.centre(data.test.images, size), normalize)
    crops = training.patches(data.test.images, size, mirror=data.mirror)
    many = torch.stack([training.probabilities(run.net, crop, normalize) for crop in crops]).mean(0)
    result = {
        "train": training.error(training.probabilities(run.net, fit.images, normalize), fit.labels),
        "test": training.error(test, data.test.labels),
        "patches": training.error(many, data.test.labels),
    }
    return result, test


def evaluate(
    name: str, options: argparse.Namespace, data: training_data.Data, progress: Progress
) -> Result:
    """Train a network from every seed and return its row of the table, errors in per cent."""
    results, scores = [], []
    for seed in range(options.seeds):
        settings = settings_for(name, seed, options, data.mirror)
        folder = options.out / settings.arch / f"seed{seed}"
        result, test = train(settings, data, folder, progress)
        results.append(result)
        scores.append(test)
    columns = {k: torch.tensor([r[k] for r in results], dtype=torch.float64) for k in results[0]}
    net = build(settings.arch, num_classes=data.classes)
    return {
        "params": sum(p.numel() for p in net.parameters()),
        **{key: values.mean().item() for key, values in columns.items()},
        **{
            f"{k}_deviation": v.std(correction=min(1, len(v) - 1)).item()
            for k, v in columns.items()
        },
        "vote": training.error(torch.stack(scores).mean(0), data.test.labels),
    }


def reported(name: str) -> str:
    """Return the paper's error on CIFAR-10, or a dash."""
    known = {**CONVPOOL, **VGG}.get(name.removesuffix("-9"))
    return f"{known.cifar10.mean:.2f} +- {known.cifar10.deviation:.2f}" if known else "-"


def table(rows: dict[str, Result], options: argparse.Namespace, crops: int) -> Table:
    """Return the table of what was measured, the paper's figures in a column of their own."""
    title = f"error in per cent on {options.data}, width {options.width:g}, {options.seeds} seeds"
    made = Table(title=title, title_justify="left", box=None)
    made.add_column("network", no_wrap=True)
    heads = ("params", "train", "test", "vote of the seeds", f"{crops} crops", "paper, CIFAR-10")
    for head in heads:
        made.add_column(head, justify="right")
    for name, row in rows.items():
        pairs = [
            f"{row[k]:.2f} +- {row[f'{k}_deviation']:.2f}" for k in ("train", "test", "patches")
        ]
        vote = f"{row['vote']:.2f}"
        made.add_row(name, f"{row['params']:,}", pairs[0], pairs[1], vote, pairs[2], reported(name))
    return made


def main(arguments: list[str]) -> int:
    """Train everything that the command line names and print the table."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        families = {find(name).family for name in options.models}
        size = find(options.models[0]).input_shape[-1]
    except CheckpointError as error:
        raise SystemExit(str(error)) from error
    if families - training.PROTOCOLS.keys():
        raise SystemExit(f"no protocol for {', '.join(families - training.PROTOCOLS.keys())}")
    data = training_data.load(options.data, size=size)
    for unknown in {training.PROTOCOLS[family].unknown for family in families}:
        print(f"not known from the paper: {unknown}", file=sys.stderr)
    with Progress(console=Console(stderr=True)) as progress:
        rows = {name: evaluate(name, options, data, progress) for name in options.models}
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"data": options.data, "width": options.width, "seeds": options.seeds, "rows": rows}
    (options.out / "results.json").write_text(json.dumps(record, indent=2))
    Console(highlight=False, width=140).print(table(rows, options, 10 if data.mirror else 5))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
