"""The zoo: exact counts and multiply-adds, verdicts, readings not taken, narrowed networks, CLI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tables import thorough

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from crelu_deploy import checkpoint, reported  # noqa: E402
from crelu_deploy.cli import paper  # noqa: E402
from crelu_deploy.errors import CheckpointError  # noqa: E402
from crelu_deploy.models import MODELS, build, cost, entries, find  # noqa: E402
from crelu_deploy.models.calls import INPUT, calls  # noqa: E402
from crelu_deploy.models.sequential import build_sequential  # noqa: E402
from crelu_deploy.models.tables import ALL_CNN_B, CONVPOOL, VGG, Row, scaled  # noqa: E402
from crelu_deploy.nn import CReLU  # noqa: E402

pytestmark = pytest.mark.torch

# params for 10 classes (1000 for all-cnn-b), without biases, reported, MMAC, MMAC folded
COUNTS = {
    "convpool-c-relu": (1_286_698, 1_285_536, "1.4M", 325.0, 325.0),
    "convpool-c-avr": (1_286_698, 1_285_536, "1.4M", 325.0, 325.0),
    "convpool-c-double": (5_135_434, 5_133_120, "5.6M", 1294.5, 1294.5),
    "convpool-c-crelu": (2_569_642, 2_568_480, "2.8M", 647.4, 1294.5),
    "convpool-c-crelu-half": (644_314, 643_728, "0.7M", 162.6, 325.0),
    "convpool-c-relu-9": (1_369_738, 1_368_480, "1.4M", 410.0, 410.0),
    "convpool-c-avr-9": (1_369_738, 1_368_480, "1.4M", 410.0, 410.0),
    "convpool-c-double-9": (5_467_402, 5_464_896, "5.6M", 1634.2, 1634.2),
    "convpool-c-crelu-9": (2_735_626, 2_734_368, "2.8M", 817.3, 1634.2),
    "convpool-c-crelu-half-9": (685_834, 685_200, "0.7M", 205.1, 410.0),
    "vgg-relu": (14_991_946, 14_982_464, None, 313.5, 313.5),
    "vgg-crelu-1": (14_990_986, 14_981_568, None, 312.6, 313.5),
    "vgg-crelu-1-3": (14_953_930, 14_944_640, None, 303.1, 313.5),
    "vgg-crelu-1-3-5": (14_806_090, 14_797_056, None, 293.7, 313.5),
    "all-cnn-b-relu": (9_372_840, 9_367_584, "9.37M", 1127.6, 1127.6),
    "all-cnn-b-avr-1-4": (9_372_840, 9_367_584, "9.37M", 1127.6, 1127.6),
    "all-cnn-b-avr-1-7": (9_372_840, 9_367_584, "9.37M", 1127.6, 1127.6),
    "all-cnn-b-crelu-all-half": (4_686_920, 4_683_792, "4.68M", 563.8, 1090.3),
    "all-cnn-b-crelu-1-4": (10_144_936, 10_139_680, "10.14M", 1670.1, 2768.3),
    "all-cnn-b-crelu-1-7": (11_766_952, 11_761_696, "11.62M", 1903.7, 3515.2),
    "all-cnn-b-crelu-1-4-7-half": (8_605_480, 8_600_592, "8.60M", 805.4, 1127.6),
}
FOLDED = {
    "convpool-c-crelu": 5_135_434,  # what doubling the baseline has
    "convpool-c-crelu-half": 1_286_698,  # what the baseline has
    "vgg-crelu-1-3-5": 14_982_474,
    "all-cnn-b-crelu-1-4": 11_593_448,
    "all-cnn-b-crelu-1-7": 16_296_552,
    "all-cnn-b-crelu-all-half": 8_336_040,
    "all-cnn-b-crelu-1-4-7-half": 9_372_840,
}
HUNDRED = {
    "convpool-c-relu": 1_304_068,
    "convpool-c-double": 5_170_084,
    "convpool-c-crelu": 2_604_292,
    "convpool-c-crelu-half": 661_684,
    "convpool-c-relu-9": 1_387_108,
    "convpool-c-double-9": 5_502_052,
    "convpool-c-crelu-9": 2_770_276,
    "convpool-c-crelu-half-9": 703_204,
    "vgg-relu": 15_038_116,
    "vgg-crelu-1": 15_037_156,
    "vgg-crelu-1-3": 15_000_100,
    "vgg-crelu-1-3-5": 14_852_260,
}
# What the printed tables could also mean, and how many parameters that would have.
VGG_TAIL = "256 256 512 512 512 512 512 512 512 n-"
ALL_HALF = "48c 48c 48c 128c 128c 128c 192c 192c 192c 512c 512c n-"
OTHER_READINGS = {
    "half-as-printed": (CONVPOOL, "48c 48c 48c 96c 96c 96c 96c n", 10, 519_850),
    "half-as-printed-100": (CONVPOOL, "48c 48c 48c 96c 96c 96c 96c n", 100, 537_220),
    "vgg-1-not-halved": (VGG, f"64c 64 128 128 256 {VGG_TAIL}", 10, 15_028_810),
    "vgg-1-3-not-halved": (VGG, f"64c 64 128c 128 256 {VGG_TAIL}", 10, 15_176_266),
    "vgg-1-3-5-not-halved": (VGG, f"64c 64 128c 128 256c {VGG_TAIL}", 10, 15_766_090),
    "conv11-also-crelu": (ALL_CNN_B, ALL_HALF, 1000, 5_198_920),
}


@pytest.fixture(scope="module")
def listed() -> dict:
    return {entry.name: entry for entry in entries()}


def test_every_architecture_is_listed(listed):
    assert list(listed) == list(MODELS)
    assert len(listed) >= 22
    assert COUNTS.keys() == MODELS.keys() - {"faceboxes", "digits-crelu"}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(listed, name):
    entry, c = listed[name], listed[name].cost
    found = (c.params, c.weights, entry.reported, round(c.macs / 1e6, 1))
    assert (*found, round(c.macs_folded / 1e6, 1)) == COUNTS[name]


@pytest.mark.parametrize("name", FOLDED)
def test_folded_parameters(listed, name):
    assert listed[name].cost.params_folded == FOLDED[name]


@pytest.mark.parametrize("name", HUNDRED)
def test_counts_for_a_hundred_classes(name):
    assert cost(name, num_classes=100).params == HUNDRED[name]


@pytest.mark.parametrize(("layers", "widths", "classes", "params"), OTHER_READINGS.values())
def test_readings_that_were_not_taken(layers, widths, classes, params):
    with torch.device("meta"):
        net = build_sequential(layers, widths, 3, classes)
    assert sum(p.numel() for p in net.parameters()) == params


def rounds_to(count: int, text: str) -> bool:
    digits = len(text.partition(".")[2]) - 1
    return f"{count / 1e6:.{digits}f}M" == text


@pytest.mark.parametrize("name", [n for n, row in COUNTS.items() if row[2]])
def test_verdicts_are_true(listed, name):
    entry, c = listed[name], listed[name].cost
    if entry.verdict.startswith("match (weights only"):
        assert rounds_to(c.weights, entry.reported)
        assert not rounds_to(c.params, entry.reported)
    elif entry.verdict.startswith("match"):
        assert rounds_to(c.params, entry.reported)
    else:
        gap = c.params / (1e6 * float(entry.reported[:-1])) - 1
        side = "under" if gap < 0 else "over"
        assert entry.verdict.startswith(f"{abs(gap):.1%} {side}: ")


def test_the_missing_count_of_all_cnn_b_is_one_layers_second_half():
    real, missed = 11_766_952, 384 * 384
    assert rounds_to(real - missed, "11.62M")
    assert not rounds_to(real, "11.62M")


@pytest.mark.parametrize("name", ["faceboxes", "digits-crelu"])
def test_macs_of_one_convolution_at_a_time(name):
    """Against a second way to count: ones through all-one filters without borders."""
    entry = find(name)
    with torch.device("meta"):
        net = build(name).eval()
    found = calls(net, torch.empty(entry.input_shape, device="meta"))
    total = 0
    for call in found:
        if isinstance(call.module, nn.Conv2d):
            k = call.module.kernel_size
            total += call.read[1] * k[0] * k[1] * torch.Size(call.written).numel()
    assert cost(name).macs == total


def test_a_crelu_behind_a_batch_norm_or_a_relu_counts_rightly():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), CReLU(), nn.Conv2d(8, 2, 1), nn.ReLU()
    )
    found = calls(net.eval(), torch.zeros(1, 3, 2, 2))
    assert [c.source for c in found] == [INPUT, 0, 1, 2, 3]
    assert [c.name for c in found] == list("01234")


def test_a_call_behind_a_function_has_no_source():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.second(self.first(x) + 1)

    found = calls(Net(), torch.zeros(1, 1, 2, 2))
    assert [c.source for c in found] == [INPUT, None]


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("convpool-c-relu@0.125", 20_734),
        ("convpool-c-crelu@0.125", 40_990),
        ("vgg-relu@1", 14_991_946),
    ],
)
def test_narrowed(name, params):
    net = build(name, num_classes=10)
    assert sum(p.numel() for p in net.parameters()) == params


def test_narrowing_keeps_marks_and_classes():
    row = scaled(Row((), "96c 3a 1 n-"), 0.125)
    assert row.widths == "12c 1a 1 n-"
    assert row.reported is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("faceboxes@0.5", "faceboxes has one width only"),
        ("vgg-relu@0", "the width must be in 0..1"),
        ("vgg-relu@2", "the width must be in 0..1"),
        ("vgg-relu@nan", "the width must be in 0..1"),
        ("vgg-relu@half", "'half' is no width"),
        ("vgg-rel@0.5", "closest: vgg-relu"),
    ],
)
def test_names_that_no_width_makes_right(name, message):
    with pytest.raises(CheckpointError, match=message):
        build(name)


def test_a_narrowed_checkpoint_loads_without_hints(tmp_path):
    name, path = "convpool-c-avr@0.125", tmp_path / "net.pt"
    net = build(name, num_classes=7).eval()
    checkpoint.save(path, net, arch=name, num_classes=7)
    loaded = checkpoint.load(path)
    x = torch.ones(1, 3, 32, 32)
    assert loaded.arch == name
    assert torch.equal(loaded.module(x), net(x))


def run(*arguments: str):
    return CliRunner().invoke(paper.cli, arguments, standalone_mode=False, catch_exceptions=False)


FIELDS = {"name", "classes", "params", "params_weights", "reported", "verdict", "macs", "input"}


@pytest.mark.parametrize(("arguments", "classes"), [((), 10), (("--classes", "100"), 100)])
def test_zoo_as_json(arguments, classes):
    rows = json.loads(run("zoo", "--json", "-q", *arguments).stdout)["rows"]
    assert all(row.keys() >= FIELDS | {"macs_folded"} for row in rows)
    found = {row["name"]: row for row in rows}
    assert found["vgg-relu"]["classes"] == classes
    assert (
        found["vgg-relu"]["params"]
        == (HUNDRED if classes == 100 else {"vgg-relu": 14_991_946})["vgg-relu"]
    )
    assert found["all-cnn-b-relu"]["classes"] == 1000
    assert found["all-cnn-b-relu"]["input"] == [1, 3, 224, 224]


def test_zoo_as_text_has_every_count_whole():
    text = run("zoo", "-q").stdout
    for name, (params, weights, *_) in COUNTS.items():
        assert f"{params:,}" in text, name
        assert f"{weights:,}" in text, name


def test_reported_results_are_of_known_networks():
    known = {**reported.CONVPOOL, **reported.VGG}
    assert known.keys() <= MODELS.keys()
    assert reported.ALL_CNN_B.keys() - MODELS.keys() == {"AlexNet", "FriedNet", "PrunedNet"}
    for name, row in reported.ALL_CNN_B.items():
        if name in MODELS:
            assert row.params == MODELS[name].reported
            assert row.top5 < row.top1
    for row in known.values():
        assert row.cifar10.vote < row.cifar10.mean < row.cifar100.vote < row.cifar100.mean


BENCH = Path(__file__).resolve().parent.parent / "scripts" / "bench_zoo.py"


@thorough
@pytest.mark.slow
def test_the_table_of_lowerings_verifies_and_notices_a_failure(tmp_path):
    pytest.importorskip("onnxruntime", reason="the table needs ONNX Runtime")
    command = [sys.executable, BENCH, "digits-crelu", "digit", "--seconds", "0.2"]
    done = subprocess.run(
        [*command, "--json", tmp_path / "rows.json"], capture_output=True, text=True, check=False
    )
    good, bad = json.loads((tmp_path / "rows.json").read_text())
    assert good["sites"] == 6
    assert all(good["verified"].values())
    assert good["median_ms"].keys() == good["verified"].keys() >= {"ort-cpu:fold", "ort-cpu:auto"}
    assert "unknown architecture 'digit'" in bad["error"]
    assert done.returncode == 1
    assert "digits-crelu" in done.stdout
