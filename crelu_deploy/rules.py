"""The rule of each backend: a lowering for every site where nothing was measured.

In int8 the forms differ in accuracy too. Folded or mirrored, a site is quantised after its
activation, so that all 256 levels lie where values are; ``primitive`` and ``depthwise`` also
quantise the signed map before it, and ``complement`` and ``split`` make the negative half by a
subtraction that adds up the errors of both its terms.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir

from crelu_deploy.environment import cpu_name, versions
from crelu_deploy.errors import BuildError
from crelu_deploy.lowerings import fold
from crelu_deploy.lowerings.sitenode import site_nodes
from crelu_deploy.plan import CPU, Rule, by_rule, folding_pays
from crelu_deploy.staging import write_text
from crelu_deploy.targets import GPU

TENSOR_CORES = Rule(block=1, whole=256, padded=256)
"""When folding pays on a GPU: estimated from peak rates of arithmetic and memory, not measured."""


def folds_that_pay(model: ir.Model, rule: Rule = CPU) -> dict[str, str]:
    """Return site -> ``fold`` where that pays in float32 too, else ``mirror``."""
    return {site: "fold" if pays else "mirror" for site, pays in folding_pays(model, rule).items()}


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


def keep(rule: Rule) -> Path:
    """Write a rule that was calibrated here to the user's cache, for ``rule_here``.

    Raises:
        BuildError: It cannot be written.
    """
    file = _file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"{file.parent}: cannot be made: {error.strerror}") from error
    write_text(file, json.dumps({"key": _key(), "rule": asdict(rule)}, indent=2) + "\n")
    return file


def rule_here() -> Rule:
    """Return the rule calibrated with this processor and runtime, else the common one."""
    try:
        data = json.loads(_file().read_text(encoding="utf-8"))
        if data["key"] == _key():
            return Rule(**{str(name): int(value) for name, value in data["rule"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return CPU  # none, or a damaged one: the common rule holds everywhere
    return CPU


def _file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "crelu-deploy" / "rule.json"


def _key() -> dict[str, str]:
    return {"onnxruntime": versions().get("onnxruntime", ""), "device": cpu_name()}


def on_cpu(model: ir.Model) -> dict[str, str]:
    """Return site -> lowering by the lengths of sums, with the limits that hold here."""
    return by_rule(model, rule_here())


RULES: Mapping[str, Callable[[ir.Model], dict[str, str]]] = {
    "ort-cpu-int8": folds_that_pay,
    "openvino-int8": folds,
    **{backend.name: on_gpu for backend in GPU},
}
"""Backend -> rule; the others have ``on_cpu``, whose limits are those of float32."""


def choice(model: ir.Model, backend: str) -> dict[str, str]:
    """Return site -> lowering by the backend's rule, without measuring."""
    return RULES.get(backend, on_cpu)(model)
