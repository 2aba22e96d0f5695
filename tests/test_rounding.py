"""Errors in units of PyTorch's own rounding: per channel, whatever the others' size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from crelu_deploy import build, export, verify
from crelu_deploy.accuracy import PEAK, TYPICAL, compare
from crelu_deploy.nn import crelu
from crelu_deploy.rounding import ENOUGH, channel_axis, noise, scales, shared, units
from crelu_deploy.samples import load_samples
from crelu_deploy.widening import Wide

pytestmark = pytest.mark.torch

ULP = 2.0**-24

AXES = {
    "logits": ((3, 10), None),
    "vector": ((10,), None),
    "scalar": ((), None),
    "maps": ((1, 8, 4, 4), 1),
    "small-maps": ((1, 8, 3, 3), None),
    "boxes": ((2, 500, 4), 2),
    "tokens": ((2, 500, 768), 1),
    "few-rows": ((500, 4, 3), None),
}


@pytest.mark.parametrize(("shape", "axis"), AXES.values(), ids=AXES)
def test_where_the_channels_are(shape, axis):
    assert channel_axis(shape) == axis


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def rounded(exact: np.ndarray, size: float, seed: int = 1) -> np.ndarray:
    """The exact values with noise of a size."""
    return (exact + size * random(*exact.shape, seed=seed)).astype(np.float32)


def test_each_channel_has_its_own_noise():
    exact = random(1, 3, 20, 20)
    sizes = np.array([1e-6, 1e-4, 1e-5]).reshape(3, 1, 1)
    found = noise(rounded(exact, sizes), exact)
    np.testing.assert_allclose(found[:, 0], sizes.ravel(), rtol=0.2)
    assert ((found[:, 1] > 2) & (found[:, 1] < 6)).all()


def test_huge_elements_do_not_widen_the_noise():
    exact = random(1, 40)
    exact[0, 0] = 1234567.89  # rounded by 0.01
    found = noise(rounded(exact, 1e-6), exact)
    assert 5e-7 < found[0, 0] < 2e-5
    assert found[0, 1] < 10


def test_exact_outputs_have_the_noise_of_one_rounding():
    exact = random(1, 2, 5, 5).astype(np.float32)
    exact[0, 1] = 0
    found = noise(exact, exact.astype(np.float64))
    assert found[0, 0] == pytest.approx(ULP * np.median(np.abs(exact[0, 0])))
    assert found[1:].tolist() == [[0, 0]]
    assert found[0, 1] == 0


def test_few_elements_share_one_noise():
    outputs = [random(1, 2).astype(np.float32) * size for size in (1, 5)]
    floors = shared([np.array([[0.0, 1.0]]), np.array([[1e-9, 3.0]])], outputs)
    assert floors[0].tolist() == floors[1].tolist()
    assert floors[0][0, 1] == 3
    assert floors[0][0, 0] >= 8 * ULP * np.sqrt(np.mean(outputs[1].astype(float) ** 2))
    many = [random(1, ENOUGH).astype(np.float32)] * 2
    assert shared([np.array([[1.0, 0]]), np.array([[2.0, 0]])], many)[0][0, 0] == 1


def test_samples_of_other_extents_may_have_more_elements_and_more_channels():
    outputs = [random(1, 2, 1, 2), random(1, 2, 5, 5)]
    floors = shared(
        [np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]] * 2)],
        [y.astype(np.float32) for y in outputs],
    )
    assert [one.tolist() for one in floors] == [[[1.0, 2.0]], [[3.0, 4.0]] * 2]


# what is done to 5 channels of 6x6, of sizes 1e4, 1, 1, 1, 1 and noise 1e-6 of each
FAULTS = {
    "none": (lambda y: None, True),
    "noise": (lambda y: y.__iadd__(2e-6 * random(*y.shape)), True),
    "one-element": (lambda y: y[0, 1, 2].__setitem__(3, y[0, 1, 2, 3] + 2e-4), False),
    "a-channel": (lambda y: y[0, 3].__iadd__(2.5e-5), False),
    "dead-channel": (lambda y: y[0, 4].fill(0), False),
    "nan": (lambda y: y[0, 1, 2].__setitem__(3, np.nan), False),
}


@pytest.mark.parametrize(("fault", "passes"), FAULTS.values(), ids=FAULTS)
def test_no_channels_size_hides_anothers_error(fault, passes):
    exact = random(1, 5, 6, 6)
    exact[0, 0] *= 1e4
    sizes = np.array([1e-2, 1e-6, 1e-6, 1e-6, 1e-6]).reshape(5, 1, 1)
    expected = rounded(exact, sizes)
    actual = expected.astype(np.float64)
    fault(actual)
    found = compare(actual.astype(np.float32), expected, "y", None, noise(expected, exact))
    assert found.passed is passes
    assert not (passes and found.score > 0.3)


def test_the_limits_are_multiples_of_the_noise():
    expected = np.ones((1, 1, 10, 10), np.float32)
    floor = np.array([[1e-3, 2.0]])
    for at, (steps, limit) in enumerate(((1, PEAK), (100, TYPICAL))):
        for factor, passes in ((0.9, True), (1.1, False)):
            actual = expected.copy()
            actual.reshape(-1)[:steps] += np.float32(limit * factor * 1e-3)
            assert compare(actual, expected, "y", None, floor).passed is passes, at
    assert units(expected, expected, floor).max() == 0


def test_what_saturates_is_judged_by_its_own_largest_error():
    """Nearly every element is exact, as behind a softmax; a few are rounded."""
    exact = np.ones((1, 1, 100, 100))
    exact[0, 0, 0, :8] = 0.3
    size = np.where(exact < 1, 1e-5, 1e-9)
    expected, actual = (rounded(exact, size, seed) for seed in (1, 2))
    floor = noise(expected, exact)
    assert units(actual, expected, floor).max() > PEAK / 2
    assert compare(actual, expected, "y", None, floor).score < 0.6
    actual[0, 0, 0, 0] += 1e-3
    assert not compare(actual, expected, "y", None, floor).passed


SCALES = {
    "one-huge": ([1e6, *[1.0] * 9], 1.0, 10.0),
    "alike": ([2.0] * 10, 2.0, 2.0),
    "zeros": ([0.0, 0.0, 3.0, 3.0], 2.0, 3.0),
    "infinite": ([np.inf, 1.0, 1.0, np.nan], 1.0, 1.0),
}


@pytest.mark.parametrize(("values", "low", "high"), SCALES.values(), ids=SCALES)
def test_without_a_noise_a_huge_element_does_not_hide_the_others(values, low, high):
    assert low <= scales(np.array(values)) <= high


def test_without_a_noise_a_huge_channel_does_not_hide_the_others():
    expected = random(1, 4, 8, 8)
    expected[0, 2] *= 1e6
    actual = expected.astype(np.float32)
    actual[0, 1, 0, 0] += 1
    assert not compare(actual, expected.astype(np.float32), "y", None).passed


class Half(nn.Module):
    """float16 inside, float32 outside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 32, 3).half(), nn.Conv2d(64, 4, 1).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(crelu(self.first(x.half()))).float()


