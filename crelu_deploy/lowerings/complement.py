"""``relu(-x) = relu(x) - x``: the consumers' weights compute the second half from the first.

``Concat(x, relu(x))`` takes the place of the site, and a consumer with the columns ``[Wp, Wn]``
gets ``[-Wn, Wp + Wn]``, computed in float64 and rounded once. For finite values the result is the
same within rounding, relative to the largest of the products that cancel; an infinity in x becomes
NaN. A site that only max pools read is pooled first, ``max(relu(x)) = relu(max(x))``, as x and as
-x, and the small maps are activated; that is exact but for NaN, which max pools may drop.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings import depthwise, pooled
from crelu_deploy.lowerings.consumers import LINEAR, Consumer, below, extent_of
from crelu_deploy.lowerings.editing import Editor
from crelu_deploy.lowerings.producers import Refusal
from crelu_deploy.lowerings.sitenode import SiteNode
from crelu_deploy.lowerings.values import describe, node_like
from crelu_deploy.op import Array

THROUGH = LINEAR | {"Concat"}

LOSES = "makes NaN of an infinity that a layer reads"
"""What becomes of NaN and infinities."""


def lower(editor: Editor, sites: Mapping[str, SiteNode]) -> dict[str, str]:
    """Rewrite the consumers' weights of every plain site, or pool it before it is activated.

    Returns:
        For each site with another activation, or with a reader that is neither an operator with
        constant weights, behind operators that are linear in each channel, nor one of only max
        pools, the reason.
    """
    refused = {}
    for name, site in sites.items():
        try:
            rewrite(editor, site)
        except Refusal as refusal:
            refused[name] = str(refusal)
    return refused


def rewrite(editor: Editor, site: SiteNode) -> None:
    """Rewrite one site; a site that is refused stays as it is.

    Raises:
        Refusal: See ``lower``.
    """
    if site.affine or site.activation != "relu":
        raise Refusal(f"{site.node.op_type} is no plain relu")
    if pooled.is_read_by_pools(site):
        pooled.require_pools(site)
        pooled.pool(editor, site, None, _negated(editor, site))
        return
    consumers = below(site, extent_of(site), THROUGH).consumers
    columns = [_complemented(consumer) for consumer in consumers]
    for consumer, new in zip(consumers, columns, strict=True):
        consumer.write(editor, site.scope, new)
    relu = node_like(site.x, "Relu", [site.x])
    halves = [site.x, relu.outputs[0]]
    concat = node_like(site.y, "Concat", halves, {"axis": site.node.attributes["axis"]})
    editor.replace(site, [relu, concat])
    # Whoever compares tensors by name must not take it for the site's.
    concat.outputs[0].name = editor.unused(f"{site.name}/Complement")


@np.errstate(all="ignore")
def _complemented(consumer: Consumer) -> Array:
    """Return the weight of a consumer with ``[-Wn, Wp + Wn]`` in place of ``[Wp, Wn]``."""
    weight, start = consumer.weight().copy(), consumer.part.start
    positive, negative = np.split(consumer.columns().astype(np.float64), 2)
    columns = np.concatenate([-negative, positive + negative]).astype(weight.dtype)
    if not np.isfinite(columns.astype(np.float64)).all():
        raise Refusal(f"the sums of weights of {describe(consumer.node)} behind it overflow")
    weight[start : start + len(columns)] = columns
    return weight


def _negated(editor: Editor, site: SiteNode) -> ir.Node:
    """Return the node that computes -x.

    A Neg leaves the blocked layout, which takes longer than a depthwise conv where the channels
    fill their blocks, and less long where they do not.
    """
    try:
        x = depthwise.input_of(site)
    except Refusal:
        return node_like(site.x, "Neg", [site.x])
    if x.channels % depthwise.BLOCK:
        return node_like(site.x, "Neg", [site.x])
    return depthwise.convolve(editor, site, depthwise.negation(x), x.rank)
