"""Networks that other people trained: their sites are found, and folding changes nothing.

What PyTorch exports of the FaceBoxes checkpoints is in ``test_faceboxes.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import ALL, OFF
from real_models import real_model
from real_networks import coupling_network, faceboxes_caffe

from crelu_deploy.optimizer import Optimized, inspect, optimize

CAFFE, FLOW = "faceboxes-caffe/weights.npz", "uvadlc-mnistflow/MNISTFlow_simple.ckpt"
NETWORKS = 8
"""Coupling networks in the flow."""


@cache
def flow_weights() -> dict[str, np.ndarray]:
    """Return the tensors of the flow by their names in the checkpoint."""
    torch = pytest.importorskip("torch")
    found = torch.load(real_model(FLOW), weights_only=True, map_location="cpu")["state_dict"]
    return {name: tensor.numpy() for name, tensor in found.items()}


@cache
def coupling(number: int) -> onnx.ModelProto:
    prefix, weights = f"flows.{number}.network.nn.", flow_weights()
    return coupling_network({k.removeprefix(prefix): weights[k] for k in weights if prefix in k})


@cache
def caffe() -> onnx.ModelProto:
    return faceboxes_caffe(np.load(real_model(CAFFE)))


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def outputs(path: Path, x: np.ndarray, level: ort.GraphOptimizationLevel) -> list[np.ndarray]:
    """Return what ONNX Runtime computes on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level
    options.log_severity_level = 3  # one model declares shapes that hold for one size only
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})


def folded(source: Path, folder: Path, shape: Sequence[int], *, exact: bool) -> Optimized:
    """Fold a model, and compare its outputs on an image of another size than the shape."""
    target = folder / "folded.onnx"
    text = "x".join(map(str, shape))
    done = optimize(source, target, lowering="fold", inputs=[text])
    size = (1, shape[1], shape[2] + 35, shape[3] + 18)
    x = np.random.default_rng(4).normal(0, 60, size).astype(np.float32)
    for level in (OFF, ALL):
        for got, want in zip(outputs(target, x, level), outputs(source, x, level), strict=True):
            if exact:
                np.testing.assert_array_equal(got, want)
            bound = 1e-5 * float(np.abs(want).max())
            np.testing.assert_allclose(got, want, rtol=0, atol=bound)
    return done


PLAIN = {
    "3ddfa": "faceboxes-3ddfa/FaceBoxesProd.onnx",
    "tensorflow": "faceboxes-tf/model.tf2onnx.opset17.onnx",
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_sites_are_folded_without_a_difference(name: str, tmp_path: Path) -> None:
    source = real_model(PLAIN[name])
    found = inspect(source)
    assert [site.spelling for site in found.sites] == ["relu(cat(x, -x))"] * 2
    assert [site.axis for site in found.sites] == [1, 1]
    assert all(site.foldable and site.producer.startswith("Conv ") for site in found.sites)
    assert found.near_misses == ()
    done = folded(source, tmp_path, (1, 3, 128, 160), exact=True)
    assert (set(done.lowerings.values()), done.reasons) == ({"fold"}, {})
    assert done.bit_equal is True
    assert done.before["Concat"] - done.after["Concat"] == done.before["Neg"] == 2
    assert "Neg" not in done.after


def test_auto_pad_survives(tmp_path: Path) -> None:
    source = real_model(PLAIN["tensorflow"])
    folded(source, tmp_path, (1, 3, 128, 128), exact=True)
    before, after = (
        [(node.op_type, a.s) for node in onnx.load(path).graph.node for a in node.attribute
         if a.name == "auto_pad"]
        for path in (source, tmp_path / "folded.onnx")
    )  # fmt: skip
    assert len(before) > 30
    assert after == before


def test_scale_and_shift_of_caffe_go_into_the_weights(tmp_path: Path) -> None:
    source = saved(caffe(), tmp_path)
    found = inspect(source)
    assert [site.op_type for site in found.sites] == ["AffineCReLU"] * 2
    assert [site.producer for site in found.sites] == ["Conv conv1", "Conv conv2"]
    assert all(site.foldable for site in found.sites)
    assert found.near_misses == ()
    done = folded(source, tmp_path, (1, 3, 97, 131), exact=False)
    assert (set(done.lowerings.values()), done.reasons) == ({"fold"}, {})
    gone = {"Neg", "Mul", "Add", "BatchNormalization"}
    assert not gone & done.after.keys()
    assert done.after["Conv"] == done.before["Conv"] == 33


def test_the_folded_rows_of_caffe_are_those_of_the_formula(tmp_path: Path) -> None:
    """[g1 W; -g2 W] and [g1 b + t1; -g2 b + t2], with the batch norm in W and b, in float64."""
    blobs = {name: array.astype(np.float64) for name, array in np.load(real_model(CAFFE)).items()}
    source = saved(caffe(), tmp_path)
    folded(source, tmp_path, (1, 3, 64, 64), exact=False)
    stored = onnx.load(tmp_path / "folded.onnx").graph
    conv = next(node for node in stored.node if node.name == "conv1")
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in stored.initializer}
    deviation = np.sqrt(blobs["conv1bn|1"] / blobs["conv1bn|2"] + np.float64(np.float32(1e-5)))
    w = blobs["conv1|0"] / deviation[:, None, None, None]
    b = (blobs["conv1|1"] - blobs["conv1bn|0"] / blobs["conv1bn|2"]) / deviation
    gamma, beta = blobs["conv1scale|0"], blobs["conv1scale|1"]
    rows = gamma[:, None, None, None] * np.concatenate([w, -w])
    bias = gamma * np.concatenate([b, -b]) + beta
    np.testing.assert_allclose(tensors[conv.input[1]], rows, rtol=2e-6, atol=0)
    np.testing.assert_allclose(tensors[conv.input[2]], bias, rtol=2e-6, atol=2e-6)


STRAIGHT = {"1.net.2": "Conv 1.net.1", "3.net.2": "Conv 3.net.1", "5.net.2": "Conv 5.net.1"}
SHARED = {"1.net.0": "Conv 0"}
"""The convolution's output is read by the residual sum as well."""
NORMED = ("3.net.0", "5.net.0", "7")
"""Behind a layer norm, which is no producer with weights."""


@pytest.mark.torch
@pytest.mark.parametrize("number", range(1, NETWORKS + 1))
def test_flow_networks_have_seven_sites_of_three_kinds(number: int, tmp_path: Path) -> None:
    source = saved(coupling(number), tmp_path)
    found = inspect(source)
    sites = {site.name.removesuffix("_CElu"): site for site in found.sites}
    assert list(sites) == ["1.net.0", "1.net.2", "3.net.0", "3.net.2", "5.net.0", "5.net.2", "7"]
    assert {site.spelling for site in found.sites} == {"cat(elu(x), elu(-x))"}
    assert found.near_misses == ()
    behind_conv = {name: site.producer for name, site in sites.items() if site.foldable}
    assert behind_conv == {**SHARED, **STRAIGHT}
    assert all("which is no Conv" in sites[name].reason for name in NORMED)
    done = folded(source, tmp_path, (2, 1, 28, 28), exact=False)
    assert sorted(done.lowerings.values()) == ["fold"] * 4 + ["primitive"] * 3
    # Only the shared convolution has to give its original channels back to the sum.
    assert done.after["Gather"] == 1
    assert done.bit_equal is True
