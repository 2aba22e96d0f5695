"""The producer computes both halves: its weights become ``[W; -W]``, its bias ``[b; -b]``.

Negating a weight is exact, so a runtime whose kernels treat the signs alike gives the same bits,
except where twice the channels make it choose another kernel (a conv to a single pixel).
A scale and a shift behind the concatenation go into the weights too, computed in float64 and
rounded once: ``[s1 * W; -s2 * W]``, ``[s1 * b + t1; -s2 * b + t2]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings import absorb, mirror
from crelu_deploy.lowerings.chains import Chain, Link, chain_above
from crelu_deploy.lowerings.editing import Editor, bypass
from crelu_deploy.lowerings.orders import (
    doubled,
    grouped,
    is_within_groups,
    natural,
    negated,
    positions,
    widened,
)
from crelu_deploy.lowerings.producers import Refusal, Weights, groups_of, read, write
from crelu_deploy.lowerings.sitenode import Scope, SiteNode, site_nodes
from crelu_deploy.lowerings.steps import STEPS, Spot, data_index, doubled_shape
from crelu_deploy.lowerings.values import (
    constant,
    describe,
    is_onnx,
    is_read_once,
    node_like,
    rank_of,
)
from crelu_deploy.op import Array


@dataclass(frozen=True)
class Plan:
    """How one site is folded.

    Attributes:
        site: The site.
        chain: Its producer and the steps between.
        order: The order of the doubled channels at the site, in terms of its input.
        interleaving: The Gather behind the site whose work the order of the weights does.
        mend: What a Gather behind the activation must pick, where a grouped producer cannot
            compute the channels in the order wanted.
    """

    site: SiteNode
    chain: Chain
    order: Array
    interleaving: ir.Node | None
    mend: Array | None


def lower(editor: Editor, sites: Mapping[str, SiteNode]) -> dict[str, str]:
    """Double the producer of every site that has one, and drop the node.

    Returns:
        For each site that cannot be folded, the reason.
    """
    judged = plans(site_nodes(editor.model)) if sites else {}
    found = {name: judged[name] for name in sites}
    for plan in found.values():
        if isinstance(plan, Plan):
            _fold(editor, plan)
    return {name: plan for name, plan in found.items() if isinstance(plan, str)}


def plans(sites: Mapping[str, SiteNode]) -> dict[str, Plan | str]:
    """Return for each site how it is folded or the reason why it cannot be.

    Of several sites with one producer, the first has it.
    """
    found: dict[str, Plan | str] = {}
    owner: dict[ir.Node, str] = {}
    for name, site in sites.items():
        try:
            plan = _plan(site)
        except Refusal as refusal:
            found[name] = str(refusal)
            continue
        producer = plan.chain.producer
        first = owner.setdefault(producer, name)
        taken = f"its producer {describe(producer)} is doubled for site {first}"
        found[name] = plan if first == name else taken
    return found


def _plan(site: SiteNode) -> Plan:
    chain = chain_above(site.x, site.node.graph)
    _require_axis(site, chain)
    channels, spot = chain.channels, chain.links[-1].spot
    fixed = not site.affine or all(constant(v) is not None for v in site.node.inputs[1:])
    interleaving = _interleaving(site, spot) if fixed and spot.extent == channels else None
    wanted = natural(channels) if interleaving is None else _indices(interleaving)
    groups = groups_of(chain.producer)
    if is_within_groups(wanted, channels, groups):
        return Plan(site, chain, wanted, interleaving, None)
    if not fixed:
        raise Refusal(f"its scale or shift is computed and {describe(chain.producer)} has groups")
    order = grouped(channels, groups)
    mend = positions(widened(order, spot.extent), widened(wanted, spot.extent))
    return Plan(site, chain, order, interleaving, mend)


def _require_axis(site: SiteNode, chain: Chain) -> None:
    """Refuse a site on another axis than the channels, and a producer of single channels."""
    spot, producer = chain.links[-1].spot, describe(chain.producer)
    rank, axis = rank_of(site.x) or spot.rank, site.axis
    if axis >= 0 and rank is None:
        raise Refusal(f"the rank of its input {site.x.name!r} is not known")
    if axis - (rank or 0) * (axis >= 0) != spot.axis:
        raise Refusal(f"its axis {site.axis} is not that of the channels of {producer}")
    if groups_of(chain.producer) == chain.channels:
        # Runtimes have kernels of their own for this, which are faster and round differently.
        raise Refusal(f"its producer {producer} computes one channel in each group")


def _interleaving(site: SiteNode, spot: Spot) -> ir.Node | None:
    """Return the Gather behind the site, its only reader, that only reorders the channels."""
    if not is_read_once(site.y):
        return None
    node = site.y.consumers()[0]
    if (
        not is_onnx(node, "Gather")
        or node.inputs[0] is not site.y
        or node.graph is not site.node.graph
    ):
        return None
    axis, indices = node.attributes.get_int("axis", 0), constant(node.inputs[1])
    if axis not in (spot.axis, spot.from_front()) or indices is None:
        return None
    permutes = np.array_equal(np.sort(indices.numpy()), natural(spot.extent))
    return node if permutes else None


def _indices(gather: ir.Node) -> Array:
    tensor = constant(gather.inputs[1])
    assert tensor is not None, "_interleaving has refused indices that are computed"
    return tensor.numpy()


def _fold(editor: Editor, plan: Plan) -> None:
    site, links = plan.site, plan.chain.links
    readers = [*(link.node for link in links[1:]), site.node]
    dropped = [is_onnx(link.node, "Neg") and is_read_once(link.value) for link in links]
    for i, link in enumerate(links):
        order = negated(plan.order) if sum(dropped[i + 1 :]) % 2 else plan.order
        if dropped[i]:
            bypass(link.node)
            continue
        if i == 0:
            _double_producer(editor, site.scope, link, order)
        else:
            _double_step(editor, site.scope, links[i - 1].spot, link, order)
        _keep_original(editor, site.scope, link, readers[i], order)
    _finish(editor, plan)


def _double_producer(editor: Editor, scope: Scope, link: Link, order: Array) -> None:
    weights = read(link.node)
    rows = doubled(weights.rows, order, -weights.rows.ndim, signed=True)
    bias = None if weights.bias is None else doubled(weights.bias, order, -1, signed=True)
    write(editor, scope, link.node, Weights(rows, bias))


def _double_step(editor: Editor, scope: Scope, before: Spot, link: Link, order: Array) -> None:
    """Double the constants of one step for channels in this order."""
    node = link.node
    if node.op_type == "Reshape":
        _replace_constant(editor, scope, node, 1, doubled_shape(node, before, link.spot))
        return
    axis = -1 if node.op_type == "BatchNormalization" else link.spot.axis
    for i, signed in STEPS[node.op_type].constants.items():
        tensor = constant(node.inputs[i])
        if i != data_index(node) and tensor is not None:
            wide = widened(order, link.spot.extent)
            values = doubled(tensor.numpy(), wide, axis, signed=signed)
            _replace_constant(editor, scope, node, i, values)


def _replace_constant(editor: Editor, scope: Scope, node: ir.Node, i: int, array: Array) -> None:
    old = node.inputs[i]
    name = old.name if old is not None and old.name else f"{node.name}_{i}"
    node.replace_input_with(i, editor.constant(scope, array, name, node))


def _keep_original(editor: Editor, scope: Scope, link: Link, reader: ir.Node, order: Array) -> None:
    """Give the value its doubled shape, and its other readers a Gather of the original channels."""
    value, spot = link.value, link.spot
    others = [(node, i) for node, i in value.uses() if node is not reader]
    if others or value.is_graph_output():
        picked = positions(widened(order, spot.extent), np.arange(spot.extent))
        name = f"{link.node.name}/original"
        indices = editor.constant(scope, picked, name, link.node)
        gather = node_like(value, "Gather", [value, indices], {"axis": spot.from_front()})
        link.node.append(gather)
        editor.name([gather], link.node.name or "")
        editor.substitute(value, gather.outputs[0], keep=[reader, gather])
    if value.shape is not None:
        dims = list(value.shape)
        dims[spot.axis] = 2 * spot.extent
        value.shape = ir.Shape(dims)


def _finish(editor: Editor, plan: Plan) -> None:
    """Put the scale, the shift, the activation and the mending Gather behind the doubled value."""
    site, spot = plan.site, plan.chain.links[-1].spot
    if site.affine and not np.array_equal(plan.order, natural(plan.chain.channels)):
        order = widened(plan.order, spot.extent)
        for i in (1, 2):
            _reorder(editor, site, i, order, spot.axis)
    nodes = mirror.tail(site, site.x)
    if plan.mend is not None:
        indices = editor.constant(site.scope, plan.mend, f"{site.name}/order", site.node)
        y = nodes[-1].outputs[0]
        nodes.append(node_like(site.y, "Gather", [y, indices], {"axis": spot.from_front()}))
    editor.replace(site, nodes)
    if plan.interleaving is not None:
        bypass(plan.interleaving)
    if site.affine:
        absorb.absorb(editor, site.scope, next(n for n in nodes if n.op_type == "Add"))


def _reorder(editor: Editor, site: SiteNode, i: int, order: Array, axis: int) -> None:
    tensor = constant(site.node.inputs[i])
    assert tensor is not None, "_plan has refused to reorder what is computed"
    if len(tensor.shape) >= -axis and tensor.shape[axis] == len(order):
        _replace_constant(editor, site.scope, site.node, i, tensor.numpy().take(order, axis))
