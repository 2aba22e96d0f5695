"""The options that say how a network reads pixels."""

from __future__ import annotations

import click

from crelu_deploy.cli.text import Text
from crelu_deploy.preprocessing import Changes, read_divisors, read_numbers

PIXELS = (
    click.option(
        "--mean",
        type=Text("NUMBERS", read_numbers),
        help="Subtracted from pixels 0..255: one number, or one per channel.",
    ),
    click.option("--scale", type=Text("NUMBERS", read_divisors), help="Then divides them."),
    click.option("--bgr/--rgb", default=None, help="Which colour the network reads first."),
)
"""How a network reads pixels; what is left out is as it is known."""


def changes(mean: str | None, scale: str | None, bgr: bool | None) -> Changes:
    """Return what was stated of ``PIXELS``."""
    stated = Changes()
    if mean is not None:
        stated["mean"] = read_numbers(mean)
    if scale is not None:
        stated["scale"] = read_divisors(scale)
    if bgr is not None:
        stated["bgr"] = bgr
    return stated
