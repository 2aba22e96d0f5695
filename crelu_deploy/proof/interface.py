"""What a lowered model shows to whoever runs it: inputs, outputs, opsets and functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir

from crelu_deploy.op import DOMAIN, NODE_TYPES, VERSION, function
from crelu_deploy.proof.constants import Numbers, attributes_of
from crelu_deploy.proof.extents import dims_of


def differences(canonical: ir.Model, lowered: ir.Model) -> Iterator[str]:
    """Yield what differs in the interface of two models, and in the bodies of canonical nodes."""
    for what, one, two in (
        ("input", canonical.graph.inputs, lowered.graph.inputs),
        ("output", canonical.graph.outputs, lowered.graph.outputs),
    ):
        yield from _values(what, one, two)
    yield from _opsets("", canonical.graph, lowered.graph)
    yield from _defaults(canonical, lowered)
    for body in lowered.functions.values():
        if body.domain == DOMAIN and not (body.name in NODE_TYPES and _is_definition(body)):
            yield f"function {body.name}: its body is not what {body.name} is defined as"
        elif body.domain != DOMAIN and (known := canonical.functions.get(body.identifier())):
            yield from _functions(known, body)
    yield from _undefined(canonical, lowered)


def _functions(one: ir.Function, two: ir.Function) -> Iterator[str]:
    """Yield what differs in what a function is given and returns, and in how it is written."""
    what = f"function {two.name}: "
    for name, counts in (
        ("inputs", [len(body.inputs) for body in (one, two)]),
        ("outputs", [len(body.outputs) for body in (one, two)]),
    ):
        if counts[0] != counts[1]:
            yield f"{what}expected {counts[0]} {name}, got {counts[1]}"
    given = [attributes_of(Numbers(None), body.attributes) for body in (one, two)]
    if given[0] != given[1]:
        yield f"{what}attributes: expected {_told(one)}, got {_told(two)}"
    yield from _opsets(what, one, two)


def _told(body: ir.Function) -> str:
    given = (f"{n} = {a.value}" if a.value is not None else n for n, a in body.attributes.items())
    return ", ".join(given) or "none"


def _undefined(canonical: ir.Model, lowered: ir.Model) -> Iterator[str]:
    """Yield the functions that a lowered model calls without having them."""
    missing = canonical.functions.keys() - lowered.functions.keys()
    bodies: list[ir.Graph | ir.Function] = [lowered.graph, *lowered.functions.values()]
    for name in sorted(missing):
        nodes = (n for body in bodies for n in ir.traversal.RecursiveGraphIterator(body))
        if name[0] != DOMAIN and any(node.op_identifier() == name for node in nodes):
            yield f"function {name[1]} is called, and not in the model"


def is_valid(model: ir.Model) -> bool:
    """Whether ONNX finds no fault in a model; not where it is too large to ask."""
    try:
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError):
        return False
    return True


def _values(what: str, one: Sequence[ir.Value], two: Sequence[ir.Value]) -> Iterator[str]:
    names = [[v.name for v in values] for values in (one, two)]
    if names[0] != names[1]:
        told = [", ".join(map(str, some)) for some in names]
        yield f"{what}s: expected {told[0]}, got {told[1]}"
        return
    for expected, got in zip(one, two, strict=True):
        shapes = [(v.dtype, dims_of(v)) for v in (expected, got)]
        if shapes[0] != shapes[1]:
            told = [f"{v.dtype} {v.shape}" for v in (expected, got)]
            yield f"{what} {expected.name!r}: expected {told[0]}, got {told[1]}"


def _opsets(what: str, one: ir.Graph | ir.Function, two: ir.Graph | ir.Function) -> Iterator[str]:
    known = {DOMAIN: VERSION, "": 1} | dict(one.opset_imports)
    for domain, version in two.opset_imports.items():
        if known.get(domain) != version:
            yield f"{what}opset of domain {domain!r}: expected {known.get(domain)}, got {version}"


def _defaults(canonical: ir.Model, lowered: ir.Model) -> Iterator[str]:
    """Compare what inputs are where the caller gives none."""
    numbers = Numbers(None)
    for one, two in zip(canonical.graph.inputs, lowered.graph.inputs, strict=False):
        digests = [
            None if v.const_value is None else numbers.digest(v.const_value) for v in (one, two)
        ]
        if digests[0] != digests[1]:
            yield f"input {one.name!r}: another value where none is given"


def _is_definition(body: ir.Function) -> bool:
    """Whether a function is the definition of the canonical node of its name."""
    opset = body.opset_imports.get("", 0)
    try:
        definition = function(body.name, opset)
    except ValueError:
        return False
    numbers = Numbers(None)
    return _written(body, numbers) == _written(definition, numbers)


def _written(body: ir.Function, numbers: Numbers) -> object:
    """Return a function's content without the names of its values."""
    number: dict[ir.Value | None, int] = {None: -1}
    for value in body.inputs:
        number[value] = len(number)
    nodes = []
    for node in body:
        inputs = tuple(number.get(v, -2) for v in node.inputs)
        for output in node.outputs:
            number[output] = len(number)
        attributes = attributes_of(numbers, node.attributes)
        nodes.append((node.domain, node.op_type, inputs, attributes, len(node.outputs)))
    return sorted(body.attributes), nodes, [number.get(v, -2) for v in body.outputs]
