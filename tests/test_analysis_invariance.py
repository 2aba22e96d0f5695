"""Invariance scores: planted perfect and chance units, skipping, the moves, a network's layers."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from crelu_deploy.analysis.invariance import (  # noqa: E402
    ANGLES,
    SHIFTS,
    default_rate,
    moves,
    responses,
    score_layers,
    score_units,
)
from crelu_deploy.analysis.layers import find_layers  # noqa: E402
from crelu_deploy.nn import CReLU  # noqa: E402

pytestmark = pytest.mark.torch


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("pictures", "rate"), [(1000, 0.05), (1000, 0.02), (2000, 0.01)])
def test_a_perfectly_invariant_unit_scores_one_over_the_rate(pictures, rate):
    still = noise(pictures, 3)
    found = score_units(still, still.expand(5, -1, -1), rate=rate)
    assert found.scores == pytest.approx([1 / rate] * 3, rel=1e-6)
    assert found.score == pytest.approx(1 / rate, rel=1e-6)


def test_noise_scores_about_one():
    found = score_units(noise(2000, 50), noise(20, 2000, 50, seed=1), rate=0.05, best=1.0)
    assert found.score == pytest.approx(1, abs=0.05)
    assert found.scores.std() < 0.25


def test_a_unit_that_a_move_silences_scores_nothing():
    still = noise(1000, 1)
    found = score_units(still, torch.full((4, 1000, 1), -10.0), rate=0.05)
    assert found.score == 0


def test_half_of_the_moves_kept_is_half_of_the_score():
    still = noise(1000, 1)
    moved = torch.stack((still, torch.full((1000, 1), -10.0)))
    assert score_units(still, moved, rate=0.05).score == pytest.approx(10, rel=1e-6)


@pytest.mark.parametrize(("pictures", "kept"), [(380, False), (400, True)])
def test_units_that_few_pictures_fire_are_skipped_and_counted(pictures, kept):
    found = score_units(noise(pictures, 4), noise(2, pictures, 4), rate=0.05)
    assert found.skipped == (0 if kept else 4)
    assert math.isnan(found.score) == (not kept)


def test_ties_at_zero_do_not_fire():
    still = torch.zeros(1000, 2)
    still[:30, 0] = torch.arange(1.0, 31)  # fires on 3 per cent only, at a rate of 5
    found = score_units(still, still[None], rate=0.05)
    assert found.skipped == 1
    assert found.scores == pytest.approx([1000 / 30], rel=1e-6)


def test_the_best_share_makes_the_score():
    still = noise(1000, 10)
    moved = still.clone()
    moved[:, 2:] = -10
    found = score_units(still, moved[None], rate=0.05, best=0.2)
    assert found.score == pytest.approx(20, rel=1e-6)
    assert score_units(still, moved[None], rate=0.05, best=1).score == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize(("rate", "best"), [(0, 0.5), (1, 0.5), (0.1, 0), (0.1, 1.5)])
def test_shares_are_checked(rate, best):
    with pytest.raises(ValueError, match=r"shares in 0..1"):
        score_units(noise(10, 1), noise(1, 10, 1), rate=rate, best=best)


def test_default_rate():
    assert [default_rate(n) for n in (10, 1999, 2000)] == [0.05, 0.05, 0.01]


def test_moves():
    image = noise(1, 2, 12, 16)
    copies = list(moves(image))
    assert len(copies) == 2 * len(SHIFTS) + len(ANGLES) + 1
    right, down = copies[2 * SHIFTS.index(3) : 2 * SHIFTS.index(3) + 2]
    assert torch.allclose(right[..., 3:], image[..., :-3], atol=1e-5)
    assert torch.allclose(down[..., 3:, :], image[..., :-3, :], atol=1e-5)
    assert torch.allclose(right[..., :3], image[..., :1].expand(-1, -1, -1, 3), atol=1e-5)
    assert torch.equal(copies[-1], image.flip(-1))


def test_rotation_keeps_what_is_round_and_turns_what_is_not():
    y, x = torch.meshgrid(torch.arange(31.0) - 15, torch.arange(41.0) - 20, indexing="ij")
    round_, bar = (-(x**2 + y**2) / 30).exp(), (-(x**2) / 30).exp()
    turned = list(moves(torch.stack((round_, bar))[:, None]))[2 * len(SHIFTS)]
    assert (turned[0, 0] - round_).abs().max() < 0.02
    angle = math.radians(abs(ANGLES[0]))
    along = turned[1, 0, 5]  # 10 rows above the centre the bar has moved by 10 * tan(15 degrees)
    assert abs(int(along.argmax()) - 20) == round(10 * math.tan(angle))


def test_layers_of_a_network():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), CReLU(), nn.Conv2d(4, 3, 1), nn.ReLU()
    ).eval()
    images = noise(500, 1, 9, 9)
    layers = find_layers(net, (1, 1, 9, 9))
    found = responses(net, images, layers)
    with torch.no_grad():
        assert torch.allclose(found["0"], net[:2](images)[..., 4, 4])
        assert torch.allclose(found["2"], net(images)[..., 4, 4])
    scores = score_layers(net, images, layers)
    assert [len(s.scores) + s.skipped for s in scores.values()] == [4, 3]
    assert all(s.scores.min() >= 0 and s.scores.max() <= 20.001 for s in scores.values())


def test_an_average_is_more_invariant_than_a_pixel():
    net = nn.Sequential(nn.Conv2d(1, 2, 9, padding=4), nn.ReLU()).eval()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].weight[0] = 1 / 81
        net[0].weight[1, 0, 4, 4] = 1
    images = noise(1000, 1, 24, 24)
    layers = find_layers(net, (1, 1, 24, 24))
    (found,) = score_layers(net, images, layers, best=1.0).values()
    (average, pixel) = found.scores.tolist()
    assert average > 2 * pixel
    assert pixel < 5  # it keeps firing when turned, for the centre stays where it is
