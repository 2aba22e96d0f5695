"""Dead halves are removed: only filters with both halves alive keep their CReLU.

A half of a filter is dead when every weight that reads it is zero, or when its filter is all zero
and the activation of what remains, the bias, is zero. What is alive is computed as before, so for
finite values the outputs differ by no more than the order of the consumers' sums.

A filter with one living half becomes an ordinary one with the activation behind it, negated where
only the second half lives; a filter without any is dropped::

    Conv(x) -> CReLU -> y   =>   Concat(Conv_both(x) -> CReLU, Conv_single(x) -> Relu) -> y
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from crelu_deploy.lowerings.chains import chain_above
from crelu_deploy.lowerings.consumers import below
from crelu_deploy.lowerings.depthwise import BLOCK
from crelu_deploy.lowerings.editing import Editor
from crelu_deploy.lowerings.producers import Refusal, groups_of, read
from crelu_deploy.lowerings.sitenode import SiteNode, site_nodes
from crelu_deploy.lowerings.values import describe, is_read_once
from crelu_deploy.op import ACTIVATIONS, Array
from crelu_deploy.pruning_rewrite import Subject, rewrite

CHANNELWISE = frozenset(
    {
        "AveragePool",
        "Dropout",
        "Flatten",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "MaxPool",
        "Pad",
        "Transpose",
    }
)
"""Operators between a site and its consumers that treat all channels alike, however many."""


@dataclass(frozen=True)
class Removal:
    """What was removed at one site, by the numbers of the filters of its producer.

    Attributes:
        channels: How many filters there were.
        positive: Those of which only the half f(x) is left.
        negative: Those of which only the half f(-x) is left, as f of the negated filter.
        dropped: Those that are gone.
    """

    channels: int
    positive: tuple[int, ...]
    negative: tuple[int, ...]
    dropped: tuple[int, ...]

    @property
    def both(self) -> int:
        """How many filters still have a CReLU."""
        return self.channels - len(self.positive) - len(self.negative) - len(self.dropped)


@dataclass(frozen=True)
class Pruned:
    """A pruned model.

    Attributes:
        model: The model; its weights are shared with the original where they are the same.
        removed: Site -> what was removed; sites without a dead half are not listed.
        reasons: Site -> why it was not looked at.
    """

    model: ir.Model
    removed: Mapping[str, Removal]
    reasons: Mapping[str, str]


def prune(model: ir.Model, *, block: int = BLOCK) -> Pruned:
    """Return a copy of the model without the dead halves of its sites.

    A site is left as it is where its producer is not a Conv, ConvTranspose, Gemm or MatMul without
    groups that nothing else reads, or its consumers are not, over pools and the like. One filter
    stays where all are dead.

    Args:
        model: A model with canonical nodes; it stays as it is.
        block: Where the filters fill blocks of so many, as many dead halves stay as fill them
            again: ONNX Runtime leaves its blocked layout for other numbers of channels, which
            costs more than it saves. 1 for none.
    """
    result = model.clone()
    subjects, reasons = dict[str, Subject](), dict[str, str]()
    for name, site in site_nodes(result).items():
        try:
            subjects[name] = _subject(site)
        except Refusal as refusal:
            reasons[name] = str(refusal)
    editor, removed = Editor(result), dict[str, Removal]()
    # From the inputs on: a consumer loses its columns before its own filters are parted.
    for name, found in _alive(subjects).items():
        alive = _filled(found, block)
        if not alive.all():
            removed[name] = _removal(alive)
            rewrite(editor, subjects[name], alive)
    common.RemoveUnusedNodesPass()(result)
    return Pruned(result, removed, reasons)


def _subject(site: SiteNode) -> Subject:
    if site.affine:
        raise Refusal("it has a scale and a shift")
    chain = chain_above(site.x, site.node.graph)
    producer, spot = chain.producer, chain.links[-1].spot
    if len(chain.links) > 1:
        raise Refusal(f"{describe(chain.links[-1].node)} is between it and its producer")
    if groups_of(producer) != 1:
        raise Refusal(f"its producer {describe(producer)} has groups")
    if not is_read_once(site.x):
        raise Refusal(f"the output of its producer {describe(producer)} is read elsewhere")
    if spot.rank is None:
        raise Refusal(f"the rank of its input {site.x.name!r} is not known")
    if site.axis % spot.rank - spot.rank != spot.axis:
        raise Refusal(f"its axis {site.axis} is not that of the channels of {describe(producer)}")
    return Subject(site, producer, below(site, chain.channels, CHANNELWISE), _fires(site, producer))


def _fires(site: SiteNode, producer: ir.Node) -> Array:
    weights, kind = read(producer), ACTIVATIONS[site.activation]
    bias = np.zeros((1, len(weights.rows))) if weights.bias is None else weights.bias
    bias = bias * producer.attributes.get_float("beta", 1.0)
    attributes = {name: site.node.attributes[name].as_float() for name in kind.fits}
    halves = [kind.apply(sign * bias, **attributes) for sign in (1, -1)]
    return np.stack([(half != 0).reshape(-1, bias.shape[-1]).any(0) for half in halves])


def _alive(subjects: Mapping[str, Subject]) -> dict[str, Array]:
    """Return for each site which halves are alive: bool (2, C).

    A dead half is one input less for its consumers, and a dead filter one reader less for the site
    before, so the search goes on until nothing more dies.
    """
    nodes = {c.node for s in subjects.values() for c in s.below.consumers}
    support = {node: _support(node) for node in nodes | {s.producer for s in subjects.values()}}
    alive = {name: np.ones_like(s.fires) for name, s in subjects.items()}
    changed = True
    while changed:
        changed = False
        for name, subject in reversed(list(subjects.items())):
            now = alive[name] & _read(subject, support) & _nonzero(subject, support)
            if (now != alive[name]).any():
                alive[name], changed = now, True
                _clear(subject, now, support)
    return alive


def _support(node: ir.Node) -> Array:
    """Return which output channel of an operator depends on which input channel: bool (O, I)."""
    rows = read(node).rows
    rows = np.moveaxis(rows, -1 if node.op_type == "MatMul" else 1, 1)
    return np.asarray((rows != 0).reshape(*rows.shape[:2], -1).any(-1))


def _read(subject: Subject, support: Mapping[ir.Node, Array]) -> Array:
    """Return which halves some weight reads."""
    columns = [support[c.node].any(0) for c in subject.below.consumers]
    read = [c.reshape(*subject.fires.shape, -1).any(-1) for c in columns]
    return np.asarray(np.logical_or.reduce(read))


def _nonzero(subject: Subject, support: Mapping[ir.Node, Array]) -> Array:
    """Return which halves may be other than zero."""
    return np.asarray(support[subject.producer].any(1) | subject.fires)


def _clear(subject: Subject, alive: Array, support: Mapping[ir.Node, Array]) -> None:
    """Take what is dead out of the support of its consumers and its producer."""
    for consumer in subject.below.consumers:
        columns = support[consumer.node]
        columns &= np.repeat(alive.ravel(), columns.shape[1] // alive.size)
    support[subject.producer][~alive.any(0)] = False


def _filled(alive: Array, block: int) -> Array:
    """Return the halves that stay: those alive and what fills the blocks."""
    if alive.shape[1] % block:
        return alive
    alive = alive.copy()
    count = alive.sum(0)
    spare = np.argsort(-count, kind="stable")[(count == 2).sum() :]  # with one half, then with none
    alive[:, spare[: -(count == 2).sum() % block]] = True
    count = alive.sum(0)
    alive[0, np.flatnonzero(count == 0)[: -(count == 1).sum() % block]] = True
    return alive


def _removal(alive: Array) -> Removal:
    positive, negative = alive
    masks = (positive & ~negative, negative & ~positive, ~positive & ~negative)
    only = (tuple(int(c) for c in np.flatnonzero(mask)) for mask in masks)
    return Removal(len(positive), *only)
