"""What CReLU is: the ONNX domain, the canonical nodes with their bodies, and a NumPy reference.

``CReLU(x) = concat(relu(x), relu(-x))`` along the channel axis (Shang et al., ICML 2016). Any
pointwise ``f`` in place of relu gives a sibling, ``concat(f(x), f(-x))``; ``ACTIVATIONS`` is the
table of them. Each has two node types in the domain ``crelu_deploy``:

* ``CReLU(x) <axis>``: ``f(concat(x, -x))``;
* ``AffineCReLU(x, scale, shift) <axis>``: ``f(concat(x, -x) * scale + shift)``, the form with a
  learned scale and shift behind the concat, which may differ between the halves (PVANet, Caffe).
  ``scale`` and ``shift`` broadcast against the concatenated tensor.

The other order of the halves is a node that reads ``Neg(x)``; interleaved halves are a node
followed by a ``Gather`` along the same axis. So one node type serves every spelling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

DOMAIN = "crelu_deploy"
VERSION = 1

Array = np.ndarray[Any, Any]
Pointwise = Callable[[float], float]


@dataclass(frozen=True)
class Activation:
    """One pointwise function f.

    Attributes:
        op_type: The canonical node's type in ``DOMAIN``.
        onnx: The ONNX operator that computes f.
        apply: f in NumPy: ``apply(x, **attributes)`` has the shape and dtype of ``x``, keeps NaN.
        fits: For each float attribute, how to read it off a scalar implementation of f.
        limits: True where the attributes became inputs of the operator in opset 11 (Clip).
        since: The first opset with this operator, or with what its function body needs.
    """

    op_type: str
    onnx: str
    apply: Callable[..., Array]
    fits: Mapping[str, Callable[[Pointwise], float]] = field(default_factory=dict)
    limits: bool = False
    since: int = 7

    @property
    def affine_op_type(self) -> str:
        """The type of the node that also takes a scale and a shift."""
        return f"Affine{self.op_type}"


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x).astype(x.dtype)


_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875

ACTIVATIONS: Mapping[str, Activation] = {
    "relu": Activation("CReLU", "Relu", lambda x: np.where(x <= 0, x.dtype.type(0), x)),
    "leaky_relu": Activation(
        "CLeakyRelu",
        "LeakyRelu",
        lambda x, alpha: np.where(x < 0, x * x.dtype.type(alpha), x),
        {"alpha": lambda f: -f(-1.0)},
    ),
    "elu": Activation("CElu", "Elu", _elu, {"alpha": lambda f: -f(-1e4)}),
    "clip": Activation(
        "CClip",
        "Clip",
        lambda x, min, max: np.clip(x, x.dtype.type(min), x.dtype.type(max)),
        {"min": lambda f: f(-1e30), "max": lambda f: f(1e30)},
        limits=True,
    ),
    "selu": Activation("CSelu", "Selu", lambda x: _elu(x, _SELU_ALPHA) * x.dtype.type(_SELU_GAMMA)),
    "softplus": Activation("CSoftplus", "Softplus", lambda x: np.logaddexp(x, x.dtype.type(0))),
    "sigmoid": Activation("CSigmoid", "Sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    "tanh": Activation("CTanh", "Tanh", np.tanh),
    "softsign": Activation("CSoftsign", "Softsign", lambda x: x / (1 + np.abs(x))),
}

NODE_TYPES: Mapping[str, tuple[str, bool]] = {
    op_type: (name, affine)
    for name, activation in ACTIVATIONS.items()
    for op_type, affine in ((activation.op_type, False), (activation.affine_op_type, True))
}
"""Canonical node type -> (name of its activation, whether it takes a scale and a shift)."""


def reference(
    x: Array,
    axis: int = 1,
    activation: str = "relu",
    *,
    scale: Array | None = None,
    shift: Array | None = None,
    **attributes: float,
) -> Array:
    """Return ``f(concat(x, -x, axis) * scale + shift)``.

    The extent of ``axis`` doubles, the dtype and NaN are kept. ``attributes`` are those of the
    activation, such as ``alpha``.
    """
    halves = np.concatenate([x, -x], axis)
    if scale is not None:
        halves = halves * scale
    if shift is not None:
        halves = halves + shift
    return np.asarray(ACTIVATIONS[activation].apply(halves, **attributes))


def activate(
    activation: str, x: ir.Value, attributes: Mapping[str, ir.Attr], opset: int
) -> list[ir.Node]:
    """Return the nodes that compute f(x); the last one's only output is the result.

    ``attributes`` may be references to a function's attributes, which for a limit needs opset 15.
    """
    kind = ACTIVATIONS[activation]
    if not kind.limits or opset < 11:
        return [ir.node(kind.onnx, [x], _renamed(attributes))]
    constants = [_limit(attributes[name], x, opset) for name in kind.fits]
    limits = [nodes[-1].outputs[0] for nodes in constants]
    return [*(node for nodes in constants for node in nodes), ir.node(kind.onnx, [x, *limits])]


def _renamed(attributes: Mapping[str, ir.Attr]) -> dict[str, ir.Attr]:
    """Drop ``axis``, which is the canonical node's own."""
    return {name: attribute for name, attribute in attributes.items() if name != "axis"}


def _limit(attribute: ir.Attr, like: ir.Value, opset: int) -> list[ir.Node]:
    if attribute.is_ref():
        name = attribute.ref_attr_name or attribute.name
        reference_ = ir.RefAttr("value_float", name, ir.AttributeType.FLOAT)
        constant = ir.node("Constant", [], {"value_float": reference_})
        return [constant, ir.node("CastLike", [constant.outputs[0], like])]
    value = np.array(attribute.as_float(), (like.dtype or ir.DataType.FLOAT).numpy())
    return [ir.node("Constant", [], {"value": ir.tensor(value)})]


def function(op_type: str, opset: int) -> ir.Function:
    """Return the ONNX function behind a canonical node type, in terms of ``opset``.

    Raises:
        ValueError: The body cannot be written in this opset (a clip below opset 15).
    """
    name, affine = NODE_TYPES[op_type]
    kind = ACTIVATIONS[name]
    if kind.limits and opset < 15:
        raise ValueError(f"{op_type} has no function body in opset {opset}: it needs opset 15")
    inputs = [ir.val(n) for n in (("x", "scale", "shift") if affine else ("x",))]
    axis = ir.RefAttr("axis", "axis", ir.AttributeType.INT)
    negated = ir.node("Neg", [inputs[0]])
    nodes = [negated, ir.node("Concat", [inputs[0], negated.outputs[0]], {"axis": axis})]
    if affine:
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], inputs[1]]))
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], inputs[2]]))
    references = {n: ir.RefAttr(n, n, ir.AttributeType.FLOAT) for n in kind.fits}
    nodes += activate(name, nodes[-1].outputs[0], references, opset)
    for i, node in enumerate(nodes):
        node.outputs[0].name = f"v{i}"
    nodes[-1].outputs[0].name = "y"
    graph = ir.Graph(
        inputs, nodes[-1].outputs, nodes=nodes, opset_imports={"": opset}, name=op_type
    )
    declared = [ir.Attr("axis", ir.AttributeType.INT, None)]
    declared += [ir.Attr(n, ir.AttributeType.FLOAT, None) for n in kind.fits]
    return ir.Function(DOMAIN, op_type, graph=graph, attributes=declared)
