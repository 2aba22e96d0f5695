"""The rule's limits fitted to this machine.

Small networks of one site are raced on the runtime, folded and not, over the number of products
that one output of the producer sums up. A limit is the number up to which folding saves most.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from crelu_deploy import op
from crelu_deploy.backends.onnxruntime import open_session
from crelu_deploy.latency import Effort, measure
from crelu_deploy.lowerings import lower
from crelu_deploy.pipeline import Progress, silent
from crelu_deploy.plan import Rule
from crelu_deploy.targets import Options
from crelu_deploy.writing import save_model

LENGTHS = ((3, 1), (3, 3), (8, 3), (3, 5), (4, 5), (12, 3), (16, 3), (8, 5), (28, 3), (48, 3))
"""Input channels and kernel of the producers: 3 to 432 products in one sum."""

WHOLE, PADDED = 64, 24
"""Channels that fill the runtime's blocks of 16, and channels that do not."""

EXTENT, NEXT = 32, 32
"""Height and width of all maps, and channels of the last one."""

SECONDS = 40.0

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Point:
    """One measured network: products in a sum, and time folded over time otherwise."""

    terms: int
    ratio: float


@dataclass(frozen=True)
class Calibration:
    """A rule fitted to this machine.

    Attributes:
        rule: Its limits.
        points: What was measured, for channels that fill their blocks and for others.
    """

    rule: Rule
    points: Mapping[str, tuple[Point, ...]]


def calibrate(
    options: Options, *, seconds: float = SECONDS, progress: Progress = silent
) -> Calibration:
    """Race folded networks against others here.

    Args:
        options: Threads of one call.
        seconds: For all races together.
        progress: Told what is being timed.
    """
    each = seconds / (2 * len(LENGTHS))
    points: dict[str, tuple[Point, ...]] = {}
    for name, channels, other in (("whole", WHOLE, "depthwise"), ("padded", PADDED, "mirror")):
        found = []
        for inputs, kernel in LENGTHS:
            terms = inputs * kernel**2
            progress(f"calibrate {terms} products, {channels} channels")
            extents = (1, inputs, EXTENT, EXTENT)
            x = np.random.default_rng(1).standard_normal(extents, np.float32)
            ratio = _race(_network(inputs, kernel, channels), x, other, options, each)
            found.append(Point(terms, ratio))
        points[name] = tuple(found)
    rule = Rule(whole=limit(points["whole"]), padded=limit(points["padded"]))
    return Calibration(rule, points)


def limit(points: tuple[Point, ...]) -> int:
    """Return the number of products up to which folding takes the least time in all.

    The time of a limit is the product of the ratios of the points below it.
    """
    ordered = sorted(points, key=lambda point: point.terms)
    totals = np.cumsum([0.0, *(math.log(point.ratio) for point in ordered)])
    best = int(np.argmin(totals))
    return ordered[best - 1].terms if best else 0


def _network(inputs: int, kernel: int, channels: int) -> ir.Model:
    """Return convolution, site, convolution, with seeded weights."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17, "{op.DOMAIN}": {op.VERSION}]>
        calibration (float[1,{inputs},{EXTENT},{EXTENT}] x)
        => (float[1,{NEXT},{EXTENT},{EXTENT}] y) {{
          z = Conv<auto_pad="SAME_UPPER">(x, w)
          [site] c = {op.DOMAIN}.CReLU<axis=1>(z)
          y = Conv<auto_pad="SAME_UPPER">(c, v)
        }}"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (
        ("w", (channels, inputs, kernel, kernel)),
        ("v", (NEXT, 2 * channels, 3, 3)),
    ):
        values = rng.standard_normal(shape, np.float32) / 10
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return ir.from_proto(model)


def _race(model: ir.Model, x: Array, other: str, options: Options, seconds: float) -> float:
    """Return the time of the folded network over that of the other form."""
    with tempfile.TemporaryDirectory() as folder:
        runners = {}
        for name in ("fold", other):
            path = Path(folder) / f"{name}.onnx"
            save_model(lower(model, name).model, path)
            runners[name] = open_session(path, options)
        calls = {name: partial(runner, x) for name, runner in runners.items()}
        found = measure(calls, Effort(runs=10_000, seconds=seconds))
        for runner in runners.values():
            runner.close()
    return found["fold"].median / found[other].median
