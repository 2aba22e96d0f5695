"""The fastest mix of lowerings, found by timing whole networks on the runtime itself.

Neighbouring sites share layouts and fused activations, so a site's best form depends on the others.
The search starts from the best uniform choice and the rule's, and changes one site at a time.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from crelu_deploy.backends.onnxruntime import SessionRunner, open_session
from crelu_deploy.bundle import MODEL, Bundle
from crelu_deploy.environment import cpu_name
from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.latency import Effort, measure
from crelu_deploy.locking import locked
from crelu_deploy.lowerings import LOWERINGS, lower
from crelu_deploy.pipeline import DEFAULT, AnyBundle, Progress, feeds_of, opened_bundle, silent
from crelu_deploy.plan import MEASURED, RULE, Plan
from crelu_deploy.rules import on_cpu
from crelu_deploy.samples import Arrays
from crelu_deploy.targets import FUNCTION, Options
from crelu_deploy.writing import save_model

Choice = Mapping[str, str]

BACKEND = "ort-cpu"
"""The backend that is measured here."""

BASELINE = "primitive"
BUDGET = 30.0
"""Seconds that a search takes unless told otherwise."""

MARGIN = 0.01
"""A change counts when it saves more than this share of the time, twice."""


@dataclass
class Search:
    """The state of one search.

    Attributes:
        model: The network with its canonical nodes.
        feeds: Inputs to time with, one entry per batch size.
        options: How the runtime runs.
        deadline: When to stop, on the clock of ``time.monotonic``.
    """

    model: ir.Model
    feeds: Sequence[Arrays]
    options: Options
    deadline: float

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def race(self, choices: Mapping[str, Choice], seconds: float) -> dict[str, float]:
        """Time some choices, interleaved; return each one's time over that of the first.

        Several batch sizes count by the geometric mean of their ratios.
        """
        names = list(choices)
        logs: dict[str, list[float]] = {name: [] for name in names}
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            runners = {
                name: stack.enter_context(self._open(choice, Path(folder) / f"{i}.onnx"))
                for i, (name, choice) in enumerate(choices.items())
            }
            effort = Effort(runs=10_000, warmup=2, seconds=seconds / len(self.feeds))
            for feeds in self.feeds:
                calls = {name: partial(runner, feeds) for name, runner in runners.items()}
                found = measure(calls, effort)
                for name in names:
                    logs[name].append(np.log(found[name].median / found[names[0]].median))
        return {name: float(np.exp(np.mean(values))) for name, values in logs.items()}

    def _open(self, choice: Choice, path: Path) -> SessionRunner:
        save_model(lower(self.model, choice).model, path)
        return open_session(path, self.options)


def candidates(model: ir.Model, sites: Sequence[str]) -> dict[str, list[str]]:
    """Return for each site the lowerings that it can have, ``function`` aside."""
    refused = {
        name: lower(model, dict.fromkeys(sites, name)).reasons
        for name in LOWERINGS
        if name != FUNCTION
    }
    return {site: [n for n, reasons in refused.items() if site not in reasons] for site in sites}


def by_measurement(
    model: ir.Model,
    feeds: Sequence[Arrays],
    rule: Choice,
    options: Options,
    *,
    budget: float,
    progress: Callable[[str], None],
) -> tuple[Choice, Mapping[str, float]]:
    """Return the fastest choice found, and what was timed: time over the baseline's.

    Args:
        model: The network with its canonical nodes.
        feeds: Inputs to time with, one entry per batch size.
        rule: The choice to start from beside the uniform ones.
        options: How the runtime runs.
        budget: Seconds for the whole search.
        progress: Told what is being timed.
    """
    start = time.monotonic()
    search = Search(model, feeds, options, start + budget)
    able = candidates(model, list(rule))
    uniform = {
        name: {site: name if name in able[site] else BASELINE for site in rule}
        for name in (BASELINE, *(n for n in LOWERINGS if n not in (BASELINE, FUNCTION)))
    }
    progress("plan: time uniform choices")
    ratios = search.race({**uniform, "rule": rule}, budget / 4)
    best = min(ratios, key=lambda name: ratios[name])
    mix = _improve(search, {**uniform, "rule": rule}[best], able, progress)
    progress("plan: confirm")
    simple = min(uniform, key=lambda name: ratios[name])
    last = _distinct(
        {BASELINE: uniform[BASELINE], simple: uniform[simple], "rule": rule, "mix": mix}
    )
    final = search.race(last, budget / 8)
    fastest = min(final, key=lambda name: final[name])
    chosen = last[fastest if final[fastest] <= 1 - MARGIN else BASELINE]
    return chosen, {**ratios, **final}


def _distinct(choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """Leave out what an earlier name stands for too: one network has one time."""
    found: dict[str, Choice] = {}
    for name, choice in choices.items():
        if dict(choice) not in [dict(other) for other in found.values()]:
            found[name] = choice
    return found


def _improve(
    search: Search,
    choice: Choice,
    able: Mapping[str, Sequence[str]],
    progress: Callable[[str], None],
) -> Choice:
    """Change one site at a time for the better, until nothing is gained or the time is up."""
    unchanged, current = 0, dict(choice)
    for site in itertools.cycle(able):
        if unchanged == len(able) or search.left <= 0:
            break
        others = {n: {**current, site: n} for n in able[site] if n != current[site]}
        progress(f"plan: {site}")
        seconds = search.left / (len(able) - unchanged) / 2
        better = _winner(search, current, others, seconds) if others else None
        unchanged = 0 if better else unchanged + 1
        current = dict(better or current)
    return current


def _winner(
    search: Search, current: Choice, others: Mapping[str, Choice], seconds: float
) -> Choice | None:
    """Return the choice that beats the current one by the margin, in two races."""
    first = search.race({"": current, **others}, seconds * 2 / 3)
    name = min(others, key=lambda other: first[other])
    if first[name] > 1 - MARGIN:
        return None
    second = search.race({"": current, name: others[name]}, seconds / 3)
    return others[name] if second[name] <= 1 - MARGIN else None


def make_plan(
    bundle: AnyBundle,
    options: Options = DEFAULT,
    *,
    batches: Sequence[int] = (1,),
    budget: float = BUDGET,
    progress: Progress = silent,
) -> Plan:
    """Find the fastest choice of lowerings by timing it here, and note it for ``auto``.

    Args:
        bundle: What to plan for; its target ``ort-cpu:auto`` is to be built again.
        options: Threads.
        batches: Extents of axis 0 that count, by the geometric mean of their times.
        budget: Seconds to search; 0 takes the rule's choice without measuring.
        progress: Told what is being timed.
    """
    opened = opened_bundle(bundle)
    model = opened.model
    rule = on_cpu(model)
    key: dict[str, Any] = {"model": opened.manifest["files"][MODEL]}
    made = Plan(BACKEND, RULE, rule, key)
    if budget and rule:
        key |= {
            "runtime": f"onnxruntime {onnxruntime.__version__}",
            "device": cpu_name(),
            "threads": options.cores,
        }
        feeds = [feeds_of(opened, batch) for batch in batches]
        choice, ratios = by_measurement(
            model, feeds, rule, options, budget=budget, progress=progress
        )
        made = Plan(BACKEND, MEASURED, choice, {**key, "batches": list(batches)}, ratios)
    use(opened, made)
    return made


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