class Plain(nn.Module):
    """The same in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 32, 3), nn.Conv2d(64, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(crelu(self.first(x)))


class Steep(Plain):
    """Multiplies its rounding by a thousand: large terms cancel."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return (y + 3000) * 1.0 - 3000 + self.last(crelu(self.first(x + 100) - self.first(x)))


def test_a_module_runs_in_float64_whatever_it_casts():
    torch.manual_seed(0)
    for module in (Half(), Plain(), Steep()):
        x = torch.randn(1, 3, 8, 8)
        with torch.inference_mode(), Wide():
            found = module(x)
        assert found.dtype == torch.float64
        if isinstance(module, Plain):
            with torch.inference_mode():
                exact = module.double()(x.double())
            np.testing.assert_allclose(found.numpy(), exact.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [Half, Plain, Steep], ids=lambda make: make.__name__)
def test_a_network_is_judged_by_its_own_rounding(make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = export(make(), tmp_path / "out", inputs=["1x3x12x12"])
    assert all(v["score"] < 0.5 for v in bundle.manifest["verification"].values())
    assert all(s.floors.keys() == {"output"} for s in load_samples(bundle.path / "samples.npz"))


def test_a_weight_that_is_rounded_to_float16_fails(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = export(Plain(), tmp_path / "out", inputs=["1x3x12x12"])
    build(bundle, ["ort-cpu:primitive"])
    file = bundle.path / "targets" / "ort-cpu-primitive.onnx"
    model = onnx.load(file)
    weight = max(model.graph.initializer, key=lambda w: len(w.raw_data))
    values = onnx.numpy_helper.to_array(weight).astype(np.float16).astype(np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, file)
    bundle.record((file,))
    (found,) = verify(bundle.path, ["ort-cpu:primitive"])
    assert found.comparison is not None
    assert found.comparison.score > 3
    assert "times PyTorch's rounding" in found.comparison.worst
