"""The fused convolution: its Triton kernel in the interpreter and in machine code, its operator."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tables import crossed, mostly, thorough

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import gpu_fused  # noqa: E402
import gpu_rows  # noqa: E402

from crelu_deploy import fused  # noqa: E402
from crelu_deploy.errors import BackendUnavailable  # noqa: E402
from crelu_deploy.fused import ConvCReLU, conv_crelu  # noqa: E402
from crelu_deploy.nn import CReLU  # noqa: E402

pytestmark = pytest.mark.torch
OVERLOAD = torch.ops.crelu_deploy.conv_crelu.default


class Case(NamedTuple):
    x: tuple[int, int, int, int]
    out: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    bias: bool = True

    @property
    def options(self) -> dict[str, tuple[int, int]]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}


CASES = {
    "plain 3x3": Case((1, 16, 8, 8), 16, (3, 3), padding=(1, 1)),
    "no bias": Case((2, 16, 7, 7), 32, (3, 3), padding=(1, 1), bias=False),
    "a stem": Case((1, 3, 25, 18), 24, (7, 7), (4, 4), (3, 3)),
    "1x1": Case((2, 40, 6, 5), 33, (1, 1)),
    "1x1, stride": Case((1, 16, 7, 6), 8, (1, 1), (2, 3)),
    "5x5, wide": Case((1, 24, 9, 12), 72, (5, 5), (2, 2), (2, 2)),
    "uneven": Case((1, 5, 11, 9), 20, (3, 1), (1, 2), (1, 0), (2, 1)),
    "dilated": Case((1, 8, 13, 10), 12, (3, 3), (1, 1), (2, 3), (2, 3)),
    "one pixel": Case((1, 7, 3, 3), 1, (3, 3)),
    "one of each": Case((1, 1, 1, 1), 1, (1, 1)),
    "padding beyond the kernel": Case((1, 4, 3, 2), 5, (2, 2), padding=(3, 2)),
    "many images": Case((70, 2, 2, 2), 3, (2, 2)),
}
EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def whole(shape: tuple[int, ...], seed: int) -> Any:
    """Small whole numbers: their sums of products are exact in any order and in every type."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).double()


def arguments(case: Case) -> tuple[Any, Any, Any]:
    weight = whole((case.out, case.x[1], *case.kernel), 2)
    return whole(case.x, 1), weight, whole((case.out,), 3) if case.bias else None


def reference(case: Case, x: Any, weight: Any, bias: Any) -> Any:
    """The definition, in float64."""
    z = torch.nn.functional.conv2d(x, weight, bias, **case.options)
    return torch.cat([torch.relu(z), torch.relu(-z)], 1)


# --- the kernel -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernel() -> Any:
    """The module of the Triton kernel."""
    return pytest.importorskip("crelu_deploy.fused_kernel", reason="no triton: pip install triton")


def walled(values: Any, dtype: Any) -> Any:
    """Return a channels-last copy that lies between NaNs, which no kernel must touch."""
    room = torch.full((values.numel() + 128,), torch.nan, dtype=dtype)
    if values.ndim == 1:
        return room[64:-64].copy_(values)
    n, c, h, w = values.shape
    return room[64:-64].view(n, h, w, c).permute(0, 3, 1, 2).copy_(values)


def interpret(kernel: Any, case: Case, dtype: Any, values: Any, tile: Any = None) -> Any:
    """Run the kernel on the CPU and look at what lies around its output."""
    x, weight, bias = (v if v is None else walled(v, dtype) for v in values)
    y = walled(torch.full_like(reference(case, *values), torch.nan), dtype)
    conv = kernel.Conv(case.x[1], case.out, *case[2:6], "ieee")
    kernel.launch(x, weight, bias, y, conv, tile)
    room = torch.empty(0, dtype=dtype).set_(y.untyped_storage())
    assert torch.cat([room[:64], room[-64:]]).isnan().all()
    return y


@crossed(name=CASES, kind=["float16", "float32"])
def test_the_kernel_is_exact_on_whole_numbers(kernel: Any, name: str, kind: str) -> None:
    case, dtype = CASES[name], getattr(torch, kind)
    values = arguments(case)
    y = interpret(kernel, case, dtype, values)
    assert torch.equal(y, reference(case, *values).to(dtype))
    assert not y.signbit().any()  # both zeros become +0


