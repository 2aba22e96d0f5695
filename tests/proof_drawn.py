"""Drawn graphs that share inputs and constants, so that many of their values are equal by chance.

Constants are small integers with zeros, rows of zeros, and rows that are another's or its negation;
they vary along every axis, and broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from crelu_deploy import op

Numbers = Mapping[str, np.ndarray]
Pool = dict[str, list[np.ndarray]]
T = TypeVar("T")

INPUTS: Sequence[Mapping[str, tuple[int, ...]]] = (
    {"x": (1, 2, 4, 4)},
    {"x": (2, 3, 3, 4)},
    {"x": (1, 4, 3, 3), "u": (1, 4, 3, 3)},
    {"x": (1, 1, 4, 4), "u": (1, 1, 1, 4)},
    {"x": (1, 2, 4, 4), "u": (1, 2, 1, 1)},
    {"x": (2, 2, 4)},
    {"x": (3, 4)},
    {"x": (4,)},
)
LARGEST, MOST = 4000, 1e5


class Drawn:
    """A graph that grows.

    Attributes:
        random: Where it is drawn from.
        inputs: The names of its inputs.
        known: What every value is.
        nodes: The nodes so far.
        constants: The constants so far.
    """

    def __init__(self, random: np.random.Generator, inputs: Numbers, pool: Pool) -> None:
        self.random, self.inputs, self.known = random, tuple(inputs), dict(inputs)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._pool, self._count = pool, 0

    def pick(self, *some: T) -> T:
        """Return one of some."""
        return some[int(self.random.integers(len(some)))]

    def chance(self, of: float) -> bool:
        """Return True as often as asked for."""
        return bool(self.random.random() < of)

    def constant(self, array: object) -> str:
        """Return the name of a new constant."""
        self._count += 1
        name = f"c{self._count}"
        self.constants[name] = np.asarray(array)
        return name

    def numbers(self, *shape: int) -> np.ndarray:
        """Return a constant, often one that was met."""
        known = self._pool.setdefault(str(shape), [])
        if len(known) < 3 or self.chance(0.15):
            known.append(self._new(shape, known))
        return np.asarray(self.pick(*known) * (-1 if self.chance(0.2) else 1))

    def _new(self, shape: tuple[int, ...], known: list[np.ndarray]) -> np.ndarray:
        choice = [-2, -1, -1, 0, 0, 0, 1, 1, 2, 0.5, 3]
        array = self.random.choice(choice, size=shape).astype(np.float32)
        if known and self.chance(0.5):
            array = known[0].copy()
            array.flat[int(self.random.integers(array.size))] += 1
        if len(shape) < 2:
            return array
        along = np.moveaxis(array, int(self.random.integers(len(shape))), 0)
        one, two = self.random.integers(len(along), size=2)
        along[one] = along[two] * self.pick(0, 0, 1, -1)
        return array

    def add(self, op_type: str, inputs: Sequence[str], domain: str = "", **given: Any) -> str:
        """Add a node and return its output."""
        self._count += 1
        name = f"v{self._count}"
        node = helper.make_node(op_type, inputs, [name], name=f"n{name}", domain=domain, **given)
        self.nodes.append(node)
        return name

    def like(self, shape: tuple[int, ...], axis: int | None = None) -> str:
        """Return a value of a shape; one axis may differ."""
        if axis is None:
            return self.pick(*(n for n, a in self.known.items() if a.shape == shape))
        rest = shape[:axis] + shape[axis + 1 :]
        fit = [(n, a.shape) for n, a in self.known.items() if a.ndim == len(shape)]
        return self.pick(*(n for n, s in fit if s[:axis] + s[axis + 1 :] == rest))

    def grow(self, nodes: int) -> None:
        """Add nodes whose values are finite and not large."""
        for _ in range(6 * nodes):
            if len(self.nodes) >= nodes:
                return
            before, names = len(self.nodes), list(self.known)
            name = self.pick(*names[-4:]) if self.chance(0.4) else self.pick(*names)
            output = self.pick(*OPERATORS)(self, name, self.known[name].shape)
            value = None if output is None else self._value(self.nodes[before:], output)
            if output is None or value is None:
                del self.nodes[before:]
            else:
                self.known[output] = value

    def _value(self, nodes: list[onnx.NodeProto], output: str) -> np.ndarray | None:
        read = {name for node in nodes for name in node.input}
        given = {name: array for name, array in self.known.items() if name in read}
        try:
            found = run(self._model(nodes, given, [output], read), given)[0]
        except Exception:  # what ONNX Runtime raises shares no base class
            return None
        good = found.dtype == np.float32 and 0 < found.size <= LARGEST and np.isfinite(found).all()
        return found if good and np.abs(found).max() <= MOST else None

    def _model(
        self,
        nodes: list[onnx.NodeProto],
        given: Numbers,
        ends: Sequence[str],
        read: set[str] | None = None,
    ) -> onnx.ModelProto:
        info = helper.make_tensor_value_info
        constants = [
            numpy_helper.from_array(a, n)
            for n, a in self.constants.items()
            if read is None or n in read
        ]
        graph = helper.make_graph(
            nodes,
            "drawn",
            [info(name, TensorProto.FLOAT, array.shape) for name, array in given.items()],
            [info(name, TensorProto.FLOAT, None) for name in ends],
            constants,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(op.DOMAIN, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        for op_type in sorted({node.op_type for node in nodes if node.domain}):
            model.functions.append(ir.serde.serialize_function(op.function(op_type, 17)))
        return model

    def model(self, *, declared: bool, symbolic: bool) -> ir.Model:
        """Return all of it; the extents are declared where they are inferred rightly."""
        given = {name: self.known[name] for name in self.inputs}
        ends = [name for name in self.known if name not in given]
        plain = self._model(self.nodes, given, ends)
        model = onnx.shape_inference.infer_shapes(plain) if declared else plain
        for value in [*model.graph.value_info, *model.graph.output]:
            dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            if value.name in self.known and dims != list(self.known[value.name].shape):
                model = plain
                break
        for value in model.graph.input if symbolic else ():
            value.type.tensor_type.shape.dim[0].dim_param = "N"
        return ir.from_proto(model)


def run(model: onnx.ModelProto, given: Numbers) -> list[np.ndarray]:
    """Return what ONNX Runtime computes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(given)))


