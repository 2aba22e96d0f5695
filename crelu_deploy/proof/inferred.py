"""Extents that ONNX infers for values whose own declaration leaves them open."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from crelu_deploy.proof.extents import Dims, dims_of
from crelu_deploy.recognition.axes import inferred_shapes

Extents = Mapping[ir.Value, Dims]


def inferred(model: ir.Model) -> Extents:
    """Return the extents of values that are read and declared with fewer; symbols stay open.

    An output of a graph is often declared with its rank alone, while what reads it is annotated:
    a lowering knows the one from the other.
    """
    values = [v for node in model.graph for v in node.outputs if v.uses() and _is_open(v)]
    if not values:
        return {}
    shapes, found = inferred_shapes(model), dict[ir.Value, Dims]()
    for value in values:
        if (shape := shapes.get(value)) is not None:
            numbers = [dim if isinstance(dim, int) else None for dim in shape]
            declared = dims_of(value) or (None,) * len(numbers)
            if len(declared) == len(numbers):
                found[value] = tuple(
                    n if d is None else d for d, n in zip(declared, numbers, strict=True)
                )
    return found


def _is_open(value: ir.Value) -> bool:
    dims = dims_of(value)
    return dims is None or None in dims
