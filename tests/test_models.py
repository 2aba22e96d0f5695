"""Known architectures: counts against the literature, shapes, identification, FaceBoxes' values."""

from __future__ import annotations

import pytest
from real_models import real_model

torch = pytest.importorskip("torch")

from crelu_deploy.errors import CheckpointError  # noqa: E402
from crelu_deploy.models import MODELS, build, identify  # noqa: E402
from crelu_deploy.nn import CReLU  # noqa: E402

pytestmark = pytest.mark.torch

# Weights and biases, for 10 and 100 classes.
CIFAR = {
    "convpool-c-relu": (1_286_698, 1_304_068),
    "convpool-c-avr": (1_286_698, 1_304_068),
    "convpool-c-double": (5_135_434, 5_170_084),
    "convpool-c-crelu": (2_569_642, 2_604_292),
    "convpool-c-crelu-half": (644_314, 661_684),
    "convpool-c-relu-9": (1_369_738, 1_387_108),
    "convpool-c-avr-9": (1_369_738, 1_387_108),
    "convpool-c-double-9": (5_467_402, 5_502_052),
    "convpool-c-crelu-9": (2_735_626, 2_770_276),
    "convpool-c-crelu-half-9": (685_834, 703_204),
    "vgg-relu": (14_991_946, 15_038_116),
    "vgg-crelu-1": (14_990_986, 15_037_156),
    "vgg-crelu-1-3": (14_953_930, 15_000_100),
    "vgg-crelu-1-3-5": (14_806_090, 14_852_260),
}
IMAGENET = {
    "all-cnn-b-relu": 9_372_840,
    "all-cnn-b-avr-1-4": 9_372_840,
    "all-cnn-b-avr-1-7": 9_372_840,
    "all-cnn-b-crelu-all-half": 4_686_920,
    "all-cnn-b-crelu-1-4": 10_144_936,
    "all-cnn-b-crelu-1-7": 11_766_952,
    "all-cnn-b-crelu-1-4-7-half": 8_605_480,
}
# Without biases, at the default number of classes.
WEIGHTS = {
    "convpool-c-relu": 1_285_536,
    "convpool-c-double": 5_133_120,
    "convpool-c-crelu": 2_568_480,
    "convpool-c-crelu-half": 643_728,
    "convpool-c-relu-9": 1_368_480,
    "convpool-c-double-9": 5_464_896,
    "convpool-c-crelu-9": 2_734_368,
    "convpool-c-crelu-half-9": 685_200,
    "all-cnn-b-relu": 9_367_584,
    "all-cnn-b-avr-1-4": 9_367_584,
    "all-cnn-b-avr-1-7": 9_367_584,
    "all-cnn-b-crelu-all-half": 4_683_792,
    "all-cnn-b-crelu-1-4": 10_139_680,
    "all-cnn-b-crelu-1-7": 11_761_696,
    "all-cnn-b-crelu-1-4-7-half": 8_600_592,
}
# Convolutions and linear layers that a CReLU follows, counted from 1.
SITES = {
    "convpool-c-crelu": range(1, 8),
    "convpool-c-crelu-half": range(1, 8),
    "convpool-c-crelu-9": range(1, 9),
    "convpool-c-crelu-half-9": range(1, 9),
    "vgg-crelu-1": (1,),
    "vgg-crelu-1-3": (1, 3),
    "vgg-crelu-1-3-5": (1, 3, 5),
    "all-cnn-b-crelu-all-half": range(1, 11),
    "all-cnn-b-crelu-1-4": range(1, 5),
    "all-cnn-b-crelu-1-7": range(1, 8),
    "all-cnn-b-crelu-1-4-7-half": (1, 4, 7),
    "digits-crelu": range(1, 7),
}
TWINS = [
    ("convpool-c-relu", "convpool-c-avr"),
    ("convpool-c-relu-9", "convpool-c-avr-9"),
    ("all-cnn-b-relu", "all-cnn-b-avr-1-4", "all-cnn-b-avr-1-7"),
]
SEQUENTIAL = [name for name in MODELS if name != "faceboxes"]


def on_meta(name: str, num_classes: int | None = None) -> torch.nn.Module:
    """Build without memory for the weights."""
    with torch.device("meta"):
        return build(name, num_classes=num_classes).eval()


def parameters(module: torch.nn.Module, *, weights_only: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.ndim > 1 or not weights_only)


@pytest.mark.parametrize(
    ("name", "num_classes", "count"),
    [(k, n, v) for k, pair in CIFAR.items() for n, v in zip((10, 100), pair, strict=True)]
    + [(k, 1000, v) for k, v in IMAGENET.items()],
)
def test_parameters(name, num_classes, count):
    assert parameters(on_meta(name, num_classes)) == count


