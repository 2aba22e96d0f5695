"""The verb ``report``."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

from crelu_deploy.bundle import Bundle
from crelu_deploy.cli import options
from crelu_deploy.cli.commands import OK, cli
from crelu_deploy.cli.output import Output
from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.tables import printable


@cli.command(epilog="Example: crelu report faceboxes.crelu --open")
@click.argument("bundle", type=options.FILE)
@click.option("--open", "opens", is_flag=True, help="Show the page in a browser.")
@options.output
def report(bundle: Path, opens: bool, output: Output) -> int:
    """Write a bundle's report.md and report.html anew, from what deploy or bench measured."""
    from crelu_deploy.report import read_report, save_report

    with output:
        opened = Bundle.open(bundle)
        data = read_report(opened)
        if data is None:
            raise UnsupportedModel(f"{bundle}: nothing was measured; run: crelu bench {bundle}")
        files = save_report(opened, data)
        output.result(
            {"report": data, "files": [str(file) for file in files]},
            *(f"report   {printable(str(file))}" for file in files),
        )
    if opens:
        webbrowser.open(files[-1].resolve().as_uri())
    return OK
