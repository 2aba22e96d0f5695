"""Reconstruction: adjoints, exact layers, projections, pools, batch norms, stacks, controls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from real_models import real_model
from tables import mostly, thorough

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from crelu_deploy import checkpoint  # noqa: E402
from crelu_deploy.analysis.leastsquares import Filters, solve, spectrum  # noqa: E402
from crelu_deploy.analysis.reconstruction import invert_layers, invert_stacks  # noqa: E402
from crelu_deploy.analysis.stages import find_stages, invert, run  # noqa: E402
from crelu_deploy.errors import UnsupportedModel  # noqa: E402
from crelu_deploy.models import build  # noqa: E402
from crelu_deploy.models.sequential import Abs  # noqa: E402
from crelu_deploy.nn import CReLU  # noqa: E402

pytestmark = pytest.mark.torch

torch.set_num_threads(1)
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

# in, filters, kernel, stride, padding, groups, dilation
CONVS = {
    "stem": (3, 12, 3, 1, 1, 1, 1),
    "strided": (4, 6, 5, 2, 2, 1, 1),
    "uncovered border": (3, 5, 3, 4, 0, 1, 1),
    "grouped": (4, 8, 3, 1, 0, 2, 1),
    "dilated": (2, 5, 3, 1, 2, 1, 2),
    "1x1": (6, 4, 1, 1, 0, 1, 1),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def conv(key: str) -> nn.Conv2d:
    torch.manual_seed(0)
    c, k, kernel, stride, padding, groups, dilation = CONVS[key]
    return nn.Conv2d(c, k, kernel, stride, padding, dilation, groups).double()


def operator(layer: nn.Conv2d, shape: tuple[int, ...], *, share: float = 1.0) -> Filters:
    """The layer as a map, of which a share of the outputs is known."""
    with torch.no_grad():
        out = layer(torch.zeros(shape, dtype=torch.float64))
    known = (torch.rand(out.shape, generator=seeded(1)) < share).double()
    return Filters(layer.requires_grad_(False), shape, known)


@pytest.mark.parametrize("key", CONVS)
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_the_transpose_is_the_transpose(key, share):
    layer = conv(key)
    a = operator(layer, (1, layer.in_channels, 10, 9), share=share)
    x = noise(*a.shape, seed=2)
    z = noise(*a.known.shape, seed=3)
    assert (a.apply(x) * z).sum().item() == pytest.approx(
        (x * a.transpose(z)).sum().item(), rel=1e-12
    )


@pytest.mark.parametrize("key", CONVS)
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_the_solution_is_that_of_the_dense_pseudo_inverse(key, share):
    layer = conv(key)
    a = operator(layer, (1, layer.in_channels, 6, 7), share=share)
    count = torch.Size(a.shape).numel()
    columns = a.apply(torch.eye(count, dtype=torch.float64).reshape(count, *a.shape[1:]))
    matrix = columns.flatten(1).T
    z = noise(*a.known.shape, seed=4) * a.known  # not in the range
    expected = torch.linalg.pinv(matrix) @ z.flatten()
    assert torch.allclose(solve(a, z).x.flatten(), expected, atol=1e-9)
    values = torch.linalg.svdvals(matrix)
    found = spectrum(a, a.shape)
    assert found.rank == int(torch.linalg.matrix_rank(matrix))
    assert found.largest == pytest.approx(values[0].item(), rel=1e-9)
    full = found.rank == count
    smallest = values[count - 1].item() if full else 0
    assert found.smallest == pytest.approx(smallest, abs=1e-6)


def network(*modules: nn.Module) -> nn.Sequential:
    """A network in evaluation mode with the state that training would leave in batch norms."""
    net = nn.Sequential(*modules).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                for part in (module.weight, module.running_var):
                    part.uniform_(0.5, 2, generator=seeded(5))
                for part in (module.bias, module.running_mean):
                    part.normal_(generator=seeded(6))
    return net


def pool(**settings: int) -> nn.MaxPool2d:
    return nn.MaxPool2d(**{"kernel_size": 2, **settings})


# networks whose one layer's operator has full rank -> input shape
FULL_RANK = {
    "wide stem": (lambda: network(nn.Conv2d(3, 32, 3, padding=1), CReLU()), (1, 3, 8, 8)),
    "narrow": (lambda: network(nn.Conv2d(16, 24, 3, padding=1), CReLU()), (1, 16, 8, 8)),
    "norm": (lambda: network(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), CReLU()), (1, 3, 8, 8)),
    "no bias": (lambda: network(nn.Conv2d(3, 8, 5, bias=False), CReLU()), (1, 3, 12, 12)),
    "pool": (lambda: network(nn.Conv2d(3, 24, 3, padding=1), CReLU(), pool()), (1, 3, 8, 8)),
    "overlapping pool": (
        lambda: network(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            CReLU(),
            nn.Dropout(0.5),
            pool(kernel_size=3, stride=2, ceil_mode=True),
        ),
        (1, 3, 8, 8),
    ),
    "strided": (lambda: network(nn.Conv2d(3, 64, 4, stride=2), CReLU()), (1, 3, 10, 10)),
}


@pytest.mark.parametrize(("make", "shape"), FULL_RANK.values(), ids=FULL_RANK)
def test_full_rank_is_inverted_and_the_controls_are_not(make, shape):
    torch.manual_seed(1)
    net = make()
    (found,) = invert_layers(find_stages(net, shape), noise(*shape))
    assert found.spectrum.rank == found.unknowns <= found.equations
    assert found.error < 1e-8
    assert found.residual < 1e-8
    assert found.controls["relu"] > 0.1
    assert found.controls["abs"] > 0.3


# networks whose one layer keeps a projection only
PROJECTION = {
    "few filters": (lambda: network(nn.Conv2d(16, 4, 3, padding=1), CReLU()), (1, 16, 8, 8)),
    "strided": (lambda: network(nn.Conv2d(3, 8, 7, 4, 3), CReLU()), (1, 3, 24, 24)),
    "uncovered": (lambda: network(nn.Conv2d(1, 64, 3, 5), CReLU()), (1, 1, 12, 12)),
    "big pool": (lambda: network(nn.Conv2d(3, 8, 3), CReLU(), pool(kernel_size=5)), (1, 3, 12, 12)),
    "dead norm": (lambda: dead_norm(), (1, 3, 8, 8)),
}


def dead_norm() -> nn.Sequential:
    net = network(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), CReLU())
    with torch.no_grad():
        net[1].weight[1:5] = 0
    return net


@pytest.mark.parametrize(("make", "shape"), PROJECTION.values(), ids=PROJECTION)
def test_the_rest_is_a_projection(make, shape):
    torch.manual_seed(2)
    (found,) = invert_layers(find_stages(make(), shape), noise(*shape))
    assert found.spectrum.rank < found.unknowns
    assert found.converged
    assert 0.1 < found.error < 1
    assert found.residual < 1e-6
    assert found.idempotence < 1e-6


@pytest.mark.parametrize("activation", [nn.ReLU(), Abs()], ids=["relu", "abs"])
def test_other_activations_do_not_invert(activation):
    torch.manual_seed(0)
    net = network(nn.Conv2d(3, 32, 3, padding=1), activation)
    (found,) = invert_layers(find_stages(net, (1, 3, 8, 8)), noise(1, 3, 8, 8))
    assert found.spectrum.rank == found.unknowns
    assert found.error > 0.1
    assert found.controls == {}


def test_stages_run_as_the_network_does():
    net = build("vgg-crelu-1-3").eval()
    x = noise(1, 3, 32, 32)
    stages = find_stages(net, tuple(x.shape))
    assert [s.name for s in stages] == [f"conv{i}" for i in range(1, 14)]
    assert [s.name for s in stages if s.pool] == ["conv2", "conv4", "conv7", "conv10", "conv13"]
    y = x
    for stage in stages[:4]:
        y = run(stage, y).values
    position = [name for name, _ in net.named_children()].index("maxpool2")
    with torch.no_grad():
        assert torch.allclose(y.float(), net[: position + 1](x.float()), atol=1e-4)


def test_finding_stages_leaves_the_network_alone():
    net = build("convpool-c-crelu@0.125").eval()
    find_stages(net, (1, 3, 32, 32))
    assert all(p.dtype == torch.float32 and p.requires_grad for p in net.parameters())
    assert not any(m.return_indices for m in net.modules() if isinstance(m, nn.MaxPool2d))


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(48, 4)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid()),
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 1), CReLU()),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), CReLU()),
    ],
    ids=["linear", "sigmoid", "pool first", "norm first"],
)
def test_networks_that_begin_otherwise_are_refused(net):
    with pytest.raises(UnsupportedModel, match="begins with no convolution"):
        find_stages(net.eval(), (1, 3, 4, 4))


def test_a_stack_of_full_rank_layers_is_exact_down_to_the_image():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), CReLU(), nn.Conv2d(32, 48, 3, padding=1), CReLU()]
    net = network(*layers)
    x = noise(1, 3, 8, 8)
    first, second = find_stages(net, tuple(x.shape))
    features = run(second, run(first, x).values)
    middle, _ = invert(second, features)
    assert torch.allclose(middle.x, run(first, x).values, atol=1e-8)
    found = invert_stacks((first, second), x)
    assert [stack.name for stack in found] == ["0", "2"]
    assert found[0].error < 1e-8
    assert found[1].error < 1e-6
    assert all(c > 0.1 for stack in found for c in stack.control_errors.values())


@pytest.fixture(scope="module")
def trained() -> tuple:
    loaded = checkpoint.load(EXAMPLES / "digits_crelu.pt")
    image = torch.from_numpy(np.load(EXAMPLES / "digits_samples.npz")["input"][:1])
    return find_stages(loaded.module, tuple(image.shape))[:4], image


@mostly("depth", [3, 4], fast=[3])
def test_a_trained_network_down_to_the_image(trained, depth):
    stages, image = trained
    found = invert_stacks(stages[:depth], image)
    assert [stack.name for stack in found] == ["conv1", "conv2", "conv3", "conv4"][:depth]
    errors = [stack.error for stack in found]
    assert errors[0] < 1e-8
    assert errors == sorted(errors)
    assert errors[-1] < 1
    for stack in found:
        assert stack.error < stack.control_errors["relu"]
        assert stack.error < stack.control_errors["abs"]


def test_layers_of_a_trained_network(trained):
    stages, image = trained
    first, second = invert_layers(stages[:2], image)
    assert first.spectrum.rank == first.unknowns == 784
    assert first.error < 1e-8
    assert second.equations < second.unknowns
    assert max(second.residual, second.idempotence) < 1e-6


@thorough
def test_faceboxes_first_layers_are_projections():
    loaded = checkpoint.load(real_model("faceboxes-3ddfa/FaceBoxesProd.pth"))
    x = noise(1, 3, 32, 32)
    stages = find_stages(loaded.module, tuple(x.shape))
    assert [(s.name, s.activation) for s in stages[:2]] == [
        ("conv1.conv", "crelu"),
        ("conv2.conv", "crelu"),
    ]
    for found in invert_layers(stages[:2], x):
        assert max(found.residual, found.idempotence) < 1e-6
        assert found.error < found.controls["abs"]
