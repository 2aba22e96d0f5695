"""The custom op of ONNX Runtime on its CPU provider."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from kernel_values import awkward, check_bits, expected

from crelu_deploy import native
from crelu_deploy.errors import BackendUnavailable

RIGHT = "n = Neg(x) c = Concat<axis: int = @axis>(x, n) y = Relu(c)"
WRONG = "n = Neg(x) y = Concat<axis: int = @axis>(n, n)"


@pytest.fixture(scope="module")
def library() -> Path:
    """The installed custom op."""
    try:
        return native.library("onnxruntime")
    except BackendUnavailable as error:
        return pytest.skip(str(error))


def text(
    kind: str = "float", dims: str = "N,6,M", node: str = "CReLU<axis=1>", *, body: str = ""
) -> str:
    """Return a model of one node, with a function body when there is one."""
    function = (
        f'<domain: "crelu_deploy", opset_import: ["": 18]> CReLU <axis> (x) => (y) {{ {body} }}'
    )
    return (
        f'<ir_version: 9, opset_import: ["": 18, "crelu_deploy": 1]> '
        f"g ({kind}[{dims}] x) => ({kind}[] y) {{ y = crelu_deploy.{node}(x) }} "
        f"{function if body else ''}"
    )


def unshaped(model: str) -> bytes:
    """Parse a model and forget its output's shape, which the runtime is to infer."""
    proto = onnx.parser.parse_model(model)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto.SerializeToString()


def session(
    model: bytes, library: Path | None, *, threads: int = 1, saved: Path | None = None
) -> ort.InferenceSession:
    """Return a session on the CPU provider."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if saved is not None:
        options.optimized_model_filepath = str(saved)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(where: ort.InferenceSession, x: np.ndarray) -> np.ndarray:
    """Return the only output."""
    return where.run(None, {"x": x})[0]


def test_it_replaces_the_function_in_the_file(library: Path) -> None:
    x = awkward("float32", (2, 6, 5))
    check_bits(run(session(unshaped(text(body=WRONG)), library), x), expected(x))
    without = run(session(unshaped(text(body=WRONG)), None), x)
    check_bits(without, np.concatenate([-x, -x], 1))


def test_it_is_the_function_in_the_file(library: Path) -> None:
    x = np.nan_to_num(awkward("float32", (2, 6, 5)), nan=0.5)  # Relu may change a NaN's payload
    both = [run(session(unshaped(text(body=RIGHT)), each), x) for each in (library, None)]
    np.testing.assert_array_equal(*both)


@pytest.mark.parametrize(("name", "kind"), [("float32", "float"), ("float16", "float16")])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((2, 6, 5, 3), 1),
        ((2, 6, 5, 3), -1),
        ((2, 6, 5, 3), 0),
        ((2, 6, 5, 3), -2),
        ((7,), 0),
        ((1, 1), 1),
        ((3, 1, 1, 1), 1),
        ((0, 6), 1),
        ((2, 0, 4), 1),
        ((1, 3, 5, 7, 2), 2),
        ((1, 33, 61, 47), 1),  # three tasks, one row
        ((70000, 1), 1),  # three tasks, rows of one
    ],
)
def test_types_shapes_and_axes(
    library: Path, name: str, kind: str, shape: Sequence[int], axis: int
) -> None:
    x = awkward(name, shape)
    dims = ",".join(f"D{i}" for i in range(len(shape)))
    model = unshaped(text(kind, dims, f"CReLU<axis={axis}>"))
    for threads in (1, 3):
        check_bits(run(session(model, library, threads=threads), x), expected(x, axis))


def test_bfloat16(library: Path) -> None:
    model = (
        '<ir_version: 9, opset_import: ["": 18, "crelu_deploy": 1]> g (float[N,8] x) => (float[] y)'
        " { b = Cast<to=16>(x) c = crelu_deploy.CReLU<axis=1>(b) y = Cast<to=1>(c) }"
    )
    x = awkward("bfloat16", (4, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(session(unshaped(model), library), x), expected(x))


@pytest.mark.parametrize(
    ("dims", "node", "kind", "shape"),
    [
        ("N,6,M", "CReLU<axis=1>", "float", ["N", 12, "M"]),
        ("N,C,4", "CReLU<axis=1>", "float", ["N", "2*C", 4]),
        ("N,C,?", "CReLU<axis=1>", "float", []),
        ("2,6,4", "CReLU<axis=-1>", "float16", [2, 6, 8]),
        ("2,6", "CReLU<axis=0>", "bfloat16", [4, 6]),
    ],
)
def test_the_output_s_shape_is_inferred(
    library: Path, dims: str, node: str, kind: str, shape: list
) -> None:
    output = session(unshaped(text(kind, dims, node)), library).get_outputs()[0]
    assert (output.shape, output.type) == (shape, f"tensor({kind})")


@pytest.mark.parametrize("dims", ["?,?", "?,3", "N,?"])
def test_unknown_extents_run(library: Path, dims: str) -> None:
    x = awkward("float32", (2, 3))
    check_bits(run(session(unshaped(text(dims=dims)), library), x), expected(x))


def test_an_unknown_rank_runs(library: Path) -> None:
    proto = onnx.load_from_string(unshaped(text()))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    for shape in ((2, 3), (2, 3, 4, 5)):
        x = awkward("float32", shape)
        check_bits(run(session(proto.SerializeToString(), library), x), expected(x))


@pytest.mark.parametrize("axis", [3, -4, 2**40])
def test_an_axis_outside_the_rank_is_an_error(library: Path, axis: int) -> None:
    model = unshaped(text(node=f"CReLU<axis={axis}>"))
    with pytest.raises(Exception, match=f"CReLU: axis {axis} is outside rank 3 of its input"):
        run(session(model, library), np.zeros((1, 6, 2), np.float32))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (text(node="CReLU"), "axis"),
        (text("double"), r"tensor\(double\)"),
        (text("int8"), r"tensor\(int8\)"),
        (text(node="CLeakyRelu<axis=1, alpha=0.1>"), "CLeakyRelu"),
    ],
    ids=["no-axis", "double", "int8", "sibling"],
)
def test_what_it_does_not_do_is_refused(library: Path, model: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        session(unshaped(model), library)


def test_without_the_library_the_bare_node_is_refused() -> None:
    with pytest.raises(Exception, match="not a registered function/op"):
        session(unshaped(text()), None)


def test_sessions_and_threads_share_the_op(library: Path) -> None:
    model = unshaped(text())
    sessions = [session(model, library, threads=2) for _ in range(2)]
    inputs = [awkward("float32", (3, 6, 4001), seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(run, sessions[i % 2], x) for i, x in enumerate(inputs)]
        for call, x in zip(calls, inputs, strict=True):
            check_bits(call.result(), expected(x))


@pytest.mark.torch
def test_a_whole_network_runs_on_it(library: Path, shared_bundle: Path, tmp_path: Path) -> None:
    model = (shared_bundle / "model.onnx").read_bytes()
    entry = onnx.load_from_string(model).graph.input[0]
    x = np.random.default_rng(0).standard_normal((3, 1, 28, 28)).astype(np.float32)
    saved = tmp_path / "optimized.onnx"
    outputs = [
        session(model, each, saved=saved).run(None, {entry.name: x}) for each in (None, library)
    ]
    kinds = [node.op_type for node in onnx.load(saved).graph.node]
    assert kinds.count("CReLU") == 6
    assert "Neg" not in kinds
    for without, with_op in zip(*outputs, strict=True):
        np.testing.assert_array_equal(with_op, without)
