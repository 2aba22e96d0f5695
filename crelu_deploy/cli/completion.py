"""The verb ``completion``: what a shell reads to complete verbs, options and file names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from crelu_deploy.cli.commands import OK, cli

PROGRAM = "crelu"
VARIABLE = "_CRELU_COMPLETE"
"""Where a completing shell says what it wants; click derives the name from the program's."""


@cli.command(epilog='Example: eval "$(crelu completion bash)"  # a line for ~/.bashrc')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the script that completes crelu's verbs and options in a shell."""
    kind = get_completion_class(shell)
    assert kind is not None, "click knows the shells above"
    click.echo(kind(cli, {}, PROGRAM, VARIABLE).source())
    return OK
