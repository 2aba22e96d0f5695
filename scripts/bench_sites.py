"""How far the CReLU sites of a network are from the ceiling that its convolutions set.

The ceiling of a site is its convolution alone, in a session of its own, and one more write of the
maps that it makes. A site's time is that of all kernels from its convolution up to the next layer,
pools left out. Kernel times are ONNX Runtime's own, one thread, medians over interleaved rounds.

Usage: bench_sites.py BUNDLE [--batch N] [--rounds N] [-t ort-cpu:LOWERING ...]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from crelu_deploy import Bundle, Target, build
from crelu_deploy.pipeline import feeds_of
from crelu_deploy.samples import Arrays

PRIMITIVE, AUTO = "ort-cpu:primitive", "ort-cpu:auto"
GLUE = ("Relu", "Neg", "Concat", "ReorderInput", "ReorderOutput")
"""What stands between a site's convolution and the next layer; depthwise convolutions too."""


@dataclass(frozen=True)
class Kernel:
    """What ran once.

    Attributes:
        operator: Its type.
        microseconds: How long it ran.
        shapes: Of its inputs.
    """

    operator: str
    microseconds: float
    shapes: Sequence[Sequence[int]]

    @property
    def is_layer(self) -> bool:
        """Whether it is a convolution that sums over channels."""
        return self.operator.endswith("Conv") and list(self.shapes[1][1:]) != [1, 1, 1]

    @property
    def adds(self) -> bool:
        """Whether it adds maps to its own: the second of the two that ``split`` makes of one."""
        return self.is_layer and any(len(shape) > 1 for shape in self.shapes[2:])


@dataclass(frozen=True)
class Distance:
    """Microseconds summed over the sites of a network.

    Attributes:
        ceiling: Each convolution alone and one more write of its maps.
        targets: Target -> the kernels of the sites.
    """

    ceiling: float
    targets: Mapping[str, float]

    def ratio(self, target: str) -> float:
        """How many times the ceiling one target takes."""
        return self.targets[target] / self.ceiling


class Profiled:
    """A session that notes what each kernel takes."""

    def __init__(self, model: str | bytes, feeds: Arrays, folder: Path) -> None:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 3
        settings.enable_profiling = True
        settings.profile_file_prefix = str(folder / "profile")
        self.session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        self.feeds, self.runs = dict(feeds), 0

    def run(self) -> None:
        """Run once."""
        self.session.run(None, self.feeds)
        self.runs += 1

    def rounds(self) -> list[list[Kernel]]:
        """End profiling and return the kernels of each run but the first two, in their order."""
        events = json.loads(Path(self.session.end_profiling()).read_text(encoding="utf-8"))
        kernels = [
            Kernel(e["args"]["op_name"], float(e["dur"]), _shapes_of(e["args"]))
            for e in events
            if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")
        ]
        size = len(kernels) // self.runs
        return [kernels[i * size : (i + 1) * size] for i in range(2, self.runs)]


def _shapes_of(arguments: Mapping[str, Any]) -> list[list[int]]:
    return [next(iter(entry.values())) for entry in arguments["input_type_shape"]]


@dataclass(frozen=True)
class Layer:
    """A site's convolution.

    Attributes:
        index: Its place among the network's convolutions.
        node: Its node.
        weight: Its weights.
        x: Shape of its input.
        y: Shape of its output.
    """

    index: int
    node: onnx.NodeProto
    weight: np.ndarray[Any, Any]
    x: tuple[int, ...]
    y: tuple[int, ...]

    def alone(self) -> bytes:
        """Return a model of this convolution and nothing else."""
        w, b = numpy_helper.from_array(self.weight, "w"), np.zeros(len(self.weight), np.float32)
        node = helper.make_node("Conv", ["x", "w", "b"], ["y"])
        node.attribute.extend(self.node.attribute)
        ports = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (("x", self.x), ("y", self.y))
        ]
        weights = [w, numpy_helper.from_array(b, "b")]
        graph = helper.make_graph([node], "alone", ports[:1], ports[1:], weights)
        opset = helper.make_opsetid("", 17)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        return bytes(model.SerializeToString())


