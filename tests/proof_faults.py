"""Lowered networks, and faults in them: each a change of one node or constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from graphs import CONV, IMAGE, Case, image, model, values

from crelu_deploy.lowerings import lower
from crelu_deploy.lowerings.values import constant

Change = Callable[[np.ndarray], object]
Fault = Callable[[ir.Model], None]

W, V, D = {"w": (6, 4, 3, 3), "b": (6,)}, (5, 12, 3, 3), (5,)
NEXT = "[next] y = Conv<pads=[1,1,1,1]>(c, v, d)"
SITE = "[site] c = crelu_deploy.CReLU<axis=1>(z)"
PADDED = "[conv] z = Conv<pads=[1,1,1,1]>(x, w, b)"
POOL = "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>"
AFFINE = {"s": values("s", (1, 12, 1, 1)), "t": values("t", (12, 1, 1))}
ORDER = np.random.default_rng(4).permutation(12)
BEHIND = image(PADDED, v=V, d=D)
NETWORKS: dict[str, tuple[Case, str, str]] = {
    **{
        name: (BEHIND, f"{SITE} {NEXT}", name)
        for name in (
            *("fold", "depthwise", "split", "complement", "mirror", "primitive", "function"),
            "plugin",
        )
    },
    "pooled": (BEHIND, f"{SITE} [pool] e = {POOL}(c) [next] y = Conv(e, v, d)", "pooled"),
    "steps": (
        image(
            "[conv] p = Conv(x, w, b) [mul] q = Mul(p, m) [add] r = Add(q, a)"
            " [pad] o = Pad(r, k) [shape] z = Reshape(o, n)",
            m=(6, 1, 1),
            a=(6, 1, 1),
            k=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            n=np.array([0, 6, -1]),
        ),
        "[site] y = crelu_deploy.CReLU<axis=1>(z)",
        "fold",
    ),
    "batch norm": (
        image(
            "[conv] p = Conv(x, w, b) [norm] z = BatchNormalization(p, g, h, m, u)",
            g=(6,),
            h=(6,),
            m=(6,),
            u=np.linspace(0.5, 2, 6, dtype=np.float32),
        ),
        "[site] y = crelu_deploy.CReLU<axis=1>(z)",
        "fold",
    ),
    "affine": (
        image(CONV, **AFFINE),
        "[site] y = crelu_deploy.AffineCReLU<axis=1>(z, s, t)",
        "fold",
    ),
    "affine mirror": (
        image(CONV, **AFFINE),
        "[site] y = crelu_deploy.AffineCReLU<axis=1>(z, s, t)",
        "mirror",
    ),
    "interleaved": (
        image(CONV, i=np.arange(12).reshape(2, 6).T.ravel()),
        "[site] q = crelu_deploy.CReLU<axis=1>(z) y = Gather<axis=1>(q, i)",
        "fold",
    ),
    "grouped": (
        Case("[conv] z = Conv<group=2>(x, w)", IMAGE, {"w": (6, 2, 3, 3), "i": ORDER}),
        "[site] q = crelu_deploy.CReLU<axis=1>(z) y = Gather<axis=1>(q, i)",
        "fold",
    ),
    "read elsewhere": (
        image("[conv] z = Conv(x, w, b) [other] o = Sigmoid(z)"),
        "[site] y = crelu_deploy.CReLU<axis=1>(z)",
        "fold",
    ),
    "rows": (
        Case("[conv] z = Gemm(x, w, b)", (3, 5), {"w": (5, 7), "b": (7,), "v": (14, 4)}, -1),
        "[site] c = crelu_deploy.CReLU<axis=1>(z) [next] y = MatMul(c, v)",
        "complement",
    ),
}
"""Name -> the network, its site and what follows, and the lowering."""
OUTPUTS = {"read elsewhere": ["y", "o"]}


@dataclass(frozen=True)
class Lowering:
    """A network with canonical nodes and its lowered form."""

    canonical: ir.Model
    lowered: ir.Model


def lowering(name: str) -> Lowering:
    """Return one of ``NETWORKS``, lowered."""
    case, site, form = NETWORKS[name]
    canonical = model(case, site, outputs=OUTPUTS.get(name, ["y"]))
    done = lower(canonical, form)
    assert set(done.applied.values()) == {form}, done.reasons
    return Lowering(canonical, done.lowered if hasattr(done, "lowered") else done.model)


def numbers(node: str, index: int, change: Change) -> Fault:
    """Change a constant that a node reads, in place or by returning another."""

    def fault(lowered: ir.Model) -> None:
        found = lowered.graph.node(node)
        tensor = constant(found.inputs[index])
        assert tensor is not None
        array = tensor.numpy().copy()
        other = change(array)
        array = other if isinstance(other, np.ndarray) else array
        value = ir.val("planted", const_value=ir.tensor(array, name="planted"))
        lowered.graph.register_initializer(value)
        found.replace_input_with(index, value)

    return fault


def attribute(node: str, name: str, value: int | float | list[int]) -> Fault:
    """Give a node another attribute."""

    def fault(lowered: ir.Model) -> None:
        lowered.graph.node(node).attributes.add(ir.convenience.convert_attribute(name, value))

    return fault


def swapped(node: str) -> Fault:
    """Exchange a node's first two inputs."""

    def fault(lowered: ir.Model) -> None:
        found = lowered.graph.node(node)
        one, two = found.inputs[:2]
        found.replace_input_with(0, two)
        found.replace_input_with(1, one)

    return fault


def reading(node: str, index: int, value: str) -> Fault:
    """Let a node read another value."""

    def fault(lowered: ir.Model) -> None:
        known = [*lowered.graph.inputs, *(v for n in lowered.graph for v in n.outputs)]
        wanted = next(v for v in known if v.name == value)
        lowered.graph.node(node).replace_input_with(index, wanted)

    return fault


def instead(node: str, op_type: str, **attributes: float) -> Fault:
    """Put another operator in the place of a node."""

    def fault(lowered: ir.Model) -> None:
        found = lowered.graph.node(node)
        found.op_type, found.domain = op_type, ""
        found.attributes.clear()
        for name, value in attributes.items():
            found.attributes.add(ir.convenience.convert_attribute(name, value))

    return fault


def body(index: int, op_type: str) -> Fault:
    """Put another operator into the body of a canonical node."""

    def fault(lowered: ir.Model) -> None:
        (function,) = lowered.functions.values()
        function[index].op_type = op_type

    return fault


def half(row: int) -> Change:
    """Zero one row."""

    def change(array: np.ndarray) -> None:
        array[row] = 0

    return change


def scaled(row: int, factor: float) -> Change:
    """Multiply one row."""

    def change(array: np.ndarray) -> None:
        array[row] *= factor

    return change


def element(index: tuple[int, ...], factor: float) -> Change:
    """Multiply one number."""

    def change(array: np.ndarray) -> None:
        array[index] *= factor

    return change


def copied(row: int, other: int) -> Change:
    """Put one row in the place of another."""

    def change(array: np.ndarray) -> None:
        array[row] = array[other]

    return change


def rolled(by: int, axis: int = 0) -> Change:
    """Move all rows or columns on."""
    return lambda array: np.roll(array, by, axis)


def through_half(array: np.ndarray) -> np.ndarray:
    """Round to float16."""
    return array.astype(np.float16).astype(array.dtype)


def zeros(array: np.ndarray) -> np.ndarray:
    """Forget all numbers."""
    return np.zeros_like(array)
