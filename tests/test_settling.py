"""Dynamic axes hold wherever a bundle takes them, or are refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from real_models import real_model
from torch import Tensor, nn

from crelu_deploy import checkpoint, export, load
from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import ExportError
from crelu_deploy.nn import crelu

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("seeded")]


class Written(nn.Module):
    """A convolution of stride 2 and what a function makes of its CReLU and the input."""

    def __init__(self, then: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.then = nn.Conv2d(2, 4, 3, 2, 1), then

    def forward(self, x: Tensor) -> Any:
        return self.then(crelu(self.conv(x)), x)


def upsampled(y: Tensor, x: Tensor) -> Tensor:
    return torch.cat([F.interpolate(y, scale_factor=2.0), x], 1)


def narrow(y: Tensor, x: Tensor) -> Tensor:
    return y * 2 if x.shape[3] <= 80 else y


def tall(y: Tensor, x: Tensor) -> Tensor:
    return y * 2 if x.shape[2] >= 20 else y


def few_rows(y: Tensor, x: Tensor) -> Tensor:
    return y * 2 if x.shape[0] <= 4 else y


def pairs_of_rows(y: Tensor, x: Tensor) -> Tensor:
    return y.unflatten(0, (x.shape[0] // 2, 2))


def positions(y: Tensor, x: Tensor) -> Tensor:
    return x + torch.arange(100.0)[: x.shape[3]]


def square(y: Tensor, x: Tensor) -> Tensor:
    return y @ y


def pooled(y: Tensor, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(y, 3)


def flat(y: Tensor, x: Tensor) -> Tensor:
    return x @ torch.ones(16, 2)


def padded(y: Tensor, x: Tensor) -> Tensor:
    return F.max_pool2d(F.max_pool2d(y, 3, 2, 1), 3, 2, 1)


def twice(y: Tensor, x: Tensor) -> Tensor:
    return F.max_pool2d(F.avg_pool2d(y, 3, 2, 1), 3, 2, ceil_mode=True)


@dataclass(frozen=True)
class Case:
    """What a network demands of its extents, shapes it takes, and shapes that are refused."""

    then: Callable[[Tensor, Tensor], Any]
    says: str
    takes: tuple[tuple[int, ...], ...]
    refuses: tuple[tuple[int, ...], ...] = ()
    example: str = "1x2x16x24"
    dynamic: tuple[str, ...] = ("2,3",)
    batches: set[int] = field(default_factory=lambda: {1, 3})


BOUND = {
    "multiple": Case(
        *(upsampled, "height a multiple of 2, width a multiple of 2"),
        *(((1, 2, 2, 98), (2, 2, 64, 4)), ((1, 2, 17, 24), (1, 2, 16, 25))),
    ),
    "at-most": Case(
        *(narrow, "width at most 80", ((1, 2, 200, 80), (1, 2, 9, 1)), ((1, 2, 16, 81),)),
    ),
    "at-least": Case(
        *(tall, "height at least 20", ((1, 2, 20, 9), (5, 2, 500, 9)), ((1, 2, 19, 24),)),
        example="1x2x33x24",
    ),
    "table": Case(*(positions, "width at most 100", ((1, 2, 2, 100),), ((1, 2, 2, 101),))),
    "relation": Case(
        *(square, "1 + (-1 + height) // 2 == 1 + (-1 + width) // 2"),
        *(((1, 2, 9, 10), (1, 2, 64, 64)), ((1, 2, 9, 12),)),
        example="1x2x16x16",
    ),
    "rows": Case(
        *(few_rows, "batch at most 4", ((4, 2, 16, 24), (1, 2, 16, 24)), ((5, 2, 16, 24),)),
        dynamic=(),
    ),
    "pairs": Case(
        *(pairs_of_rows, "batch a multiple of 2", ((8, 2, 16, 24),), ((3, 2, 16, 24),)),
        *("2x2x16x24", (), {2, 4}),
    ),
    "none": Case(*(padded, "", ((1, 2, 1, 1), (1, 2, 7, 8), (4, 2, 301, 9))), example="1x2x8x8"),
    "smallest": Case(
        *(twice, "width at least 5, height at least 5", ((1, 2, 5, 6),), ((1, 2, 4, 6),)),
        example="1x2x8x9",
    ),
}


def shapes_of(bundle: Bundle) -> list[tuple[int, ...]]:
    return [sample.inputs["x"].shape for sample in bundle.samples]


def assert_equal(bundle: Bundle, module: nn.Module, shapes: tuple[tuple[int, ...], ...]) -> None:
    with load(bundle) as runner, torch.no_grad():
        for shape in shapes:
            x = torch.randn(shape)
            want = module(x)
            for got, y in zip(
                runner(x.numpy()).values(),
                want if isinstance(want, tuple) else (want,),
                strict=True,
            ):
                np.testing.assert_allclose(got, y.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", BOUND.values(), ids=BOUND)
def test_a_bundle_takes_what_was_verified_and_refuses_the_rest(case: Case, tmp_path: Path) -> None:
    module = Written(case.then).eval()
    bundle = export(module, tmp_path / "out", inputs=[case.example], dynamic=case.dynamic)
    assert sorted(str(bundle.limits).split(", ")) == sorted(case.says.split(", "))
    assert_equal(bundle, module, case.takes)
    assert {shape[0] for shape in shapes_of(bundle)} == case.batches
    with load(bundle) as runner:
        for shape in case.refuses:
            with pytest.raises(ValueError, match=r"this network needs .*; got .*nearest that fits"):
                runner(np.zeros(shape, np.float32))


REFUSED = {
    "pooled": (pooled, "with .*height 3, width 3 the exported model differs.*--dynamic", False),
    "pooled-file": (pooled, "the exported model differs", True),
    "flat": (
        flat,
        "fixes extents: axis 3 of 'x' can only be 16; leave them out of --dynamic",
        False,
    ),
}


@pytest.mark.parametrize(("then", "message", "real"), REFUSED.values(), ids=REFUSED)
def test_axes_that_cannot_vary_are_refused_whatever_the_samples(
    then: Callable[..., Any], message: str, real: bool, tmp_path: Path
) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, x=np.ones((3, 2, 16, 16), np.float32))
    samples: dict[str, Any] = {"samples": file} if real else {}
    with pytest.raises(ExportError, match=message):
        export(Written(then), tmp_path / "out", inputs=["1x2x16x16"], dynamic=["2,3"], **samples)


def test_other_extents_are_verified_beside_a_users_samples(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    real = np.random.default_rng(0).normal(size=(2, 2, 16, 16)).astype(np.float32)
    np.savez(file, x=real)
    options: dict[str, Any] = {"inputs": ["1x2x16x16"], "dynamic": ["2,3"], "samples": file}
    bundle = export(Written(twice), tmp_path / "out", **options)
    found = shapes_of(bundle)
    assert found[:2] == [(1, 2, 16, 16)] * 2
    assert len({shape[2:] for shape in found}) >= 5
    assert max(shape[0] for shape in found) >= 3
    for sample in bundle.samples:  # made of the user's values, and of more rows than one
        x = sample.inputs["x"]
        assert np.isin(x, real).all()
        assert len(x) < 2 or not np.array_equal(x[0], x[1])


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["1x3x128x128", "1x3x97x131", "1x3x720x1080"])
def test_faceboxes_takes_every_size(shape: str, tmp_path: Path) -> None:
    file = real_model("faceboxes-3ddfa/FaceBoxesProd.pth")
    bundle = export(file, tmp_path / "out", inputs=[shape], dynamic=["2,3"])
    assert bundle.inputs[0].shape == ("batch", 3, "height", "width")
    assert str(bundle.limits) == ""
    module = checkpoint.load(file).module.eval()
    sizes = ((64, 64), (128, 128), (129, 63), (480, 640), (1080, 1920))
    assert_equal(bundle, module, tuple((1, 3, *size) for size in sizes))