@pytest.mark.parametrize("index", range(7))
def test_every_tile_computes_the_same(kernel: Any, index: int) -> None:
    assert len(kernel.TILES) == 7
    case = CASES["5x5, wide"]
    values = arguments(case)
    y = interpret(kernel, case, torch.float16, values, kernel.TILES[index])
    assert torch.equal(y, reference(case, *values).half())


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float16, 1e-3), (torch.float32, 1e-6)])
def test_sums_are_float32(kernel: Any, dtype: Any, rtol: float) -> None:
    case = Case((1, 256, 3, 4), 8, (3, 3))
    generator = torch.Generator().manual_seed(0)
    # All positive: a sum in float16 would be off by many times its last digit.
    values = [torch.rand(v.shape, generator=generator).to(dtype).double() for v in arguments(case)]
    y = interpret(kernel, case, dtype, values)
    torch.testing.assert_close(
        y.double(), reference(case, *values), rtol=rtol, atol=rtol, check_stride=False
    )


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
def test_nan_and_infinity_go_where_a_convolution_puts_them(kernel: Any) -> None:
    case = Case((1, 5, 8, 8), 16, (3, 3), padding=(1, 1))  # 45 terms: the last step is not full
    x, weight, bias = arguments(case)
    x[0, 3, 4, 4], x[0, 4, 0, 0], x[0, 0, 7, 0] = torch.nan, torch.inf, -torch.inf
    values = x, weight.abs() + 1, bias
    y = interpret(kernel, case, torch.float32, values)
    wanted = reference(case, *values)
    assert wanted.isnan().any()
    assert wanted.isinf().any()
    torch.testing.assert_close(
        y.double(), wanted, rtol=0, atol=0, equal_nan=True, check_stride=False
    )


def test_the_interpreter_refuses_bfloat16(kernel: Any) -> None:
    case = CASES["one pixel"]
    with pytest.raises(TypeError, match="cannot multiply bfloat16"):
        interpret(kernel, case, torch.bfloat16, arguments(case))


@pytest.mark.parametrize(
    ("channels", "terms", "itemsize", "wanted"),
    [
        (96, 864, 2, (128, 64, 64)),
        (24, 27, 2, (128, 32, 32)),
        (16, 4, 2, (128, 32, 16)),
        (192, 1728, 4, (64, 64, 16)),
        (8, 9, 4, (64, 32, 16)),
    ],
)
def test_tiles_by_rule(
    kernel: Any, channels: int, terms: int, itemsize: int, wanted: tuple[int, int, int]
) -> None:
    assert kernel.choose_tile(channels, terms, itemsize)[:3] == wanted


TENSOR_CORE = {80: r"mma\.sync\S*", 90: r"wgmma\.mma_async\S*"}


