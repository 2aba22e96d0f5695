"""Right targets pass: every architecture and trained network, every form, two seeds, by far."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import DIGITS
from real_models import real_model
from torch import nn

from crelu_deploy import Options, export, models, verify
from crelu_deploy.lowerings import LOWERINGS

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.thorough]

TARGETS = [
    *(f"ort-cpu:{name}" for name in LOWERINGS),
    *(f"openvino:{name}" for name in LOWERINGS if name != "function"),
]
SEEDS = (0, 1)
FAR = 0.5
"""Largest score of a right target: half of the limit."""


def narrow(name: str) -> str:
    """A network of the tables at a quarter of its width: the same layers, in less time."""
    return f"{name}@0.25" if models.MODELS[name].row is not None else name


def assert_right(source: object, out: Path, seed: int, inputs: tuple[str, ...] = ()) -> None:
    bundle = export(source, out, seed=seed, inputs=inputs)  # type: ignore[arg-type]
    for found in verify(bundle, TARGETS, Options(threads=2)):
        if found.skipped:
            continue
        assert found.comparison is not None, found.error
        assert found.passed, f"{found.target}: {found.comparison.worst}"
        assert found.comparison.score < FAR, f"{found.target}: {found.comparison.worst}"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("trained", [False, True], ids=["shrinking", "preserving"])
@pytest.mark.parametrize("name", models.MODELS)
def test_an_architecture(name: str, trained: bool, seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    net = models.build(narrow(name)).eval()
    for part in net.modules():
        if trained and isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
    shape = (1, 3, 128, 160) if name == "faceboxes" else models.MODELS[name].input_shape
    assert_right(net, tmp_path / "out", seed, ("x".join(map(str, shape)),))


REAL = (
    "faceboxes-3ddfa/FaceBoxesProd.pth",
    "faceboxes-anime/FaceBoxes_epoch_90.pth",
    "faceboxes-wider/FaceBoxes.pth",
)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("file", REAL)
def test_a_trained_detector(file: str, seed: int, tmp_path: Path) -> None:
    assert_right(real_model(file), tmp_path / "out", seed, ("1x3x256x320",))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_trained_digits(seed: int, tmp_path: Path) -> None:
    assert_right(DIGITS, tmp_path / "out", seed)
