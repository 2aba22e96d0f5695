"""One ONNX file from anywhere, read and checked as far as later stages rely on it.

Nothing outside its folder is read, and nothing in it makes a later stage run for ever or take far
more memory than the file has bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from crelu_deploy.errors import DeployError, UnsupportedModel
from crelu_deploy.op import DOMAIN, NODE_TYPES

MOST_NODES = 1_000_000
"""Nodes of a model whose calls of its own functions are all replaced by their bodies."""

DEEPEST_CALL = 100
"""Functions that call each other, one inside the other."""

LONGEST_NAME = 10_000
"""Characters of a name."""

Key = tuple[str, str, str]

_UNREADABLE = (
    OSError,
    DecodeError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RecursionError,
)


def read_file(path: Path) -> ir.Model:
    """Read an ONNX file; weights in other files stay there.

    Raises:
        UnsupportedModel: No file, no ONNX model, or one that is refused: weights that lie outside
            its folder or do not fit their shapes, functions that call themselves or unfold to more
            than ``MOST_NODES`` nodes, names longer than ``LONGEST_NAME``.
    """
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
        _check_proto(path, proto)
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)
    except DeployError:
        raise
    except FileNotFoundError as error:
        raise UnsupportedModel(f"{path}: no such file") from error
    except _UNREADABLE as error:
        raise UnsupportedModel(
            f"{path}: not a readable ONNX model: {_reason(error)}; "
            "a PyTorch checkpoint becomes one by `crelu export`"
        ) from error
    if not model.graph.outputs:
        raise UnsupportedModel(f"{path}: not an ONNX model, or one without outputs")
    for node in _nodes(model):
        _check_node(path, node)
    _check_calls(path, model)
    _check_wiring(path, model)
    for tensor in _tensors(model):
        _check_tensor(path, tensor)
    return model


def invalidity(path: Path) -> str:
    """Return what the ONNX checker says against a file; empty when it is valid."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, *_UNREADABLE) as e:
        return _reason(e)
    return ""


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in the block into a refusal of the file, if it is not valid ONNX.

    Files that runtimes take and the checker does not are common, so validity is asked for only
    then. An exception that a valid file causes is a mistake of this program and stays as it is.

    Raises:
        UnsupportedModel: The file is not valid ONNX.
    """
    try:
        yield
    except (DeployError, MemoryError):
        raise
    except Exception as error:
        if found := invalidity(path):
            raise UnsupportedModel(f"{path}: not valid ONNX: {found}") from error
        raise


def _reason(error: BaseException) -> str:
    """Return the last cause's words: what comes before it only says in which part."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


_DATA = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def _check_proto(path: Path, proto: onnx.ModelProto) -> None:
    """Refuse what one reader takes for one network and another for another.

    Of two weights of a name ``onnx_ir`` has the last, and ONNX Runtime may run the first.
    """
    for graph in _graphs([proto.graph]):
        names = Counter(tensor.name for tensor in graph.initializer)
        names.update(sparse.values.name for sparse in graph.sparse_initializer)
        if twice := [name for name, count in names.items() if count > 1]:
            raise UnsupportedModel(f"{path}: weight {twice[0]!r} is there twice")
        for tensor in graph.initializer:
            if sum(bool(len(getattr(tensor, field))) for field in _DATA) > 1:
                raise UnsupportedModel(f"{path}: weight {tensor.name!r} has its numbers twice")


def _graphs(waiting: list[onnx.GraphProto]) -> Iterator[onnx.GraphProto]:
    """Yield graphs and those inside their nodes."""
    while waiting:
        yield (graph := waiting.pop())
        for node in graph.node:
            for attribute in node.attribute:
                waiting.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield all nodes, those of subgraphs and functions included."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _check_node(path: Path, node: ir.Node) -> None:
    for value in (node, *node.inputs, *node.outputs):
        if value is not None and len(value.name or "") > LONGEST_NAME:
            raise UnsupportedModel(
                f"{path}: a name of {len(value.name or '')} characters, expected at most "
                f"{LONGEST_NAME}"
            )
    if node.domain == DOMAIN and node.op_type in NODE_TYPES:
        wanted = 3 if NODE_TYPES[node.op_type][1] else 1  # with a scale and a shift, or without
        found = sum(value is not None for value in node.inputs)
        if (found, len(node.inputs), len(node.outputs)) != (wanted, wanted, 1):
            raise UnsupportedModel(
                f"{path}: {node.op_type} node {node.name!r} has {found} inputs and "
                f"{len(node.outputs)} outputs, expected {wanted} and 1"
            )