Shape = tuple[int, ...]
Operator = Callable[[Drawn, str, Shape], str | None]
"""From a graph, one of its values and its shape to a new value; None where it has no place."""


def arithmetic(d: Drawn, v: str, shape: Shape) -> str:
    """With a constant that broadcasts along any axes, or makes the value larger."""
    extents = [d.pick(extent, extent, 1, 1) for extent in shape]
    if 1 in shape and d.chance(0.25):
        extents[shape.index(1)] = d.pick(2, 3)
    if d.chance(0.4):
        extents = extents[int(d.random.integers(len(shape) + 1)) :]
    array, kind = d.numbers(*extents), d.pick("Add", "Add", "Sub", "Mul", "Mul", "Div")
    array = np.where(array == 0, np.float32(4), array) if kind == "Div" else array
    operands = [v, d.constant(array)]
    return d.add(kind, operands if kind == "Div" or d.chance(0.7) else operands[::-1])


def scaled(d: Drawn, v: str, _: Shape) -> str:
    """Times one number, or cast to float16 and back."""
    if d.chance(0.3):
        half = d.add("Cast", [v], to=TensorProto.FLOAT16)
        return d.add("Cast", [half], to=TensorProto.FLOAT)
    return d.add("Mul", [v, d.constant(np.float32(d.pick(0, 1, -1, 2, 0.5)))])


def activation(d: Drawn, v: str, _: Shape) -> str:
    """Something that works on each element."""
    kind = d.pick("Relu", "Relu", "LeakyRelu", "Clip", "Clip", "Tanh", "Elu", "Selu", "Neg", "Abs")
    given: Mapping[str, Sequence[Mapping[str, Any]]] = {
        "LeakyRelu": [{"alpha": 0.25}, {"alpha": -0.5}],
        "Elu": [{"alpha": 0.25}, {"alpha": 1.0}],
        "Selu": [{}, {"alpha": 2.0, "gamma": 1.0}],
    }
    limits = [d.constant(np.float32(d.pick(0, 1, -1))) for _ in range(2)] if kind == "Clip" else []
    limits = [d.pick("", limit) for limit in limits]
    return d.add(kind, [v, *limits], **d.pick(*given.get(kind, [{}])))


def bounded(d: Drawn, v: str, shape: Shape) -> str:
    """The larger or smaller of a value and a number near 0."""
    rank = d.pick(0, 0, 1, len(shape), len(shape) + 1)
    number = d.constant(np.full((1,) * rank, d.pick(0.0, -0.0, 1.0), np.float32))
    return d.add(d.pick("Max", "Min"), [v, number][:: d.pick(1, -1)])


