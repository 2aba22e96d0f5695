"""Which known architecture a state dict belongs to, by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from crelu_deploy.errors import CheckpointError
from crelu_deploy.models.zoo import MODELS, Model, find

Shapes = dict[str, tuple[int, ...]]

COUNTER = "num_batches_tracked"
"""Last part of the keys that count batches: absent in files older than PyTorch 0.4.1, unused."""


def identify(state_dict: Mapping[str, Tensor]) -> tuple[str, int]:
    """Return the name and the number of classes of the one architecture with these tensors.

    Keys must agree exactly, but for batch counters, which may be absent.

    Raises:
        CheckpointError: none fits (the message has the closest one and the first difference), or
            several do: layers without weights, such as activations and pools, leave no trace in it.
    """
    found = _shapes(state_dict)
    fits = [m.name for m in MODELS.values() if _expected(m, found) == found]
    if len(fits) == 1:
        return fits[0], classes(fits[0], state_dict)
    if fits:
        raise CheckpointError(
            f"its tensors fit {len(fits)} architectures, which differ in layers without weights: "
            f"choose with --arch {' or --arch '.join(fits)}"
        )
    raise CheckpointError(_closest(found))


def classes(name: str, state_dict: Mapping[str, Tensor]) -> int:
    """Return the number of classes that architecture ``name`` has in this state dict.

    It is the first extent of the last layer's weight; the default where that is absent.

    Raises:
        CheckpointError: ``name`` is not known.
    """
    return _classes(find(name), _shapes(state_dict))


def _shapes(state_dict: Mapping[str, Tensor]) -> Shapes:
    return {k: tuple(v.shape) for k, v in state_dict.items() if not k.endswith(COUNTER)}


def _classes(model: Model, found: Shapes) -> int:
    head = found.get(model.head)
    return head[0] if head and head[0] > 0 else model.num_classes


def _expected(model: Model, found: Shapes) -> Shapes:
    """Shapes of ``model`` at the number of classes in ``found``, if the last layer is there."""
    if model.head not in found:
        return _own_shapes(model.name, model.num_classes)
    return _own_shapes(model.name, _classes(model, found))


@lru_cache(maxsize=64)
def _own_shapes(name: str, num_classes: int) -> Shapes:
    with torch.device("meta"):
        return _shapes(MODELS[name].make(num_classes).state_dict())


def _closest(found: Shapes) -> str:
    expected = {m.name: _expected(m, found) for m in MODELS.values()}
    name = max(expected, key=lambda n: len(expected[n].items() & found.items()))
    common = len(expected[name].items() & found.items())
    out = "name the architecture with --arch NAME or --arch package.module:factory"
    if not common:
        first = ", ".join(list(found)[:3])
        return f"no known architecture has tensors such as {first}; {out}"
    total = len(expected[name])
    return (
        f"no known architecture fits; closest is {name} with {common} of {total} tensors "
        f"({_difference(expected[name], found)}); {out}"
    )


def _difference(expected: Shapes, found: Shapes) -> str:
    """Name the first tensor in which the two differ, in the order of ``expected``."""
    for key, shape in expected.items():
        if key not in found:
            return f"{key} is missing"
        if found[key] != shape:
            return f"{key} is {_times(found[key])}, expected {_times(shape)}"
    return f"{next(key for key in found if key not in expected)} is unexpected"


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
