"""What a user says about inputs: ``[NAME:]1x3x224x224`` and the axes that may vary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crelu_deploy.errors import ExportError

AXES = {"batch": 0, "height": -2, "width": -1}
"""Names that stand for an axis, as image networks have them."""

FIXED = "none"
"""In place of axes: not even the batch may vary."""

LARGEST = 2**31
"""Elements an input may have: beyond it, no runtime here indexes it."""


@dataclass(frozen=True)
class Input:
    """One input of a network as it is exported.

    Attributes:
        name: Its name in the ONNX model.
        shape: The example shape.
        dynamic: Axes that the user wants to vary, counted from the front.
        batch: Whether axis 0 varies where the network allows it.
    """

    name: str
    shape: tuple[int, ...]
    dynamic: frozenset[int] = frozenset()
    batch: bool = True


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read ``[NAME:]1x3x224x224`` as a name, empty where none is given, and a shape.

    Raises:
        ValueError: No positive integers with an ``x`` between them, or too many elements.
    """
    name, colon, sizes = text.rpartition(":")
    try:
        shape = tuple(int(size) for size in sizes.split("x"))
    except ValueError:
        shape = (0,)
    elements = 1
    for size in shape:
        elements *= max(size, 0)
    if not 0 < elements < LARGEST or (colon and not name):
        raise ValueError(
            f"input {text!r}: expected [NAME:]SIZES with positive sizes and fewer than 2^31 "
            "elements, such as 1x3x224x224 or image:1x3x224x224"
        )
    return name, shape


def parse_axes(text: str) -> tuple[str, frozenset[int] | None]:
    """Read ``[NAME:]AXES`` as a name, empty for every input, and axes; None for ``none``.

    Raises:
        ValueError: Not ``none``, nor integers and names of ``AXES`` with commas between them.
    """
    name, colon, axes = text.rpartition(":")
    try:
        if colon and not name:
            raise ValueError
        if axes == FIXED:
            return name, None
        return name, frozenset(AXES[a] if a in AXES else int(a) for a in axes.split(","))
    except ValueError:
        raise ValueError(
            f"dynamic {text!r}: expected [NAME:]AXES such as 0,2,3 or height,width, or 'none'"
        ) from None


def resolve(
    names: Sequence[str],
    defaults: Sequence[tuple[int, ...]] | None,
    shapes: Sequence[tuple[str, tuple[int, ...]]],
    dynamic: Sequence[tuple[str, frozenset[int] | None]],
) -> tuple[Input, ...]:
    """Give every input of a network its shape and its dynamic axes.

    Args:
        names: The network's inputs, in order; more than are used where some are optional.
        defaults: Their example shapes, where the architecture tells.
        shapes: What ``parse_shape`` read; a name left out means the next input.
        dynamic: What ``parse_axes`` read; a name left out means every input.

    Raises:
        ExportError: An unknown name, a missing shape, or an axis outside the rank.
    """
    chosen = {**dict(zip(names, defaults or (), strict=False)), **assign(names, shapes)}
    used = max((names.index(name) for name in chosen), default=0) + 1
    for name in names[:used]:
        if name not in chosen:
            raise ExportError(
                f"the shape of input {name!r} is unknown; give it, such as "
                f"--input {name}:1x3x224x224"
            )
    for name, _ in dynamic:
        if name and name not in chosen:
            raise ExportError(f"no input {name!r}; the inputs are: {', '.join(chosen)}")
    return tuple(_input(name, chosen[name], dynamic) for name in names if name in chosen)


def assign(
    names: Sequence[str], shapes: Sequence[tuple[str, tuple[int, ...]]]
) -> dict[str, tuple[int, ...]]:
    """Return shapes by name; a name left out means the next input that is not named.

    Raises:
        ExportError: An unknown name, or more shapes than inputs.
    """
    named = {name for name, _ in shapes}
    unnamed = (name for name in names if name not in named)
    chosen = {}
    for name, shape in shapes:
        key = name or next(unnamed, "")
        if key not in names:
            which = repr(name) if name else f"for the shape {'x'.join(map(str, shape))}"
            raise ExportError(f"no input {which}; the inputs are: {', '.join(names)}")
        chosen[key] = shape
    return chosen


def _input(
    name: str, shape: tuple[int, ...], dynamic: Sequence[tuple[str, frozenset[int] | None]]
) -> Input:
    axes: set[int] = set()
    batch = True
    for target, wanted in dynamic:
        if target not in ("", name):
            continue
        if wanted is None:
            batch = False
            continue
        for axis in wanted:
            if not -len(shape) <= axis < len(shape):
                raise ExportError(
                    f"dynamic axis {axis} is outside the {len(shape)} axes of input {name!r}"
                )
            axes.add(axis % len(shape))
    return Input(name, shape, frozenset(axes), batch)
