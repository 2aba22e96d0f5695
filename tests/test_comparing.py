"""A lowered file is compared with its original on inputs that make both halves of channels fire."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import CONV, Case, image, model, values

from crelu_deploy import comparing, optimizer
from crelu_deploy.auditing.editing import Graph
from crelu_deploy.auditing.faults import KINDS
from crelu_deploy.cli import run
from crelu_deploy.comparing import Compared, expected
from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.lowerings import Lowered, lower
from crelu_deploy.optimizer import optimize
from crelu_deploy.proof import Proof
from crelu_deploy.seeking import ELEMENT, RUNS, Probe, Search, peaks
from crelu_deploy.writing import save_model

NETWORK = (
    "[site] c = crelu_deploy.CReLU<axis=1>(z) [pool] e = MaxPool<kernel_shape=[2,2]>(c)"
    " [next] y = Conv(e, v, d)"
)


def network(*biases: float) -> ir.Model:
    """Return a network with a site whose six channels have these biases."""
    weights = {"v": (5, 12, 3, 3), "d": (5,), "b": np.resize(np.float32(biases), 6)}
    return model(image("[conv] z = Conv<pads=[1,1,1,1]>(x, w, b)", **weights), NETWORK)


def saved(network: ir.Model, path: Path) -> Path:
    save_model(lower(network, "primitive").model, path)
    return path


# kind of fault -> seeds of places behind halves that noise never makes fire
HIDDEN = {
    "dead half-channel": (1, 6),
    "swapped halves": (1, 6),
    "one weight": (2, 3, 5),
    "dropped scale": (1, 6),
    "leaky half": (0, 2, 3),
    "clipped": (1, 6),
    "wrong batch row": (1, 6),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_faults_that_noise_misses(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canonical = network(-30)
    source = saved(canonical, tmp_path / "in.onnx")
    monkeypatch.setattr(optimizer, "prove", lambda *_: Proof())
    for seed in HIDDEN[kind]:

        def wrong(network: ir.Model, choice: str, seed: int = seed) -> Lowered:
            done = lower(network, choice)
            assert KINDS[kind](Graph(done.model, np.random.default_rng(seed)))
            save_model(done.model, tmp_path / "wrong.onnx")
            return done

        monkeypatch.setattr(optimizer, "lower", wrong)
        with pytest.raises(UnsupportedModel, match="differs, nothing was written"):
            optimize(source, tmp_path / "out.onnx", lowering="primitive")
        assert expected(source, None, (), None).compare(tmp_path / "wrong.onnx").comparison.passed
    assert not (tmp_path / "out.onnx").exists()


def test_a_later_row_is_compared_too(tmp_path: Path) -> None:
    """Where the batch may vary, without any search."""
    source = saved(network(0), tmp_path / "in.onnx")
    wrong = lower(network(0), "primitive").model
    said = KINDS["wrong batch row"](Graph(wrong, np.random.default_rng(0)))
    save_model(wrong, tmp_path / "wrong.onnx")
    assert "from row 2" in str(said)
    found = expected(source, None, (), None).compare(tmp_path / "wrong.onnx")
    assert not found.comparison.passed


def compared(canonical: ir.Model, folder: Path) -> Compared:
    """Compare a network's plain form with itself."""
    source = saved(canonical, folder / "in.onnx")
    return expected(source, canonical, (), None).compare(source)


