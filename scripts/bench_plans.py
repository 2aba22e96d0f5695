"""Random CReLU networks: how good are the plans, measured and by rule?

For each network a plan is searched, then the plan, the rule's choice and every uniform lowering are
raced, interleaved, one thread, twice: in the first race the best uniform lowering is chosen, in the
second all three are compared, so that none is favoured by having been picked for its noise. Exit
status 1: a plan was more than MARGIN slower than the best uniform lowering.

Usage: bench_plans.py [N] [--seed 0] [--budget SECONDS] [--seconds SECONDS] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from crelu_deploy.environment import environment
from crelu_deploy.lowerings import LOWERINGS
from crelu_deploy.passes import clean
from crelu_deploy.planner import BASELINE, Choice, Search, by_measurement, candidates
from crelu_deploy.recognition import recognize
from crelu_deploy.rules import on_cpu
from crelu_deploy.targets import FUNCTION, Options

MARGIN = 0.03
CLOSE = 0.10
WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96)
KERNELS = (1, 3, 3, 3, 5, 7)
EXTENTS = (16, 24, 32, 48, 64)
ONE = Options(threads=1)


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        network: Its layers in words.
        plan: Site -> lowering of the measured plan.
        uniform: The best uniform lowering.
        measured: The plan's time over that of the best uniform lowering.
        rule: The rule's time over the plan's.
        gain: The plan's time over the plain graph's.
    """

    network: str
    plan: Choice
    uniform: str
    measured: float
    rule: float
    gain: float


def network(rng: random.Random) -> tuple[onnx.ModelProto, str]:
    """Return a random chain of convolutions, sites and pools, with its layers in words."""
    extent, channels = rng.choice(EXTENTS), rng.choice((1, 3, 3, 16, 32))
    batch, value = rng.choice((1, 1, 2, 4)), "x"
    nodes, weights, words = [], [], [f"{batch}x{channels}x{extent}x{extent}"]
    shape = (batch, channels, extent, extent)
    seeded = np.random.default_rng(rng.randrange(1 << 30))
    for i in range(rng.randint(2, 4)):
        width, kernel = rng.choice(WIDTHS), rng.choice(KERNELS)
        stride = rng.choice((1, 1, 2)) if extent >= 8 else 1
        tensor = seeded.standard_normal((width, channels, kernel, kernel), np.float32)
        weights.append(
            onnx.numpy_helper.from_array(tensor / np.float32(tensor[0].size ** 0.5), f"w{i}")
        )
        pads = f"pads = [{', '.join([str(kernel // 2)] * 4)}], strides = [{stride}, {stride}]"
        nodes.append(f"c{i} = Conv<{pads}>({value}, w{i}) n{i} = Neg(c{i}) a{i} = Relu(c{i})")
        nodes.append(f"b{i} = Relu(n{i}) s{i} = Concat<axis = 1>(a{i}, b{i})")
        value, channels, extent = f"s{i}", 2 * width, -(-extent // stride)
        words.append(f"{width}c{kernel}" + f"/{stride}" * (stride > 1))
        pool = rng.choice(("", "", "MaxPool", "AveragePool")) if extent >= 8 else ""
        if pool:
            nodes.append(f"p{i} = {pool}<kernel_shape = [2, 2], strides = [2, 2]>({value})")
            value, extent = f"p{i}", extent // 2
            words.append(pool.removesuffix("Pool").lower())
    tensor = seeded.standard_normal((10, channels, 1, 1), np.float32) / channels
    weights.append(onnx.numpy_helper.from_array(tensor, "w"))
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        random (float[{", ".join(map(str, shape))}] x) => (float[{batch}, 10, 1, 1] y) {{
        {" ".join(nodes)} l = Conv({value}, w) y = GlobalAveragePool(l) }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(weights)
    return model, " ".join(words)


def measured(proto: onnx.ModelProto, words: str, seed: int, budget: float, seconds: float) -> Row:
    """Plan one network and race the plan."""
    model = ir.from_proto(proto)
    recognize(model)
    model = clean(model)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    feeds = [{"x": np.random.default_rng(seed).standard_normal(shape, np.float32)}]
    rule = on_cpu(model)
    plan, _ = by_measurement(model, feeds, rule, ONE, budget=budget, progress=lambda _: None)
    able = candidates(model, list(rule))
    names = (BASELINE, *(n for n in LOWERINGS if n not in (BASELINE, FUNCTION)))
    uniform = {n: {s: n if n in able[s] else BASELINE for s in rule} for n in names}
    search = Search(model, feeds, ONE, time.monotonic())
    first = search.race(uniform, seconds / 2)
    best = min(first, key=lambda name: first[name])
    contestants = {BASELINE: uniform[BASELINE], "best": uniform[best], "plan": plan, "rule": rule}
    found = search.race(contestants, seconds / 2)
    against, gain = found["plan"] / found["best"], found["plan"]
    return Row(words, plan, best, against, found["rule"] / found["plan"], gain)


def rows(given: argparse.Namespace) -> Iterator[Row]:
    """Measure one network after the other."""
    rng = random.Random(given.seed)
    for i in range(given.count):
        proto, words = network(rng)
        row = measured(proto, words, given.seed + i, given.budget, given.seconds)
        forms = ",".join(name[:4] for name in row.plan.values())
        print(
            f"{i + 1:3} plan/best {row.measured:.3f} ({row.uniform[:9]:9}) rule/plan "
            f"{row.rule:.3f} plan/plain {row.gain:.3f}  {forms:20} {words}",
            flush=True,
        )
        yield row


def main() -> int:
    """Print a row per network and the summary; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("count", nargs="?", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=10.0, help="of each search")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each pair of races")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = list(rows(given))
    slow = [row for row in found if row.measured > 1 + MARGIN]
    rule = float(np.median([row.rule for row in found]))
    gain = float(np.median([row.gain for row in found]))
    print(f"plan more than {MARGIN:.0%} slower than the best uniform lowering: {len(slow)}")
    print(f"worst plan/best {max(row.measured for row in found):.3f}, median plan/plain {gain:.3f}")
    print(f"rule/plan: median {rule:.3f}, aimed at {1 + CLOSE:.2f}")
    if given.json:
        data = {"environment": environment(1), "rows": [asdict(row) for row in found]}
        given.json.write_text(json.dumps(data, indent=2) + "\n")
    return 1 if slow or rule > 1 + CLOSE else 0


if __name__ == "__main__":
    sys.exit(main())
