"""The face detectors that people have trained: exported, and folded, without a difference."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from graphs import ALL, OFF
from real_models import real_model
from tables import mostly, thorough

from crelu_deploy import checkpoint, export, optimize
from crelu_deploy.bundle import Bundle

pytestmark = pytest.mark.torch

CHECKPOINTS = {
    "3ddfa": "faceboxes-3ddfa/FaceBoxesProd.pth",
    "anime": "faceboxes-anime/FaceBoxes_epoch_90.pth",
    "wider": "faceboxes-wider/FaceBoxes.pth",
}
FOREIGN = "faceboxes-3ddfa/FaceBoxesProd.onnx"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    """A function that exports one of the checkpoints, once."""

    @cache
    def bundle_of(name: str) -> Bundle:
        torch.set_num_threads(1)
        out = tmp_path_factory.mktemp("faceboxes") / name
        shape = "1x3x160x224"
        return export(real_model(CHECKPOINTS[name]), out, inputs=[shape], dynamic=["2,3"])

    return bundle_of


@thorough
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_graph_has_two_sites_and_one_function(exported, name: str) -> None:
    bundle = exported(name)
    model = onnx.load(bundle.path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    sites = [node for node in model.graph.node if node.domain == "crelu_deploy"]
    assert [node.op_type for node in sites] == ["CReLU", "CReLU"]
    assert [(f.name, list(f.attribute)) for f in model.functions] == [("CReLU", ["axis"])]
    assert [node.op_type for node in model.graph.node].count("BatchNormalization") == 0
    assert [output.name for output in model.graph.output] == ["loc", "conf"]
    assert bundle.inputs[0].shape == ("batch", 3, "height", "width")
    assert all(site["foldable"] for site in bundle.manifest["sites"])


@thorough
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_onnx_runtime_agrees_with_pytorch(exported, name: str) -> None:
    """At 720 by 1080, and at an odd size with a batch of two: neither was an example."""
    bundle = exported(name)
    module = checkpoint.load(real_model(CHECKPOINTS[name])).module
    generator = np.random.default_rng(1)
    providers = ["CPUExecutionProvider"]
    for path in (bundle.path / "model.onnx", bundle.path / "targets" / "ort-cpu-auto.onnx"):
        session = ort.InferenceSession(path, providers=providers)
        for shape in ((1, 3, 720, 1080), (2, 3, 227, 341)):
            pixels = generator.integers(0, 256, shape).astype(np.float32)
            x = pixels - np.array([104, 117, 123], np.float32)[:, None, None]
            with torch.inference_mode():
                want = module(torch.from_numpy(x))
            for got, expected in zip(session.run(None, {"input": x}), want, strict=True):
                np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=2e-5)


STEM = ["Conv", "Relu", "MaxPool"] * 2


@mostly("name", ["3ddfa", "foreign"], fast=["foreign"])
def test_folding_changes_no_bit(exported, name: str, tmp_path: Path) -> None:
    source = real_model(FOREIGN) if name == "foreign" else exported(name).path / "model.onnx"
    folded = tmp_path / "folded.onnx"
    done = optimize(source, folded, lowering="fold", inputs=["1x3x128x160"])
    assert [*done.lowerings.values()] == ["fold", "fold"]
    assert done.bit_equal is True
    before, after = ir.load(source), ir.load(folded)
    seen = [node.op_type for node in after.graph if node.op_type in (*STEM, "Concat", "Mul")]
    assert seen[:6] == STEM
    assert [node.op_type for node in after.graph].count("Neg") == 0
    assert not [node for node in after.graph if node.domain]
    assert after.opset_imports[""] == before.opset_imports[""]
    x = np.random.default_rng(2).normal(0, 60, (1, 3, 167, 243)).astype(np.float32)
    for level in (ALL, OFF):
        for want, got in zip(run(source, x, level), run(folded, x, level), strict=True):
            assert want.tobytes() == got.tobytes()


def run(path: Path, x: np.ndarray, level: ort.GraphOptimizationLevel) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})
