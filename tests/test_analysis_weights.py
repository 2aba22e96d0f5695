"""Analyses of weights alone: pairing, outgoing correlation, signs; planted and random weights."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from crelu_deploy.analysis.layers import crelu_layers, find_layers  # noqa: E402
from crelu_deploy.analysis.outgoing import correlate  # noqa: E402
from crelu_deploy.analysis.pairing import distances, pair  # noqa: E402
from crelu_deploy.analysis.signs import compare_signs, ratio, sign_loss  # noqa: E402
from crelu_deploy.errors import UnsupportedModel  # noqa: E402
from crelu_deploy.models import build  # noqa: E402
from crelu_deploy.models.sequential import Abs  # noqa: E402
from crelu_deploy.nn import CReLU  # noqa: E402

pytestmark = pytest.mark.torch


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# filters, weights of each -> mean cosine of a Gaussian filter with its pairing filter
BASELINES = [
    (96, 27, -0.464),
    (48, 27, -0.405),
    (96, 363, -0.132),
    (96, 96, -0.254),
    (96, 864, -0.084),
    (256, 1200, -0.082),
    (256, 2400, -0.057),
]


@pytest.mark.parametrize(("filters", "size", "mean"), BASELINES)
def test_pairing_of_gaussian_filters(filters, size, mean):
    found = pair(torch.ones(filters, size) + torch.eye(filters, size))
    assert found.baseline.shape == (5 * filters,)
    assert found.baseline.mean().item() == pytest.approx(mean, abs=0.02)


@pytest.mark.parametrize("draws", [1, 20])
def test_pairing_of_noise_is_the_baseline(draws):
    found = pair(gaussian(96, 3, 3, 3, seed=7), draws=draws, seed=1)
    ks, wasserstein = found.distances
    assert ks < 0.25
    assert wasserstein < 0.03


def test_planted_opposite_pairs():
    half = gaussian(24, 3, 5, 5)
    found = pair(torch.cat((half, -3 * half)))
    assert found.cosines == pytest.approx([-1] * 48, abs=1e-12)
    assert found.opposite == 1
    assert found.distances[0] == 1


def test_equal_filters_are_no_opposite_pairs():
    half = gaussian(24, 75)
    found = pair(torch.cat((half, half)))
    assert found.cosines.min() > -0.6
    assert found.opposite < 0.1


def test_pairing_drops_and_counts_zeros():
    weight = torch.cat((gaussian(8, 27), torch.zeros(3, 27, dtype=torch.float64)))
    found = pair(weight)
    assert found.zeros == 3
    assert torch.equal(found.cosines, pair(weight[:8]).cosines)


@pytest.mark.parametrize("weight", [torch.ones(1, 9), torch.zeros(4, 9)], ids=["one", "zeros"])
def test_pairing_needs_two_filters(weight):
    with pytest.raises(ValueError, match="two filters other than 0"):
        pair(weight)


@pytest.mark.parametrize(
    ("first", "second", "ks", "wasserstein"),
    [
        ([0.0, 1.0], [0.0, 1.0], 0, 0),
        ([0.0, 0.0], [1.0], 1, 1),
        ([0.0, 1.0], [0.5], 0.5, 0.5),
        ([0.0, 2.0, 4.0], [1.0, 3.0, 5.0], 1 / 3, 1),
    ],
)
def test_distances_of_samples(first, second, ks, wasserstein):
    for a, b in ((first, second), (second, first)):
        found = distances(torch.tensor(a).double(), torch.tensor(b).double())
        assert found == pytest.approx((ks, wasserstein), abs=1e-12)


def halves(positive: torch.Tensor, factor: float) -> torch.Tensor:
    """Weights (O, 2K, T) that read the negative halves ``factor`` times like the positive ones."""
    return torch.cat((positive, factor * positive), dim=1)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 1.0), (0.2, 1.0), (-2.0, -1.0)])
def test_outgoing_of_proportional_halves(factor, expected):
    found = correlate(halves(gaussian(32, 6, 9), factor))
    assert found.pairs == pytest.approx([expected] * 6, abs=1e-12)
    assert found.others.shape == (30,)
    assert found.others.abs().max() < 0.35


def test_outgoing_of_noise():
    found = correlate(gaussian(64, 40, 9))
    assert found.pairs.abs().mean() < 0.06
    assert found.others.shape == (20 * 19,)


def test_outgoing_leaves_out_what_nothing_reads():
    weight = gaussian(8, 6, 4)
    weight[:, 4] = 0  # negative half of channel 1
    found = correlate(weight)
    assert found.pairs.shape == (2,)
    assert found.others.shape == (4,)
    assert not found.others.isnan().any()


@pytest.mark.parametrize("shape", [(4, 5, 1), (1, 4, 1)])
def test_outgoing_refuses(shape):
    with pytest.raises(ValueError, match="expected"):
        correlate(torch.ones(shape))


# smaller weight over larger one, inverted -> entropy of the sign in bits
BITS = [(1, 1.0), (1.1, 0.997), (1.5, 0.947), (2, 0.866), (4, 0.634), (10, 0.375), (100, 0.076)]


@pytest.mark.parametrize(("magnitude", "bits"), BITS)
def test_loss_of_equal_signs(magnitude, bits):
    assert sign_loss(torch.tensor(1 / magnitude).double()).item() == pytest.approx(bits, abs=0.005)


@pytest.mark.parametrize("magnitude", [1.5, 4.0])
def test_loss_against_a_histogram(magnitude):
    x = gaussian(1_000_000, seed=3)
    y = torch.where(x > 0, x, -x / magnitude)
    bins = (y * 200).long().clamp(max=999)
    counts = torch.stack(
        [torch.bincount(bins[s], minlength=1000) for s in (x > 0, x <= 0)]
    ).double()
    share = counts / counts.sum(0).clamp(min=1)
    entropy = -torch.xlogy(share, share).sum(0) / math.log(2)
    measured = (entropy * counts.sum(0)).sum() / len(x)
    assert sign_loss(torch.tensor(1 / magnitude).double()).item() == pytest.approx(
        measured.item(), abs=0.003
    )


def test_loss_grows_with_the_ratio_from_nothing_to_a_bit():
    bits = sign_loss(torch.linspace(0, 1, 101).double())
    assert (bits.diff() > 0).all()
    assert bits[0] < 1e-6
    assert bits[-1].item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("factor", "same", "bits"), [(1.0, 1.0, 1.0), (0.5, 1.0, 0.866), (-1.0, 0.0, 0.0)]
)
def test_signs_of_proportional_halves(factor, same, bits):
    found = compare_signs(halves(gaussian(16, 4, 9), factor))
    assert found.same == same
    assert found.bits == pytest.approx(bits, abs=0.005)
    assert found.proportional == (0, 1, 2, 3)
    assert found.dead == ()


def test_signs_of_noise():
    found = compare_signs(gaussian(64, 64, 9))
    assert found.same == pytest.approx(0.5, abs=0.01)
    assert found.bits < 0.5
    assert found.bits == pytest.approx(found.same * found.bits_same, rel=1e-12)
    assert found.proportional == ()


def test_signs_name_what_can_be_pruned():
    weight = gaussian(8, 8, 9)
    weight[:, 1] = 0
    weight[:, 6] = 0
    found = compare_signs(weight)
    assert found.dead == (1, 6)
    assert found.zero == pytest.approx(0.5)
    assert found.proportional == ()


def test_signs_of_opposite_weights_lose_nothing_that_is_a_number():
    found = compare_signs(halves(torch.ones(2, 1, 1), -1))
    assert math.isnan(found.bits_same)
    assert found.bits == 0


def test_ratio():
    found = ratio(torch.tensor([1.0, -4.0]), torch.tensor([-2.0, 1.0]))
    assert found.tolist() == [0.5, 0.25]


def test_layers_of_a_known_network():
    net = build("vgg-crelu-1-3").eval()
    layers = find_layers(net, (1, 3, 32, 32))
    assert [x.name for x in crelu_layers(layers)] == ["conv1", "conv3"]
    first = layers[0]
    assert first.output == "act1"
    assert [(r.name, tuple(r.weight.shape)) for r in first.readers] == [("conv2", (64, 64, 9))]
    assert layers[12].readers[0].name == "fc14"
    assert layers[-1].activation == ""


def test_layers_of_faceboxes_branch():
    layers = find_layers(build("faceboxes").eval(), (1, 3, 128, 128))
    second = next(x for x in layers if x.name == "conv2.conv")
    assert second.activation == "crelu"
    assert [r.name for r in second.readers][:2] == [
        "inception1.branch1x1.conv",
        "inception1.branch1x1_2.conv",
    ]
    assert len(second.readers) == 4


def test_a_reader_behind_a_flatten_sees_every_position():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), CReLU(), nn.Flatten(), nn.Linear(36, 5))
    (layer, _) = find_layers(net.eval(), (1, 1, 3, 3))
    assert tuple(layer.readers[0].weight.shape) == (5, 4, 9)
    assert torch.equal(layer.readers[0].weight[2, 1], net[3].weight[2, 9:18])


@pytest.mark.parametrize("between", [nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, groups=2)])
def test_no_reader_behind_what_changes_channels(between):
    net = nn.Sequential(nn.Conv2d(1, 2, 1), CReLU(), between, nn.Conv2d(4, 1, 1))
    assert find_layers(net.eval(), (1, 1, 3, 3))[0].readers == ()


@pytest.mark.parametrize("activation", [nn.ReLU(), Abs(), nn.Sigmoid()])
def test_networks_without_crelu_are_refused(activation):
    net = nn.Sequential(nn.Conv2d(1, 2, 1), activation)
    layers = find_layers(net, (1, 1, 3, 3))
    assert layers[0].activation == {"ReLU": "relu", "Abs": "abs"}.get(type(activation).__name__, "")
    with pytest.raises(UnsupportedModel, match=r"none of the 1 layers ends in a .*CReLU"):
        crelu_layers(layers)


def test_networks_without_layers_are_refused():
    with pytest.raises(UnsupportedModel, match="no convolution or linear layer"):
        find_layers(nn.Sequential(nn.ReLU()), (1, 1, 3, 3))
