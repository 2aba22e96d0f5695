"""Processor time of recognition and folding by the size of the graph, a tenth of it sites.

Usage: python scripts/bench_recognition.py [NODES ...]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from crelu_deploy.lowerings import lower
from crelu_deploy.passes import clean
from crelu_deploy.recognition import recognize

SIZES = (500, 1_000, 2_000, 5_000)
CHANNELS = 8


def network(nodes: int) -> ir.Model:
    """Return a chain of blocks of some ten nodes with one CReLU each, in two spellings."""
    x = ir.val("x", ir.DataType.FLOAT, (1, CHANNELS, 16, 16))
    random = np.random.default_rng(0)
    weights: list[ir.Value] = []
    chain: list[ir.Node] = []
    value = x

    def add(op_type: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        chain.append(ir.node(op_type, inputs, attributes, name=f"{op_type}_{len(chain)}"))
        chain[-1].outputs[0].name = f"v{len(chain)}"
        return chain[-1].outputs[0]

    def weight(*shape: int) -> ir.Value:
        array = random.normal(size=shape).astype(np.float32)
        weights.append(ir.val(f"w{len(weights)}", const_value=ir.tensor(array)))
        return weights[-1]

    minus = ir.val("minus", const_value=ir.tensor(np.float32(-1)))
    for block in range(nodes // 10):
        y = add("Conv", value, weight(CHANNELS, CHANNELS, 1, 1), weight(CHANNELS))
        if block % 2:
            joined = add("Concat", add("Relu", y), add("Relu", add("Neg", y)), axis=1)
        else:
            joined = add("Identity", add("Concat", y, add("Mul", y, minus), axis=1))
            joined = add("Relu", joined)
        z = add("Relu", add("Conv", joined, weight(CHANNELS, 2 * CHANNELS, 1, 1)))
        value = add("Concat", z, add("MaxPool", y, kernel_shape=[1, 1]), axis=1)
        value = add("Conv", value, weight(CHANNELS, 2 * CHANNELS, 1, 1))
    graph = ir.Graph(
        [x], [value], nodes=chain, initializers=[*weights, minus], opset_imports={"": 20}
    )
    graph.name = "bench"
    return ir.Model(graph, ir_version=10)


def timed(work: Callable[[ir.Model], object], model: ir.Model) -> tuple[object, float]:
    """Return what ``work`` returns, and its processor time in seconds: all runs on one thread."""
    start = time.process_time()
    result = work(model)
    return result, time.process_time() - start


def main() -> None:
    """Print one line per size: each stage, all three, and all three by node."""
    print(" nodes sites folded  recognize    clean     fold    total   us/node")
    for size in [int(argument) for argument in sys.argv[1:]] or SIZES:
        model = network(size)
        nodes = len(model.graph)
        _, recognising = timed(recognize, model)
        sites = sum(node.domain != "" for node in model.graph)
        cleaned, cleaning = timed(clean, model)
        lowered, folding = timed(lambda ready: lower(ready, "fold"), cleaned)
        folded = list(lowered.applied.values()).count("fold")
        total = recognising + cleaning + folding
        print(
            f"{nodes:6d} {sites:5d} {folded:6d} {recognising:8.3f} s {cleaning:6.3f} s "
            f"{folding:6.3f} s {total:6.3f} s {1e6 * total / nodes:9.1f}"
        )


if __name__ == "__main__":
    main()
