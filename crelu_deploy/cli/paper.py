"""The verbs ``zoo`` and ``analyze``: the CReLU paper's networks and analyses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crelu_deploy.cli import options
from crelu_deploy.cli.commands import OK, cli
from crelu_deploy.cli.output import Output
from crelu_deploy.errors import BackendUnavailable, UnsupportedModel
from crelu_deploy.render import inverse, paper

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor, nn

    from crelu_deploy.analysis.layers import Layer, Reader


@cli.command(epilog="Example: crelu zoo --classes 100")
@click.option(
    "--classes",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Classes of the networks for CIFAR; the others keep theirs.",
)
@options.output
def zoo(classes: int, output: Output) -> int:
    """List the known architectures: parameters, multiply-adds, what their paper reports."""
    with output:
        output.start_pytorch()
        from crelu_deploy.models import entries

        rows = entries(classes=classes)
        output.result(paper.zoo_json(rows), *paper.zoo_tables(rows))
    return OK


@cli.group(epilog="Example: crelu analyze pairing model.pt -o plots")
def analyze() -> None:
    """Repeat one of the paper's analyses on a trained network."""


@dataclass(frozen=True)
class Subject:
    """A network to analyse.

    Attributes:
        model: Its file.
        arch: Its architecture, where the file does not tell.
        trust: Whether a file that runs code may be loaded.
        out: The folder for the plot; None for none.
        output: Where results go.
    """

    model: Path
    arch: str | None
    trust: bool
    out: Path | None
    output: Output

    def load(self) -> tuple[nn.Module, tuple[int, ...]]:
        """Return the network and the shape of an input.

        Raises:
            CheckpointError: it cannot be loaded.
            UnsupportedModel: its input is not one batch of images of known shape.
        """
        self.output.start_pytorch()
        from crelu_deploy import checkpoint

        loaded = checkpoint.load(self.model, arch=self.arch, trust=self.trust)
        shapes = loaded.input_shapes or ()
        if len(shapes) != 1 or len(shapes[0]) != 4:
            raise UnsupportedModel(
                f"{self.model}: the analyses need one input of a known shape NxCxHxW, "
                "which the architectures of crelu zoo have"
            )
        return loaded.module, shapes[0]

    def layers(self) -> tuple[Layer, ...]:
        """Return the network's layers."""
        net, shape = self.load()
        from crelu_deploy.analysis.layers import find_layers

        return find_layers(net, shape)

    def readers(self) -> dict[str, Reader]:
        """Return who reads a CReLU: ``layer -> reader`` to the reader."""
        layers = self.layers()
        from crelu_deploy.analysis.layers import crelu_layers

        found = crelu_layers(layers)
        pairs = {f"{x.name} -> {r.name}": r for x in found for r in x.readers}
        if not pairs:
            raise UnsupportedModel(f"{self.model}: no layer reads a CReLU directly or by a pool")
        return pairs

    def finish(
        self, kind: str, data: dict[str, Any], parts: list[object], draw: Callable[..., None]
    ) -> int:
        """Draw the plot if it is wanted and print the result."""
        path = None
        if self.out is not None:
            path = self.out / f"{kind}.png"
            self.output.progress("plot")
            draw(_plots(), path)
            parts = [*parts, f"wrote    {path}"]
        record = {"analysis": kind, "model": str(self.model), **data}
        self.output.result({**record, "plot": None if path is None else str(path)}, *parts)
        return OK


def _plots() -> ModuleType:
    try:
        from crelu_deploy.analysis import plots
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"plots need {error.name}, which is not installed; "
            "run: pip install 'crelu-deploy[analysis]'"
        ) from error
    return plots


def _analysis(*own: Callable[..., Any]) -> Callable[[Callable[..., int]], click.Command]:
    """Make a verb of ``analyze``: its own options come to it as they are, the rest as a subject."""

    def decorate(command: Callable[..., int]) -> click.Command:
        @options.output
        def run(
            model: Path, arch: str | None, trust: bool, out: Path | None, output: Output, **own: Any
        ) -> int:
            with output:
                return command(Subject(model, arch, trust, out, output), **own)

        verb: Callable[..., Any] = run
        for option in (
            click.option("-o", "--out", type=options.FILE, help="Folder for a plot (PNG)."),
            options.TRUST,
            click.option("--arch", help="Architecture: a name, or package.module:factory."),
            *reversed(own),
            click.argument("model", type=options.FILE),
        ):
            verb = option(verb)
        example = f"Example: crelu analyze {command.__name__} model.pt -o plots"
        return analyze.command(command.__name__, help=command.__doc__, epilog=example)(verb)

    return decorate


