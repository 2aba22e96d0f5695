"""The rule of each backend: a lowering for every site where nothing was measured.

In int8 the forms differ in accuracy too. Folded or mirrored, a site is quantised after its
activation, so that all 256 levels lie where values are; ``primitive`` and ``depthwise`` also
quantise the signed map before it, and ``complement`` makes the negative half by a subtraction that
adds up the errors of both its terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from crelu_deploy.lowerings import fold
from crelu_deploy.lowerings.sitenode import site_nodes
from crelu_deploy.plan import CPU, Rule, by_rule
from crelu_deploy.targets import GPU

TENSOR_CORES = Rule(block=1, whole=256, padded=256)
"""When folding pays on a GPU: estimated from peak rates of arithmetic and memory, not measured."""


def folds_that_pay(model: ir.Model, rule: Rule = CPU) -> dict[str, str]:
    """Return site -> ``fold`` where that pays in float32 too, else ``mirror``."""
    return {
        site: "fold" if lowering == "fold" else "mirror"
        for site, lowering in by_rule(model, rule).items()
    }


def folds(model: ir.Model) -> dict[str, str]:
    """Return site -> ``fold`` wherever that is possible, else ``mirror``."""
    plans = fold.plans(site_nodes(model))
    return {
        site: "fold" if isinstance(plan, fold.Plan) else "mirror" for site, plan in plans.items()
    }


def on_gpu(model: ir.Model) -> dict[str, str]:
    """Return site -> ``fold`` where the producer's sums are short, else ``mirror``.

    With a batch fixed at 1 everything that can be is folded: a kernel then takes about as long as
    its launch, and folding saves one at each site.
    """
    shape = model.graph.inputs[0].shape if model.graph.inputs else None
    single = bool(shape) and shape is not None and shape[0] == 1
    return folds(model) if single else folds_that_pay(model, TENSOR_CORES)


RULES: Mapping[str, Callable[[ir.Model], dict[str, str]]] = {
    "ort-cpu-int8": folds_that_pay,
    "openvino-int8": folds,
    **{backend.name: on_gpu for backend in GPU},
}
"""Backend -> rule; the others have ``by_rule``, whose figures are those of float32 on a CPU."""


def choice(model: ir.Model, backend: str) -> dict[str, str]:
    """Return site -> lowering by the backend's rule, without measuring."""
    return RULES.get(backend, by_rule)(model)
