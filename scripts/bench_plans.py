"""Random CReLU networks: how good are the plans, measured and by rule?

For each network a plan is searched, with --busy beside so many loops that keep cores busy. When
all are made, and the loops have ended, the plan, the rule's choice and every uniform lowering are
raced, interleaved, one thread, twice: in the first race the best uniform lowering is chosen, in
the second all are compared, so that none is favoured by having been picked for its noise. Exit
status 1: a plan is slower than the plain graph, by its paired median and by its minima, or, made on
a quiet machine, more than MARGIN slower than the best uniform lowering.

Usage: bench_plans.py [N] [--seed 0] [--budget SECONDS] [--seconds SECONDS] [--busy N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from crelu_deploy.environment import environment
from crelu_deploy.passes import clean
from crelu_deploy.plan import PLAIN
from crelu_deploy.racing import Arena, Choice, Journal, Lane, Sessions
from crelu_deploy.recognition import recognize
from crelu_deploy.rules import on_cpu
from crelu_deploy.search import Entrants, entrants, search
from crelu_deploy.targets import Options

SLOWER = 0.02
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
        gain: The plan's time over the plain graph's, the median of the rounds.
        minima: The shortest time over the plain graph's shortest.
    """

    network: str
    plan: Choice
    uniform: str
    measured: float
    rule: float
    gain: float
    minima: float


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


@dataclass(frozen=True)
class Planned:
    """A network and the plan that was made for it."""

    words: str
    arena: Arena
    entered: Entrants
    rule: Choice
    plan: Choice


def planned(given: argparse.Namespace) -> Iterator[Planned]:
    """Plan one network after the other."""
    rng = random.Random(given.seed)
    for i in range(given.count):
        proto, words = network(rng)
        model = ir.from_proto(proto)
        recognize(model)
        model = clean(model)
        shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
        x = np.random.default_rng(given.seed + i).standard_normal(shape, np.float32)
        rule = on_cpu(model)
        arena = Arena(Sessions(model, [Lane({"x": x}, ONE)]), Journal(None))
        entered = entrants(model, rule)
        found = search(arena, entered, given.budget, lambda _: None)
        yield Planned(words, arena, entered, rule, found.choice)


def timed(made: Planned, seconds: float) -> Row:
    """Race a plan against the plain graph and the best uniform choice."""
    uniform = {n: c for n, c in made.entered.choices.items() if n != "rule"}
    first = made.arena.race(uniform, seconds / 2)
    best = min(first, key=lambda name: first[name].ratio)
    contestants = {PLAIN: uniform[PLAIN], "best": uniform[best], "plan": made.plan}
    found = made.arena.race({**contestants, "rule": made.rule}, seconds / 2)
    (plan,) = found["plan"].lanes
    return Row(
        *(made.words, made.plan, best),
        found["plan"].ratio / found["best"].ratio,
        found["rule"].ratio / found["plan"].ratio,
        plan.ratio,
        plan.minima,
    )


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep so many processes busy beside what is done inside the block."""
    code = "while True: pass"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def rows(given: argparse.Namespace) -> Iterator[Row]:
    """Plan all networks, perhaps on a busy machine, then time all on what it is without."""
    with busy(given.busy):
        plans = list(planned(given))
    for i, made in enumerate(plans):
        row = timed(made, given.seconds)
        forms = ",".join(name[:4] for name in row.plan.values())
        print(
            f"{i + 1:3} plan/best {row.measured:.3f} ({row.uniform[:9]:9}) rule/plan "
            f"{row.rule:.3f} plan/plain {row.gain:.3f}, minima {row.minima:.3f}  {forms:20} "
            f"{row.network}",
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
    parser.add_argument("--busy", type=int, default=0, help="loops beside the searches")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = list(rows(given))
    slower = [row for row in found if min(row.gain, row.minima) > 1 + SLOWER]
    behind = [row for row in found if row.measured > 1 + MARGIN]
    rule = float(np.median([row.rule for row in found]))
    gain = float(np.median([row.gain for row in found]))
    print(f"slower than the plain graph by more than {SLOWER:.0%}: {len(slower)} of {len(found)}")
    print(f"more than {MARGIN:.0%} slower than the best uniform lowering: {len(behind)}")
    print(f"worst plan/best {max(row.measured for row in found):.3f}, median plan/plain {gain:.3f}")
    print(f"rule/plan: median {rule:.3f}, aimed at {1 + CLOSE:.2f}")
    if given.json:
        data = {"environment": environment(1), "rows": [asdict(row) for row in found]}
        given.json.write_text(json.dumps(data, indent=2) + "\n")
    noisy = given.busy > 0
    return 1 if slower or (not noisy and (behind or rule > 1 + CLOSE)) else 0


if __name__ == "__main__":
    sys.exit(main())
