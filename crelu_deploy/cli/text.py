"""Options whose text has a form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


class Text(click.ParamType):  # type: ignore[type-arg]
    """Text in a form that ``check`` knows; its ``ValueError`` is a wrong usage."""

    def __init__(self, name: str, check: Callable[[str], object]) -> None:
        self.name = name
        self.check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text, which whatever it is passed to reads again."""
        try:
            self.check(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value
