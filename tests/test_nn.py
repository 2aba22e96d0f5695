"""The PyTorch operator: values, shapes, gradients, and the contracts of export and compile."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from crelu_deploy.nn import CReLU, crelu  # noqa: E402

pytestmark = pytest.mark.torch
OP = torch.ops.crelu_deploy.crelu


def normal(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.to(dtype).requires_grad_(grad)


def plain(x: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.cat([torch.relu(x), torch.relu(-x)], dim)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((2, 3, 5, 7), 1),
        ((2, 3, 5, 7), -1),
        ((2, 3, 5, 7), 0),
        ((4,), 0),
        ((4,), -1),
        ((3, 4), 1),
        ((0, 3, 4), 1),
        ((2, 0, 4), 1),
        ((0,), 0),
        ((1, 1, 1, 1, 1, 1), -6),
    ],
)
def test_value_is_the_concatenation_of_both_phases(shape, dim, dtype):
    x = normal(*shape, dtype=dtype)
    y = crelu(x, dim)
    assert y.dtype == dtype
    assert torch.equal(y, plain(x, dim))


def test_special_values():
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 0.0, -0.0]])
    expected = [float("nan"), float("inf"), 0, 0, 0, float("nan"), 0, float("inf"), 0, 0]
    assert torch.equal(crelu(x).isnan(), torch.tensor([expected]).isnan())
    assert torch.equal(crelu(x).nan_to_num(7), torch.tensor([expected]).nan_to_num(7))


@pytest.mark.parametrize(
    "x",
    [normal(2, 3, 4, 5).transpose(1, 3), normal(1, 1, 4).expand(2, 3, 4), normal(2, 9, 4)[:, ::2]],
    ids=["transposed", "expanded", "strided"],
)
def test_strided_inputs(x):
    assert torch.equal(crelu(x), plain(x, 1))


def test_channels_last_is_kept():
    x = normal(2, 4, 5, 6).to(memory_format=torch.channels_last)
    assert crelu(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("x", "dim", "error", "message"),
    [
        (torch.zeros(2, 3), 2, IndexError, "dim 2 is outside the 2 dimensions"),
        (torch.zeros(2, 3), -3, IndexError, "dim -3 is outside the 2 dimensions"),
        (torch.zeros(0), 1, IndexError, "dim 1 is outside the 1 dimensions"),
        (torch.tensor(1.0), 0, IndexError, "dim 0 is outside the 0 dimensions"),
        (torch.zeros(2, 3, dtype=torch.uint8), 1, TypeError, "got torch.uint8"),
        (torch.zeros(2, 3, dtype=torch.complex64), 1, TypeError, "got torch.complex64"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input_is_refused(x, dim, error, message, device):
    with pytest.raises(error, match=message):
        crelu(x.to(device), dim)


@pytest.mark.parametrize(
    ("x", "dim"),
    [
        (normal(2, 3, 4), 1),
        (normal(2, 3, 4, grad=True), -1),
        (normal(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_(), 1),
        (normal(2, 8)[:, ::2].requires_grad_(), 1),
        (normal(0, 3, grad=True), 1),
        (normal(2, 3, dtype=torch.bfloat16), 0),
    ],
    ids=["plain", "grad", "channels-last", "strided", "empty", "bfloat16"],
)
def test_opcheck(x, dim):
    results = torch.library.opcheck(OP, (x, dim))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_gradients_against_finite_differences(dim):
    x = normal(3, 4, 2, dtype=torch.float64, grad=True)
    assert torch.autograd.gradcheck(lambda v: crelu(v, dim), (x,))
    assert torch.autograd.gradgradcheck(lambda v: crelu(v, dim) ** 2, (x,))


def test_gradient_at_special_values_is_that_of_relu():
    values = torch.tensor([[float("nan"), 0.0, -0.0, float("inf"), -2.0]])
    weights = torch.arange(1.0, 11.0).reshape(1, 10)
    grads = []
    for function in (crelu, lambda v: plain(v, 1)):
        x = values.clone().requires_grad_()
        (weights * function(x)).nan_to_num(0, 0, 0).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), CReLU(), torch.nn.Conv2d(8, 2, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_compile_has_no_graph_break():
    torch.manual_seed(0)
    net, x = Net(), normal(2, 3, 8, 8, grad=True)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), net(x))
    compiled(x).sum().backward()
    assert torch.isfinite(x.grad).all()


# PyTorch 2.13 raises this one against itself.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_export_keeps_one_node_and_dynamic_sizes():
    net, x = Net().eval(), normal(2, 3, 8, 8)
    dynamic = {"x": dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)}
    program = torch.export.export(net, (x,), dynamic_shapes=dynamic, strict=False)
    program = program.run_decompositions()
    assert [node.target for node in program.graph.nodes].count(OP.default) == 1
    y = normal(5, 3, 9, 11)
    assert torch.equal(program.module()(y), net(y))


def test_repr_names_the_axis():
    assert repr(CReLU(-1)) == "CReLU(dim=-1)"
