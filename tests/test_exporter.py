"""PyTorch modules of every shape become bundles that compute the same, or are refused in words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from tables import mostly
from torch import Tensor, nn

from crelu_deploy import export
from crelu_deploy.accuracy import Tolerance
from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import CheckpointError, DeployError, ExportError, UnsupportedModel
from crelu_deploy.nn import CReLU, crelu

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("seeded")]

IMAGE = "1x2x6x5"


class Written(nn.Module):
    """A convolution of two channels to four, and an expression in its result."""

    def __init__(self, expression: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.expression = expression

    def forward(self, x: Tensor) -> Any:
        return self.expression(self.conv(x))


class Pair(nn.Module):
    """Two inputs, two sites."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 4, 3), nn.Conv2d(3, 4, 1)

    def forward(self, image: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        return crelu(self.left(image)), crelu(self.right(depth))


class Optional(nn.Module):
    """A second input that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y = crelu(self.conv(x))
        return y if scale is None else y * scale


class Variadic(nn.Module):
    """Inputs without names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)

    def forward(self, *images: Tensor) -> Tensor:
        return crelu(self.conv(images[0]))


class Scores(NamedTuple):
    boxes: Tensor
    classes: Tensor


@dataclass
class Found:
    boxes: Tensor
    classes: Tensor


torch.export.register_dataclass(Found)


def net(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3), *middle, CReLU(), nn.Conv2d(8, 3, 1))


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), CReLU(-1), nn.Linear(12, 2))


def trained(module: nn.Module) -> nn.Module:
    """The module with running statistics of its own, in training mode."""
    module.train()
    for _ in range(3):
        module(torch.randn(4, 2, 6, 5) * 3 + 1)
    return module


def written(expression: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Written(expression)


@dataclass(frozen=True)
class Case:
    """A module, its inputs and what its bundle must hold."""

    make: Callable[[], nn.Module]
    inputs: tuple[str, ...] = (IMAGE,)
    sites: int = 1
    outputs: tuple[str, ...] = ("output",)


MODULES = {
    "one-site": Case(net),
    "three-sites": Case(
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 3), CReLU(), nn.Conv2d(8, 4, 1), CReLU()),
            *(nn.Conv2d(8, 2, 1), CReLU(), nn.Conv2d(4, 2, 1)),
        ),
        sites=3,
    ),
    "relu-then-cat": Case(written(lambda y: torch.cat([y.relu(), (-y).relu()], 1))),
    "cat-then-relu": Case(written(lambda y: torch.cat([y, -y], 1).relu())),
    "lookalike": Case(written(lambda y: torch.cat([y.relu(), -y.relu()], 1)), sites=0),
    "no-crelu": Case(written(torch.relu), sites=0),
    "batch-norm": Case(lambda: trained(net(nn.BatchNorm2d(4)))),
    "linear": Case(linear, ("1x4",)),
    "linear-rank-3": Case(linear, ("1x3x4",)),
    "conv1d": Case(lambda: nn.Sequential(nn.Conv1d(2, 4, 3), CReLU()), ("1x2x9",)),
    "conv3d": Case(lambda: nn.Sequential(nn.Conv3d(2, 4, 3), CReLU()), ("1x2x4x5x6",)),
    "no-weights": Case(CReLU, ("1x2x3",)),
    "two-inputs": Case(
        *(Pair, ("image:1x2x6x5", "depth:1x3x4x4"), 2, ("output_0", "output_1")),
    ),
    "optional-left-out": Case(Optional),
    "optional-given": Case(Optional, (IMAGE, "scale:1x1x1x1")),
    "dict": Case(written(lambda y: {"y": crelu(y), "raw": y}), outputs=("y", "raw")),
    "named-as-the-input": Case(written(lambda y: {"x": crelu(y)}), outputs=("x_1",)),
    "named-twice": Case(
        written(lambda y: {"a": {"b": crelu(y)}, "a_b": y}),
        outputs=("a_b", "a_b_1"),
    ),
    "named-tuple": Case(
        written(lambda y: Scores(crelu(y), y)),
        outputs=("boxes", "classes"),
    ),
    "dataclass": Case(written(lambda y: Found(crelu(y), y)), outputs=("boxes", "classes")),
    "nested": Case(
        written(lambda y: {"a": [crelu(y), y], "b": None}),
        outputs=("a_0", "a_1"),
    ),
    "float16": Case(lambda: net().half()),
    "float64": Case(lambda: linear().double(), ("1x4",)),
}


def model_of(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.path / "model.onnx")


def sites_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.domain == "crelu_deploy"]


