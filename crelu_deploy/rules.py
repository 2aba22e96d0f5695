"""The rule of each backend: a lowering for every site where nothing was measured.

In int8 the forms differ in accuracy too. Folded or mirrored, a site is quantised after its
activation, so that all 256 levels lie where values are; ``primitive`` and ``depthwise`` also
quantise the signed map before it, and ``complement`` and ``split`` make the negative half by a
subtraction that adds up the errors of both its terms.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir

from crelu_deploy.environment import cache_folder, cpu_name, versions
from crelu_deploy.errors import BackendUnavailable, BuildError
from crelu_deploy.lowerings import LOWERINGS, fold
from crelu_deploy.lowerings.sitenode import site_nodes
from crelu_deploy.rule import READERS, Preference, Rule, by_rule, folding_pays
from crelu_deploy.staging import write_text
from crelu_deploy.targets import BACKENDS, GPU


def _cells(**cells: tuple[int, str]) -> dict[str, Preference]:
    """Return preferences from ``pools=(27, "split pooled")``: the limit of a fold, then forms."""
    return {name: Preference(tuple(forms.split()), fold) for name, (fold, forms) in cells.items()}


FITTED: Mapping[int, Rule] = {
    16: Rule(
        16,
        _cells(
            pools=(3, "split pooled complement depthwise mirror"),
            layers=(27, "split complement depthwise mirror"),
            others=(45, "depthwise mirror"),
        ),
        _cells(
            pools=(81, "complement mirror"),
            layers=(108, "split mirror complement"),
            others=(108, "mirror"),
        ),
    ),
    8: Rule(
        8,
        _cells(
            pools=(3, "pooled split complement depthwise mirror"),
            layers=(0, "split complement depthwise mirror"),
            others=(27, "mirror depthwise"),
        ),
        _cells(
            pools=(27, "complement mirror"),
            layers=(27, "mirror complement"),
            others=(33, "mirror"),
        ),
    ),
    1: Rule(
        1,
        _cells(
            pools=(3, "complement pooled mirror"),
            layers=(3, "complement mirror"),
            others=(27, "mirror"),
        ),
        _cells(pools=(3, "mirror"), layers=(3, "mirror"), others=(27, "mirror")),
    ),
}
"""Channels of a block -> the rule that holds where the runtime's layout has such blocks.

Fitted by ``crelu doctor --calibrate`` to ONNX Runtime 1.31.1 in float32 on one thread of an Intel
Xeon: 16 as it is, 8 with its AVX-512 hidden, 1 with the blocked layout switched off. Without blocks
every site fills its blocks of one channel; ``padded`` then holds where the channels are unknown.
"""

TENSOR_CORES = Rule(
    1,
    dict.fromkeys(READERS, Preference(("mirror",), 256)),
    dict.fromkeys(READERS, Preference(("mirror",), 256)),
)
"""When folding pays on a GPU: estimated from peak rates of arithmetic and memory, not measured."""


def folds_that_pay(model: ir.Model) -> dict[str, str]:
    """Return site -> ``fold`` where that pays in float32 too, else ``mirror``."""
    return _folded(folding_pays(model, rule_here()))


def _folded(pays: Mapping[str, bool]) -> dict[str, str]:
    return {site: "fold" if yes else "mirror" for site, yes in pays.items()}


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
    return folds(model) if single else _folded(folding_pays(model, TENSOR_CORES))


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
    common = FITTED[block()]
    try:
        data = json.loads(_file().read_text(encoding="utf-8"))
        return _read(data["rule"]) if data["key"] == _key() else common
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return common  # none, or a damaged one: the common rule holds everywhere


def _read(data: Mapping[str, Any]) -> Rule:
    """Read what ``keep`` wrote.

    Raises:
        ValueError, TypeError, KeyError: It is something else.
    """
    whole, padded = (
        {
            readers: Preference(
                tuple(data[kind][readers]["forms"]), int(data[kind][readers]["fold"])
            )
            for readers in READERS
        }
        for kind in ("whole", "padded")
    )
    if unknown := {form for by in (whole, padded) for p in by.values() for form in p.forms} - {
        *LOWERINGS
    }:
        raise ValueError(f"unknown forms {unknown}")
    if (width := int(data["block"])) < 1:
        raise ValueError(f"blocks of {width} channels")
    return Rule(width, whole, padded)


def block() -> int:
    """Return the channels of a block in ONNX Runtime's layout here; 1 where it is not installed."""
    try:
        found: int = BACKENDS["ort-cpu"].implementation().block()
    except BackendUnavailable:
        return 1
    return found if found in FITTED else 1


def _file() -> Path:
    """Return the file of the calibrated rule; one that is not there for a user without a home."""
    return (cache_folder() or Path("/nonexistent")) / "rule.json"


def _key() -> dict[str, object]:
    runtime = versions().get("onnxruntime", "")
    return {"onnxruntime": runtime, "device": cpu_name(), "block": block()}


def on_cpu(model: ir.Model) -> dict[str, str]:
    """Return site -> lowering by the rule that holds here."""
    return by_rule(model, rule_here())


RULES: Mapping[str, Callable[[ir.Model], dict[str, str]]] = {
    "ort-cpu-int8": folds_that_pay,
    "openvino-int8": folds,
    **{backend.name: on_gpu for backend in GPU},
}
"""Backend -> rule; the others have ``on_cpu``, which is that of float32."""


def choice(model: ir.Model, backend: str) -> dict[str, str]:
    """Return site -> lowering by the backend's rule, without measuring."""
    return RULES.get(backend, on_cpu)(model)
