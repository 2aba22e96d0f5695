"""A site without its dead halves: its filters are parted, its consumers read fewer columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings.consumers import Below
from crelu_deploy.lowerings.editing import Editor
from crelu_deploy.lowerings.producers import KINDS, Weights, read, write
from crelu_deploy.lowerings.sitenode import SiteNode
from crelu_deploy.lowerings.values import node_like
from crelu_deploy.op import Array, activate


@dataclass(frozen=True)
class Subject:
    """A site that can be pruned.

    Attributes:
        site: The site.
        producer: The operator whose filters are its channels.
        below: What reads it.
        fires: Whether a half is other than zero where its filter is all zero: bool (2, C).
    """

    site: SiteNode
    producer: ir.Node
    below: Below
    fires: Array


def rewrite(editor: Editor, subject: Subject, alive: Array) -> None:
    """Part the filters into those with both halves and those with one.

    Args:
        editor: Changes the model.
        subject: A site whose consumers have not been rewritten for it.
        alive: Which halves stay: bool (2, C). Where none is, one filter stays.
    """
    positive, negative = alive
    channels, both = len(positive), np.flatnonzero(positive & negative)
    plus, minus = np.flatnonzero(positive & ~negative), np.flatnonzero(negative & ~positive)
    if not alive.any():
        plus = np.arange(1)
    order = np.concatenate([both, channels + both, plus, channels + minus])
    for consumer in subject.below.consumers:
        weight = consumer.weight()
        blocks = np.arange(len(weight)).reshape(2 * channels, -1)
        consumer.write(editor, subject.site.scope, weight[blocks[order].ravel()])
    for value, part in subject.below.values:
        _resize(value, part.spot.axis, part.extent // (2 * channels) * len(order))
    weights = read(subject.producer)
    single = _signed(weights, plus, minus)
    if len(both):
        _write(editor, subject, subject.producer, _signed(weights, both, both[:0]))
        _add_single(editor, subject, single)
        _resize(subject.site.y, subject.site.axis, 2 * len(both))
    else:
        _write(editor, subject, subject.producer, single)
        editor.replace(subject.site, _activated(subject.site, subject.site.x))


def _signed(weights: Weights, plus: Array, minus: Array) -> Weights:
    """Return some filters, and behind them others negated."""
    filters = np.concatenate([plus, minus])
    rows = weights.rows[filters]
    rows[len(plus) :] *= -1
    bias = None if weights.bias is None else weights.bias[..., filters]
    if bias is not None:
        bias[..., len(plus) :] *= -1
    return Weights(rows, bias)


def _write(editor: Editor, subject: Subject, node: ir.Node, weights: Weights) -> None:
    """Give an operator some of the filters, and its output as many channels."""
    write(editor, subject.site.scope, node, weights)
    axis = KINDS[node.op_type].axis(weights.rows.ndim)
    _resize(node.outputs[0], axis, len(weights.rows))


def _resize(value: ir.Value, axis: int, extent: int) -> None:
    if value.shape is not None:
        dims = list(value.shape)
        dims[axis] = extent
        value.shape = ir.Shape(dims)


def _activated(site: SiteNode, value: ir.Value) -> list[ir.Node]:
    nodes = activate(site.activation, value, site.node.attributes, site.scope.opset)
    nodes[-1].outputs[0].shape, nodes[-1].outputs[0].type = value.shape, value.type
    return nodes


def _add_single(editor: Editor, subject: Subject, weights: Weights) -> None:
    """Put the filters with one half beside those with both, where there are any."""
    site, producer = subject.site, subject.producer
    if not len(weights.rows):
        return
    conv = node_like(site.x, producer.op_type, producer.inputs, producer.attributes)
    producer.append(conv)
    editor.name([conv], site.name)
    _write(editor, subject, conv, weights)
    nodes = _activated(site, conv.outputs[0])
    halves = [site.y, nodes[-1].outputs[0]]
    concat = node_like(site.y, "Concat", halves, {"axis": site.node.attributes["axis"]})
    nodes.append(concat)
    editor.name(nodes, site.name)
    site.node.append(nodes)
    editor.substitute(site.y, concat.outputs[0], keep=[concat])
