"""The command line ``crelu VERB``, and ``crelu-export`` as the short name of ``crelu export``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

FAILED, USAGE, INTERRUPTED = 1, 2, 130

LONGEST = 1500
"""Characters of an error's line."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code; a user's mistake costs one line."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def export_main() -> None:
    """``crelu-export``."""
    main(["export", *sys.argv[1:]])


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        0 when all is done and verified, 1 when a check, a build or an input failed, 2 for wrong
        usage, 130 when interrupted.
    """
    try:
        return _run(list(arguments))
    except MemoryError as error:
        return _failed(FAILED, _out_of_memory(error))
    except KeyboardInterrupt:
        return _failed(INTERRUPTED, "interrupted; what was there before is unchanged")


def _run(arguments: list[str]) -> int:
    # Imported here so that an interrupt during the imports is a line too.
    import click

    from crelu_deploy.cli import (  # noqa: F401 - they register their verbs
        auditing,
        completion,
        paper,
        planning,
        reporting,
        scoring,
        serving,
    )
    from crelu_deploy.cli.commands import cli
    from crelu_deploy.errors import DeployError

    # Libraries warn of what the one line of an error says already.
    logging.basicConfig(handlers=[logging.NullHandler()])
    try:
        return cli.main(arguments, prog_name="crelu", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return USAGE
    except click.UsageError as error:
        help_ = f"{error.ctx.command_path} --help" if error.ctx else "crelu --help"
        return _failed(USAGE, f"{error.format_message()} (see {help_})")
    except click.ClickException as error:
        return _failed(FAILED, error.format_message())
    except DeployError as error:
        return _failed(FAILED, str(error))
    except click.Abort as error:
        raise KeyboardInterrupt from error


def _out_of_memory(error: MemoryError) -> str:
    wanted = f" ({error})" if str(error) else ""
    return f"out of memory{wanted}; what was there before is unchanged"


def _failed(code: int, message: str) -> int:
    line = " ".join(message.split())
    if len(line) > LONGEST:  # it quotes a name out of a file; the way out is at its end
        line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    print(f"error: {''.join(c if c.isprintable() else '?' for c in line)}", file=sys.stderr)
    return code
