"""Where results and progress go: results on stdout, everything else on stderr."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console
from rich.status import Status

from crelu_deploy.errors import BackendUnavailable


@dataclass
class Output:
    """The two streams of one command; used as a context manager, it ends the progress display.

    Attributes:
        as_json: Print results as one JSON object.
        quiet: Show no progress.
    """

    as_json: bool
    quiet: bool
    _status: Status | None = field(default=None, init=False, repr=False, compare=False)

    def __enter__(self) -> Self:
        console = Console(stderr=True)
        if console.is_terminal and not self.quiet:
            self._status = console.status("")
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def progress(self, step: str) -> None:
        """Say what is being done: in place on a terminal, in a line of its own elsewhere."""
        if self._status is not None:
            self._status.update(step)
        elif not self.quiet:
            click.echo(f"... {step}", err=True)

    def start_pytorch(self) -> None:
        """Say that PyTorch is started, which takes seconds.

        Raises:
            BackendUnavailable: It is not installed.
        """
        if importlib.util.find_spec("torch") is None:
            raise BackendUnavailable(
                "this needs the package torch, which is not installed; "
                "run: pip install 'crelu-deploy[torch]'"
            )
        self.progress("start PyTorch")

    def result(self, data: dict[str, Any], *parts: object) -> None:
        """Print a result: the data as JSON, or the parts, which say the same to people."""
        if self._status is not None:
            self._status.stop()
        if self.as_json:
            click.echo(json.dumps(data, indent=2))
            return
        console = Console(highlight=False)
        for part in parts:
            if isinstance(part, str):
                click.echo(part)  # whole, however long: a path is copied from here
            else:
                console.print(part)
                console.print()
