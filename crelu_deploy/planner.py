"""The plan of a bundle: the fastest choice of lowerings, raced here, noted for ``auto``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime

from crelu_deploy.backends.onnxruntime import block
from crelu_deploy.bundle import MODEL, Bundle, sha256
from crelu_deploy.environment import cpu_name
from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.locking import locked
from crelu_deploy.pipeline import DEFAULT, AnyBundle, Progress, feeds_of, opened_bundle, silent
from crelu_deploy.plan import MEASURED, ORIGINAL, RULE, Plan
from crelu_deploy.racing import Arena, Lane, Sessions, journal
from crelu_deploy.rules import on_cpu
from crelu_deploy.samples import Arrays
from crelu_deploy.search import entrants, search
from crelu_deploy.targets import Options

BACKEND = "ort-cpu"
"""The backend that is measured here."""

BUDGET = 30.0
"""Seconds that a search takes unless told otherwise."""


def make_plan(
    bundle: AnyBundle,
    options: Options = DEFAULT,
    *,
    batches: Sequence[int] = (),
    budget: float = BUDGET,
    fresh: bool = False,
    progress: Progress = silent,
) -> Plan:
    """Find the fastest choice of lowerings by timing it here, and note it for ``auto``.

    What is measured is kept in the user's cache: a search that was killed goes on where it was, and
    one that is repeated ends as before.

    Args:
        bundle: What to plan for; its target ``ort-cpu:auto`` is to be built again.
        options: Threads.
        batches: Extents of axis 0 that count; that of the first sample where there are none.
        budget: Seconds to race; 0 takes the rule's choice without measuring.
        fresh: Forget what was measured before.
        progress: Told what is being timed.

    Raises:
        BuildError: Another process writes to the bundle.
    """
    _require_seconds(budget)
    opened = opened_bundle(bundle)
    model = opened.model
    made = Plan(BACKEND, RULE, on_cpu(model), {"model": opened.manifest["files"][MODEL]})
    if budget and made.choice:
        recorded = opened.samples[0].inputs
        feeds: list[Arrays] = [feeds_of(opened, batch) for batch in batches] or [recorded]
        timer = Sessions(model, [Lane(one, options) for one in feeds])
        made = _measured(timer, made, budget, progress, fresh=fresh)
    use(opened, made)
    return made


def _require_seconds(budget: float) -> None:
    if not 0 <= budget < math.inf:
        raise ValueError(f"a race of {budget} seconds: expected a number, 0 or more")


def place(options: Options) -> Mapping[str, Any]:
    """Return what latencies depend on beside the model and its inputs."""
    return {
        "crelu-deploy": version("crelu-deploy"),
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "device": cpu_name(),
        "block": block(),
        "threads": options.cores,
    }


def plan_file(
    model: ir.Model,
    source: Path,
    feeds: Arrays,
    budget: float,
    progress: Progress,
    *,
    pruned: bool = False,
) -> Plan:
    """Race the forms of an ONNX file's network against the file as it is.

    Args:
        model: The network with its canonical nodes.
        source: The file.
        feeds: Inputs that it runs on.
        budget: Seconds to race; 0 takes the rule's choice without measuring.
        progress: Told what is being timed.
        pruned: Whether something was removed from the network.

    Returns:
        The plan; its choice is empty where no form is faster than the file itself.
    """
    _require_seconds(budget)
    made = Plan(BACKEND, RULE, on_cpu(model), {"model": sha256(source), "pruned": pruned})
    if not (budget and made.choice):
        return made
    timer = Sessions(model, [Lane(feeds, DEFAULT)], {ORIGINAL: source})
    return _measured(timer, made, budget, progress)


def _measured(
    timer: Sessions, rule: Plan, budget: float, progress: Progress, *, fresh: bool = False
) -> Plan:
    """Return what beats the network as it is, starting from the rule's plan."""
    shapes = [shapes_of(way.feeds) for way in timer.ways]
    key = {**rule.key, **place(timer.ways[0].options), "inputs": shapes}
    kept = journal(key)
    if fresh:
        kept.forget()
    entered = entrants(timer.model, rule.choice, original=ORIGINAL in timer.files)
    found = search(Arena(timer, kept), entered, budget, progress)
    if not found.sure:
        kept.forget()  # what a busy machine left undecided is measured anew
    return Plan(BACKEND, MEASURED, found.choice, {**key, "sure": found.sure}, found.ratios)


def shapes_of(feeds: Arrays) -> dict[str, str]:
    """Return the shape of each input, as ``1x3x224x224``."""
    return {name: "x".join(map(str, x.shape)) for name, x in feeds.items()}


def use(bundle: Bundle, made: Plan) -> None:
    """Note a plan in the bundle, for the next build of its backend's ``auto``.

    Raises:
        UnsupportedModel: It was made for another model, or names a site that there is not.
        BuildError: Another process is writing to the bundle.
    """
    with locked(bundle.path):
        bundle.reload()
        made.check(made.backend, bundle.manifest["files"][MODEL])
        _check_sites(made, [site["name"] for site in bundle.manifest["sites"]])
        bundle.record((), plans={**bundle.manifest.get("plans", {}), made.backend: asdict(made)})


def _check_sites(made: Plan, sites: Sequence[str]) -> None:
    if unknown := sorted(set(made.choice) - set(sites)):
        raise UnsupportedModel(
            f"the plan names the site {unknown[0][:80]!r}; the model has {', '.join(sites)}"
        )
