"""Every half that can fire does on some sample, and those that cannot are counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crelu_deploy import export
from crelu_deploy.bundle import Bundle
from crelu_deploy.nn import CReLU, crelu
from crelu_deploy.render.build import coverage_line

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("seeded")]


class Shifted(nn.Module):
    """A site whose channels have biases: 0 fires both ways, 1 and 2 rarely one way, 3 never."""

    def __init__(self, biases: tuple[float, ...] = (0, 30, -30, 1e4)) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, len(biases), 5)
        self.last = nn.Conv2d(2 * len(biases), 2, 1)
        nn.init.normal_(self.first.weight, std=0.1)
        self.first.bias.data = torch.tensor(biases, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(crelu(self.first(x)))


class Negated(Shifted):
    """The other order of the halves."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(torch.cat([torch.relu(-y), torch.relu(y)], 1))


class Rows(nn.Module):
    """A site along the rows of a matrix, of a batch that cannot vary."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return crelu(self.first(x), 0)


def bounded() -> nn.Module:
    return Shifted((0, 5, -5, 100))


# network, input, further settings -> channels, both halves, none
COUNTED = {
    "all": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), CReLU()), "1x3x9x9", {}, (4, 4, 0)),
    "searched": (lambda: Shifted((0, 30, -30)), "1x3x9x9", {}, (3, 3, 0)),
    "never": (Shifted, "1x3x9x9", {}, (4, 3, 0)),
    "negated": (Negated, "1x3x9x9", {}, (4, 3, 0)),
    "fixed": (lambda: Shifted((0, 30)), "1x3x9x9", {"dynamic": ["none"]}, (2, 2, 0)),
    "rows": (Rows, "2x8", {"dynamic": ["none"]}, (2, 2, 0)),
    "pixels": (bounded, "1x3x9x9", {"preprocessing": {"scale": (255.0,)}}, (4, 1, 0)),
    "dead": (lambda: Shifted((0.0,)), "1x3x9x9", {"dead": True}, (1, 0, 1)),
}


@pytest.mark.parametrize(("make", "shape", "more", "counts"), COUNTED.values(), ids=COUNTED)
def test_what_can_fire_does(make, shape, more, counts, tmp_path: Path) -> None:
    module = make()
    if (more := dict(more)).pop("dead", False):
        module.first.weight.data.zero_()
    bundle = export(module, tmp_path / "out", inputs=[shape], **more)
    (found,) = bundle.coverage.values()
    assert tuple(found[key] for key in ("channels", "both", "none")) == counts
    if module.__class__ is Shifted:
        assert fired(module, bundle) == counts[1]


def fired(module: Shifted, bundle: Bundle) -> int:
    """Count from the samples themselves."""
    with torch.no_grad():
        maps = [module.first(torch.from_numpy(s.inputs["x"])) for s in bundle.samples]
    high = torch.stack([y.amax((0, 2, 3)) for y in maps]).amax(0)
    low = torch.stack([y.amin((0, 2, 3)) for y in maps]).amin(0)
    return int(((high > 0) & (low < 0)).sum())


def test_a_picture_that_was_searched_has_pixels(tmp_path: Path) -> None:
    settings = {"mean": (10.0,), "scale": (2.0,)}
    net = Shifted((0, 40, -40))
    bundle = export(net, tmp_path / "out", inputs=["1x3x9x9"], preprocessing=settings)
    values = np.concatenate([s.inputs["x"].ravel() for s in bundle.samples])
    assert -5 <= values.min() <= values.max() <= 122.5


def test_a_file_of_samples_is_searched_from_too(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, x=np.zeros((2, 3, 9, 9), np.float32))
    bundle = export(Shifted((0, 3)), tmp_path / "out", inputs=["1x3x9x9"], samples=file)
    (found,) = bundle.coverage.values()
    assert found["both"] == 2
    assert [s.inputs["x"].any() for s in bundle.samples][:2] == [False, False]


def line(*counts: tuple[int, int, int]) -> str:
    keys = ("channels", "both", "none")
    return coverage_line({f"s{i}": dict(zip(keys, c, strict=True)) for i, c in enumerate(counts)})


LINES = {
    "nothing": ((), ""),
    "all": (((24, 24, 0), (64, 64, 0)), "samples make both halves of all 88 channels fire"),
    "some": (
        ((24, 24, 0), (64, 61, 3)),
        "samples make both halves of the channels fire: 24 of 24 in s0, 61 of 64 in s1; "
        "3 never fire on any input tried",
    ),
    "half": (
        ((4, 2, 1),),
        "samples make both halves of the channels fire: 2 of 4 in s0; of 1 one half alone and "
        "1 never fire on any input tried",
    ),
    "many": (
        ((4, 3, 0),) * 7,
        "samples make both halves of the channels fire: 21 of 28; of 7 one half alone on any "
        "input tried",
    ),
}


@pytest.mark.parametrize(("counts", "expected"), LINES.values(), ids=LINES)
def test_the_line_on_coverage(counts, expected):
    assert line(*counts) == expected
