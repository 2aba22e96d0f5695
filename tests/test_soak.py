"""Long use in short: the same results in the same memory, from one thread and from eight."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tables import mostly

from crelu_deploy.bundle import Bundle
from crelu_deploy.pipeline import feeds_of, load

pytest.importorskip("torch")

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

import soak  # noqa: E402

pytestmark = pytest.mark.torch


@mostly("target", ["ort-cpu:function", "ort-cpu:auto", "torch"], fast=["ort-cpu:auto"])
def test_results_and_memory_stay_the_same(shared_bundle, target):
    line, good = soak.soak(Bundle.open(shared_bundle), target, 2000)
    assert good, line
    assert re.search(r"1 thread: 0 differ, .*; 8 threads: 0 differ", line), line


def test_threads_with_inputs_of_their_own_get_their_own_results(shared_bundle):
    first = feeds_of(Bundle.open(shared_bundle), 1)["input"]
    inputs = [first + np.float32(i) for i in range(soak.THREADS)]
    with load(shared_bundle, threads=1) as runner:
        expected = [runner(x) for x in inputs]
        assert not np.array_equal(expected[0]["logits"], expected[1]["logits"])
        with ThreadPoolExecutor(soak.THREADS) as pool:
            wrong = pool.map(
                lambda pair: soak.differing(runner, {"input": pair[0]}, pair[1], 200),
                zip(inputs, expected, strict=True),
            )
            assert sum(wrong) == 0


class Leaking:
    """A runner that keeps 8 KiB at each call, and one result in a thousand is another."""

    def __init__(self) -> None:
        self.kept: list[bytearray] = []

    def __call__(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.kept.append(bytearray(b"x" * 8192))
        return {"y": feeds["x"] + (len(self.kept) % 1000 == 0)}


def test_the_soak_sees_a_leak_and_another_result():
    runner, feeds = Leaking(), {"x": np.zeros(3, np.float32)}
    before = soak.resident()
    assert soak.differing(runner, feeds, {"y": feeds["x"]}, 10_000) == 10  # type: ignore[arg-type]
    assert soak.resident() > before * (1 + soak.GROWTH)
