"""Constants of a model, and how they lie against a tensor that an elementwise node reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from crelu_deploy.recognition.probe import OPS, Array

_DEEPEST = 16
_MOST_ELEMENTS = 1 << 22
"""No constant of an elementwise node that is one number per channel is larger, by far."""


@dataclass(frozen=True)
class Frame:
    """A tensor against which constants lie.

    Attributes:
        rank: Number of dimensions, None if unknown.
        axis: The axis of the concat, from the front where the rank is known.
        shape: Extents, None where unknown; empty where the rank is unknown.
        joined: True behind the concat, where the axis has at least two entries.
    """

    rank: int | None
    axis: int
    shape: tuple[int | None, ...]
    joined: bool = False

    def by_channel(self, constant: Array) -> Array | None:
        """Return shape () or (channels,), or None if it varies along, or adds, another axis."""
        if constant.ndim == 0 or (constant.size == 1 and constant.ndim <= (self.rank or 1)):
            return constant.reshape(())
        if self.rank is None or constant.ndim > self.rank or constant.size == 0:
            return None
        padded = constant.reshape((1,) * (self.rank - constant.ndim) + constant.shape)
        if not all(self._holds(i, extent) for i, extent in enumerate(padded.shape)):
            return None
        rows = np.moveaxis(padded, self.axis, 0).reshape(padded.shape[self.axis], -1)
        if (rows != rows[:, :1]).any():
            return None
        return np.asarray(rows[:, 0] if len(rows) > 1 else rows[0, 0])

    def _holds(self, axis: int, extent: int) -> bool:
        """Return whether a constant with this extent leaves the tensor's shape as it is."""
        if axis == self.axis and self.joined:
            return True
        return extent in (1, self.shape[axis])


class Constants:
    """What is constant in one model, folded through a few operators; each answer is kept.

    Args:
        variables: Initializers that a caller may override, which hence are no constants.
    """

    def __init__(self, variables: frozenset[ir.Value]) -> None:
        self._variables = variables
        self._known: dict[ir.Value, Array | None] = {}

    def get(self, value: ir.Value, depth: int = 0) -> Array | None:
        """Return a constant as float64 or bool in its own shape, None if it is none.

        What lies ``_DEEPEST`` operators behind a stored constant counts as none.
        """
        if value not in self._known:
            self._known[value] = None  # what depends on itself, in a broken graph, has no answer
            self._known[value] = self._folded(value, depth) if depth < _DEEPEST else None
        return self._known[value]

    def _folded(self, value: ir.Value, depth: int) -> Array | None:
        node = value.producer()
        fixed = value.const_value is not None and value not in self._variables
        if fixed or (node is not None and node.op_type == "Constant" and not node.domain):
            return _array(value)
        if node is None or node.domain or not node.inputs or value is not node.outputs[0]:
            return None
        if node.op_type not in _FOLDS and node.op_type not in OPS:
            return None
        inputs = [i for i in node.inputs if i is not None]
        operands: list[Array | None] = []
        for i in inputs:  # stops at the first that is no constant: most are not
            operands.append(self.get(i, depth + 1))
            if operands[-1] is None:
                return None
        with np.errstate(all="ignore"):
            return _FOLDS.get(node.op_type, OPS.get(node.op_type, _first))(node, operands)


def stored(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer or a Constant node, which both stay untouched."""
    node = value.producer()
    if value.const_value is not None or node is None or node.op_type != "Constant":
        return value.const_value
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            return attribute.as_tensor()
        if name in ("value_float", "value_floats"):
            return ir.tensor(np.asarray(attribute.value, np.float32))
        if name in ("value_int", "value_ints"):
            return ir.tensor(np.asarray(attribute.value, np.int64))
    return None


def _array(value: ir.Value) -> Array | None:
    tensor = stored(value)
    if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.size > _MOST_ELEMENTS:
        return None
    array = tensor.numpy()
    return array if array.dtype == np.bool_ else array.astype(np.float64)


def _first(node: ir.Node, operands: Sequence[Array | None]) -> Array:
    return np.asarray(operands[0])


def _ints(array: Array | None) -> tuple[int, ...]:
    return tuple(int(n) for n in np.ravel(np.asarray(array)))


def _unsqueezed(node: ir.Node, operands: Sequence[Array | None]) -> Array:
    axes = node.attributes.get_ints("axes") or _ints(operands[-1])
    return np.expand_dims(np.asarray(operands[0]), tuple(axes))


def _reshaped(node: ir.Node, operands: Sequence[Array | None]) -> Array:
    array = np.asarray(operands[0])
    return array.reshape(
        [array.shape[i] if n == 0 else n for i, n in enumerate(_ints(operands[1]))]
    )


def _expanded(node: ir.Node, operands: Sequence[Array | None]) -> Array:
    array = np.asarray(operands[0])
    return np.broadcast_to(array, np.broadcast_shapes(_ints(operands[1]), array.shape))


def _filled(node: ir.Node, operands: Sequence[Array | None]) -> Array:
    return OPS["ConstantOfShape"](node, [np.empty(_ints(operands[0]), np.bool_)])


_FOLDS: Mapping[str, Callable[[ir.Node, Sequence[Array | None]], Array]] = {
    "ConstantOfShape": _filled,
    "Expand": _expanded,
    "Reshape": _reshaped,
    "Unsqueeze": _unsqueezed,
}
"""What may lie between a stored constant and its elementwise reader, beside ``OPS``."""