@pytest.mark.parametrize(
    ("architecture", "dtype", "channels", "precision", "factors"),
    [
        (80, "fp16", 96, "ieee", "f16"),
        pytest.param(80, "bf16", 96, "ieee", "bf16", marks=thorough),
        (80, "fp32", 96, "ieee", None),
        (80, "fp32", 96, "tf32", "tf32"),
        (90, "fp16", 24, "ieee", "f16"),
        pytest.param(90, "fp32", 96, "ieee", None, marks=thorough),
    ],
)
def test_machine_code(
    kernel: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: int,
    dtype: str,
    channels: int,
    precision: str,
    factors: str | None,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    ptx = compiled(kernel, architecture, dtype, channels, precision)
    products = re.findall(TENSOR_CORE[architecture], ptx)
    # TF32 must never come unasked: float32 is multiplied by the ordinary units.
    assert bool(products) == (factors is not None)
    assert all(f".{factors}.{factors}" in product for product in products)
    assert ("tf32" in ptx) == (precision == "tf32")
    assert re.search(r"cp\.async\.cg\.shared\.global .*, 0x10,", ptx)  # 16 bytes at a time
    # The interpreter keeps NaN in a maximum, a GPU does not unless it is told to.
    assert not re.search(r"\bmax\.(?!NaN)\S*f(16|32)", ptx)
    stores = re.findall(r"st\.global\S*", ptx)
    assert stores
    assert {store for store in stores if "v4.b32" not in store} == set()
    assert spills(ptx, tmp_path) == {"0"}


def spills(ptx: str, folder: Path) -> set[str]:
    """Return the counts of bytes that ptxas puts into memory for want of registers."""
    import triton

    (folder / "ptx").write_text(ptx)
    (target,) = re.findall(r"\.target (\w+)", ptx)
    command = [triton.knobs.nvidia.ptxas.path, "-v", f"-arch={target}", "ptx", "-o", "cubin"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return set(re.findall(r"(\d+) bytes spill", done.stderr))


def compiled(kernel: Any, architecture: int, dtype: str, channels: int, precision: str) -> str:
    """Compile a 3x3 convolution without a GPU; return its PTX."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = dict.fromkeys(("x", "weight", "bias", "y"), f"*{dtype}")
    tile = kernel.choose_tile(channels, 9 * channels, 4 if dtype == "fp32" else 2)
    pair = (1, 1)
    conv = kernel.Conv(channels, channels, (3, 3), pair, pair, pair, precision)
    source = ASTSource(
        fn=triton.jit(kernel.conv_crelu.fn),
        signature={
            **pointers,
            "pixels": "i32",
            "size": ("i32",) * 4,
            "CONV": "constexpr",
            "TILE": "constexpr",
        },
        constexprs={"CONV": conv, "TILE": tile},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(4)},  # as PyTorch's memory is
    )
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    target = GPUTarget("cuda", architecture, 32)
    result = triton.compile(source, target=target, options=options)
    assert result.asm["cubin"]
    assert result.metadata.shared <= 99 * 1024  # what the smallest of these GPUs gives a block
    return str(result.asm["ptx"])


# --- the operator ---------------------------------------------------------------------------------


@EVERY_CASE
@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
def test_the_operator_on_the_cpu(case: Case, dtype: Any) -> None:
    values = arguments(case)
    x, weight, bias = (v if v is None else v.to(dtype) for v in values)
    y = conv_crelu(x, weight, bias, **case.options)
    assert torch.equal(y, reference(case, *values).to(dtype))
    assert y.is_contiguous(memory_format=torch.channels_last)


@mostly("name", ["no bias", "uneven", "one of each"], fast=["no bias", "uneven"])
def test_pytorch_s_own_check_of_an_operator(name: str) -> None:
    case = CASES[name]
    tensors = [v if v is None else v.float().requires_grad_() for v in arguments(case)]
    options = [list(pair) for pair in case.options.values()]
    results = torch.library.opcheck(OVERLOAD, (*tensors, *options, False))
    assert set(results.values()) == {"SUCCESS"}


@EVERY_CASE
def test_gradients_are_those_of_the_two_layers(case: Case) -> None:
    values = [v for v in arguments(case) if v is not None]
    fused_inputs, plain_inputs = ([v.float().requires_grad_() for v in values] for _ in range(2))
    y = conv_crelu(*fused_inputs, **case.options)
    z = torch.nn.functional.conv2d(*plain_inputs, **case.options)
    wanted = torch.cat([z.relu(), (-z).relu()], 1)
    grad = whole(tuple(y.shape), 4).float()
    for mine, theirs in zip(
        torch.autograd.grad(y, fused_inputs, grad),
        torch.autograd.grad(wanted, plain_inputs, grad),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_an_empty_batch() -> None:
    y = conv_crelu(torch.zeros(0, 3, 5, 5), torch.zeros(4, 3, 3, 3))
    assert y.shape == (0, 8, 3, 3)


X, W = torch.zeros(1, 4, 5, 5), torch.zeros(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: conv_crelu(X.double(), W.double()), TypeError, "got torch.float64, torch.float64"),
        (lambda: conv_crelu(X, W.half()), TypeError, "got torch.float32, torch.float16"),
        (lambda: conv_crelu(X, W, torch.zeros(6).half()), TypeError, "torch.float16"),
        (lambda: conv_crelu(X[0], W), ValueError, "got 3 and 4 axes"),
        (lambda: conv_crelu(X, W[:, :2]), ValueError, "x has 4 channels, the weight is for 2"),
        (lambda: conv_crelu(X, W, torch.zeros(4)), ValueError, r"shape \(4,\), expected \(6,\)"),
        (lambda: conv_crelu(X, W, torch.zeros(6, 1)), ValueError, r"expected \(6,\)"),
        (lambda: conv_crelu(X, W, stride=(0, 1)), ValueError, "stride .0, 1."),
        (lambda: conv_crelu(X, W, padding=(-1, 0)), ValueError, "padding .-1, 0."),
        (lambda: conv_crelu(X, W, dilation=(1, 0)), ValueError, "dilation .1, 0. is out of range"),
        (lambda: conv_crelu(X, W, dilation=(3, 1)), ValueError, "does not fit into an input"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_mistake_is_refused(
    device: str, call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with torch.device(device), pytest.raises(error, match=message):
        call()


def test_a_gpu_without_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "crelu_deploy.fused_kernel", raising=False)
    with pytest.raises(BackendUnavailable, match=r"run: pip install triton$"):
        fused._triton(X, W, None, (1, 1), (0, 0), (1, 1), False)


@EVERY_CASE
def test_what_a_gpu_runs_in_the_interpreter(kernel: Any, case: Case) -> None:
    x, weight, bias = (v if v is None else v.half() for v in arguments(case))
    options = case.options.values()
    y = fused._triton(x, weight, bias, *options, False)  # x is copied to channels-last memory
    assert torch.equal(y, fused._reference(x, weight, bias, *options, False))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("allow_tf32", "precision"), [(False, "ieee"), (True, "tf32")])
def test_tf32_is_asked_for(
    kernel: Any, monkeypatch: pytest.MonkeyPatch, allow_tf32: bool, precision: str
) -> None:
    launched: list[Any] = []
    monkeypatch.setattr(kernel, "launch", lambda *given: launched.append(given[-1]))
    fused._triton(X, W, None, (2, 1), (1, 0), (1, 2), allow_tf32)
    assert launched == [kernel.Conv(4, 6, (3, 3), (2, 1), (1, 0), (1, 2), precision)]


def test_an_empty_batch_launches_nothing(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "launch", None)
    y = fused._triton(X[:0], W, None, (1, 1), (0, 0), (1, 1), False)
    assert y.shape == (0, 12, 3, 3)


def test_more_pixels_than_32_bits_count_are_refused(kernel: Any) -> None:
    x, weight = (
        torch.empty(shape, device="meta") for shape in ((1, 1, 2**16, 2**15), (1, 1, 1, 1))
    )
    with pytest.raises(ValueError, match="more than 2147482624 pixels"):
        fused._triton(x, weight, None, (1, 1), (0, 0), (1, 1), False)


# --- the module -----------------------------------------------------------------------------------


def network() -> tuple[Any, Any]:
    """The same network with a fused layer and with two plain ones; shared weights."""
    torch.manual_seed(0)
    conv, last = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.Conv2d(16, 4, 1)
    return torch.nn.Sequential(ConvCReLU(conv), last), torch.nn.Sequential(conv, CReLU(), last)


def test_the_module_takes_the_place_of_two() -> None:
    mine, plain = network()
    x = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(mine(x), plain(x), rtol=0, atol=1e-6, check_stride=False)
    assert mine[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert list(mine.state_dict()) == ["0.conv.weight", "0.conv.bias", "1.weight", "1.bias"]


def test_a_compiled_model_keeps_the_operator() -> None:
    seen: list[Any] = []

    def keep(graph: Any, inputs: Any) -> Any:
        seen.extend(node.target for node in graph.graph.nodes)
        return graph

    mine, plain = network()
    x = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    torch._dynamo.reset()
    y = torch.compile(mine, backend=keep, fullgraph=True)(x)
    torch.testing.assert_close(y, plain(x), rtol=0, atol=1e-6, check_stride=False)
    assert OVERLOAD in seen


def test_an_export_sees_the_node() -> None:
    mine, _ = network()
    program = torch.export.export(mine, (torch.zeros(2, 3, 9, 7),))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["aten.conv2d.default", "crelu_deploy.crelu.default", "aten.conv2d.default"]


@pytest.mark.parametrize(
    "options",
    [{"groups": 2}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}],
    ids=str,
)
def test_a_convolution_without_a_kernel_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no kernel for Conv2d"):
        ConvCReLU(torch.nn.Conv2d(4, 4, 3, **options))


def test_importing_it_leaves_triton_alone() -> None:
    script = "import sys, crelu_deploy.fused; print('crelu_deploy.fused_kernel' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "False\n"


# --- on a GPU machine -----------------------------------------------------------------------------


def test_the_dry_run_goes_through_the_interpreter(kernel: Any) -> None:
    rows = gpu_rows.collect(gpu_fused.checks(torch.device("cpu")), gpu_rows.Clock(60), print)
    assert [row.status for row in rows] == [gpu_rows.OK] * 8
    assert {row.value for row in rows} == {None}  # nothing is timed


@pytest.mark.parametrize("value", [1.01, torch.nan])
def test_a_wrong_kernel_has_no_time(value: float) -> None:
    bench = gpu_fused.Bench(gpu_fused.SMALL[0], 1, "float32", torch.device("cpu"))
    right = bench.wanted.float()
    assert bench.row("case", right, 0.9).value == 0.9
    wrong = bench.row("case", torch.where(right == right.max(), right * value, right), 0.9)
    assert (wrong.status, wrong.value) == (gpu_rows.WRONG, None)
