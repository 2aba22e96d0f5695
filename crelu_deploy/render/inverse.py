"""The reconstruction analysis as text and as JSON; nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crelu_deploy.tables import Section, add, section

if TYPE_CHECKING:  # which imports PyTorch
    from crelu_deploy.analysis.reconstruction import LayerInverse, StackInverse

JSON = dict[str, Any]


def reconstruction_json(layers: Sequence[LayerInverse], stacks: Sequence[StackInverse]) -> JSON:
    """Return the errors of every layer on its own and of every depth."""
    return {
        "layers": [_layer(layer) for layer in layers],
        "stacks": [
            {"name": stack.name, "error": stack.error, "controls": dict(stack.control_errors)}
            for stack in stacks
        ],
    }


def _layer(found: LayerInverse) -> JSON:
    values = found.spectrum
    return {
        "name": found.name,
        "activation": found.activation,
        "equations": found.equations,
        "unknowns": found.unknowns,
        "rank": values.rank if values else None,
        "singular_values": [values.smallest, values.largest] if values else None,
        "iterations": found.iterations,
        "converged": found.converged,
        "error": found.error,
        "residual": found.residual,
        "idempotence": found.idempotence,
        "controls": dict(found.controls),
    }


def reconstruction_tables(
    layers: Sequence[LayerInverse], stacks: Sequence[StackInverse]
) -> list[Section]:
    """Return a table of the layers on their own and one of the picture from each depth."""
    single = section(
        "each layer's input from its own features: relative errors; last two: from one half only, "
        "from the halves' sum; * the solver did not converge, singular values are close to 0",
        *("layer!", "equations>", "unknowns>", "rank>", "error>", "residual>", "idempotence>"),
        *("half>", "sum>"),
    )
    for found in layers:
        rank = found.spectrum.rank if found.spectrum else "-"
        errors = (f"{e:.1e}" for e in (found.error, found.residual, found.idempotence))
        sizes = (f"{found.equations:,}", f"{found.unknowns:,}")
        name = found.name if found.converged else f"{found.name} *"
        add(single, name, *sizes, rank, *errors, *_controls(found.controls))
    stacked = section(
        "the picture from the features of a layer, through all before it: relative errors",
        *("from!", "both halves>", "positive half>", "sum of halves>"),
    )
    for stack in stacks:
        add(stacked, stack.name, f"{stack.error:.2g}", *_controls(stack.control_errors))
    return [single, stacked]


def _controls(errors: Mapping[Any, float]) -> list[str]:
    return [f"{errors[view]:.2f}" if view in errors else "-" for view in ("relu", "abs")]
