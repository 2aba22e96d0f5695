"""PyTorch's ONNX exporter, told to keep CReLU as one node."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from crelu_deploy.guards import Guard, broken, from_pytorch
from crelu_deploy.naming import name_dimensions, name_sites, settle_dimensions
from crelu_deploy.nn import OVERLOAD
from crelu_deploy.shapes import Input

Captured = torch.export.ExportedProgram

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


@dataclass(frozen=True)
class Traced:
    """A network as PyTorch's exporter wrote it.

    Attributes:
        model: With a ``CReLU`` node per call of ``crelu``, without the node's function.
        guards: What PyTorch took for granted of the dynamic extents; outside of them nothing is
            known of the model.
        last: Whether what follows has a fixed batch.
    """

    model: ir.Model
    guards: tuple[Guard, ...] = ()
    last: bool = False


def trace(
    module: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    inputs: Sequence[Input],
    *,
    outputs: Sequence[str],
    opset: int,
) -> ir.Model:
    """Export a module in evaluation mode; the first of ``traces``, which has the arguments."""
    return next(traces(module, examples, inputs, outputs=outputs, opset=opset)).model


def traces(
    module: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    inputs: Sequence[Input],
    *,
    outputs: Sequence[str],
    opset: int,
) -> Iterator[Traced]:
    """Export a module in evaluation mode, in several ways where its extents may vary.

    Args:
        module: Called with the examples by position.
        examples: One tensor per input, of its example shape.
        inputs: Names and dynamic axes. The batch stays fixed where the network needs that.
        outputs: Names of the outputs, flattened.
        opset: Of the result.

    Yields:
        The ways, the one that holds for the most extents first.

    Raises:
        ExportError: The module cannot be exported, or not to this opset.
    """
    names = [one.name for one in inputs]
    write = _scripts if isinstance(module, torch.jit.ScriptModule) else _exports
    found = write(module, examples, inputs, names, outputs, opset)
    while True:
        try:
            with _quiet():
                traced = next(found, None)
        except ExportError:
            raise
        except Exception as error:  # whatever the exporter and the module's own code raise
            raise ExportError(f"PyTorch cannot export this module: {_words(error)}") from error
        if traced is None:
            return
        _check_opset(traced.model, opset)
        name_dimensions(traced.model)
        name_sites(traced.model)
        yield traced


def _check_opset(model: ir.Model, opset: int) -> None:
    if (found := model.opset_imports[""]) != opset:
        raise ExportError(
            f"PyTorch cannot export this module to opset {opset}, only to {found}; leave --opset "
            f"out or give {OLDEST} to {NEWEST}"
        )


def _exports(
    module: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    inputs: Sequence[Input],
    names: list[str],
    outputs: Sequence[str],
    opset: int,
) -> Iterator[Traced]:
    """Export with a dynamic batch, or else with the batch that was asked for."""
    if not OLDEST <= opset <= NEWEST:
        raise ExportError(f"PyTorch exports to opset {OLDEST} to {NEWEST}, not {opset}")
    still = [replace(one, batch=False) for one in inputs]
    failure: Exception | None = None
    for variant in (inputs, still) if still != list(inputs) else (inputs,):
        try:
            captured = _captures(module, examples, variant)
        except Exception as error:  # as when the module's own code counts on a batch of one
            failure = error
            continue
        for program, guards in captured:
            last = program is captured[-1][0]
            try:
                model = _translated(program, names, outputs, opset)
            except Exception as error:
                failure = failure or error
                continue
            failure = None
            yield Traced(model, guards, last)
    if failure is not None:
        raise failure


GROWN = (1, 2, 4, 8)
"""Multiples of the dynamic extents of the example that a network is traced at, until it is open."""


def _captures(
    module: torch.nn.Module, examples: Sequence[torch.Tensor], inputs: Sequence[Input]
) -> list[tuple[Captured, tuple[Guard, ...]]]:
    """Capture a module for its example, and for larger ones as long as it is bound to a size.

    An extent of one somewhere inside binds the program to it: a map of 1x1 is one at every size.
    """
    found: list[tuple[Captured, tuple[Guard, ...]]] = []
    failure: Exception | None = None
    tried = GROWN if any(one.dynamic - {0} for one in inputs) else GROWN[:1]
    shapes = [
        [_grown(x, one, by) for x, one in zip(examples, inputs, strict=True)]
        for by in (*tried, 2 * tried[-1])
    ]
    for i in range(len(tried)):
        try:
            found.insert(0, _captured(module, examples, shapes[i], inputs))
        except Exception as error:
            failure = failure or error
            continue
        if not any(broken(found[0][1], larger) for larger in shapes[i + 1 :]):
            break
    if not found and failure is not None:
        raise failure
    return found


def _grown(x: torch.Tensor, one: Input, by: int) -> tuple[int, ...]:
    """Return the example's shape, its dynamic extents times a number, none of them 1.

    The exporter takes an extent of 1 for fixed.
    """
    extents = (n * by if a in one.dynamic - {0} else n for a, n in enumerate(x.shape))
    return tuple(
        2 if n == 1 and _dimension(one, a) is not None else n for a, n in enumerate(extents)
    )


def _captured(
    module: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    shapes: Sequence[tuple[int, ...]],
    inputs: Sequence[Input],
) -> tuple[Captured, tuple[Guard, ...]]:
    """Capture a module for inputs of these shapes, whose values the exporter never reads."""
    axes = tuple({a: _dimension(one, a) for a in range(len(one.shape))} for one in inputs)
    # Left to the exporter, a batch that the code counts on would become a run-time assertion, which
    # the ONNX model has not: its batch would look dynamic and be none.
    program = torch.export.export(
        module,
        tuple(
            x if x.shape == shape else torch.empty(shape, dtype=x.dtype)
            for x, shape in zip(examples, shapes, strict=True)
        ),
        dynamic_shapes=axes,
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=False,
    )
    for one, shape in zip(inputs, _placeholders(program), strict=True):
        # The exporter fixed a batch at the size of the stand-in for a batch of one.
        auto, extent = one.batch and 0 not in one.dynamic, str(shape[0]) if one.shape else ""
        if auto and extent.isdecimal() and int(extent) != one.shape[0]:
            raise ExportError(f"the batch of input {one.name!r} cannot vary")
    return program, _guards(program, inputs)


def _placeholders(program: Captured) -> list[Any]:
    """Return the shapes of the program's inputs, whose dynamic extents are symbols."""
    wanted = program.graph_signature.user_inputs
    found = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return [found[name].meta["val"].shape for name in wanted if isinstance(name, str)]