def transposed(d: Drawn, v: str, shape: Shape) -> str | None:
    """Other orders of the axes."""
    order = d.random.permutation(len(shape)).tolist()
    return d.add("Transpose", [v], perm=order) if order else None


def reshaped(d: Drawn, v: str, shape: Shape) -> str | None:
    """Axes that are put together, split, added and taken away."""
    rank, kind = len(shape), d.pick("Reshape", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
    if kind == "Flatten":
        return d.add(kind, [v], axis=int(d.random.integers(rank + 1)))
    if kind == "Squeeze":
        ones = [i for i, extent in enumerate(shape) if extent == 1]
        return d.add(kind, [v, d.constant(np.array([d.pick(*ones)]))]) if ones else None
    if kind == "Unsqueeze":
        axis = int(d.random.integers(-rank - 1, rank + 1))
        return d.add(kind, [v, d.constant(np.array([axis]))]) if rank < 5 else None
    targets = [[-1], [*shape, 1], [1, *shape], list(shape[::-1]), [-1, *shape[-1:]]]
    if rank >= 2:
        targets += [[0, -1], [0, -1, *shape[3:]]]
    if rank >= 2 and shape[1] % 2 == 0:
        first, second, *rest = shape
        targets += [[first, 2, second // 2, *rest], [first, second // 2, 2, *rest]]
        targets += [[2 * first, second // 2, *rest]]
    targets += [[shape[0], shape[1] * shape[2], *shape[3:]]] * 4 if rank == 5 else []
    return d.add("Reshape", [v, d.constant(np.array(d.pick(*targets), np.int64))])


def joined(d: Drawn, v: str, shape: Shape) -> str | None:
    """With its negation, or with another value."""
    if not shape:
        return None
    axis = int(d.random.integers(len(shape)))
    other = d.add("Neg", [v]) if d.chance(0.3) else d.like(shape, axis)
    return d.add("Concat", [v, other][:: d.pick(1, -1)], axis=d.pick(axis, axis - len(shape)))


def picked(d: Drawn, v: str, shape: Shape) -> str | None:
    """Some of the slices along an axis."""
    if not shape:
        return None
    axis = d.pick(*range(len(shape)), *[1] * 4 * (len(shape) > 1))
    n = shape[axis]
    some = d.random.integers(-n, n, size=d.pick(1, max(1, n // 2)))
    index = d.pick(np.arange(n)[::-1], d.random.permutation(n), some, np.arange(n // 2, n))
    return d.add("Gather", [v, d.constant(np.asarray(index, np.int64))], axis=axis)


def combined(d: Drawn, v: str, shape: Shape) -> str:
    """With another value, which may broadcast."""
    same = [n for n, a in d.known.items() if a.ndim == len(shape)]
    return d.add(d.pick("Add", "Add", "Sub", "Mul"), [v, d.pick(d.like(shape), *same)])


def unread(d: Drawn, v: str, shape: Shape) -> str | None:
    """An operator that is known by its name only."""
    if not shape:
        return None
    axis, kind = int(d.random.integers(len(shape))), d.pick("Softmax", "ReduceMean", "ReduceMax")
    if kind == "Softmax":
        return d.add(kind, [v], axis=axis)
    return d.add(kind, [v], axes=[axis], keepdims=d.pick(0, 1, 1))


def padded(d: Drawn, v: str, shape: Shape) -> str | None:
    """Numbers around a value, or fewer of its own."""
    pads, mode = [0] * 2 * len(shape), d.pick("constant", "constant", "edge", "reflect")
    if not shape:
        return None
    for _ in range(2):
        pads[int(d.random.integers(len(pads)))] = d.pick(1, 1, -1)
    operands = [v, d.constant(np.array(pads))]
    if mode == "constant" and d.chance(0.5):
        operands.append(d.constant(np.float32(d.pick(0, 1))))
    return d.add("Pad", operands, mode=mode)


def site(d: Drawn, v: str, shape: Shape) -> str | None:
    """A canonical node."""
    if not shape:
        return None
    axis = int(d.random.integers(len(shape))) if d.chance(0.3) else min(1, len(shape) - 1)
    if d.chance(0.7):
        return d.add(d.pick("CReLU", "CReLU", "CTanh"), [v], op.DOMAIN, axis=axis)
    extents = [1] * len(shape)
    for i in {axis, int(d.random.integers(len(shape)))} if d.chance(0.2) else {axis}:
        extents[i] = shape[i] * (2 if i == axis else 1)
    constants = [d.constant(d.numbers(*extents)) for _ in range(2)]
    return d.add("AffineCReLU", [v, *constants], op.DOMAIN, axis=axis)


def product(d: Drawn, v: str, shape: Shape) -> str | None:
    """A MatMul or a Gemm."""
    if len(shape) != 2 or d.chance(0.5):
        batch = (2,) if d.chance(0.2) else ()
        return d.add("MatMul", [v, d.constant(d.numbers(*batch, shape[-1], 3))]) if shape else None
    left, right = d.pick(0, 0, 1), d.pick(0, 1)
    rows, inner = shape[::-1] if left else shape
    operands = [v, d.constant(d.numbers(*((4, inner) if right else (inner, 4))))]
    if d.chance(0.6):
        bias = d.pick((4,), (1, 4), (1,), (rows, 1), (rows, 4))
        operands.append(d.constant(d.numbers(*bias)))
    scales: dict[str, Any] = {"alpha": d.pick(1.0, 2.0), "beta": d.pick(1.0, 2.0, 0.0)}
    return d.add("Gemm", operands, transA=left, transB=right, **scales)


def convolved(d: Drawn, v: str, shape: Shape) -> str | None:
    """A convolution, or the sum of two."""
    if len(shape) != 4:
        return None
    groups = d.pick(1, 1, 1, 2, shape[1])
    if shape[1] % groups:
        return None
    outputs, kernel = groups * d.pick(1, 2, 3), d.pick((1, 1), (1, 1), (2, 2), (3, 3), (1, 2))
    if d.chance(0.15):
        weight = d.numbers(shape[1], d.pick(1, 2) * groups // groups, *kernel)
        strides = d.pick([1, 1], [2, 2])
        return d.add("ConvTranspose", [v, d.constant(weight)], group=groups, strides=strides)
    given: dict[str, Any] = {"group": groups, "strides": d.pick([1, 1], [1, 1], [2, 1])}
    given |= d.pick({}, {}, {"pads": [1, 1, 1, 1]}, {"pads": [0, 1, 0, 1]}, {"dilations": [1, 2]})
    weights = [d.constant(d.numbers(outputs, shape[1] // groups, *kernel)) for _ in range(2)]
    bias = [d.constant(d.numbers(outputs))] if d.chance(0.6) else []
    one = d.add("Conv", [v, weights[0], *bias], **given)
    if groups > 1 or d.chance(0.85):
        return one
    return d.add("Add", [one, d.add("Conv", [d.like(shape), weights[1]], **given)])


def pooled(d: Drawn, v: str, shape: Shape) -> str | None:
    """A pool, with all that it can be told."""
    if len(shape) != 4:
        return None
    if d.chance(0.15):
        return d.add(d.pick("GlobalAveragePool", "GlobalMaxPool"), [v])
    kind = d.pick("MaxPool", "AveragePool")
    given: dict[str, Any] = {"kernel_shape": d.pick([2, 2], [3, 3], [1, 2], [1, 1])}
    given |= d.pick({}, {"strides": [2, 2]}, {"strides": [3, 3]})
    given |= d.pick({}, {}, {"pads": [1, 1, 1, 1]}, {"pads": [0, 1, 0, 0]}, {"auto_pad": "VALID"})
    given |= d.pick({}, {}, {"ceil_mode": 1})
    last: dict[str, Any] = {"dilations": [1, 2]} if kind == "MaxPool" else {"count_include_pad": 1}
    return d.add(kind, [v], **given, **d.pick({}, {}, last))


def normalised(d: Drawn, v: str, shape: Shape) -> str | None:
    """A batch norm."""
    if len(shape) < 2:
        return None
    gamma, beta, mean = (d.constant(d.numbers(shape[1])) for _ in range(3))
    variance = d.constant(np.abs(d.numbers(shape[1])) + 1)
    return d.add("BatchNormalization", [v, gamma, beta, mean, variance])


OPERATORS: Sequence[Operator] = (
    *(arithmetic,) * 5,
    *(convolved,) * 7,
    *(activation,) * 4,
    *(scaled, bounded, transposed, reshaped, reshaped, reshaped, joined, joined, picked, picked),
    *(combined, unread, padded, site, site, product, pooled, pooled, pooled, normalised),
)
"""Operators, as often as they are drawn."""
