"""Latencies of loaded targets at one batch size, beside the baseline's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from crelu_deploy.latency import Call, Effort, Latency, measure, paired
from crelu_deploy.results import Row
from crelu_deploy.runner import Runner
from crelu_deploy.samples import Arrays
from crelu_deploy.targets import BASELINE, Target


def time_runners(
    runners: Mapping[Target, Runner],
    feeds: Arrays,
    batch: int,
    effort: Effort,
    *,
    end_to_end: bool,
) -> tuple[list[Row], dict[str, str]]:
    """Time the runners, interleaved.

    Args:
        runners: What to time.
        feeds: Inputs of this batch size.
        batch: The batch size.
        effort: How long to measure.
        end_to_end: Time the copies to and from a GPU too.

    Returns:
        A row for each, and for those that refuse the batch size the reason.
    """
    calls: dict[str, Call] = {}
    able: dict[str, Target] = {}
    refused: dict[str, str] = {}
    for target, runner in runners.items():
        try:
            call = partial(runner, feeds) if end_to_end else runner.prepare(feeds)
            call()
        except ValueError as error:
            refused[f"{target} batch {batch}"] = str(error)
            continue
        calls[str(target)], able[str(target)] = call, target
    found = measure(calls, effort) if calls else {}
    base = found.get(str(BASELINE))
    return [_row(able[name], batch, timed, base) for name, timed in found.items()], refused


def _row(target: Target, batch: int, found: Latency, base: Latency | None) -> Row:
    against = None if base is None else paired(found.times, base.times)
    return Row(target, batch, found, against)
