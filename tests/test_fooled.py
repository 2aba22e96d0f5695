"""What would fool a verification, or stop a right network: files and networks that did once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graphs import image, model
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from crelu_deploy import Bundle, Options, build, export, optimize, verify
from crelu_deploy.bundle import MANIFEST, SAMPLES
from crelu_deploy.cli import run as crelu
from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.modelfile import read_file
from crelu_deploy.nn import CReLU
from crelu_deploy.nn import crelu as crelu_of
from crelu_deploy.samples import Sample, load_samples, save_samples

pytestmark = pytest.mark.torch
ONE = Options(threads=1)
TARGET = "ort-cpu:mirror"


class Calling(nn.Module):
    """Two convolutions, two sites, and what a function makes of the last."""

    def __init__(self, then: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(8, 4, 3, 1, 1)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, crelu_of(self.first(x)))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), CReLU(), nn.Conv2d(8, 2, 3))
    made = export(net, tmp_path / "out", inputs=["1x3x8x8"], race=0)
    build(made, [TARGET], ONE)
    return Bundle.open(made.path)


def doubled(proto: onnx.ModelProto) -> None:
    """Put another weight of the same name before one: some readers have the first."""
    weights = proto.graph.initializer
    first = max(weights, key=lambda w: len(w.raw_data))
    other = numpy_helper.from_array(-numpy_helper.to_array(first), first.name)
    rest = [other, *weights]
    del weights[:]
    weights.extend(rest)


def sparse(proto: onnx.ModelProto) -> None:
    """Add a sparse weight of the name of a dense one."""
    first = proto.graph.initializer[0]
    values = numpy_helper.from_array(np.ones(1, np.float32), first.name)
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    dims = list(first.dims)
    proto.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=values, indices=indices, dims=dims)
    )


def two_contents(proto: onnx.ModelProto) -> None:
    """Give a weight numbers in two fields."""
    weight = max(proto.graph.initializer, key=lambda w: len(w.raw_data))
    weight.float_data.extend(np.zeros(int(np.prod(weight.dims)), np.float32).tolist())


AMBIGUOUS = {
    "a weight twice": (doubled, "is there twice"),
    "a sparse one too": (sparse, "is there twice"),
    "two contents": (two_contents, "has its numbers twice"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_file_that_readers_take_for_different_networks(name: str, bundle: Bundle) -> None:
    change, said = AMBIGUOUS[name]
    file = bundle.path / "targets" / "ort-cpu-mirror.onnx"
    proto = onnx.load(file)
    change(proto)
    file.write_bytes(proto.SerializeToString())
    bundle.record((file,))
    with pytest.raises(UnsupportedModel, match=said):
        read_file(file)
    (found,) = verify(bundle.path, [TARGET], ONE)
    assert not found.passed
    assert said in found.error


def noisy(scale: float) -> Callable[[Sample], Sample]:
    """Return what writes other noise into a sample."""
    return lambda s: replace(s, floors={k: np.full_like(f, scale) for k, f in s.floors.items()})


def texts(sample: Sample) -> Sample:
    return replace(sample, floors={k: f.astype(str) for k, f in sample.floors.items()})


@pytest.mark.parametrize(
    "change",
    [noisy(-1.0), noisy(np.inf), noisy(np.nan), texts],
    ids=["negative", "infinite", "NaN", "texts"],
)
def test_noise_that_is_none_is_refused(change: Callable[[Sample], Sample], bundle: Bundle) -> None:
    file = bundle.path / SAMPLES
    save_samples(file, tuple(map(change, load_samples(file))))
    bundle.record((file,))
    (found,) = verify(bundle.path, [TARGET], ONE)
    assert not found.passed
    assert "the noise of output" in found.error


EDITED: dict[str, dict[str, Any]] = {
    "allow_nan": {"allow_nan": "no"},
    "lowerings": {"targets": {TARGET: {"lowerings": {"nobody": "mirror"}, "reasons": {}}}},
}


@pytest.mark.parametrize("field", EDITED)
def test_a_manifest_that_was_edited_is_refused(field: str, bundle: Bundle) -> None:
    file = bundle.path / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **EDITED[field]}))
    with pytest.raises(UnsupportedModel, match=f"damaged.*{field}"):
        Bundle.open(bundle.path)


def upsampled(mode: str) -> Callable[[nn.Module, Tensor], Tensor]:
    def then(net: Any, y: Tensor) -> Tensor:
        return crelu_of(net.second(F.interpolate(y, scale_factor=2.0, mode=mode)))

    return then


RIGHT: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Any]]] = {
    "bilinear": (upsampled("bilinear"), {}),
    "nearest": (upsampled("nearest"), {}),
    "a number": (lambda net, y: crelu_of(net.second(y)).sum(), {"dynamic": ["none"]}),
    "NaN": (lambda net, y: torch.log(net.second(y).mean((2, 3))), {"allow_nan": True}),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_right_network_is_exported(name: str, seed: int, tmp_path: Path) -> None:
    then, more = RIGHT[name]
    torch.manual_seed(seed)
    made = export(Calling(then), tmp_path / "out", inputs=["1x3x8x8"], race=0, seed=seed, **more)
    assert all(one["score"] < 0.5 for one in made.manifest["verification"].values())
    assert all(np.isfinite(f).all() for s in made.samples for f in s.floors.values())


def test_small_weights_in_another_file_are_written(tmp_path: Path) -> None:
    """While something else reads that file."""
    network = model(
        image("[conv] z = Conv<pads=[1,1,1,1]>(x, w, b)", v=(5, 12, 3, 3)),
        "[neg] m = Neg(z) [cat] c = Concat<axis=1>(z, m) [relu] r = Relu(c) [next] y = Conv(r, v)",
    )
    source = tmp_path / "in.onnx"
    ir.save(network, source, external_data="in.onnx.data")
    for lowering in ("auto", "fold", "complement"):
        optimize(source, tmp_path / "out.onnx", lowering=lowering, race=0)
        found = onnx.load(tmp_path / "out.onnx")
        assert all(not w.external_data for w in found.graph.initializer)


WRONG = {
    "an infinite tolerance": ["verify", "BUNDLE", "--atol", "inf"],
    "no tolerance": ["verify", "BUNDLE", "--rtol", "nan"],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage(name: str, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert crelu([str(bundle.path) if a == "BUNDLE" else a for a in WRONG[name]]) == 2
    assert "is no finite number" in capsys.readouterr().err


def test_an_audit_in_which_nothing_shows_is_no_pass(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "nan.npz", input=np.full((2, 3, 8, 8), np.nan, np.float32))
    asked = ["audit", str(bundle.path), "-t", TARGET, "--faults", "1"]
    assert crelu([*asked, "--samples", str(tmp_path / "nan.npz")]) == 1
    assert "no fault changes the outputs" in capsys.readouterr().err