def run_onnx(bundle: Bundle, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(bundle.path / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Found):
        return [value.boxes, value.classes]
    parts = value.values() if isinstance(value, dict) else value
    return [tensor for part in parts if part is not None for tensor in tensors_of(part)]


def assert_equal_to_pytorch(bundle: Bundle, module: nn.Module) -> None:
    """Every sample, by ONNX Runtime and PyTorch directly."""
    module.eval()
    for sample in bundle.samples:
        with torch.no_grad():
            want = tensors_of(module(*(torch.from_numpy(x) for x in sample.inputs.values())))
        found = run_onnx(bundle, dict(sample.inputs))
        limit = 2e-3 if want[0].dtype == torch.float16 else 1e-5
        for got, expected, recorded in zip(found, want, sample.outputs.values(), strict=True):
            assert got.dtype == recorded.dtype == expected.numpy().dtype
            np.testing.assert_array_equal(recorded, expected.numpy())
            np.testing.assert_allclose(got, expected.numpy(), rtol=limit, atol=limit)


# What recognition and the names of outputs are tested with elsewhere, without an export each.
AGAIN = ("relu-then-cat", "cat-then-relu", "lookalike", "three-sites", "linear", "conv1d", "nested")


@mostly("name", MODULES, fast=MODULES.keys() - AGAIN)
def test_modules_become_bundles(name: str, tmp_path: Path) -> None:
    case = MODULES[name]
    module = case.make()
    bundle = export(module, tmp_path / "out", inputs=case.inputs)
    model = model_of(bundle)
    onnx.checker.check_model(model, full_check=True)
    assert len(sites_of(model)) == len(bundle.manifest["sites"]) == case.sites
    assert [f.name for f in model.functions] == ["CReLU"] * bool(case.sites)
    assert all(list(f.attribute) == ["axis"] for f in model.functions)
    assert [value.name for value in model.graph.output] == list(case.outputs)
    assert bundle.outputs == case.outputs
    rows = [len(sample.inputs[bundle.inputs[0].name]) for sample in bundle.samples]
    assert rows[:2] == [1, 3]
    assert all(v["passed"] for v in bundle.manifest["verification"].values())
    assert_equal_to_pytorch(bundle, module)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@mostly("opset", [18, 23, 25], fast=[18, 25])
def test_opsets(opset: int, tmp_path: Path) -> None:
    module = net()
    bundle = export(module, tmp_path / "out", inputs=[IMAGE], opset=opset)
    model = model_of(bundle)
    onnx.checker.check_model(model, full_check=True)
    assert {o.domain: o.version for o in model.opset_import} == {"": opset, "crelu_deploy": 1}
    assert {o.version for o in model.functions[0].opset_import if not o.domain} == {opset}
    assert bundle.manifest["opset"] == opset
    assert_equal_to_pytorch(bundle, module)


def test_height_and_width_may_vary(tmp_path: Path) -> None:
    module = net().eval()
    bundle = export(module, tmp_path / "out", inputs=[IMAGE], dynamic=["height,width"])
    assert bundle.inputs[0].shape == ("batch", 2, "height", "width")
    found = [sample.inputs["input"].shape for sample in bundle.samples]
    assert found[:3] == [(1, 2, 6, 5), (3, 2, 6, 5), (1, 2, 3, 3)]  # the smallest it takes
    assert [(h % 16, w % 32) for _, _, h, w in found[3:4]] == [(0, 0)]
    assert any(h > w for *_, h, w in found[3:])
    assert any(h < w for *_, h, w in found[3:])
    assert any(h % 2 and w % 2 and h > 5 for *_, h, w in found)
    for shape in ((1, 2, 3, 3), (5, 2, 17, 31)):
        x = torch.randn(shape)
        (got,) = run_onnx(bundle, {"input": x.numpy()})
        np.testing.assert_allclose(got, module(x).detach().numpy(), rtol=1e-5, atol=1e-5)


FLAT = 8 * 4 * 3
FIXED = {
    "asked-for": (net, IMAGE, ("none",)),
    "one-row": (written(lambda y: crelu(y).view(1, -1) @ torch.ones(FLAT, 1)), IMAGE, ()),
    "one-row-per-call": (written(lambda y: crelu(y[0]) @ torch.ones(3, len(y))), IMAGE, ()),
    "loop-over-rows": (written(lambda y: torch.stack([crelu(r, 0) for r in y])), "3x2x6x5", ()),
}


@pytest.mark.parametrize(("make", "shape", "dynamic"), FIXED.values(), ids=FIXED)
def test_a_batch_that_cannot_vary_is_fixed_at_the_size_asked_for(
    make: Callable[[], nn.Module], shape: str, dynamic: tuple[str, ...], tmp_path: Path
) -> None:
    module = make()
    bundle = export(module, tmp_path / "out", inputs=[shape], dynamic=dynamic)
    assert "x".join(map(str, bundle.inputs[0].shape)) == shape
    dims = model_of(bundle).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims] == list(bundle.inputs[0].shape)
    assert_equal_to_pytorch(bundle, module)


