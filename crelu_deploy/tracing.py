"""PyTorch's ONNX exporter, told to keep CReLU as one node."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript
import torch
from onnxscript import FLOAT
from torch.export import Dim

from crelu_deploy import op
from crelu_deploy.errors import ExportError
from crelu_deploy.naming import name_dimensions, name_sites, settle_dimensions
from crelu_deploy.nn import OVERLOAD
from crelu_deploy.shapes import Input

_ours = onnxscript.values.Opset(op.DOMAIN, op.VERSION)
_helper = onnxscript.values.Opset(f"{op.DOMAIN}.export", 1)


# The exporter inlines the function that it is given. This one is only there to be inlined: the
# node in its body stays.
@onnxscript.script(_helper, default_opset=onnxscript.opset18)
def _crelu(x: FLOAT, dim: int) -> FLOAT:
    return _ours.CReLU(x, axis=dim)  # type: ignore[no-any-return]


TRANSLATIONS: dict[Any, Any] = {OVERLOAD: _crelu}

OLDEST, NEWEST = 18, 25
"""Opsets that the exporter writes."""

_SCRIPT_OPSETS = (7, 20)  # what the older exporter, the only one for TorchScript, writes


def input_names(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the parameter names of the module's ``forward``, without ``*args``.

    Raises:
        ExportError: It names no input.
    """
    if isinstance(module, torch.jit.ScriptModule):
        schema: Any = module.forward
        return tuple(argument.name for argument in schema.schema.arguments[1:])
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.signature(module.forward)
    names = tuple(p.name for p in signature.parameters.values() if p.kind in positional)
    if not names:
        raise ExportError(
            f"forward{signature} of {type(module).__name__} names no input that is given by "
            "position; wrap it in a module whose forward names its inputs"
        )
    return names


def trace(
    module: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    inputs: Sequence[Input],
    *,
    outputs: Sequence[str],
    opset: int,
) -> ir.Model:
    """Export a module in evaluation mode.

    Args:
        module: Called with the examples by position.
        examples: One tensor per input, of its example shape.
        inputs: Names and dynamic axes. The batch stays fixed where the network needs that.
        outputs: Names of the outputs, flattened.
        opset: Of the result.

    Returns:
        A model with a ``CReLU`` node per call of ``crelu``, without the node's function.

    Raises:
        ExportError: The module cannot be exported, or not to this opset.
    """
    names = [one.name for one in inputs]
    write = _export_script if isinstance(module, torch.jit.ScriptModule) else _export
    try:
        with _quiet():
            model = write(module, examples, inputs, names, outputs, opset)
    except ExportError:
        raise
    except Exception as error:  # whatever the exporter and the module's own code raise
        raise ExportError(f"PyTorch cannot export this module: {cause(error)}") from error
    if model.opset_imports[""] != opset:
        raise ExportError(
            f"PyTorch cannot export this module to opset {opset}, only to "
            f"{model.opset_imports['']}; leave --opset out or give {OLDEST} to {NEWEST}"
        )
    name_dimensions(model)
    name_sites(model)
    return model


def _export(
    module: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    inputs: Sequence[Input],
    names: list[str],
    outputs: Sequence[str],
    opset: int,
) -> ir.Model:
    """Export with a dynamic batch, or else with the batch that was asked for."""
    if not OLDEST <= opset <= NEWEST:
        raise ExportError(f"PyTorch exports to opset {OLDEST} to {NEWEST}, not {opset}")
    still = [Input(one.name, one.shape, one.dynamic, batch=False) for one in inputs]
    try:
        model = _translated(module, examples, inputs, names, outputs, opset)
    except Exception:  # as when the module's own code counts on a batch of one
        if still == list(inputs):
            raise
    else:
        if not _has_stand_in(model, inputs):
            return model
    return _translated(module, examples, still, names, outputs, opset)


def _translated(
    module: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    inputs: Sequence[Input],
    names: list[str],
    outputs: Sequence[str],
    opset: int,
) -> ir.Model:
    axes = tuple({a: _dimension(one, a) for a in range(len(one.shape))} for one in inputs)
    # Left to the exporter, a batch that the code counts on would become a run-time assertion, which
    # the ONNX model has not: its batch would look dynamic and be none.
    captured = torch.export.export(
        module,
        tuple(_at_least_two(x, one) for x, one in zip(examples, inputs, strict=True)),
        dynamic_shapes=axes,
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=False,
    )
    program = torch.onnx.export(
        captured,
        input_names=names,
        output_names=list(outputs),
        opset_version=opset,
        dynamo=True,
        custom_translation_table=TRANSLATIONS,
        verbose=False,
    )
    assert program is not None  # only the older exporter returns nothing
    model: ir.Model = program.model
    settle_dimensions(model)
    return model


def _has_stand_in(model: ir.Model, inputs: Sequence[Input]) -> bool:
    """Tell whether the exporter fixed a batch at the size of the stand-in for a batch of one."""
    return any(
        one.batch and isinstance(value.shape[0], int) and value.shape[0] != one.shape[0]
        for one, value in zip(inputs, model.graph.inputs, strict=True)
        if one.shape and value.shape is not None
    )


def _dimension(one: Input, axis: int) -> Any:
    if axis in one.dynamic:
        return Dim.DYNAMIC
    return Dim.AUTO if axis == 0 and one.batch else None


def _at_least_two(x: torch.Tensor, one: Input) -> torch.Tensor:
    """Repeat a single row along each dynamic axis: the exporter takes an extent of 1 for fixed."""
    for axis in range(x.ndim):
        if x.shape[axis] == 1 and _dimension(one, axis) is not None:
            x = torch.cat([x, x], axis)
    return x


def _export_script(
    module: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    inputs: Sequence[Input],
    names: list[str],
    outputs: Sequence[str],
    opset: int,
) -> ir.Model:
    low, high = _SCRIPT_OPSETS
    if not low <= opset <= high:
        raise ExportError(f"a TorchScript archive exports to opset {low} to {high}, not {opset}")
    axes = {
        one.name: {a: f"s{i}_{a}" for a in range(len(one.shape)) if _dimension(one, a) is not None}
        for i, one in enumerate(inputs)
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            module,
            tuple(examples),
            file,
            input_names=names,
            output_names=list(outputs),
            opset_version=opset,
            dynamo=False,
            dynamic_axes=axes,
        )
        return ir.from_proto(onnx.load(file))


def cause(error: BaseException) -> str:
    """Return the first sentence of the exception that an exception goes back to."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    end = next((i for i, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    return f"{type(error).__name__}: {' '.join(lines[:end])}" if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and dumps from the user, who can do nothing about them."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