def site(body: str, x: str, weights: dict[str, np.ndarray], axis: int = 1) -> ir.Model:
    """Return a network with one site that reads z, without shapes inside."""
    node = f"[site] y = crelu_deploy.CReLU<axis={axis}>(z)"
    text = (
        f'<ir_version: 8, opset_import: ["": 17, "crelu_deploy": 1]> g ({x} x) => (float[] y)'
        f" {{ {body} {node} }}"
    )
    proto = onnx.parser.parse_model(text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


W, B = values("w", (6, 3, 3, 3)), np.float32([0, 30, -30, 300, -300, 3])
PIXELS = {"w": W, "b": B, "s": np.float32(1)}
TABLE = {"t": np.float32([[1, 1, 1, -1, -1, -1], [-1, -2, -3, 1, -2, -3]])}
HALF = np.where(np.arange(6).reshape(6, 1, 1, 1) % 2, 0, values("w", (6, 4, 3, 3)))
NEVER = image(CONV, w=HALF, b=np.full(6, 3, np.float32))
# network -> channels, those of which both halves fire, and none
COUNTED = {
    "biases": (network(0, 30, -30, 100, -100, 3), (6, 6, 0)),
    "climbed": (network(0, 2e3, -2e3), (6, 6, 0)),
    "never": (model(NEVER), (6, 3, 0)),
    "dead": (model(image(f"{CONV}", w=np.zeros((6, 4, 3, 3), np.float32), b=np.zeros(6, "f"))),
        (6, 0, 6)),
    "negated": (model(image("a = Conv(x, w, b) z = Neg(a)", b=B)), (6, 6, 0)),
    "fixed": (model(Case("z = Conv(x, w, b)", (1, 3, 7, 9), {"w": W, "b": B}, fixed=True)),
        (6, 6, 0)),
    "bytes": (site("a = Cast<to=1>(x) z = Conv(a, w, b)", "uint8[N,3,H,W]", PIXELS), (6, 6, 0)),
    "signed bytes": (site("a = Cast<to=1>(x) z = Mul(a, s)", "int8[N,5]", PIXELS), (5, 5, 0)),
    "indices": (site("z = Gather(t, x)", "int64[N]", TABLE), (6, 4, 0)),
    "input": (site("z = Identity(x)", "float[N,4]", {}), (4, 4, 0)),
    "channels last": (site("z = Transpose<perm=[0,2,3,1]>(x)", "float[N,4,H,W]", {}, -1),
        (4, 4, 0)),
    "rows": (site("z = Mul(x, s)", "float[2,8]", {"s": np.float32(-1)}, 0), (2, 2, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_what_fires(name: str, tmp_path: Path) -> None:
    canonical, counts = COUNTED[name]
    found = compared(canonical, tmp_path)
    assert found.bit_equal
    (one,) = found.coverage.values()
    assert tuple(one[key] for key in ("channels", "both", "none")) == counts
    assert found.inputs >= found.searched > 0


def test_a_search_is_the_same_again(tmp_path: Path) -> None:
    first, second = (compared(network(0, 2e3, -2e3), tmp_path) for _ in range(2))
    assert first == second


def test_a_search_ends(tmp_path: Path) -> None:
    """Where a channel never fires, after so many runs, and at once where it is too costly."""
    calls = []
    with Probe(network(0, 30)) as probe:

        class Counting(Probe):
            def __init__(self) -> None:
                self.sites = probe.sites

            def __call__(self, feeds):
                calls.append(feeds)
                return probe(feeds)

            def products(self, shapes):
                return self.each

        specs, shapes = probe._runner.inputs, {"x": (3, 4, 7, 9)}
        layers, elements = 7 * 9 * 6 * 36 + 4 * 6 * 5 * 108, 7 * 9 * (4 + 6) + 3 * (4 * 6 * 5)
        assert probe.products(shapes) == 3 * (layers + ELEMENT * elements)
        for each, most in ((1.0, RUNS), (1e12, 1)):
            calls.clear()
            counting = Counting()
            counting.each = each
            Search(counting, lambda _: True, np.random.default_rng(0)).run(specs, shapes)
            assert 0 < len(calls) <= most


def test_what_amplifies_rounding_is_no_false_alarm(tmp_path: Path) -> None:
    """Far up an exponential the original differs from itself by its inputs' last bit."""
    body = "a = Conv(x, w, b) z = Exp(a)"
    source = saved(canonical := model(image(body)), tmp_path / "in.onnx")
    one = expected(source, canonical, (), None).compare(source)
    x = {"x": 25 * values("x", (3, 4, 7, 9))}
    with (
        comparing.BACKENDS["ort-cpu"]
        .implementation()
        .open_session(source, comparing.Options(threads=1)) as original
    ):
        assert not comparing._is_steady(original, x, None)
    assert one.comparison.passed


def test_where_no_site_can_be_read_nothing_is_counted(tmp_path: Path) -> None:
    plain = model(Case("y = Sqrt(x)", (2, 4)), "")
    found = compared(plain, tmp_path)
    assert (found.coverage, found.searched) == ({}, 0)


def test_peaks_are_those_of_each_row_and_channel() -> None:
    x = values("x", (2, 3, 4, 5))
    found = peaks(x, 1)
    np.testing.assert_array_equal(found.rows[:, 0], x.max((2, 3)))
    np.testing.assert_array_equal(found.rows[:, 1], -x.min((2, 3)))
    np.testing.assert_allclose(found.whole, found.rows.max(0) / np.sqrt((x**2).mean()), rtol=1e-5)
    np.testing.assert_array_equal(peaks(np.moveaxis(x, 1, 3), -1).rows, found.rows)
    assert peaks(x, 0).rows.shape == (1, 2, 2)


def test_the_command_tells_what_fires(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = saved(model(NEVER), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    arguments = ["optimize", str(source), "-o", str(out), "--lowering", "fold"]
    assert run(arguments) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "random inputs and" in text
    assert "inputs make both halves of the channels fire: 3 of 6 in" in text
    assert run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (counts,) = found["coverage"].values()
    assert counts == {"channels": 6, "both": 3, "none": 0}
    assert found["inputs"] > found["searched"] > 0