@pytest.mark.parametrize(("name", "count"), WEIGHTS.items(), ids=WEIGHTS)
def test_weights_without_biases(name, count):
    assert parameters(on_meta(name), weights_only=True) == count


def test_every_row_is_counted():
    assert {*CIFAR, *IMAGENET, "faceboxes", "digits-crelu"} == set(MODELS)


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_sites_are_where_the_table_has_them(name):
    modules = on_meta(name).named_modules()
    found = [int(n.removeprefix("act")) for n, m in modules if isinstance(m, CReLU)]
    assert found == list(SITES.get(name, ()))


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_output_is_one_score_per_class(name):
    shape = MODELS[name].input_shape
    x = torch.empty(3, *shape[1:], device="meta")
    assert on_meta(name, 7)(x).shape == (3, 7)


@pytest.mark.parametrize(
    ("name", "size"),
    [("convpool-c-crelu", 10), ("convpool-c-relu-9", 10), ("all-cnn-b-crelu-1-4", 6)],
)
def test_last_map_has_the_size_that_the_paper_averages(name, size):
    net = on_meta(name)
    shape = MODELS[name].input_shape
    assert net[:-1](torch.empty(shape, device="meta")).shape[2:] == (size, size)


@pytest.mark.parametrize("name", MODELS)
def test_identified_by_its_own_tensors(name):
    state = on_meta(name, 5).state_dict()
    twins = next((group for group in TWINS if name in group), None)
    if twins is None:
        assert identify(state) == (name, 5)
        return
    with pytest.raises(CheckpointError) as caught:
        identify(state)
    assert f"choose with --arch {' or --arch '.join(twins)}" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("conv4.bias"),
            r"digits-crelu with 13 of 14 tensors .conv4.bias is missing.",
        ),
        (
            lambda s: s.update({"conv1.weight": torch.empty(16, 3, 3, 3)}),
            r"13 of 14 .*conv1.weight is 16x3x3x3, expected 16x1x3x3",
        ),
        (
            lambda s: s.update({"conv8.bias": torch.empty(10)}),
            r"14 of 14 .*conv8.bias is unexpected.*--arch NAME",
        ),
        (
            lambda s: [s.pop(k) for k in list(s)] and s.update(w=torch.empty(2)),
            r"no known architecture has tensors such as w; .*--arch package.module:factory",
        ),
    ],
    ids=["missing", "shape", "unexpected", "foreign"],
)
def test_not_identified(change, message):
    state = on_meta("digits-crelu").state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=message):
        identify(state)


@pytest.mark.parametrize(
    ("name", "message"),
    [("faceboxs", "closest: faceboxes"), ("", "known: convpool-c-relu,"), ("qq", "known: ")],
)
def test_unknown_name_suggests_the_closest(name, message):
    with pytest.raises(CheckpointError, match=message):
        build(name)


def test_no_classes_is_a_mistake():
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        build("faceboxes", num_classes=0)


def maps(size: int) -> list[int]:
    """Extents of the three maps: halved, rounding up, five to seven times."""
    return [-(-size // stride) for stride in (32, 64, 128)]


@pytest.mark.parametrize(("height", "width"), [(128, 128), (33, 257), (720, 1080), (1, 1)])
def test_faceboxes_anchors_at_any_size(height, width):
    loc, conf = on_meta("faceboxes")(torch.empty(2, 3, height, width, device="meta"))
    positions = [h * w for h, w in zip(maps(height), maps(width), strict=True)]
    anchors = 21 * positions[0] + positions[1] + positions[2]
    assert loc.shape == (2, anchors, 4)
    assert conf.shape == (2, anchors, 2)


@pytest.mark.parametrize("shape", [(1, 3, 720, 1080), (2, 3, 333, 251), (1, 3, 64, 97)])
def test_faceboxes_equals_another_export_of_its_weights(shape):
    onnxruntime = pytest.importorskip("onnxruntime")
    weights = real_model("faceboxes-3ddfa/FaceBoxesProd.pth")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # Its declared output shapes are those of one size.
    session = onnxruntime.InferenceSession(
        real_model("faceboxes-3ddfa/FaceBoxesProd.onnx"), options
    )
    net = build("faceboxes").eval()
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 255 - 110
    with torch.no_grad():
        ours = net(x)
    theirs = session.run(None, {"input": x.numpy()})
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - torch.from_numpy(other).reshape(mine.shape)).abs().max() <= 2e-5