def _check_calls(path: Path, model: ir.Model) -> None:
    """Refuse functions that could not be replaced by their bodies."""
    calls = {key: _called(model, f.all_nodes()) for key, f in model.functions.items()}
    try:
        order = tuple(TopologicalSorter(calls).static_order())
    except CycleError as error:
        names = " -> ".join(":".join(key[:2]) for key in error.args[1])
        raise UnsupportedModel(f"{path}: a function calls itself: {names}") from error
    size: dict[Key, int] = {}
    depth: dict[Key, int] = {}
    for key in order:
        own = sum(1 for _ in model.functions[key].all_nodes())
        size[key] = own + sum(size[called] * n for called, n in calls[key].items())
        depth[key] = 1 + max((depth[called] for called in calls[key]), default=0)
    total = sum(size[key] * n for key, n in _called(model, model.graph.all_nodes()).items())
    if total > MOST_NODES or max(depth.values(), default=0) > DEEPEST_CALL:
        raise UnsupportedModel(
            f"{path}: its functions unfold to {total} nodes, {max(depth.values())} calls deep; "
            f"expected at most {MOST_NODES} and {DEEPEST_CALL}"
        )


def _check_wiring(path: Path, model: ir.Model) -> None:
    """Bring nodes into an order in which each comes after those it reads."""
    try:
        model.graph.sort()
        for function in model.functions.values():
            function.sort()
    except ValueError as error:
        raise UnsupportedModel(f"{path}: nodes read each other's outputs in a cycle") from error
    own = {id(v) for f in model.functions.values() for v in f.inputs}
    for value in (*(v for n in _nodes(model) for v in n.inputs), *model.graph.outputs):
        if value is None or value.producer() or value.is_graph_input() or value.is_initializer():
            continue
        if id(value) not in own:
            raise UnsupportedModel(f"{path}: {value.name!r} is read, but no node computes it")


def _called(model: ir.Model, nodes: Iterator[ir.Node]) -> Counter[Key]:
    return Counter(
        key for n in nodes if (key := (n.domain, n.op_type, n.overload)) in model.functions
    )


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield all weights, those of subgraphs and of constants included."""
    for graph in (*model.graphs(), *(function.graph for function in model.functions.values())):
        yield from (v.const_value for v in graph.initializers.values() if v.const_value)
        for node in graph.all_nodes():
            for attribute in node.attributes.values():
                yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: ir.Attr) -> Iterator[ir.TensorProtocol]:
    if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
        yield attribute.as_tensor()
    elif attribute.type == ir.AttributeType.TENSORS and not attribute.is_ref():
        yield from attribute.as_tensors()


def _check_tensor(path: Path, tensor: ir.TensorProtocol) -> None:
    if isinstance(tensor, ir.ExternalTensor):
        _check_place(path, tensor)
    dims = tuple(tensor.shape)
    try:
        fits = all(isinstance(d, int) and d >= 0 for d in dims) and (
            isinstance(tensor, ir.ExternalTensor) or tensor.numpy().shape == dims
        )
        why = ""
    except _UNREADABLE as error:
        fits, why = False, f" ({_reason(error)})"
    if not fits:
        shape = "x".join(map(str, dims))
        raise UnsupportedModel(
            f"{path}: weight {tensor.name!r} does not hold what its shape {shape} says{why}"
        )


def _check_place(path: Path, tensor: ir.ExternalTensor) -> None:
    folder = path.parent.resolve()
    file = (folder / tensor.location).resolve()
    if not file.is_relative_to(folder):
        raise UnsupportedModel(
            f"{path}: weight {tensor.name!r} is kept in {str(tensor.location)!r}, outside the "
            f"folder of {path.name}; refused"
        )
    if not file.is_file():
        raise UnsupportedModel(f"{path}: weight {tensor.name!r} is kept in {file}: no such file")
    offset, size = tensor.offset or 0, file.stat().st_size
    length = tensor.nbytes if tensor.length is None else tensor.length
    if offset < 0 or length != tensor.nbytes or offset + length > size:
        raise UnsupportedModel(
            f"{path}: weight {tensor.name!r} of {tensor.nbytes} bytes is kept in bytes {offset} "
            f"to {offset + length} of {file}, which has {size}"
        )