def test_every_part_goes_back_to_its_own_mode(tmp_path: Path) -> None:
    module = trained(net(nn.BatchNorm2d(4), nn.Dropout(0.5)))
    module[2].eval()
    statistics = module[1].running_mean.clone()
    export(module, tmp_path / "out", inputs=[IMAGE])
    assert [part.training for part in module.modules()] == [True, True, True, False, True, True]
    assert torch.equal(module[1].running_mean, statistics)
    module[0] = nn.Conv2d(3, 4, 3)
    with pytest.raises(ExportError):
        export(module, tmp_path / "out2", inputs=[IMAGE])
    assert [part.training for part in module.modules()] == [True, True, True, False, True, True]


def test_the_bundle_depends_on_the_arguments_alone(tmp_path: Path) -> None:
    module = net()
    first, second, other = (
        export(module, tmp_path / name, inputs=[IMAGE], seed=seed).path
        for name, seed in (("first", 3), ("second", 3), ("other", 4))
    )
    for name in ("model.onnx", "samples.npz", "manifest.json", "targets/ort-cpu-auto.onnx"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert (first / "model.onnx").read_bytes() == (other / "model.onnx").read_bytes()
    assert (first / "samples.npz").read_bytes() != (other / "samples.npz").read_bytes()


def test_the_model_says_nothing_of_this_machine(shared_bundle: Path, tmp_path: Path) -> None:
    bundle = export(net(), tmp_path / "out", inputs=[IMAGE])
    secrets = (b"/home", b"/tmp", b".py", b"pkg.torch", str(Path.cwd()).encode(), b"site-packages")
    for path in (*bundle.path.rglob("*.onnx"), *shared_bundle.rglob("*.onnx")):
        content = path.read_bytes()
        assert [secret for secret in secrets if secret in content] == [], path.name
    model = model_of(bundle)
    assert model.producer_name == "crelu-deploy"
    assert [node.name for node in sites_of(model)] == ["1"]


def with_device(name: str) -> nn.Module:
    return net().to(name)


class Mixed(nn.Module):
    """float32 weights, and bfloat16 in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).bfloat16())


class Complex(nn.Module):
    """Weights with an imaginary part."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).real


class Nothing(nn.Module):
    def forward(self) -> Tensor:
        return torch.ones(2)


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "bfloat16": (lambda: net().bfloat16(), {}, "weights in bfloat16.*module.float()"),
    "float8": (lambda: net().to(torch.float8_e4m3fn), {}, "weights in float8_e4m3fn"),
    "complex": (Complex, {}, "weights in complex64"),
    "one-bfloat16-layer": (Mixed, {}, "weights in bfloat16"),
    "bfloat16-output": (written(lambda y: y.bfloat16()), {}, "output 'output' is bfloat16"),
    "meta": (lambda: with_device("meta"), {}, "the module is on meta.*module.cpu()"),
    "opset-17": (net, {"opset": 17}, "opset 18 to 25, not 17"),
    "opset-99": (net, {"opset": 99}, "opset 18 to 25, not 99"),
    "raises": (written(lambda y: [][0]), {}, "fails on the input x 1x2x6x5: IndexError: list"),
    "channels": (net, {"inputs": ["1x3x6x5"]}, "fails on the input input 1x3x6x5.*--input"),
    "rank": (net, {"inputs": ["5"]}, "fails on the input input 5: RuntimeError"),
    "no-input": (net, {"inputs": []}, "shape of input 'input' is unknown.*--input"),
    "unknown-input": (net, {"inputs": ["image:1x2x6x5"]}, "no input 'image'.*are: input"),
    "two-for-one": (net, {"inputs": [IMAGE, IMAGE]}, "no input.*are: input"),
    "axis": (net, {"dynamic": ["4"]}, "dynamic axis 4 is outside the 4 axes of input 'input'"),
    "axis-input": (net, {"dynamic": ["y:2"]}, "no input 'y'; the inputs are: input"),
    "variadic": (Variadic, {}, r"forward\(\*images.*names no input.*wrap it"),
    "nothing-in": (Nothing, {}, "names no input"),
    "nothing-out": (written(lambda y: None), {}, "returns no tensor"),
    "text-out": (written(lambda y: (y, "x")), {}, "returns a str in 'output_1'"),
    "data-dependent": (written(lambda y: y if y.sum() > 0 else -y), {}, "cannot export"),
    "tolerance": (net, {"tolerance": Tolerance(0.0, 0.0)}, "differs from PyTorch: score inf"),
    "no-kernel": (lambda: net().double(), {}, "cannot be verified: model.onnx: ONNX Runtime"),
}


