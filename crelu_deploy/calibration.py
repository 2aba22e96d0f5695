"""The rule of ``auto`` fitted to this machine.

Small networks of one site are raced on the runtime in every form that the rule chooses among, by
what reads the site, by whether its channels fill the runtime's blocks, and by the number of
products that one output of its producer sums up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from crelu_deploy import op
from crelu_deploy.plan import PLAIN
from crelu_deploy.racing import MARGIN, Arena, Choice, Journal, Lane, Sessions, Timer
from crelu_deploy.rule import FORMS, READERS, Preference, Rule, added, candidates
from crelu_deploy.targets import Options, Progress, silent

LENGTHS = ((3, 1), (3, 3), (5, 3), (8, 3), (12, 3), (16, 3), (28, 3))
"""Input channels and kernel of the producers: 3 to 252 products in one sum."""

BLOCKS = 4
"""Blocks that the channels fill, or fill but for half a one."""

EXTENT, NEXT = 64, 32
"""Height and width of the producer's maps, and channels of the last ones."""

READING = {
    "pools": "c = MaxPool<kernel_shape=[3,3], strides=[2,2]>(a) y = Conv(c, v)",
    "layers": 'y = Conv<auto_pad="SAME_UPPER">(a, v)',
    "others": "y = HardSigmoid(a)",
}
"""What stands behind the site ``a``, by kind of reader."""

SECONDS = 80.0

Timing = Callable[[ir.Model, Lane], Timer]


@dataclass(frozen=True)
class Point:
    """One measured network: what folding adds, and each form's time over the plain graph's."""

    added: float
    ratios: Mapping[str, float]


@dataclass(frozen=True)
class Calibration:
    """A rule fitted to this machine.

    Attributes:
        rule: What was fitted.
        points: What was measured, by ``whole`` or ``padded`` and by readers.
    """

    rule: Rule
    points: Mapping[str, Mapping[str, tuple[Point, ...]]] = field(default_factory=dict)


def calibrate(
    block: int,
    options: Options,
    *,
    seconds: float = SECONDS,
    timing: Timing = lambda model, lane: Sessions(model, [lane]),
    progress: Progress = silent,
) -> Calibration:
    """Race the forms of small networks here.

    Args:
        block: Channels of one block in the runtime's layout; 1 without blocks.
        options: Threads of one call.
        seconds: For all races together.
        timing: Makes what times the forms of a network.
        progress: Told what is being timed.
    """
    each = seconds / (2 * len(READERS) * len(LENGTHS))
    width = max(block, 8)
    points: dict[str, dict[str, tuple[Point, ...]]] = {}
    for name, channels in (("whole", BLOCKS * width), ("padded", BLOCKS * width - width // 2)):
        points[name] = {}
        for readers in READERS:
            found = []
            for inputs, kernel in LENGTHS:
                terms = inputs * kernel**2
                progress(f"calibrate {terms} products, {channels} channels, {readers}")
                model = _network(inputs, kernel, channels, readers)
                found.append(
                    Point(
                        added(terms, channels, block), _race(model, inputs, options, each, timing)
                    )
                )
            points[name][readers] = tuple(found)
    fitted = {
        name: {readers: preference(found) for readers, found in by.items()}
        for name, by in points.items()
    }
    return Calibration(Rule(block, fitted["whole"], fitted["padded"]), points)


def preference(points: Sequence[Point]) -> Preference:
    """Return the forms that beat the plain graph, the best first, and how far folding is better.

    A form's time is the geometric mean over the points; it beats the plain graph by ``MARGIN``.
    """
    means = {
        form: sum(math.log(point.ratios[form]) for point in points) / len(points)
        for form in FORMS
        if all(form in point.ratios for point in points)
    }
    faster = [form for form in means if means[form] <= math.log(1 - MARGIN)]
    forms = sorted(faster, key=lambda form: means[form])
    best = forms[0] if forms else PLAIN
    return Preference(
        (*forms, PLAIN), limit({p.added: p.ratios["fold"] / p.ratios[best] for p in points})
    )


def limit(ratios: Mapping[float, float]) -> int:
    """Return the number of added products up to which folding takes the least time in all.

    The time of a limit is the product of the ratios, folded over otherwise, below it.
    """
    ordered = sorted(ratios)
    totals = np.cumsum([0.0, *(math.log(ratios[terms]) for terms in ordered)])
    best = int(np.argmin(totals))
    return int(ordered[best - 1]) if best else 0


def _network(inputs: int, kernel: int, channels: int, readers: str) -> ir.Model:
    """Return convolution, site and what reads it, with seeded weights."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17, "{op.DOMAIN}": {op.VERSION}]>
        calibration (float[1,{inputs},{EXTENT},{EXTENT}] x) => (float[1,C,H,W] y) {{
          z = Conv<auto_pad="SAME_UPPER">(x, w)
          [site] a = {op.DOMAIN}.CReLU<axis=1>(z)
          {READING[readers]}
        }}"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (
        ("w", (channels, inputs, kernel, kernel)),
        ("v", (NEXT, 2 * channels, 3, 3)),
    ):
        values = rng.standard_normal(shape, np.float32) / 10
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def _race(
    model: ir.Model, inputs: int, options: Options, seconds: float, timing: Timing
) -> dict[str, float]:
    """Return each form's time over the plain graph's."""
    (able,) = candidates(model, ["site"]).values()
    choices: dict[str, Choice] = {
        form: {"site": form} for form in (PLAIN, *(form for form in able if form != PLAIN))
    }
    x = np.random.default_rng(1).standard_normal((1, inputs, EXTENT, EXTENT), np.float32)
    arena = Arena(timing(model, Lane({"x": x}, options)), Journal(None))
    return {name: verdict.ratio for name, verdict in arena.race(choices, seconds).items()}
