"""The verbs ``package`` and ``serve``."""

from __future__ import annotations

import dataclasses
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crelu_deploy.cli import options
from crelu_deploy.cli.commands import OK, cli
from crelu_deploy.cli.output import Output
from crelu_deploy.tables import add, printable, section

if TYPE_CHECKING:
    from crelu_deploy.serving.environment import Environment
    from crelu_deploy.serving.models import Model
    from crelu_deploy.serving.repository import Repository
    from crelu_deploy.serving.server import Address, Server

PORT = click.IntRange(1, 65535)


@dataclass(frozen=True)
class Sizes:
    """How much of a model runs at a time."""

    max_batch: int
    instances: int

    def arguments(self) -> dict[str, int]:
        """Return keyword arguments of ``package``."""
        return {"largest": self.max_batch, "instances": self.instances}


sizes = options.group(
    "sizes",
    Sizes,
    click.option(
        "--max-batch",
        type=click.IntRange(1),
        default=16,
        show_default=True,
        help="The largest batch that the server forms.",
    ),
    click.option(
        "--instances",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Copies of a model that run at a time; of several, each has one thread.",
    ),
)


@dataclass(frozen=True)
class Listening:
    """Where a server listens."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int


listening = options.group(
    "listening",
    Listening,
    click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen."),
    click.option("--http-port", type=PORT, default=8000, show_default=True),
    click.option("--grpc-port", type=PORT, default=8001, show_default=True),
    click.option("--metrics-port", type=PORT, default=8002, show_default=True),
)


@cli.command(epilog="Example: crelu package faceboxes.crelu --triton models -t ort-cpu")
@click.argument("bundle", type=options.FILE)
@click.option("--triton", "out", type=options.FILE, required=True, help="The folder to write.")
@options.TARGETS
@sizes
@options.output
def package(bundle: Path, out: Path, targets: tuple[str, ...], sizes: Sizes, output: Output) -> int:
    """Write a Triton model repository that serves targets of a bundle; ort-cpu by default."""
    from crelu_deploy.serving import repository

    with output:
        made = repository.package(
            bundle,
            out,
            targets or repository.DEFAULT,
            **sizes.arguments(),
            progress=output.progress,
        )
        table = section(
            f"package  {printable(str(made.path))}", "model!", "target!", "backend!", "max batch>"
        )
        for model in made.models:
            add(table, model.name, model.target, model.backend, model.batch or "-")
        output.result(_package_json(made), table)
    return OK


def _package_json(made: Repository) -> dict[str, object]:
    return {"path": str(made.path), "models": [vars(model) for model in made.models]}


@cli.command(epilog="Example: crelu serve faceboxes.crelu -t ort-cpu")
@click.argument("bundle", type=options.FILE)
@options.TARGETS
@sizes
@listening
@click.option(
    "--server-env",
    type=options.FILE,
    envvar="CRELU_SERVER_ENV",
    help="The server's virtual environment, made where it is missing.  [default: in the cache]",
)
@click.option("-v", "--verbose", is_flag=True, help="The server's own messages, on stderr.")
@options.output
def serve(
    bundle: Path,
    targets: tuple[str, ...],
    sizes: Sizes,
    listening: Listening,
    server_env: Path | None,
    verbose: bool,
    output: Output,
) -> int:
    """Serve targets of a bundle with a real Triton, for a trial; Ctrl-C ends it."""
    from crelu_deploy.serving import environment, repository
    from crelu_deploy.serving.server import Address

    # A plain kill must not leave the server running either.
    signal.signal(signal.SIGTERM, _interrupt)
    address = Address(*dataclasses.astuple(listening))
    with output, tempfile.TemporaryDirectory(prefix="crelu-repository-") as folder:
        address.check()
        wanted, place = targets or repository.DEFAULT, Path(folder) / "models"
        made = repository.package(
            bundle, place, wanted, **sizes.arguments(), progress=output.progress
        )
        found = environment.provide(server_env or environment.default_folder(), output.progress)
        _serve(made, address, found, verbose, output)
    return OK


def _serve(
    made: Repository, address: Address, found: Environment, verbose: bool, output: Output
) -> None:
    """Serve what the server's Python backend runs, until the user ends it."""
    from crelu_deploy.serving import server
    from crelu_deploy.serving.models import PYTHON

    models = [model for model in made.models if model.backend == PYTHON]
    output.progress("start Triton")
    names = [model.name for model in models]
    with server.serve(made.path, names, found, address, verbose=verbose) as running:
        _await_end(running, models, output)


def _await_end(running: Server, models: list[Model], output: Output) -> None:
    """Say what is served where; return when the user ends it."""
    urls = running.address.urls
    data = {"ready": True, **urls, "models": [vars(model) for model in models]}
    names = ", ".join(printable(model.name) for model in models)
    where = ", ".join(f"{name} {url}" for name, url in urls.items())
    output.result(data, f"ready    {where}", f"models   {names}", "Ctrl-C ends it")
    try:
        running.wait()
    except KeyboardInterrupt:
        output.progress("stop Triton")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
