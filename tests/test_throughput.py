"""All cores busy: what is counted, what fails, and memory that belongs to the target."""

from __future__ import annotations

import json
import threading
import time

import pytest
from tables import mostly

from crelu_deploy import Bundle, pipeline
from crelu_deploy.cli import run
from crelu_deploy.errors import BuildError
from crelu_deploy.latency import Effort
from crelu_deploy.targets import BASELINE, Options, Target
from crelu_deploy.throughput import callers_for, loads, peak_memory, saturate

ONE = Options(threads=1)
FOLD = Target("ort-cpu", "fold")


def test_calls_of_all_callers_count():
    calls = {BASELINE: lambda: time.sleep(0.02), FOLD: lambda: time.sleep(0.04)}
    rates = saturate(calls, 2, 1.2)
    assert 70 < rates[BASELINE] <= 101
    assert 1.6 < rates[BASELINE] / rates[FOLD] < 2.4


def test_a_failure_in_a_caller_is_raised():
    def fails() -> None:
        if threading.current_thread() is not threading.main_thread():
            raise BuildError("the runtime failed")

    with pytest.raises(BuildError, match="the runtime failed"):
        saturate({BASELINE: fails}, 2, 0.1)


@pytest.mark.parametrize(("threads", "callers"), [(1, 2), (10_000, 2), (None, 2)])
def test_at_least_two_callers(threads, callers):
    assert callers_for(Options(threads=threads)) >= callers


@pytest.mark.torch
@mostly("batches", [(4,), (1, 4)], fast=[(4,)])
def test_rows_and_memory_of_what_was_timed(bundle, batches):
    opened = Bundle.open(bundle)
    found = pipeline.bench(opened, [FOLD], ONE, batches=batches, effort=Effort(runs=5, seconds=1))
    measured = loads(opened, found, ONE, seconds=1)
    assert [(load.target, load.batch) for load in measured] == [
        (row.target, row.batch) for row in found.rows
    ]
    for load in measured:
        assert load.per_second > 0
        assert 0 < load.peak_mib < 500
    small, large = (peak_memory(bundle, FOLD, batch, ONE) for batch in (1, 256))
    assert large > small + 10  # 256 images of 28x28 make maps of megabytes


@pytest.mark.torch
def test_a_target_that_is_not_built_has_no_memory(bundle):
    with pytest.raises(BuildError, match=r"cannot be measured: .*ort-cpu:mirror is not built"):
        peak_memory(bundle, Target("ort-cpu", "mirror"), 1, ONE)


@pytest.mark.torch
def test_the_command_line(bundle, capfd):
    brief = ("--runs", "5", "--seconds", "0.5", "--threads", "1")
    assert run(["bench", str(bundle), "-q", "--json", "--throughput", *brief]) == 0
    rows = json.loads(capfd.readouterr().out)["throughput"]
    assert [row["target"] for row in rows][:1] == ["ort-cpu:primitive"]
    assert rows[0].keys() == {"target", "batch", "callers", "per_second", "peak_mib"}