def layers(bundle: Bundle, feeds: Arrays) -> list[Layer]:
    """Return the convolutions that sites read, from the graph of ``ort-cpu:primitive``."""
    model = onnx.load(bundle.artifact(Target.parse(PRIMITIVE)))
    wanted = {site["producer"].partition(" ")[2] for site in bundle.manifest["sites"]}
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = [node for node in model.graph.node if node.op_type == "Conv"]
    chosen = [(i, node) for i, node in enumerate(found) if node.name in wanted]
    if len(chosen) != len(bundle.manifest["sites"]):
        raise SystemExit(f"{bundle.path}: a site follows something else than a convolution")
    names = [name for _, node in chosen for name in (node.input[0], node.output[0])]
    shapes = _shapes(model, names, feeds)
    return [
        Layer(i, node, weights[node.input[1]], shapes[node.input[0]], shapes[node.output[0]])
        for i, node in chosen
    ]


def _shapes(
    model: onnx.ModelProto, names: Sequence[str], feeds: Arrays
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that values have in a run."""
    shapes = {name: np.shape(value) for name, value in feeds.items()}
    inner = [name for name in dict.fromkeys(names) if name not in shapes]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(inner, dict(feeds))
    return shapes | {name: y.shape for name, y in zip(inner, found, strict=True)}


def site_time(kernels: Sequence[Kernel], wanted: Sequence[int]) -> float:
    """Return the microseconds of one run's kernels that belong to the wanted convolutions."""
    layer, site, total = -1, -1, 0.0
    for i, kernel in enumerate(kernels):
        if kernel.is_layer:
            layer += not kernel.adds
            total += kernel.microseconds if layer in wanted else 0.0
            following = next((k for k in kernels[i + 1 :] if k.is_layer), None)
            if following is None or not following.adds:
                site = layer  # else what lies between two halves still belongs to the site before
        elif kernel.operator in GLUE or kernel.operator.endswith("Conv"):
            total += kernel.microseconds if site in wanted else 0.0
        elif kernel.operator != "MaxPool":
            site = -1
    return total


def write_time(shape: Sequence[int], repeats: int) -> Iterator[float]:
    """Yield the microseconds that filling maps of this shape takes."""
    maps = np.empty(shape, np.float32)
    for _ in range(repeats):
        start = time.perf_counter()
        maps.fill(0)
        yield (time.perf_counter() - start) * 1e6


def measure(
    bundle: Bundle, batch: int, *, rounds: int, targets: Sequence[str] = (PRIMITIVE, AUTO)
) -> Distance:
    """Time the sites of some targets, which are built where they are not, and their ceiling."""
    build(bundle, [PRIMITIVE])
    built = bundle.manifest["targets"]
    build(bundle, [t for t in targets if t not in built])
    feeds = feeds_of(bundle, batch)
    convolutions = layers(bundle, feeds)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = {t: Profiled(str(bundle.artifact(Target.parse(t))), feeds, folder) for t in targets}
        alone = [
            Profiled(one.alone(), {"x": generator.standard_normal(one.x, np.float32)}, folder)
            for one in convolutions
        ]
        sessions = [*whole.values(), *alone]
        for i in range(rounds + 2):
            for session in sessions if i % 2 == 0 else sessions[::-1]:
                session.run()
        wanted = [one.index for one in convolutions]
        times = {
            t: float(np.median([site_time(kernels, wanted) for kernels in session.rounds()]))
            for t, session in whole.items()
        }
        ceiling = sum(_median_conv(session) for session in alone)
    writes = sum(float(np.median([*write_time(one.y, rounds)])) for one in convolutions)
    return Distance(ceiling + writes, times)


def _median_conv(session: Profiled) -> float:
    runs = [sum(k.microseconds for k in run if k.operator == "Conv") for run in session.rounds()]
    return float(np.median(runs))


def main() -> int:
    """Print the distance of each target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("-t", "--target", action="append", help="ort-cpu:LOWERING; repeatable")
    arguments = parser.parse_args()
    targets = tuple(arguments.target or (PRIMITIVE, AUTO))
    bundle = Bundle.open(arguments.bundle)
    found = measure(bundle, arguments.batch, rounds=arguments.rounds, targets=targets)
    print(f"ceiling {found.ceiling:.0f} us: each convolution alone and one more write, summed")
    for target, microseconds in found.targets.items():
        print(f"{target:24} {microseconds:8.0f} us   {found.ratio(target):.2f} x the ceiling")
    return 0


if __name__ == "__main__":
    sys.exit(main())
