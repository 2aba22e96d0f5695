"""Targets are compared with PyTorch at sizes that a user names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from crelu_deploy import export, verify
from crelu_deploy.auditing.editing import Graph
from crelu_deploy.bundle import Bundle
from crelu_deploy.cli import run as crelu
from crelu_deploy.errors import BackendUnavailable, CheckpointError, ExportError, UnsupportedModel
from crelu_deploy.nn import CReLU
from crelu_deploy.pipeline import build
from crelu_deploy.resizing import parse_sizes, resized
from crelu_deploy.targets import Options, Target

pytestmark = pytest.mark.torch
TRUSTED = Options(threads=1, trust=True)


class Two(nn.Module):
    """Two inputs, of which one is added to what is made of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.last = nn.Conv2d(2, 3, 3, 1, 1), CReLU(), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.last(self.act(self.conv(x))) + z


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a checkpoint whose height and width may vary."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sizes")
    net = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), CReLU(), nn.Conv2d(8, 3, 3, 1, 1)).eval()
    torch.save(net, folder / "net.pt")
    export(
        folder / "net.pt", folder / "out", inputs=["2x2x8x12"], dynamic=["2,3"], trust=True, race=0
    )
    return Bundle.open(folder / "out")


def test_every_size_is_compared_with_pytorch(bundle: Bundle) -> None:
    sizes = ["3x2x5x40,1x2x33x1"]
    (found,) = verify(bundle, ["ort-cpu"], TRUSTED, sizes=sizes)
    assert found.passed


def test_a_target_that_is_wrong_at_a_size_fails_there_alone(bundle: Bundle, tmp_path: Path) -> None:
    """Nothing is wrong at the recorded sizes."""
    copy = shutil.copytree(bundle.path, tmp_path / "out")
    opened, target = Bundle.open(copy), Target.parse("ort-cpu:primitive")
    build(opened, [target], TRUSTED)
    model = ir.load(opened.artifact(target))
    halve_from(model, 200)
    opened.record(opened.write(model, target))
    (usual,) = verify(opened, [target], TRUSTED)
    (wide,) = verify(opened, [target], TRUSTED, sizes=["1x2x8x12,1x2x8x200"])
    assert usual.comparison is not None
    assert usual.comparison.passed
    assert wide.comparison is not None
    assert not wide.comparison.passed
    assert wide.comparison.worst.startswith(f"sample {len(opened.samples) + 1} ")


def halve_from(model: ir.Model, width: int) -> None:
    """Halve the output where the input is that wide or wider."""
    graph = Graph(model, np.random.default_rng(0))
    limit = graph.constant(np.array([width], np.int64))
    one, half = (graph.constant(np.array(n, np.float32)) for n in (1, 0.5))
    shape = ir.node("Shape", [model.graph.inputs[0]], {"start": 3})
    less = ir.node("Less", [shape.outputs[0], limit])
    factor = ir.node("Where", [less.outputs[0], one, half])
    for number, node in enumerate((shape, less, factor)):
        node.outputs[0].name = f"width_{number}"
    model.graph.insert_before(model.graph[0], (shape, less, factor))
    graph.behind(model.graph.outputs[0], lambda v: ir.node("Mul", [v, factor.outputs[0]]))


REFUSED = {
    "a fixed axis": (["1x3x8x12"], "expected shape"),
    "another rank": (["1x2x8"], "expected shape"),
    "an unknown input": (["y:1x2x8x12"], "sizes are given for no input 'y'; the inputs are: "),
    "too many inputs": (["1x2x8x12", "1x2x8x12"], "sizes are given for no input"),
    "twice": (["input:1x2x8x12", "input:1x2x8x12"], "sizes are given a second time for 'input'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_size_of_the_network(name: str, bundle: Bundle) -> None:
    sizes, said = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=re.escape(said)):
        verify(bundle, ["ort-cpu"], TRUSTED, sizes=sizes)


@pytest.mark.parametrize("text", ["", "1x2x0", "x:", ":1x2", "1x2,,1x3", "1x2;1x3"])
def test_what_is_no_size_at_all(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_sizes(text)


def test_inputs_have_the_values_of_the_samples(bundle: Bundle) -> None:
    (spec,) = bundle.inputs
    known = np.concatenate([s.inputs[spec.name].ravel() for s in bundle.usual])
    calls = resized(bundle, ["5x2x3x30,1x2x40x2"])
    assert [call[spec.name].shape for call in calls] == [(5, 2, 3, 30), (1, 2, 40, 2)]
    for call in calls:
        assert np.isin(call[spec.name], known).all()
    assert not np.array_equal(calls[0][spec.name][0], calls[0][spec.name][1])


def test_several_inputs_have_sizes_each(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(Two().eval(), tmp_path / "two.pt")
    shapes = ["x:2x2x8x6", "z:2x2x8x6"]
    made = export(
        *(tmp_path / "two.pt", tmp_path / "out"),
        inputs=shapes,
        dynamic=["2,3"],
        trust=True,
        race=0,
    )
    sizes = ["z:1x2x5x4,3x2x9x9", "x:1x2x5x4,3x2x9x9"]
    (found,) = verify(made, ["ort-cpu"], TRUSTED, sizes=sizes)
    assert found.passed
    with pytest.raises(UnsupportedModel, match="every input needs as many sizes; got 2 for 'x'"):
        verify(made, ["ort-cpu"], TRUSTED, sizes=["x:1x2x5x4,3x2x9x9", "z:1x2x5x4"])
    with pytest.raises(ExportError, match="fails on the input x 1x2x5x5, z 1x2x5x4"):
        verify(made, ["ort-cpu"], TRUSTED, sizes=["x:1x2x5x5", "z:1x2x5x4"])


def test_the_command(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["verify", str(bundle.path), "-t", "ort-cpu", "--trust", "--sizes"]
    assert crelu([*asked, "1x2x5x40,1x2x32x8"]) == 0
    assert f"{len(bundle.samples) + 2} samples" in capsys.readouterr().out
    assert crelu([*asked, "1x5x5x40"]) == 1
    said = capsys.readouterr().err
    assert "size 1x5x5x40: input" in said
    assert "Traceback" not in said
    assert crelu([*asked, "abc"]) == 2


def test_without_the_checkpoint_it_is_not_possible(bundle: Bundle, tmp_path: Path) -> None:
    copy = Bundle.open(shutil.copytree(bundle.path, tmp_path / "out"))
    source = {**copy.manifest["source"], "path": str(tmp_path / "gone.pt")}
    copy.manifest = {**copy.manifest, "source": source}
    with pytest.raises(BackendUnavailable, match="put it back or export again"):
        verify(copy, ["ort-cpu"], TRUSTED, sizes=["1x2x5x5"])
    with pytest.raises(CheckpointError, match="trust"):
        verify(bundle, ["ort-cpu"], Options(threads=1), sizes=["1x2x5x5"])
