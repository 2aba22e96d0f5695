"""Any ONNX file becomes a lowered one that computes the same, or nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import values

from crelu_deploy import op, optimize
from crelu_deploy.accuracy import Tolerance
from crelu_deploy.errors import BuildError, UnsupportedModel
from crelu_deploy.optimizer import inspect

CONV = "z = Conv(x, w, b)"
CRELU = "n = Neg(z) c = Concat<axis=1>(z, n) y = Relu(c)"
LATE = "p = Relu(z) n = Neg(z) q = Relu(n) y = Concat<axis=1>(p, q)"
NCRELU = "p = Relu(z) n = Neg(p) y = Concat<axis=1>(p, n)"
NODE = "y = crelu_deploy.CReLU<axis=1>(z)"
AFFINE = "n = Neg(z) c = Concat<axis=1>(z, n) s = Mul(c, scale) t = Add(s, shift) y = Relu(t)"
X = "float[N,3,H,W] x"
WEIGHTS = {"w": (4, 3, 3, 3), "b": (4,)}


@dataclass(frozen=True)
class Graph:
    """Text of a graph: its inputs, its body that computes y, and the shapes of its weights."""

    body: str
    inputs: str = X
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: WEIGHTS)
    opset: int = 17


def proto(graph: Graph) -> onnx.ModelProto:
    text = (
        f'<ir_version: 8, opset_import: ["": {graph.opset}, "crelu_deploy": 1]> '
        f"g ({graph.inputs}) => (float[] y) {{ {graph.body} }}"
    )
    model = onnx.parser.parse_model(text)
    for name, shape in graph.weights.items():
        array = onnx.numpy_helper.from_array(values(name, shape), name)
        model.graph.initializer.append(array)
    if "crelu_deploy." not in graph.body:
        del model.opset_import[1]
    else:
        function = ir.serde.serialize_function(op.function("CReLU", graph.opset))
        model.functions.append(function)
    return onnx.shape_inference.infer_shapes(model)


def saved(graph: Graph, folder: Path) -> Path:
    path = folder / "in.onnx"
    onnx.save(proto(graph), path)
    return path


def run(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: values(name, shape) for name, shape in shapes.items()})[0]


def counted(path: Path) -> Counter[str]:
    nodes = onnx.load(path).graph.node
    return Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in nodes)


IMAGE = {"x": (2, 3, 8, 9)}
LINEAR = Graph(
    "z = MatMul(x, m) n = Neg(z) c = Concat<axis=-1>(z, n) y = Relu(c)",
    "float[N,5] x",
    {"m": (5, 4)},
)
TWO_INPUTS = Graph(
    f"{CONV} n = Neg(z) c = Concat<axis=1>(z, n) r = Relu(c) y = Add(r, e)",
    f"{X}, float[N,8,1,1] e",
)
# Graph, lowering -> operators of the result, and the input shapes to run it on.
OPTIMIZED: dict[str, tuple[Graph, str, dict[str, int], dict[str, tuple[int, ...]]]] = {
    "fold": (Graph(f"{CONV} {CRELU}"), "fold", {"Conv": 1, "Relu": 1}, IMAGE),
    "fold-late": (Graph(f"{CONV} {LATE}"), "fold", {"Conv": 1, "Relu": 1}, IMAGE),
    "auto": (Graph(f"{CONV} {LATE}"), "auto", {"Conv": 1, "Relu": 1}, IMAGE),
    "mirror": (
        *(Graph(f"{CONV} {LATE}"), "mirror"),
        *({"Conv": 1, "Neg": 1, "Concat": 1, "Relu": 1}, IMAGE),
    ),
    "primitive": (
        *(Graph(f"{CONV} {CRELU}"), "primitive"),
        *({"Conv": 1, "Neg": 1, "Concat": 1, "Relu": 2}, IMAGE),
    ),
    "function": (Graph(f"{CONV} {CRELU}"), "function", {"Conv": 1, "crelu_deploy.CReLU": 1}, IMAGE),
    "opset-9": (Graph(f"{CONV} {CRELU}", opset=9), "fold", {"Conv": 1, "Relu": 1}, IMAGE),
    "node": (Graph(f"{CONV} {NODE}"), "fold", {"Conv": 1, "Relu": 1}, IMAGE),
    "linear": (LINEAR, "fold", {"MatMul": 1, "Relu": 1}, {"x": (3, 5)}),
    "affine": (
        Graph(f"{CONV} {AFFINE}", weights={**WEIGHTS, "scale": (8, 1, 1), "shift": (8, 1, 1)}),
        *("fold", {"Conv": 1, "Relu": 1}, IMAGE),
    ),
    "two-inputs": (
        *(TWO_INPUTS, "fold", {"Conv": 1, "Relu": 1, "Add": 1}),
        {**IMAGE, "e": (2, 8, 1, 1)},
    ),
    "lookalike": (
        *(Graph(f"{CONV} {NCRELU}"), "fold"),
        *({"Conv": 1, "Relu": 1, "Neg": 1, "Concat": 1}, IMAGE),
    ),
}


@pytest.mark.parametrize(
    ("graph", "lowering", "operators", "shapes"), OPTIMIZED.values(), ids=OPTIMIZED
)
def test_optimized(
    graph: Graph,
    lowering: str,
    operators: dict[str, int],
    shapes: dict[str, tuple[int, ...]],
    tmp_path: Path,
) -> None:
    source, out = saved(graph, tmp_path), tmp_path / "out.onnx"
    original = source.read_bytes()
    done = optimize(source, out, lowering=lowering)
    assert source.read_bytes() == original
    onnx.checker.check_model(onnx.load(out), full_check=True)
    assert counted(out) == operators
    assert sum(done.after.values()) == sum(operators.values())
    assert done.before == dict(sorted(counted(source).items()))
    assert len(done.lowerings) == len(done.inspection.sites) == (NCRELU not in graph.body)
    np.testing.assert_allclose(run(out, shapes), run(source, shapes), rtol=1e-5, atol=1e-5)
    assert done.comparison is not None
    assert done.comparison.passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]


@pytest.mark.parametrize("lowering", ["fold", "mirror", "primitive", "function"])
def test_a_second_time_changes_nothing(lowering: str, tmp_path: Path) -> None:
    source = saved(Graph(f"{CONV} {LATE}"), tmp_path)
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    optimize(source, first, lowering=lowering)
    done = optimize(first, second, lowering=lowering)
    assert counted(first) == counted(second)
    assert done.before == done.after
    assert done.bit_equal is True


def test_bit_equality_is_measured(tmp_path: Path) -> None:
    source = saved(Graph(f"{CONV} {CRELU}"), tmp_path)
    assert optimize(source, tmp_path / "out.onnx", lowering="fold").bit_equal is True
    rounding = OPTIMIZED["affine"][0]
    done = optimize(saved(rounding, tmp_path), tmp_path / "out.onnx", lowering="fold")
    assert done.bit_equal is False
    assert done.comparison is not None
    assert done.comparison.max_abs > 0
    assert done.comparison.score < 0.1


def test_a_result_that_differs_is_not_written(tmp_path: Path) -> None:
    source, out = saved(OPTIMIZED["affine"][0], tmp_path), tmp_path / "out.onnx"
    out.write_bytes(b"earlier")
    with pytest.raises(UnsupportedModel, match="differs, nothing was written: score inf, limit 1"):
        optimize(source, out, lowering="fold", tolerance=Tolerance(0.0, 0.0))
    assert out.read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]


def test_without_the_check_nothing_is_run(tmp_path: Path) -> None:
    source, out = saved(OPTIMIZED["affine"][0], tmp_path), tmp_path / "out.onnx"
    done = optimize(source, out, lowering="fold", check=False, tolerance=Tolerance(0.0, 0.0))
    assert (done.comparison, done.bit_equal) == (None, None)
    assert counted(out) == {"Conv": 1, "Relu": 1}


def test_a_site_that_cannot_be_folded_says_why(tmp_path: Path) -> None:
    bare = Graph("n = Neg(x) c = Concat<axis=1>(x, n) y = Relu(c)", weights={})
    done = optimize(saved(bare, tmp_path), tmp_path / "out.onnx", lowering="fold")
    (site,) = done.inspection.sites
    assert not site.foldable
    assert done.lowerings[site.name] != "fold"
    assert done.reasons[site.name] == site.reason != ""
    assert inspect(tmp_path / "in.onnx").sites == done.inspection.sites


def test_weights_in_another_file(tmp_path: Path) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "elsewhere" / "out.onnx"
    out.parent.mkdir()
    onnx.save(
        proto(Graph(f"{CONV} {CRELU}")),
        source,
        save_as_external_data=True,
        location="in.weights",
        size_threshold=0,
    )
    assert (tmp_path / "in.weights").stat().st_size >= 4 * 112
    done = optimize(source, out, lowering="fold")
    assert done.bit_equal is True
    assert [path.name for path in out.parent.iterdir()] == ["out.onnx"]
    np.testing.assert_array_equal(run(out, IMAGE), run(source, IMAGE))


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4 * 108))
    model = proto(Graph(f"{CONV} {CRELU}"))
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    (tmp_path / "model").mkdir()
    source = tmp_path / "model" / "in.onnx"
    source.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedModel, match=r"weight 'w' is kept in '../secret', outside"):
        optimize(source, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


REFUSED: dict[str, tuple[Graph, tuple[str, ...], str]] = {
    "unknown-input": (
        *(Graph(f"{CONV} {CRELU}"), ("image:1x3x8x8",)),
        "no input 'image'; the inputs are: x",
    ),
    "one-too-many": (Graph(f"{CONV} {CRELU}"), ("1x3x8x8", "1x3x8x8"), "no input"),
    "rank": (Graph(f"{CONV} {CRELU}"), ("3x8x8",), "does not run on random inputs.*expected shape"),
    "channels": (Graph(f"{CONV} {CRELU}"), ("1x4x8x8",), "does not run.*give shapes with --input"),
    "nan": (
        *(Graph("a = Abs(x) b = Neg(a) y = Sqrt(b)", weights={}), ()),
        "output 'y' of the original is NaN in every element.*--no-check",
    ),
    "too-small": (Graph(f"{CONV} {CRELU}"), ("1x3x2x2",), "does not run on random inputs"),
    "bad-weights": (
        Graph(f"{CONV} {CRELU}", weights={"w": (4, 2, 3, 3), "b": (4,)}),
        *((), "not a valid ONNX model|does not run|refuses"),
    ),
}


@pytest.mark.parametrize(("graph", "inputs", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(graph: Graph, inputs: tuple[str, ...], message: str, tmp_path: Path) -> None:
    source = saved(graph, tmp_path)
    with pytest.raises((UnsupportedModel, BuildError), match=message) as caught:
        optimize(source, tmp_path / "out.onnx", inputs=inputs)
    assert str(source) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


def test_the_original_is_never_the_result(tmp_path: Path) -> None:
    source = saved(Graph(f"{CONV} {CRELU}"), tmp_path)
    original, link = source.read_bytes(), tmp_path / "link.onnx"
    link.hardlink_to(source)
    for out in (source, link, tmp_path / "." / "in.onnx"):
        with pytest.raises(BuildError, match="is the original itself"):
            optimize(source, out)
    assert source.read_bytes() == original


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "not"), (b"no protobuf at all", "not"), (b"\x08\x08", "not")],
    ids=["missing", "empty", "text", "no-graph"],
)
def test_files_that_are_no_model(content: bytes | None, message: str, tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(UnsupportedModel, match=f"in.onnx: {message}"):
        optimize(source, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_the_result_cannot_be_written(tmp_path: Path) -> None:
    source = saved(Graph(f"{CONV} {CRELU}"), tmp_path)
    with pytest.raises(BuildError, match=r"missing/out.onnx: cannot be written: No such file"):
        optimize(source, tmp_path / "missing" / "out.onnx")
    with pytest.raises(BuildError, match="cannot be written: Is a directory"):
        optimize(source, tmp_path)


def test_dead_halves_are_removed_on_request(tmp_path):
    graph = Graph(
        f"{CONV} n = Neg(z) c = Concat<axis=1>(z, n) r = Relu(c) y = Conv(r, v)",
        weights={**WEIGHTS, "v": (5, 8, 1, 1)},
    )
    model = proto(graph)
    consumer = next(i for i in model.graph.initializer if i.name == "v")
    weights = onnx.numpy_helper.to_array(consumer).copy()
    weights[:, [0, 1, 5]] = 0  # filter 0 keeps its second half, filter 1 none, the others both
    consumer.CopyFrom(onnx.numpy_helper.from_array(weights, "v"))
    onnx.save(model, tmp_path / "in.onnx")
    done = optimize(tmp_path / "in.onnx", tmp_path / "out.onnx", prune=True)
    (removal,) = done.removed.values()
    assert (removal.channels, removal.both) == (4, 2)
    assert (removal.positive, removal.negative, removal.dropped) == ((), (0,), (1,))
    plain = optimize(tmp_path / "in.onnx", tmp_path / "plain.onnx")
    assert not plain.removed
    expected, actual = (run(tmp_path / f, IMAGE) for f in ("in.onnx", "out.onnx"))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