@_analysis(
    click.option("--draws", type=click.IntRange(1), default=5, show_default=True),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
)
def pairing(subject: Subject, draws: int, seed: int) -> int:
    """Do filters come in opposite pairs? Smallest cosines, beside Gaussian filters."""
    layers = subject.layers()
    from crelu_deploy.analysis.pairing import pair

    weights = {x.name: x.module.weight for x in layers if x.module.weight.ndim == 4}
    found = {
        name: pair(weight, draws=draws, seed=seed)
        for name, weight in weights.items()
        if (weight.flatten(1) != 0).any(dim=1).sum() > 1
    }
    table = paper.pairing_table(found)
    data = paper.pairing_json(found)
    return subject.finish("pairing", data, [table], lambda p, path: p.plot_pairing(found, path))


@_analysis()
def outgoing(subject: Subject) -> int:
    """Are a CReLU's halves read alike? Correlation of the next layer's weights."""
    readers = subject.readers()
    from crelu_deploy.analysis.outgoing import correlate

    found = {name: correlate(reader.weight) for name, reader in readers.items()}
    table = paper.outgoing_table(found)
    data = paper.outgoing_json(found)
    return subject.finish("outgoing", data, [table], lambda p, path: p.plot_outgoing(found, path))


@_analysis()
def signs(subject: Subject) -> int:
    """Where does the next layer lose a sign? Weights of one sign on both halves, bits lost."""
    readers = subject.readers()
    from crelu_deploy.analysis.signs import compare_signs

    found = {name: compare_signs(reader.weight) for name, reader in readers.items()}
    table, data = paper.signs_table(found), paper.signs_json(found)
    return subject.finish("signs", data, [table], lambda p, path: p.plot_signs(found, path))


@_analysis(
    click.option("--data", help="NPZ with an array 'input'; Gaussian noise when left out."),
    click.option("--rate", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="g."),
    click.option(
        "--best", type=click.FloatRange(0, 1, min_open=True), default=0.2, show_default=True
    ),
)
def invariance(subject: Subject, data: str | None, rate: float | None, best: float) -> int:
    """How little do units mind small movements? Firing on moved copies, over firing at all."""
    net, shape = subject.load()
    from crelu_deploy.analysis import invariance as analysis
    from crelu_deploy.analysis.layers import find_layers

    images = _images(data, shape, 1000)
    layers = [x for x in find_layers(net, shape) if x.activation]
    rate = analysis.default_rate(len(images)) if rate is None else rate
    subject.output.progress(f"{len(images)} images and their moved copies")
    found = analysis.score_layers(net, images, layers, rate=rate, best=best)
    terms = {"rate": rate, "best": best, "images": len(images), "data": data or "noise"}
    terms |= {"minimum": analysis.MINIMUM, "moves": analysis.MOVES, "position": "centre"}
    table = paper.invariance_table(found, terms)
    record = paper.invariance_json(found, terms)
    return subject.finish("invariance", record, [table], lambda p, f: p.plot_invariance(found, f))


@_analysis(
    click.option("--data", help="A picture, photo:china, or an NPZ; Gaussian noise when left out."),
    click.option("--depth", type=click.IntRange(1), default=4, show_default=True, help="Layers."),
)
def reconstruction(subject: Subject, data: str | None, depth: int) -> int:
    """What do features tell of the input? Inverse CReLU and pseudo-inverse, down to the image."""
    net, shape = subject.load()
    import torch

    from crelu_deploy.analysis.reconstruction import invert_layers, invert_stacks
    from crelu_deploy.analysis.stages import find_stages

    # The solver makes thousands of calls on small maps, which more threads slow down.
    torch.set_num_threads(1)
    image = _images(data, shape, 1)[:1]
    stages = find_stages(net, tuple(image.shape))[:depth]
    subject.output.progress(f"invert {', '.join(stage.name for stage in stages)}")
    layers, stacks = invert_layers(stages, image), invert_stacks(stages, image)
    return subject.finish(
        "reconstruction",
        {"data": data or "noise", **inverse.reconstruction_json(layers, stacks)},
        [*inverse.reconstruction_tables(layers, stacks)],
        lambda p, path: p.plot_reconstruction(image, stacks, path),
    )


def _images(data: str | None, shape: tuple[int, ...], count: int) -> Tensor:
    from crelu_deploy.analysis.data import load_images, noise

    return noise(count, shape) if data is None else load_images(data, shape)
