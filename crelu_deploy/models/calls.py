"""Which module of a network reads which, found by running it once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

INPUT = -1
"""``Call.source`` of a module that reads the network's own input."""


@dataclass(frozen=True)
class Call:
    """One call of a module that has no parts.

    Attributes:
        name: The module's dotted name.
        module: The module.
        source: Index of the call whose output it read, ``INPUT``, or None where the tensor was
            made outside of any such module, by a concatenation for example.
        read: Shape of its input.
        written: Shape of its output.
    """

    name: str
    module: nn.Module
    source: int | None
    read: tuple[int, ...]
    written: tuple[int, ...]


@torch.no_grad()
def calls(net: nn.Module, x: Tensor) -> tuple[Call, ...]:
    """Run ``net`` on ``x`` and return the calls of its innermost modules in their order.

    Only modules from one tensor to one tensor are listed. Both may be on the meta device, where
    running costs nothing. The network stays as it is and is run in its own mode.
    """
    found: list[Call] = []
    origin = {id(x): INPUT}
    kept: list[Tensor] = [x]  # An id is that of one tensor only while the tensor lives.
    hook = partial(_record, found, origin, kept)
    handles = [
        module.register_forward_hook(partial(hook, name))
        for name, module in net.named_modules()
        if not any(module.children())
    ]
    try:
        net(x)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found)


def _record(
    found: list[Call],
    origin: dict[int, int],
    kept: list[Tensor],
    name: str,
    module: nn.Module,
    inputs: tuple[object, ...],
    output: object,
) -> None:
    x = inputs[0] if len(inputs) == 1 else None
    if not isinstance(x, Tensor) or not isinstance(output, Tensor):
        return
    found.append(Call(name, module, origin.get(id(x)), tuple(x.shape), tuple(output.shape)))
    origin[id(output)] = len(found) - 1
    kept += [x, output]


def readers(found: tuple[Call, ...], index: int) -> list[int]:
    """Return the indices of the calls that read the output of call ``index``."""
    return [i for i, call in enumerate(found) if call.source == index]


def follow(found: tuple[Call, ...], index: int, kind: Callable[[nn.Module], bool]) -> int | None:
    """Return the first reader of call ``index`` whose module is of a kind, or None."""
    return next((i for i in readers(found, index) if kind(found[i].module)), None)
