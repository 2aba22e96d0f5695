"""Which lowering each site gets: chosen by rule, measured, or read from a file.

Folding removes the passes over memory that a site costs and doubles its producer's arithmetic, so
it pays where one output element is a short sum.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.lowerings import LOWERINGS, NATIVE, fold, lower
from crelu_deploy.lowerings.sitenode import site_nodes
from crelu_deploy.lowerings.values import constant
from crelu_deploy.staging import write_text
from crelu_deploy.targets import BACKENDS

RULE, MEASURED = "rule", "measured"


@dataclass(frozen=True)
class Plan:
    """A lowering for every site of one model on one backend.

    Attributes:
        backend: The backend it is for.
        how: ``rule`` or ``measured``.
        choice: Site -> lowering.
        key: What it holds for: the model's hash and, where measured, the runtime, the device, the
            threads and the batch sizes.
        ratios: Choices that were timed, in words -> time over the baseline's time.
    """

    backend: str
    how: str
    choice: Mapping[str, str]
    key: Mapping[str, Any] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the plan as JSON.

        Raises:
            BuildError: The file cannot be written.
        """
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read what ``save`` wrote, perhaps edited by hand.

        Raises:
            UnsupportedModel: No file, no plan, or an unknown lowering.
        """
        try:
            return cls.parse(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UnsupportedModel(f"{path}: no such file") from error
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UnsupportedModel(f"{path}: not a plan: {error}") from error

    @classmethod
    def parse(cls, data: Any) -> Plan:
        """Read the plan's JSON object.

        Raises:
            TypeError, KeyError, ValueError: It is none.
        """
        choice = {str(site): str(lowering) for site, lowering in dict(data["choice"]).items()}
        for site, lowering in choice.items():
            if lowering not in LOWERINGS and lowering not in NATIVE:
                raise ValueError(f"site {site[:80]!r} has the unknown lowering {lowering[:80]!r}")
        if data["backend"] not in BACKENDS:
            raise ValueError(f"a plan for the unknown backend {str(data['backend'])[:80]!r}")
        ratios = {str(name): float(ratio) for name, ratio in dict(data["ratios"]).items()}
        return cls(str(data["backend"]), str(data["how"]), choice, dict(data["key"]), ratios)

    def check(self, backend: str, model_hash: str) -> None:
        """Refuse a plan that was made for something else.

        Raises:
            UnsupportedModel: Another backend, or another model.
        """
        if self.backend != backend:
            raise UnsupportedModel(f"the plan is for {self.backend}, not for {backend}")
        if self.key.get("model") not in (None, model_hash):
            raise UnsupportedModel(
                "the plan was made for another model (its hash differs); plan again, or remove "
                "'model' from the plan's key to use it all the same"
            )


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
    """Return site -> lowering by channels, readers and the producer's sums, without measuring.

    Where the channels fill their blocks and only convolutions read them, ``split``. Elsewhere
    ``fold`` where it pays; else ``complement`` if the consumers allow it, else ``depthwise`` where
    the channels fill their blocks, else ``mirror``.
    """
    plans = fold.plans(site_nodes(model))
    choice = {site: "split" for site, plan in plans.items() if _fills_blocks(plan, rule)}
    for site in plans.keys() - choice.keys() | _refusing(model, choice, "split"):
        choice[site] = "fold" if _pays(plans[site], rule) else "complement"
    for site in _refusing(model, choice, "complement"):
        choice[site] = "depthwise" if _fills_blocks(plans[site], rule) else "mirror"
    for site in _refusing(model, choice, "depthwise"):
        choice[site] = "mirror"
    return {site: choice[site] for site in plans}


def folding_pays(model: ir.Model, rule: Rule = CPU) -> dict[str, bool]:
    """Return for each site whether it can be folded and the producer's sums are short enough."""
    return {site: _pays(plan, rule) for site, plan in fold.plans(site_nodes(model)).items()}


def _refusing(model: ir.Model, choice: Mapping[str, str], lowering: str) -> set[str]:
    """Return the sites that cannot have the lowering chosen for them."""
    asked = {site: chosen for site, chosen in choice.items() if chosen == lowering}
    return set(lower(model, asked).reasons) if asked else set()


def _fills_blocks(plan: fold.Plan | str, rule: Rule) -> bool:
    return not isinstance(plan, str) and plan.chain.channels % rule.block == 0


def _pays(plan: fold.Plan | str, rule: Rule) -> bool:
    if isinstance(plan, str):
        return False
    limit = rule.padded if plan.chain.channels % rule.block else rule.whole
    return _terms(plan) <= limit


def _terms(plan: fold.Plan) -> float:
    """Return the number of products that one output element of the producer sums up."""
    weight = constant(plan.chain.producer.inputs[1])
    return math.inf if weight is None else weight.size / plan.chain.channels
