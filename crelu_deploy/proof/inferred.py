"""Extents that ONNX infers for values whose own declaration leaves them open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from crelu_deploy.lowerings.sitenode import scopes
from crelu_deploy.proof.extents import Dims, dims_of
from crelu_deploy.recognition.axes import inferred_shapes

Extents = Mapping[ir.Value, Dims]


def inferred(model: ir.Model) -> Extents:
    """Return the extents of values that are read and declared with fewer; symbols stay open.

    An output of a graph is often declared with its rank alone, while what reads it is annotated:
    a lowering knows the one from the other.
    """
    found = dict(_formals(model))
    values = [v for node in model.graph for v in node.outputs if v.uses() and _is_open(v)]
    if not values or any(_rounds_up(node) for node in model.graph):
        return found
    shapes = inferred_shapes(model)
    for value in values:
        if (shape := shapes.get(value)) is not None:
            numbers = [dim if isinstance(dim, int) else None for dim in shape]
            declared = dims_of(value) or (None,) * len(numbers)
            if len(declared) == len(numbers):
                found[value] = tuple(
                    n if d is None else d for d, n in zip(declared, numbers, strict=True)
                )
    return found


def _formals(model: ir.Model) -> Iterator[tuple[ir.Value, Dims]]:
    """Yield the extents of a function's inputs where all its calls agree on them."""
    calls: dict[ir.Value, set[Dims | None]] = {}
    for _, scope in scopes(model):
        for node in ir.traversal.RecursiveGraphIterator(scope):
            body = model.functions.get(node.op_identifier())
            for formal, value in zip(body.inputs if body else (), node.inputs, strict=False):
                dims = None if value is None else dims_of(value)
                calls.setdefault(formal, set()).add(dims)
    for formal, given in calls.items():
        (dims, *more) = given
        if dims is not None and not more:
            yield formal, dims


def _rounds_up(node: ir.Node) -> bool:
    """Whether a pool rounds its extent up: ONNX infers one more than runtimes compute at times."""
    return node.attributes.get_int("ceil_mode", 0) == 1


def _is_open(value: ir.Value) -> bool:
    dims = dims_of(value)
    return dims is None or None in dims
