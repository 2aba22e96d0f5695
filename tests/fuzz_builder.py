"""A graph under construction: every node's output shape is known as soon as it is added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.shape_inference import infer_node_outputs

T = TypeVar("T")
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Value:
    """A tensor and the axis of its channels, counted from the front; None where nothing tells."""

    name: str
    axis: int | None = None


class Builder:
    """Nodes and constants of one network, and what was put into it.

    Attributes:
        opset: The opset of the domain ``""``.
        dtype: The dtype of all floating-point tensors.
        prefix: What the names of new nodes begin with.
        plain: Whether only such spellings are wanted that NaN and infinities pass.
        sites: The type of the canonical node of every site, as planted.
        opaque: The number of sites that no canonical node expresses.
        exact: Whether every site's lowerings compute the same sums as its spelling.
        faithful: Whether NaN and infinities pass as through the canonical nodes.
        seams: Values at which a site is taken apart: its halves and their concat.
        shapes_known: Whether the model tells the shapes: a function does not.
        blocked: Whether a folded conv may get ONNX Runtime's blocked layout, and so another kernel:
            that takes multiples of 4, 8 or 16 output channels, whichever the processor has.
        referable: Whether ONNX's reference evaluator computes all of it, and as ONNX says.
    """

    def __init__(self, draw: Draw, opset: int, dtype: type) -> None:
        self.opset, self.dtype, self._draw = opset, dtype, draw
        self.prefix = ""
        self.plain = self.rarely(3)
        self.sites: list[str] = []
        self.opaque = 0
        self.exact, self.faithful, self.referable = dtype is np.float32, True, True
        self.inputs: list[onnx.ValueInfoProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.weights: list[str] = []
        self.seams: list[str] = []
        self.shapes_known, self.blocked = True, False
        self._as_nodes = self.pick(["initializers", "nodes", "both"])
        self._random = np.random.default_rng(draw(st.integers(0, 2**16)))
        self._types: dict[str, onnx.TypeProto] = {}
        self._declared: dict[str, onnx.TypeProto] = {}
        self._data: dict[str, onnx.TensorProto] = {}
        self._shapes: set[str] = set()

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options; failures are shrunken towards the first."""
        return self._draw(st.sampled_from(options))

    def rarely(self, one_in: int = 6) -> bool:
        """Return True once in so many draws."""
        return self._draw(st.integers(1, one_in)) == one_in

    def input(self, name: str, shape: Sequence[int], symbols: Sequence[str | None]) -> Value:
        """Declare an input of the graph, some of whose extents are symbols."""
        dims = [symbol or size for symbol, size in zip(symbols, shape, strict=True)]
        self._types[name] = helper.make_tensor_type_proto(self.elem_type, shape)
        self._declared[name] = helper.make_tensor_type_proto(self.elem_type, dims)
        self.inputs.append(helper.make_tensor_value_info(name, self.elem_type, dims))
        return Value(name)

    @property
    def elem_type(self) -> int:
        """The ONNX element type of ``dtype``."""
        return helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))

    def shape(self, value: Value | str) -> tuple[int, ...]:
        """Return the shape that a tensor has when the network runs."""
        name = value if isinstance(value, str) else value.name
        return tuple(d.dim_value for d in self._types[name].tensor_type.shape.dim)

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output and return the output's name."""
        number = len(self.nodes)
        output = f"v{number}"
        node = helper.make_node(op_type, inputs, [output], f"{self.prefix}{op_type}_{number}")
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        schema = onnx.defs.get_schema(op_type, self.opset)
        opset = [helper.make_opsetid("", self.opset)]
        data = {name: self._data[name] for name in inputs if name in self._data}
        for known in (self._types, self._declared):
            types = {name: known[name] for name in inputs if name}
            known |= infer_node_outputs(schema, node, types, data, opset_imports=opset)
            data = {name: self._data[name] for name in data if name not in self._shapes}
        if op_type in ("Shape", "Constant"):
            self._remember(node)
        return output

    def extents(self, value: Value | str) -> list[int | None]:
        """Return the extents of a tensor that are no symbols; None for the others."""
        name = value if isinstance(value, str) else value.name
        dims = self._declared[name].tensor_type.shape.dim
        return [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]

    def _remember(self, node: onnx.NodeProto) -> None:
        """Keep what shape inference needs to know as data."""
        if node.op_type == "Constant":
            self._data[node.output[0]] = node.attribute[0].t
        else:
            shape = np.array(self.shape(node.input[0]), np.int64)
            self._data[node.output[0]] = numpy_helper.from_array(shape)
            self._shapes.add(node.output[0])

    def constant(self, array: Any, dtype: type | None = None) -> str:
        """Add an initializer or a Constant node."""
        tensor = numpy_helper.from_array(np.asarray(array, dtype or self.dtype))
        valid = self.opset >= 9 or tensor.data_type == self.elem_type  # no integers before
        as_node = self._as_nodes == "nodes" or (self._as_nodes == "both" and len(self.nodes) % 2)
        if as_node and valid:
            return self.op("Constant", value=tensor)
        tensor.name = f"k{len(self.initializers)}"
        self.initializers.append(tensor)
        self._types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        self._declared[tensor.name] = self._types[tensor.name]
        self._data[tensor.name] = tensor
        return tensor.name

    def number(self, value: float) -> str:
        """Add a constant of one element."""
        return self.constant(np.full(self.pick([(), (1,)]), value))

    def integers(self, *values: int) -> str:
        """Add a vector of int64."""
        return self.constant(values, np.int64)

    def weight(self, *shape: int) -> str:
        """Add random weights, normal, with outputs about as large as inputs."""
        fan_in = max(1, int(np.prod(shape)) // max(shape, default=1))
        name = self.constant(self._random.standard_normal(shape) / np.sqrt(fan_in))
        if self.initializers and self.initializers[-1].name == name:
            self.weights.append(name)
        return name

    def uniform(self, low: float, high: float, shape: Sequence[int] | int) -> np.ndarray:
        """Return random numbers."""
        return self._random.uniform(low, high, shape)

    def by_channel(self, array: np.ndarray, value: Value | str, axis: int) -> str:
        """Add a vector so that it broadcasts along one axis of a tensor."""
        rank = len(self.shape(value))
        shape = [-1] + [1] * (rank - 1 - axis)
        if self.rarely(3):
            shape = [1] * (rank - len(shape)) + shape
        return self.constant(array.reshape(shape))

    def unread(self) -> list[str]:
        """Return the outputs of nodes that nothing reads."""
        read = {name for node in self.nodes for name in node.input}
        return [n.output[0] for n in self.nodes if n.output[0] not in read]

    def finished(self, more: Sequence[str]) -> onnx.ModelProto:
        """Return the model; what nothing reads is an output, and so is ``more``."""
        constants = {n.output[0] for n in self.nodes if n.op_type == "Constant"}
        names = dict.fromkeys([*self.unread(), *more])
        outputs = [self._output(name) for name in names if name not in constants]
        if self.opset >= 9 and self.dtype is np.float32 and self.rarely(12):
            return self._as_function(outputs)
        if self.weights and self.rarely(12):
            self.inputs.append(self._overridable(self.pick(self.weights)))
        graph = helper.make_graph(self.nodes, "fuzz", self.inputs, outputs, self.initializers)
        opset = [helper.make_opsetid("", self.opset)]
        oldest = max(4, helper.find_min_ir_version_for(opset))
        version = self.pick([max(8, oldest), oldest])
        model = helper.make_model(graph, opset_imports=opset, ir_version=version)
        if self.rarely(3):
            return onnx.shape_inference.infer_shapes(model, strict_mode=True)
        return model

    def _as_function(self, outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Return the model as a call of a function of its own, whose constants are nodes."""
        self.shapes_known = False
        constants = [helper.make_node("Constant", [], [t.name], value=t) for t in self.initializers]
        opset = [helper.make_opsetid("", self.opset)]
        names = [output.name for output in outputs]
        nodes = [*constants, *self.nodes]
        function = helper.make_function("local", "net", ["x"], names, nodes, opset)
        call = helper.make_node("net", ["x"], names, "call", domain="local")
        graph = helper.make_graph([call], "fuzz", self.inputs, outputs)
        imports = [*opset, helper.make_opsetid("local", 1)]
        version = max(8, helper.find_min_ir_version_for(opset))
        return helper.make_model(
            graph, opset_imports=imports, functions=[function], ir_version=version
        )

    def _overridable(self, name: str) -> onnx.ValueInfoProto:
        """Return an initializer as an input, so that a caller may replace it."""
        kind = self._types[name].tensor_type
        return helper.make_tensor_value_info(name, kind.elem_type, self.shape(name))

    def _output(self, name: str) -> onnx.ValueInfoProto:
        kind, rank = self._types[name].tensor_type, len(self.shape(name))
        return helper.make_tensor_value_info(name, kind.elem_type, [None] * rank)
