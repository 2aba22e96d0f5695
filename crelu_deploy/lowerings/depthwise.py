"""``concat(f(x), f(d(x)))`` where d multiplies every channel by -1, as a 1x1 depthwise conv.

A Neg has no kernel in the blocked layout that ONNX Runtime keeps for convolutions on the CPU, so
it costs reorders on both sides; a depthwise conv has one, and the activation behind it is fused.
The product with -1 is exact. With a scale and a shift both halves are depthwise convs, with the
weights s1 and -s2 and the biases t1 and t2, equal within the rounding of Mul and Add.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.chains import upwards
from crelu_deploy.lowerings.consumers import extent_of
from crelu_deploy.lowerings.editing import Editor
from crelu_deploy.lowerings.producers import KINDS, Refusal
from crelu_deploy.lowerings.sitenode import SiteNode
from crelu_deploy.lowerings.values import constant, is_onnx, node_like, rank_of
from crelu_deploy.op import Array, activate

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""Element types in which ONNX Runtime has a convolution on the CPU."""

BLOCK = 16
"""A multiple of it fills the blocks of every layout that ONNX Runtime has for convolutions."""

Half = tuple[Array, Array | None]
"""What one half multiplies each channel by and what it adds, both of shape (C,)."""


def lower(editor: Editor, sites: Mapping[str, SiteNode]) -> dict[str, str]:
    """Write every site on axis 1 of (N, C, ...) with one to three further axes, C known.

    Returns:
        For each site elsewhere, of another element type, or with a scale or shift that is no
        constant for each channel, the reason.
    """
    refused = {}
    for name, site in sites.items():
        try:
            x = input_of(site)
            halves = halves_of(site, x)
        except Refusal as refusal:
            refused[name] = str(refusal)
            continue
        _split(editor, site, halves, x.rank)
    return refused


@dataclass(frozen=True)
class Input:
    """What a conv must know of the tensor that it reads: its rank, channels and element type."""

    rank: int
    channels: int
    dtype: np.dtype[Any]


def input_of(site: SiteNode) -> Input:
    """Return the site's input as a conv reads it.

    Raises:
        Refusal: No conv can.
    """
    where, rank = f"its input {site.x.name!r}", rank_of(site.x)
    if rank is None:
        raise Refusal(f"the rank of {where} is not known")
    if not 3 <= rank <= 5:
        raise Refusal(f"{where} has rank {rank}, and a conv has 3 to 5")
    if site.axis != 1:
        raise Refusal(f"its axis {site.axis} is not that of a conv's channels, 1")
    dtype = _dtype(site)
    if dtype not in FLOATS:
        raise Refusal(f"{where} is {dtype}, in which ONNX Runtime has no convolution")
    return Input(rank, extent_of(site), dtype.numpy())


def _dtype(site: SiteNode) -> ir.DataType:
    """Return the element type of the site's input, from its producer's weight where not noted."""
    if site.x.dtype is not None:
        return site.x.dtype
    nodes = list(upwards(site.x))
    weight = constant(nodes[-1].inputs[1]) if nodes and is_onnx(nodes[-1], *KINDS) else None
    if weight is None or any(is_onnx(node, "Cast") for node in nodes):
        raise Refusal(f"the element type of its input {site.x.name!r} is not known")
    return weight.dtype


def convolve(editor: Editor, site: SiteNode, half: Half, rank: int) -> ir.Node:
    """Return the depthwise conv for one half, not yet in the graph; its constants are."""
    weight, bias = half
    dims = (len(weight), *[1] * (rank - 1))
    inputs: list[ir.Value | None] = [site.x]
    for array, what in ((weight.reshape(dims), "weight"), (bias, "bias")):
        if array is not None:
            inputs.append(editor.constant(site.scope, array, f"{site.name}/{what}", site.node))
    return node_like(site.x, "Conv", inputs, {"group": len(weight)})


def negation(x: Input) -> Half:
    """Return the half ``-x``."""
    return np.full(x.channels, -1, x.dtype), None


def halves_of(site: SiteNode, x: Input) -> tuple[Half | None, Half]:
    """Return what the two halves are made with; None for x itself.

    Raises:
        Refusal: The site's scale or shift is no constant for each channel.
    """
    if not site.affine:
        return None, negation(x)
    scale, shift = (_per_channel(site, i, what, x) for i, what in ((1, "scale"), (2, "shift")))
    return (scale[0], shift[0]), (-scale[1], shift[1])


def _per_channel(site: SiteNode, index: int, what: str, x: Input) -> Array:
    """Return a constant operand as an array of shape (2, C)."""
    value = site.node.inputs[index]
    tensor = constant(value)
    if tensor is None:
        raise Refusal(f"its {what} is computed")
    dims = [1] * (x.rank - len(tensor.shape)) + list(tensor.shape.numpy())
    if len(dims) != x.rank or any(dim != 1 for dim in dims[:1] + dims[2:]):
        raise Refusal(f"its {what} of shape {list(tensor.shape)} differs within a channel")
    return np.broadcast_to(tensor.numpy().ravel(), 2 * x.channels).reshape(2, -1)


def _split(editor: Editor, site: SiteNode, halves: tuple[Half | None, Half], rank: int) -> None:
    nodes, ends = list[ir.Node](), list[ir.Value | None]()
    for half in halves:
        value = site.x
        if half is not None:
            nodes.append(convolve(editor, site, half, rank))
            value = nodes[-1].outputs[0]
        nodes += activate(site.activation, value, site.node.attributes, site.scope.opset)
        end = nodes[-1].outputs[0]
        end.shape, end.type = site.x.shape, site.x.type
        ends.append(end)
    concat = node_like(site.y, "Concat", ends, {"axis": ir.AttrInt64("axis", site.axis)})
    editor.replace(site, [*nodes, concat])
