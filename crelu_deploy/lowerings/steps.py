"""Operators that may lie between a producer and a site: ``step(-x) = -step(x)``.

They keep the channels whole on one axis, so they work on the doubled tensor as they are, or with
their own per-channel constants doubled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from crelu_deploy.lowerings.producers import Refusal
from crelu_deploy.lowerings.values import constant, describe, is_onnx
from crelu_deploy.op import Array


@dataclass(frozen=True)
class Spot:
    """Where the channels are in a tensor.

    Attributes:
        axis: Their axis, counted from the end, so negative.
        extent: The extent of that axis: the number of channels, or a multiple of it where
            an operator has flattened more into the axis.
        rank: The rank of the tensor; None where it is not known.
    """

    axis: int
    extent: int
    rank: int | None

    def is_second(self) -> bool:
        """Whether the channels are on axis 1, where pools and batch norms expect them."""
        return self.rank is not None and self.axis == 1 - self.rank

    def from_front(self) -> int:
        """Return the axis counted from the front where the rank is known."""
        return self.axis if self.rank is None else self.axis + self.rank


Follow = Callable[[ir.Node, Spot], Spot]


@dataclass(frozen=True)
class Step:
    """One operator that commutes with negation.

    Attributes:
        follow: From where the channels are in the input to where they are in the output; raises
            ``Refusal`` where the operator does not keep them whole.
        constants: Per-channel inputs: index -> whether they are added, so change sign as well.
        moves: Whether it only moves or keeps values, so that it commutes with any other
            pointwise operator.
    """

    follow: Follow
    constants: Mapping[int, bool] = field(default_factory=dict)
    moves: bool = False


def is_step(node: ir.Node) -> bool:
    """Whether the node is one of ``STEPS``, and not arithmetic on two tensors."""
    if not is_onnx(node, *STEPS):
        return False
    return STEPS[node.op_type].follow is not _arithmetic or _operand(node) is not None


def _operand(node: ir.Node) -> ir.TensorProtocol | None:
    """Return the constant operand of arithmetic."""
    return constant(node.inputs[1 - data_index(node)])


def data_index(node: ir.Node) -> int:
    """Return which input is the data: for arithmetic with a constant, the other one."""
    arithmetic = is_onnx(node, "Add", "Mul", "Sub")
    return 1 if arithmetic and constant(node.inputs[0]) is not None else 0


def _same(_: ir.Node, spot: Spot) -> Spot:
    return spot


def _dropout(node: ir.Node, spot: Spot) -> Spot:
    if not is_inference_dropout(node):
        raise Refusal(f"{describe(node)} before it may drop values, or its mask is read")
    return spot


def is_inference_dropout(node: ir.Node) -> bool:
    """Whether a Dropout only passes its input on, and nothing reads its mask."""
    training = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    off = len(node.inputs) < 3 or node.inputs[2] is None
    off = off or (training is not None and not training.numpy().any())
    return off and not any(v.uses() or v.is_graph_output() for v in node.outputs[1:])


def _cast(node: ir.Node, spot: Spot) -> Spot:
    to, source = ir.DataType(node.attributes["to"].as_int()), node.inputs[0]
    if source is None or source.dtype is None or not _is_float(to) or not _is_float(source.dtype):
        raise Refusal(f"{describe(node)} before it is not between floating-point types")
    return spot


def _is_float(dtype: ir.DataType) -> bool:
    return dtype in {
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
    }


def _pool(node: ir.Node, spot: Spot) -> Spot:
    if not spot.is_second():
        raise Refusal(f"{describe(node)} before it mixes the channels")
    return spot


def _batch_norm(node: ir.Node, spot: Spot) -> Spot:
    if not is_inference_batch_norm(node):
        raise Refusal(f"{describe(node)} before it has no constant statistics")
    if not spot.is_second():
        raise Refusal(f"{describe(node)} before it is on another axis")
    return spot


def is_inference_batch_norm(node: ir.Node) -> bool:
    """Whether a BatchNormalization is a fixed scale and shift for each channel of axis 1."""
    attributes = node.attributes
    fixed = attributes.get_int("training_mode", 0) == 0 and attributes.get_int("spatial", 1) == 1
    used = [v for v in node.outputs[1:] if v.name]
    return fixed and not used and all(constant(v) is not None for v in node.inputs[1:])


def _arithmetic(node: ir.Node, spot: Spot) -> Spot:
    tensor = _operand(node)
    if tensor is None:
        raise Refusal(f"{describe(node)} before it has no constant operand")
    rank = None if spot.rank is None else max(spot.rank, len(tensor.shape))
    inside = -spot.axis <= len(tensor.shape)
    if inside and tensor.shape[spot.axis] not in (1, spot.extent):
        raise Refusal(f"{describe(node)} before it repeats the channels")
    return replace(spot, rank=rank)


def _transpose(node: ir.Node, spot: Spot) -> Spot:
    perm = node.attributes.get_ints("perm", ())
    rank = len(perm) or spot.rank
    if not rank:
        raise Refusal(f"the rank at {describe(node)} before it is not known")
    perm = list(perm) or list(range(rank))[::-1]
    return replace(spot, axis=perm.index(spot.axis + rank) - rank, rank=rank)


def _pad(node: ir.Node, spot: Spot) -> Spot:
    pads, axes = _values(node, "pads", 1), _values(node, "axes", 3)
    if pads is None or spot.rank is None or (len(node.inputs) > 3 and node.inputs[3] and not axes):
        raise Refusal(f"the pads of {describe(node)} before it are not constant")
    padded = [a % spot.rank for a in axes] if axes else list(range(spot.rank))
    padding = dict(zip(padded, zip(pads, pads[len(padded) :], strict=False), strict=True))
    if any(padding.get(spot.from_front(), (0, 0))):
        raise Refusal(f"{describe(node)} before it pads the channels")
    value = _values(node, "value", 2) or [0]
    if node.attributes.get_string("mode", "constant") == "constant" and any(value):
        raise Refusal(f"{describe(node)} before it pads with {value[0]}, not with zero")
    return spot


def _values(node: ir.Node, name: str, index: int) -> list[float] | None:
    """Read what is an attribute in old opsets and an input in new ones; None where unknown."""
    if (attribute := node.attributes.get(name)) is not None:
        return list(attribute.value) if isinstance(attribute.value, Sequence) else [attribute.value]
    if len(node.inputs) <= index or node.inputs[index] is None:
        return [] if name == "value" else None
    tensor = constant(node.inputs[index])
    return None if tensor is None else [v.item() for v in tensor.numpy().ravel()]


def _regroup(node: ir.Node, spot: Spot) -> Spot:
    """Reshape and its like: concat commutes where as many elements lie before the axis."""
    before, after = node.inputs[0], node.outputs[0]
    if before is None or before.shape is None or after.shape is None:
        raise Refusal(f"the shapes around {describe(node)} before it are not known")
    source, target = list(before.shape), list(after.shape)
    axes = [s for s in range(len(target)) if _stays_whole(source, target, spot, s)]
    axes.sort(key=lambda s: target[s] != spot.extent)
    if not axes or (node.op_type == "Squeeze" and spot.extent == 1):
        raise Refusal(f"{describe(node)} before it does not keep the channels whole")
    extent = target[axes[0]]
    assert isinstance(extent, int), "_stays_whole has refused a symbolic extent"
    return Spot(axes[0] - len(target), extent, len(target))


Dims = list[int | ir.SymbolicDim]


def _stays_whole(source: Dims, target: Dims, spot: Spot, axis: int) -> bool:
    extent, start = target[axis], spot.axis + len(source)
    if not isinstance(extent, int) or extent % spot.extent:
        return False
    outer, inner = _product(source[:start]), _product(source[start:])
    same_outer = outer is not None and outer == _product(target[:axis])
    return same_outer or (inner is not None and inner == _product(target[axis:]))


def _product(dims: Dims) -> tuple[int, list[str]] | None:
    """Return the number of elements as a number and symbols; None where a symbol is unnamed."""
    symbols = [dim.value for dim in dims if isinstance(dim, ir.SymbolicDim)]
    named = [symbol for symbol in symbols if symbol is not None]
    number = math.prod(dim for dim in dims if isinstance(dim, int))
    return (number, sorted(named)) if len(named) == len(symbols) else None


def _reshape(node: ir.Node, spot: Spot) -> Spot:
    if constant(node.inputs[1]) is None:
        raise Refusal(f"the shape of {describe(node)} before it is computed")
    return _regroup(node, spot)


def doubled_shape(node: ir.Node, before: Spot, after: Spot) -> Array:
    """Return the shape operand of a Reshape for twice the channels."""
    tensor = constant(node.inputs[1])
    assert tensor is not None, "_reshape has refused a shape that is computed"
    shape, at = tensor.numpy().copy(), after.from_front()
    copies = not node.attributes.get_int("allowzero", 0)
    if copies and shape[before.from_front() : before.from_front() + 1].tolist() == [0]:
        shape[before.from_front()] = before.extent
    if shape[at] != -1:
        shape[at] = 2 * after.extent
    return shape


STEPS: Mapping[str, Step] = {
    "Identity": Step(_same, moves=True),
    "Dropout": Step(_dropout, moves=True),
    "Transpose": Step(_transpose, moves=True),
    "Reshape": Step(_reshape, moves=True),
    "Flatten": Step(_regroup, moves=True),
    "Squeeze": Step(_regroup, moves=True),
    "Unsqueeze": Step(_regroup, moves=True),
    "Neg": Step(_same),
    "Cast": Step(_cast),
    "Add": Step(_arithmetic, {0: True, 1: True}),
    "Sub": Step(_arithmetic, {0: True, 1: True}),
    "Mul": Step(_arithmetic, {0: False, 1: False}),
    "Div": Step(_arithmetic, {1: False}),
    "BatchNormalization": Step(_batch_norm, {1: False, 2: True, 3: True, 4: False}),
    "AveragePool": Step(_pool),
    "GlobalAveragePool": Step(_pool),
    "Pad": Step(_pad),
}
"""Operators that commute with negation, by type; arithmetic does with a constant operand.

A ReduceMean is missing: the sums of ONNX Runtime's depend on where in memory a row begins.
"""
