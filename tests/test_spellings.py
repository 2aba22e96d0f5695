"""Every spelling, through both exporters of PyTorch, is recognised; every lookalike is left.

One network per exporter holds all spellings, another all lookalikes, each behind a convolution of
its own: an export takes a second, whatever it holds.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from spellings import CHANNELS, LOOKALIKES, OPAQUE, PRODUCERS, SPELLINGS, Written
from tables import crossed
from torch import nn

from crelu_deploy.op import ACTIVATIONS, DOMAIN
from crelu_deploy.recognition import Recognition, RecognizeCReLU, near_misses, recognize, spelling

pytestmark = pytest.mark.torch
OPSETS = {"torchscript": 17, "dynamo": 18}
EXACT = ("relu", "clip", "leaky_relu")


class Branches(nn.Module):
    """The same image through a convolution and a pool each, around every module."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        convs = [nn.Conv2d(3, CHANNELS, 3, padding=1) for _ in modules]
        pool = nn.MaxPool2d(2)
        parts = zip(convs, modules, strict=True)
        self.branches = nn.ModuleList(nn.Sequential(conv, module, pool) for conv, module in parts)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(branch(x) for branch in self.branches)


def image() -> torch.Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(2))


def exported(net: nn.Module, example: torch.Tensor, exporter: str) -> ir.Model:
    """Return ``net`` as a model; what the exporters warn of is themselves and their traces."""
    file = io.BytesIO()
    dynamo = exporter == "dynamo"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "ONNX export mode is set to", UserWarning)
        torch.onnx.export(
            net.eval(),
            (example,),
            file,
            dynamo=dynamo,
            opset_version=OPSETS[exporter],
            verbose=False,
        )
    return ir.from_proto(onnx.load_from_string(file.getvalue()))


def outputs(model: ir.Model, feed: torch.Tensor) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run(None, {session.get_inputs()[0].name: feed.numpy()})


def site(model: ir.Model, name: str) -> ir.Node | None:
    """Return the node before the pool, and before the gather of interleaved halves."""
    node = model.graph.outputs[list(SPELLINGS).index(name)].producer()
    while node is not None and node.op_type in ("MaxPool", "Gather"):
        node = node.inputs[0].producer()
    return node


@cache
def recognized(exporter: str) -> tuple[ir.Model, list[np.ndarray]]:
    """Return the model of all spellings after recognition, and its outputs before it."""
    torch.manual_seed(1)
    net = Branches([case.module(CHANNELS) for case in SPELLINGS.values()])
    model = exported(net, image(), exporter)
    before = outputs(model, image())
    assert RecognizeCReLU()(model).modified
    return model, before


@cache
def results(exporter: str) -> tuple[ir.Model, list[np.ndarray]]:
    model, _ = recognized(exporter)
    return model, outputs(model, image())


@cache
def left(exporter: str) -> tuple[bytes, bytes, Recognition]:
    """Return the bytes of the model of all lookalikes before and after, and what was said."""
    torch.manual_seed(1)
    net = Branches([Written(expression) for expression in LOOKALIKES.values()])
    model = exported(net, image(), exporter)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result = recognize(model)
    return before, ir.to_proto(model).SerializeToString(deterministic=True), result


@pytest.mark.parametrize("exporter", OPSETS)
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_becomes_its_node(name: str, exporter: str) -> None:
    model, _ = recognized(exporter)
    case, node = SPELLINGS[name], site(model, name)
    kind = ACTIVATIONS[case.activation]
    expected = kind.affine_op_type if case.affine else kind.op_type
    assert node is not None
    assert (node.domain, node.op_type) == (DOMAIN, expected), near_misses(model)
    assert spelling(node) != "node"


@pytest.mark.parametrize("exporter", OPSETS)
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_recognised_spelling_computes_the_same(name: str, exporter: str) -> None:
    case, index = SPELLINGS[name], list(SPELLINGS).index(name)
    before, after = recognized(exporter)[1][index], results(exporter)[1][index]
    exact = case.activation in EXACT and not name.startswith("batch norm between")
    tolerance = 0.0 if exact else 2e-6
    np.testing.assert_allclose(after, before, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("exporter", OPSETS)
def test_the_recognised_model_is_valid_and_recognised_once(exporter: str) -> None:
    model, _ = recognized(exporter)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert not RecognizeCReLU()(model).modified
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    assert {name for domain, name, _ in model.functions if domain == DOMAIN} == used


@pytest.mark.parametrize("exporter", OPSETS)
def test_lookalikes_are_left_alone(exporter: str) -> None:
    before, after, result = left(exporter)
    assert not result.modified
    assert not result.opaque
    assert after == before


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("NCReLU", "at x = 1 and -1 one half is 1 and 0, the other 0 and -1"),
        ("clamps", "different activations: relu and clip (min=-inf, max=0)"),
        ("height axis", "concat on axis 2, but the channels are on axis 1"),
        ("batch axis", "concat on axis 0"),
        ("softmax", "feeds Softmax"),
        ("different slopes", "halves have different slopes: 0.01 and 0.2"),
        ("negative half times two", "scaled by -2 times"),
        ("negative half nearly -1", "scaled by -0.9999 times"),
        ("different offsets", "different shifts: -0.1 and -0.2"),
        ("three parts", "the concat has 3 parts"),
        ("squared", "halves are f(x) and f(-x), but"),
        ("scale by pixel", "not one number per channel"),
    ],
)
def test_near_misses_say_why(index: str, reason: str) -> None:
    torch.manual_seed(1)
    model = exported(Branches([Written(LOOKALIKES[index])]), image(), "torchscript")
    (miss,) = near_misses(model)
    assert reason in miss.reason
    assert miss.name in {node.name for node in model.graph}


@pytest.mark.parametrize("exporter", OPSETS)
def test_a_site_that_no_node_expresses_is_reported(exporter: str) -> None:
    torch.manual_seed(1)
    net = Branches([make(CHANNELS) for make in OPAQUE.values()])
    result = recognize(exported(net, image(), exporter))
    assert not result.modified
    (opaque,) = result.opaque
    assert (opaque.activation, opaque.axis) == ("leaky_relu", 1)
    assert "instance norm" in opaque.reason


@crossed(name=PRODUCERS, exporter=OPSETS)
def test_every_producer_has_its_channel_axis(name: str, exporter: str) -> None:
    torch.manual_seed(1)
    net, example = PRODUCERS[name]()
    model = exported(net, example, exporter)
    before = outputs(model, example)
    assert recognize(model).modified
    assert [node.op_type for node in model.graph if node.domain] == ["CReLU", "CReLU"]
    np.testing.assert_array_equal(outputs(model, example)[0], before[0])
