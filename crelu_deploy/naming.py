"""Names that a reader understands, in place of those that PyTorch's exporter makes up."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from crelu_deploy import op

_IMAGE_AXES = {2: "height", 3: "width"}


def name_dimensions(model: ir.Model) -> None:
    """Give the exporter's symbols, such as ``s77``, names that a reader understands."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value and dim.value not in names:
                image = len(value.shape or ()) == 4 and axis in _IMAGE_AXES
                name = "batch" if axis == 0 else _IMAGE_AXES[axis] if image else f"axis{axis}"
                taken = name in names.values()
                names[dim.value] = f"{value.name}_{name}" if taken else name
    if not names:
        return
    symbol = re.compile("|".join(rf"\b{re.escape(old)}\b" for old in names))
    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(d, symbol, names) for d in value.shape])


def settle_dimensions(model: ir.Model) -> None:
    """Make a number of each symbol that the exporter found to have one value, such as ``"3"``."""
    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape([_settled(dim) for dim in value.shape])


def _settled(dim: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    text = "" if isinstance(dim, int) else dim.value or ""
    return int(text) if text.isdecimal() else dim


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph.all_nodes():
        yield from node.outputs


_SCOPES = "pkg.torch.onnx.name_scopes"


def name_sites(model: ir.Model) -> None:
    """Name each CReLU node after its place in the module, and drop what else the exporter notes.

    Its notes hold paths and source lines of the machine that exported.
    """
    taken: set[str] = set()
    for node in model.graph.all_nodes():
        if node.domain == op.DOMAIN:
            scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
            wanted = (scopes[-2:-1] or [""])[0] or node.outputs[0].name or node.op_type
            same = [f"{wanted}_{i}" for i in range(1, len(taken) + 1)]
            node.name = next(name for name in (wanted, *same) if name not in taken)
            taken.add(node.name)
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def _renamed(dim: Any, symbol: re.Pattern[str], names: dict[str, str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    return symbol.sub(lambda found: names[found[0]], dim.value) if dim.value else None