def _guards(program: Captured, inputs: Sequence[Input]) -> tuple[Guard, ...]:
    """Return what the program takes for granted, each once.

    Raises:
        ExportError: One of its conditions cannot be read.
    """
    names = [str(name) for name in program.graph_signature.user_inputs]
    try:
        lines = getattr(program, "_guards_code", ())
        found = [guard for line in lines for guard in from_pytorch(line, names)]
    except ValueError as error:
        dynamic = ", ".join(f"{one.name}:{a}" for one in inputs for a in sorted(one.dynamic))
        raise ExportError(
            f"the axes {dynamic or 'of the batch'} hold under a condition that cannot be checked: "
            f"{error}; leave --dynamic out, or give --dynamic none"
        ) from error
    return tuple(dict.fromkeys(found))


def _translated(
    captured: Captured, names: list[str], outputs: Sequence[str], opset: int
) -> ir.Model:
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


def _dimension(one: Input, axis: int) -> Any:
    if axis in one.dynamic:
        return Dim.DYNAMIC
    return Dim.AUTO if axis == 0 and one.batch else None


def _scripts(
    module: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    inputs: Sequence[Input],
    names: list[str],
    outputs: Sequence[str],
    opset: int,
) -> Iterator[Traced]:
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
        model = ir.from_proto(onnx.load(file))
    yield Traced(model)


_SPECIALISED = re.compile(r"L\['(\w+)'\]\.size\(\)\[(\d+)\][^\n]*constant \((\d+)\)")


def _words(error: Exception) -> str:
    """Return why an export failed, in PyTorch's words or in clearer ones."""
    fixed = dict.fromkeys(_SPECIALISED.findall(str(error)))
    if not fixed:
        return cause(error)
    axes = ", ".join(f"axis {axis} of {name!r} can only be {size}" for name, axis, size in fixed)
    return f"its code fixes extents: {axes}; leave them out of --dynamic"


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
