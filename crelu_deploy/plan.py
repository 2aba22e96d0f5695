"""Which lowering each site gets.

Folding removes the passes over memory that a site costs and doubles its producer's arithmetic, so
it pays where one output element is a short sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from crelu_deploy.lowerings import fold
from crelu_deploy.lowerings.sitenode import site_nodes
from crelu_deploy.lowerings.values import constant


@dataclass(frozen=True)
class Rule:
    """When folding pays on a CPU.

    Attributes:
        block: Channels of one block in ONNX Runtime's layout for convolutions.
        whole: The longest sum, in terms, worth folding where the channels fill their blocks.
        padded: The longest one where they do not: the other half then fills idle lanes.
    """

    block: int = 16
    whole: int = 100
    padded: int = 250


CPU = Rule()
"""Fitted to ONNX Runtime 1.31.1 on an x86-64 server core with AVX-512, float32, batch 1."""


def by_rule(model: ir.Model, rule: Rule = CPU) -> dict[str, str]:
    """Return site -> lowering by the length of its producer's sums, without measuring."""
    plans = fold.plans(site_nodes(model))
    return {name: _choose(plan, rule) for name, plan in plans.items()}


def _choose(plan: fold.Plan | str, rule: Rule) -> str:
    if isinstance(plan, str):
        return "mirror"
    channels = plan.chain.channels
    limit = rule.padded if channels % rule.block else rule.whole
    return "fold" if _terms(plan) <= limit else "mirror"


def _terms(plan: fold.Plan) -> float:
    """Return the number of products that one output element of the producer sums up."""
    weight = constant(plan.chain.producer.inputs[1])
    return math.inf if weight is None else weight.size / plan.chain.channels