@pytest.mark.parametrize(("make", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_say_why_and_write_nothing(
    make: Callable[[], nn.Module],
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    module = make()
    with pytest.raises(ExportError, match=message):
        export(module, tmp_path / "out", **{"inputs": [IMAGE], **options})
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_an_earlier_bundle_survives_a_refusal(bundle: Path) -> None:
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    with pytest.raises(ExportError, match="differs from PyTorch"):
        export(net(), bundle, inputs=[IMAGE], tolerance=Tolerance(0.0, 0.0))
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    Bundle.open(bundle)


def save_script(path: Path) -> nn.Module:
    module = nn.Sequential(Written(crelu_by_hand).eval(), nn.Conv2d(8, 3, 1))
    torch.jit.trace(module, torch.ones(2, 2, 6, 5)).save(path)
    return module


def crelu_by_hand(y: Tensor) -> Tensor:
    return torch.cat([torch.relu(y), torch.relu(-y)], 1)


def save_program(path: Path) -> nn.Module:
    module = net().eval()
    torch.export.save(torch.export.export(module, (torch.ones(1, 2, 6, 5),)), path)
    return module


def save_pickle(path: Path) -> nn.Module:
    module = net().eval()
    torch.save(module, path)
    return module


FILES = {
    "torchscript": (save_script, "model.pt", (IMAGE,)),
    "program": (save_program, "model.pt2", ()),
    "pickle": (save_pickle, "model.pth", (IMAGE,)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("save", "name", "inputs"), FILES.values(), ids=FILES)
def test_files_with_a_graph_need_trust(
    save: Callable[[Path], nn.Module], name: str, inputs: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / name
    module = save(file)
    with pytest.raises(CheckpointError, match="trust"):
        export(file, tmp_path / "out", inputs=inputs)
    assert not (tmp_path / "out").exists()
    bundle = export(file, tmp_path / "out", inputs=inputs, trust=True)
    assert len(sites_of(model_of(bundle))) == 1
    assert bundle.manifest["source"]["path"] == str(file)
    assert_equal_to_pytorch(bundle, module)


def test_real_samples_in_calls_of_the_example_batch(tmp_path: Path) -> None:
    module = net()
    images = np.random.default_rng(0).normal(size=(7, 2, 6, 5)).astype(np.float32)
    file = tmp_path / "real.npz"
    np.savez(file, input=images, label=np.arange(7))
    bundle = export(module, tmp_path / "out", inputs=["3x2x6x5"], samples=file)
    assert [sample.inputs["input"].shape[0] for sample in bundle.samples] == [3, 3, 4]
    joined = np.concatenate([sample.inputs["input"] for sample in bundle.samples[:2]])
    np.testing.assert_array_equal(joined, images[:6])
    assert_equal_to_pytorch(bundle, module)


WRONG_SAMPLES: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "name": ({"image": np.zeros((2, 2, 6, 5), np.float32)}, "no array named 'input'.*has image"),
    "dtype": ({"input": np.zeros((2, 2, 6, 5))}, "expected float32, got float64"),
    "shape": ({"input": np.zeros((2, 3, 6, 5), np.float32)}, "expected shape"),
    "rank": ({"input": np.zeros((2, 6, 5), np.float32)}, "expected shape"),
    "empty": ({"input": np.zeros((0, 2, 6, 5), np.float32)}, "number of rows"),
}


@mostly("name", WRONG_SAMPLES, fast=["shape"])
def test_wrong_samples(name: str, tmp_path: Path) -> None:
    """Each on its own is a test of reading samples."""
    arrays, message = WRONG_SAMPLES[name]
    file = tmp_path / "real.npz"
    np.savez(file, **arrays)
    with pytest.raises(UnsupportedModel, match=re.escape(str(file)) + ": .*" + message):
        export(net(), tmp_path / "out", inputs=[IMAGE], samples=file)
    assert list(tmp_path.iterdir()) == [file]


@mostly("content", [b"", b"no zip", None], fast=[b"no zip", None])
def test_unreadable_samples(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "real.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DeployError, match=re.escape(str(file))):
        export(net(), tmp_path / "out", inputs=[IMAGE], samples=file)
    assert not (tmp_path / "out").exists()


def test_the_manifest_says_where_everything_comes_from(shared_bundle: Path, digits: Path) -> None:
    manifest = json.loads((shared_bundle / "manifest.json").read_text())
    assert manifest["source"]["path"] == str(digits)
    assert manifest["source"]["arch"] == "digits-crelu"
    assert manifest["inputs"] == [
        {"name": "input", "dtype": "float32", "shape": ["batch", 1, 28, 28]}
    ]
    assert manifest["outputs"] == ["logits"]
    assert {"torch", "onnx", "crelu-deploy"} <= manifest["versions"].keys()
    assert {*manifest["files"]} == {"model.onnx", "samples.npz", "targets/ort-cpu-auto.onnx"}
    assert [site["activation"] for site in manifest["sites"]] == ["relu"] * 6
