"""Pairs of graphs that differ in little, and pairs that are one and the same.

Each is two texts over the same constants, of which the second may have some of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from graphs import values

from crelu_deploy import op

X, SMALL = (1, 2, 4, 4), (1, 3, 4, 4)
Constants = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Pair:
    """Two graphs from x, and u where there is one, to y.

    Attributes:
        one: The body of the first.
        two: That of the second; empty for the same.
        constants: What both read.
        changed: What is another constant in the second.
        functions: The functions that each has.
        inputs: The extents of each input.
        dtype: The type of all.
        opset: The opset of both.
        infer: Whether shapes are declared.
        runs: Whether ONNX Runtime computes both, and differently.
    """

    one: str
    two: str = ""
    constants: Constants = field(default_factory=dict)
    changed: Constants = field(default_factory=dict)
    functions: Sequence[str] = ("", "")
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"x": X})
    dtype: str = "float"
    opset: int = 17
    infer: bool = True
    runs: bool = True

    def models(self) -> tuple[ir.Model, ir.Model]:
        """Return both."""
        first = _model(self, self.one, self.constants, self.functions[0])
        changed = {**self.constants, **self.changed}
        return first, _model(self, self.two or self.one, changed, self.functions[1])

    def feeds(self) -> dict[str, np.ndarray]:
        """Return something to run both on."""
        kind = {"float": np.float32, "int64": np.int64}[self.dtype]
        found = {name: 3 * values(name, shape) for name, shape in self.inputs.items()}
        return {name: np.asarray(array).astype(kind) for name, array in found.items()}


def _model(pair: Pair, body: str, constants: Constants, functions: str) -> ir.Model:
    kind = pair.dtype
    given = ", ".join(f"{kind}[{', '.join(map(str, s))}] {n}" for n, s in pair.inputs.items())
    end = "int64" if "Shape(" in body else kind
    domains = f'"": {pair.opset}, "crelu_deploy": 1, "f": 1'
    text = (
        f"<ir_version: 8, opset_import: [{domains}]> g ({given}) => ({end}[] y) "
        f"{{ {body} }} {functions}"
    )
    proto = onnx.parser.parse_model(text)
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for op_type in re.findall(r"crelu_deploy\.(\w+)", body):
        proto.functions.append(ir.serde.serialize_function(op.function(op_type, pair.opset)))
    proto = onnx.shape_inference.infer_shapes(proto) if pair.infer else proto
    proto.graph.output[0].type.tensor_type.ClearField("shape")  # terms differ, not interfaces
    return ir.from_proto(proto)


def function(body: str, given: str = "", outputs: str = "y", opset: int = 17) -> str:
    """Return a function g of x."""
    opsets = f'opset_import: ["": {opset}]'
    return f'<domain: "f", {opsets}> g {given} (x) => ({outputs}) {{ {body} }}'


def dead(*rows: int, shape: tuple[int, ...] = (3, 2, 1, 1)) -> np.ndarray:
    """Return weights of which some rows are zero."""
    array = values("w", shape)
    array[list(rows)] = 0
    return array


def other(array: np.ndarray, *index: int) -> np.ndarray:
    """Return an array of which one slice has other values."""
    changed = array.copy()
    changed[index] = values("other", changed[index].shape)
    return changed


MAP, ROW = values("map", SMALL), values("row", (5,))
SITE = "s = crelu_deploy.CReLU<axis=1>(q)"
SPELLED = "n = Neg(q) k = Concat<axis=1>(q, n) s = Relu(k)"
WIDE = {"v": values("v", (5, 6, 1, 1))}
LAST = {"v": values("v", (5, 3, 1, 1))}
DEAD = {"w": dead(1), "c": MAP}
ONES = np.ones(SMALL, np.float32)


def hole(number: float) -> np.ndarray:
    """Return ones, and a number at one place of the channel that is dead."""
    changed = ONES.copy()
    changed[0, 1, 2, 2] = number
    return changed


TWICE = {"a": np.array([0]), "b": np.array([1]), "w": dead(), "d": values("d", (3,))}
GIVEN = "<alpha, beta>"
CALL = "y = f.g<alpha=0.1, beta=0.9>(x)"
SPLIT = "p = MaxPool<kernel_shape=[2,2]>(x)"
POOLED = f"{SPLIT} z = Conv(p, w, d)"
RECT = {"x": (1, 3, 4), "u": (1, 3, 5)}
EMPTY = {"x": (1, 0, 4), "u": (1, 0, 5)}
BIG = np.array(2**53)
FLAT = {"x": (1, 1, 1), "u": (1, 1, 1)}
ENDS = {"n": np.array([-1, 2]), "m": np.array([-1, 1]), "i": np.array([0]), "j": np.array([1])}
PICKED = "p = Gather<axis=1>(s, i) q = Gather<axis=1>(s, j) o = Reshape(p, m) l = Reshape(q, m)"
VECTOR: dict[str, tuple[int, ...]] = {"x": (4,)}

DIFFERENT: dict[str, Pair] = {
    # a constant that differs within a channel, added to a channel that is zero
    "a map on a dead filter": Pair(
        "z = Conv(x, w) q = Add(z, c) y = Conv(q, v)",
        constants=DEAD | LAST,
        changed={"c": other(MAP, 0, 1)},
    ),
    "a map on a dead filter behind a site": Pair(
        f"z = Conv(x, w) q = Add(z, c) {SITE} y = Conv(s, v)",
        f"z = Conv(x, w) q = Add(z, c) {SPELLED} y = Conv(s, v)",
        constants=DEAD | WIDE,
        changed={"c": other(MAP, 0, 1)},
    ),
    "a map on a product with zero": Pair(
        "z = Mul(x, m) q = Add(z, c) y = Conv(q, v)",
        constants={"m": np.array([1, 0, 2], np.float32).reshape(3, 1, 1), "c": MAP} | LAST,
        changed={"c": other(MAP, 0, 1)},
        inputs={"x": SMALL},
    ),
    "a map less a dead filter": Pair(
        "z = Conv(x, w) q = Sub(c, z) r = Relu(q) y = Conv(r, v)",
        constants=DEAD | LAST,
        changed={"c": other(MAP, 0, 1)},
    ),
    "zero over zero": Pair(
        "z = Conv(x, w) q = Div(z, c) y = Conv(q, v)",
        constants={"w": dead(1), "c": ONES} | LAST,
        changed={"c": hole(0)},
    ),
    "zero times infinity": Pair(
        "z = Conv(x, w) q = Mul(z, c) y = Conv(q, v)",
        constants={"w": dead(1), "c": ONES} | LAST,
        changed={"c": hole(np.inf)},
    ),
    # broadcasting that makes a channel larger
    "a constant that makes channels longer": Pair(
        "k = Concat<axis=1>(x, u) s = Add(k, c) y = Reshape(s, n)",
        f"k = Concat<axis=1>(x, u) s = Add(k, c) {PICKED} y = Concat<axis=-1>(o, l)",
        constants={"c": ROW, **ENDS},
        inputs=FLAT,
    ),
    "a constant of a larger rank": Pair(
        "z = MatMul(x, w) y = Add(z, c)",
        constants={"w": values("w", (4, 5)), "c": np.ones((1, 1), np.float32)},
        changed={"c": np.ones(1, np.float32)},
        inputs=VECTOR,
        infer=False,
    ),
    # the shape of what is constant
    "zeros of another shape": Pair(
        "z = Conv(x, w, d) y = Shape(z)",
        f"{POOLED} y = Shape(z)",
        constants={"w": dead(0, 1, 2), "d": values("d", (3,))},
    ),
    "sums of zeros of another shape": Pair(
        "z = Conv(x, w, d) y = ReduceSum(z, a)",
        f"{POOLED} y = ReduceSum(z, a)",
        constants={"w": dead(0, 1, 2), "d": values("d", (3,)), "a": np.array([2, 3])},
    ),
    "zeros of another shape at the end": Pair(
        "y = Conv(x, w, d)",
        f"{SPLIT} y = Conv(p, w, d)",
        constants={"w": dead(0, 1, 2), "d": values("d", (3,))},
        infer=False,
    ),
    "one zero of another shape": Pair(
        "y = Mul(x, m)",
        f"{SPLIT} y = Mul(p, m)",
        constants={"m": np.zeros((), np.float32)},
        inputs={"x": (1, 1, 4, 4)},
        infer=False,
    ),
    "nothing of another shape": Pair(
        "z = Concat<axis=1>(x, x) y = Shape(z)",
        "z = Concat<axis=1>(u, u) y = Shape(z)",
        inputs=EMPTY,
    ),
    "nothing picked of another shape": Pair(
        "z = Concat<axis=1>(x, x) p = Gather<axis=1>(z, i) y = Shape(p)",
        "z = Concat<axis=1>(u, u) p = Gather<axis=1>(z, i) y = Shape(p)",
        constants={"i": np.zeros(0, np.int64)},
        inputs=RECT,
    ),
    "a sum that broadcasts": Pair(
        "z = Conv(x, w, d) y = ReduceSum(z, a)",
        "z = Conv(x, w) k = Conv(u, w2) s = Add(z, k) y = ReduceSum(s, a)",
        constants={
            "w": dead(),
            "w2": dead(0, 1, 2),
            "a": np.array([2, 3]),
            "d": np.zeros(3, np.float32),
        },
        inputs={"x": (1, 2, 1, 1), "u": X},
    ),
    # one channel along another axis
    "one channel along another axis": Pair(
        "z = Conv(x, w, d) p = Gather<axis=1>(z, a) q = Gather<axis=1>(z, b)"
        " y = Concat<axis=2>(p, q)",
        "z = Conv(x, w, d) p = Gather<axis=1>(z, a) q = Gather<axis=1>(z, b)"
        " y = Concat<axis=2>(q, p)",
        constants=TWICE,
    ),
    # constants through operators
    "a constant beyond float16": Pair(
        "z = Conv(x, w, d) h = Cast<to=10>(z) y = Cast<to=1>(h)",
        "y = Conv(x, w, d)",
        constants={"w": dead(0, shape=(1, 2, 1, 1)), "d": np.array([1e6], np.float32)},
    ),
    "a constant through another selu": Pair(
        "z = Conv(x, w, d) y = Selu<alpha=3.0, gamma=1.0>(z)",
        "z = Conv(x, w, d) y = Selu<alpha=1.0, gamma=1.0>(z)",
        constants={"w": dead(0, shape=(1, 2, 1, 1)), "d": np.array([-1], np.float32)},
    ),
    # integers that float64 does not hold
    "a limit of integers": Pair(
        "z = Sub(x, l) y = Clip(z, k)",
        constants={"k": np.asarray(-BIG), "l": np.array(2**60)},
        changed={"k": np.asarray(-BIG - 1)},
        dtype="int64",
    ),
    "a pad of integers": Pair(
        "y = Pad(x, p, k)",
        constants={"k": BIG, "p": np.array([0, 0, 0, 0, 0, 0, 0, 1])},
        changed={"k": np.asarray(BIG + 1)},
        dtype="int64",
    ),
    # functions
    "another attribute of the caller": Pair(
        CALL,
        functions=[
            function("y = LeakyRelu<alpha=@alpha>(x)", GIVEN),
            function("y = LeakyRelu<alpha=@beta>(x)", GIVEN),
        ],
        infer=False,
    ),
    "no attribute of the caller": Pair(
        CALL,
        functions=[
            function("y = LeakyRelu<alpha=@alpha>(x)", GIVEN),
            function("y = LeakyRelu(x)", GIVEN),
        ],
        infer=False,
    ),
    "another default": Pair(
        "y = f.g(x)",
        functions=[
            function("y = ThresholdedRelu<alpha=@alpha>(x)", f"<alpha: float = {value}>")
            for value in (0.1, 1.5)
        ],
        infer=False,
    ),
    "another opset of a function": Pair(
        "y = f.g(x)",
        functions=[function("y = Softmax(x)", opset=opset) for opset in (13, 11)],
        opset=13,
        infer=False,
        runs=False,
    ),
    "fewer outputs of a function": Pair(
        "y = f.g(x)",
        functions=[
            function("y = Tanh(x) z = Exp(x)", outputs="y, z"),
            function("y = Tanh(x)"),
        ],
        infer=False,
        runs=False,
    ),
    "a function that is gone": Pair(
        "y = f.g(x)", functions=[function("y = Tanh(x)"), ""], infer=False, runs=False
    ),
    "one random number for two": Pair(
        "a = f.g(x) b = f.g(x) y = Sub(a, b)",
        "a = f.g(x) y = Sub(a, a)",
        functions=[function("r = RandomUniformLike(x) y = Add(x, r)")] * 2,
        infer=False,
    ),
}
"""What differs -> the pair."""

NEGATED = {"w6": np.concatenate([dead(1), -dead(1)])}
SAME: dict[str, Pair] = {
    "a map on a dead filter": Pair(
        f"z = Conv(x, w) q = Add(z, c) {SITE} y = Conv(s, v)",
        f"z = Conv(x, w) q = Add(z, c) {SPELLED} y = Conv(s, v)",
        constants=DEAD | WIDE,
    ),
    "a map on a dead filter, folded": Pair(
        "z = Conv(x, w) q = Add(z, c) y = crelu_deploy.CReLU<axis=1>(q)",
        "z = Conv(x, w6) q = Add(z, c6) y = Relu(q)",
        constants=DEAD,
        changed=NEGATED | {"c6": np.concatenate([MAP, -MAP], 1)},
    ),
    "a map on a dead filter with a bias, folded": Pair(
        "z = Conv(x, w, d) q = Mul(z, c) y = crelu_deploy.CReLU<axis=1>(q)",
        "z = Conv(x, w6, d6) q = Mul(z, c6) y = Relu(q)",
        constants=DEAD | {"d": values("d", (3,))},
        changed=NEGATED
        | {"d6": np.concatenate([values("d", (3,)), -values("d", (3,))])}
        | {"c6": np.concatenate([MAP, MAP], 1)},
    ),
    "a number that is none": Pair(
        "z = Mul(x, m) y = Relu(z)", constants={"m": np.array(np.nan, np.float32)}
    ),
    "infinity less infinity": Pair(
        "z = Add(x, m) q = Sub(z, m) y = Relu(q)", constants={"m": np.array(np.inf, np.float32)}
    ),
    "references": Pair(
        CALL,
        functions=[function("y = LeakyRelu<alpha=@beta>(x)", GIVEN)] * 2,
        infer=False,
    ),
    "a stride of the caller": Pair(
        "y = f.g<alpha=[2,2]>(x)",
        functions=[
            function(
                "w = Constant<value = float[1,2,1,1] {1.0, 2.0}>() y = Conv<strides=@alpha>(x, w)",
                "<alpha>",
            )
        ]
        * 2,
        infer=False,
    ),
    "a product of integers": Pair(
        "y = MatMul(x, w)", constants={"w": np.full((4, 3), BIG)}, dtype="int64"
    ),
    "random numbers": Pair(
        "a = f.g(x) b = f.g(x) y = Sub(a, b)",
        functions=[function("r = RandomUniformLike(x) y = Add(x, r)")] * 2,
        infer=False,
    ),
}
"""What is the same -> the pair."""
