"""Parts of recognition on their own: channels of producers, constants against a tensor, pieces."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from crelu_deploy.recognition.axes import layouts
from crelu_deploy.recognition.constants import Frame
from crelu_deploy.recognition.fit import Piece

# shape of x, weight, node -> rank, axis of the channels and their number
PRODUCERS = {
    "conv": ("[2,4,5,5]", "[6,4,3,3]", "Conv(x, w)", (4, 1, 6)),
    "conv-transpose": ("[2,4,5,5]", "[4,6,3,3]", "ConvTranspose(x, w)", (4, 1, 6)),
    "conv-transpose-groups": (
        "[2,4,5,5]",
        "[4,3,3,3]",
        "ConvTranspose<group=2>(x, w)",
        (4, 1, 6),
    ),
    "gemm": ("[2,4]", "[4,6]", "Gemm(x, w)", (2, 1, 6)),
    "gemm-transposed": ("[2,4]", "[6,4]", "Gemm<transB=1>(x, w)", (2, 1, 6)),
    "matmul": ("[2,3,4]", "[4,6]", "MatMul(x, w)", (None, -1, 6)),
}


@pytest.mark.parametrize("name", PRODUCERS)
def test_a_producer_tells_its_channels(name: str) -> None:
    shape, weight, node, expected = PRODUCERS[name]
    size = np.prod([int(n) for n in weight.strip("[]").split(",")])
    values = ", ".join(["0.5"] * int(size))
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float{shape} x) => (float[] y) <float{weight} w = {{{values}}}>
        {{ v = {node} y = Identity(v) }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    if name == "matmul":
        model.graph.inputs[0].shape = None
    known = layouts(list(model.graph), {})[model.graph[0].outputs[0]]
    assert (known.rank, known.axis, known.channels) == expected


LAST = Frame(3, 2, (2, 3, None), joined=True)
EIGHT = np.arange(8.0)


@pytest.mark.parametrize(
    ("constant", "expected"),
    [
        (np.asarray(3.0), np.asarray(3.0)),
        (np.full((1, 1, 1), 3.0), np.asarray(3.0)),
        (EIGHT, EIGHT),
        (np.tile(EIGHT, (1, 3, 1)), EIGHT),
        (np.arange(24.0).reshape(1, 3, 8), None),
        (np.tile(EIGHT, (1, 2, 1)), None),
        (np.tile(EIGHT, (1, 1, 1, 1)), None),
        (np.zeros((0,)), None),
    ],
    ids=["number", "one", "vector", "repeated", "by-row", "wider", "rank", "empty"],
)
def test_a_constant_by_channel(constant: np.ndarray, expected: np.ndarray | None) -> None:
    found = LAST.by_channel(constant)
    if expected is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found, expected)


def test_an_affine_map_behind_another() -> None:
    found = Piece().then(np.asarray(2.0), np.asarray(1.0)).then(np.asarray(3.0), np.asarray(5.0))
    assert (float(found.scale), float(found.shift)) == (6.0, 8.0)
