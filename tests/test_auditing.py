"""Planted faults: each kind changes a graph, and the verification of a bundle catches them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from bundles import write_bundle
from graphs import Case, bytes_of, image, model

from crelu_deploy.auditing import audit, audit_file
from crelu_deploy.auditing.editing import Graph
from crelu_deploy.auditing.faults import KINDS, SIMULATED
from crelu_deploy.bundle import Bundle
from crelu_deploy.cli import run
from crelu_deploy.errors import BuildError
from crelu_deploy.lowerings import lower
from crelu_deploy.pipeline import build
from crelu_deploy.proof import prove
from crelu_deploy.targets import Options, Target

ONE = Options(threads=1)
NETWORK: tuple[Case, str] = (
    image("[conv] z = Conv<pads=[1,1,1,1]>(x, w, b)", v=(5, 12, 3, 3), d=(5,)),
    "[site] c = crelu_deploy.CReLU<axis=1>(z) [pool] e = MaxPool<kernel_shape=[2,2]>(c)"
    " [next] y = Conv(e, v, d)",
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_planted_and_refuted(kind: str) -> None:
    canonical = model(*NETWORK)
    lowered = lower(canonical, "primitive").model
    before = bytes_of(lowered)
    where = KINDS[kind](Graph(lowered, np.random.default_rng(3)))
    assert where
    assert bytes_of(lowered) != before
    onnx.checker.check_model(ir.to_proto(lowered))
    assert prove(canonical, lowered).refuted


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_without_a_place_plants_nothing(kind: str) -> None:
    lowered = model(Case("y = Sqrt(x)", (2, 4, 7, 9)), "")
    before = bytes_of(lowered)
    assert KINDS[kind](Graph(lowered, np.random.default_rng(3))) is None
    assert bytes_of(lowered) == before


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with one convolution, built without PyTorch."""
    made = write_bundle(tmp_path_factory.mktemp("audit") / "bundle")
    assert not any(done.error for done in build(made, ["ort-cpu:mirror", "ort-cpu:fold"], ONE))
    return Bundle.open(made.path)


@pytest.mark.parametrize("target", ["ort-cpu:mirror", "ort-cpu:fold"])
def test_an_audit_catches_all(small: Bundle, target: str) -> None:
    before = {file: file.read_bytes() for file in small.path.rglob("*") if file.is_file()}
    done = audit(small, Target.parse(target), ONE, faults=20, seed=1)
    assert len(done.visible) == 20
    assert done.provable
    assert all(one.examined.proof for one in done.planted)
    assert any(one.examined.visible and one.examined.comparison for one in done.planted)
    assert done.missed == ()
    assert {file: file.read_bytes() for file in before} == before


def test_real_inputs_tell_what_is_visible(small: Bundle, tmp_path: Path) -> None:
    """Where the inputs are zero, nothing but a bias is visible."""
    spec, target = small.inputs[0], Target.parse("ort-cpu:mirror")
    shape = [extent if isinstance(extent, int) else 2 for extent in spec.shape]
    np.savez(tmp_path / "zeros.npz", **{spec.name: np.zeros(shape, spec.dtype)})
    done = audit(small, target, ONE, faults=12, inputs=tmp_path / "zeros.npz")
    usual = audit(small, target, ONE, faults=12)
    seen = {one.where for one in done.visible}
    assert {one.where for one in usual.planted[:12]} == {one.where for one in done.planted[:12]}
    assert 0 < len(seen & {one.where for one in usual.visible}) < len(usual.visible)
    assert all(one.examined.caught for one in done.planted)


def test_an_audit_is_the_same_for_the_same_seed(small: Bundle) -> None:
    target = Target.parse("ort-cpu:mirror")
    one, same, other = (audit(small, target, ONE, faults=8, seed=s) for s in (1, 1, 2))
    assert one == same
    assert [p.where for p in one.planted] != [p.where for p in other.planted]


def test_the_kinds_take_turns(small: Bundle) -> None:
    done = audit(small, Target.parse("ort-cpu:mirror"), ONE, faults=24)
    counts = Counter(one.kind for one in done.planted)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert set(SIMULATED) <= counts.keys()


WRONG = {
    "an engine": ("trt-fp32", "faults are planted into ONNX files, which it does not open"),
    "no file": ("torch", "faults are planted into ONNX files"),
    "not built": ("ort-cpu:depthwise", "is not built"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_audited(name: str, small: Bundle) -> None:
    target, said = WRONG[name]
    with pytest.raises(BuildError, match=said):
        audit(small, Target.parse(target), ONE, faults=1)


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return the exit code and what stands on standard output."""
    code = run(arguments)
    return code, capsys.readouterr().out


def test_the_command(small: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["audit", str(small.path), "-t", "ort-cpu:mirror", "--faults", "6", "--threads", "1"]
    code, text = printed(asked, capsys)
    assert code == 0
    assert "6 of 6 visible faults caught" in text
    code, text = printed([*asked, "--json"], capsys)
    found = json.loads(text)
    assert (code, found["passed"], found["provable"]) == (0, True, True)
    assert sum(kind["visible"] for kind in found["kinds"].values()) == 6
    assert sum(kind["planted"] for kind in found["kinds"].values()) == len(found["faults"])


def test_a_fault_that_is_missed_is_a_failure(
    small: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crelu_deploy.auditing.built.prove_target", lambda *_: None)
    monkeypatch.setattr("crelu_deploy.auditing.built._said", lambda _: "")
    code = run(["audit", str(small.path), "-t", "ort-cpu:mirror", "--faults", "3"])
    shown = capsys.readouterr()
    assert code == 1
    assert "missed" in shown.out
    assert "faults that change the outputs are not caught" in shown.err


def test_a_target_that_fails_already_is_not_audited(small: Bundle, tmp_path: Path) -> None:
    copy = write_bundle(tmp_path / "bundle")
    build(copy, ["ort-cpu:mirror"], ONE)
    target = Target.parse("ort-cpu:mirror")
    lowered = ir.load(copy.artifact(target))
    assert KINDS["dropped bias"](Graph(lowered, np.random.default_rng(0)))
    copy.record(copy.write(lowered, target))
    with pytest.raises(BuildError, match="fails without a fault, nothing was planted"):
        audit(copy, target, ONE, faults=1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file with a spelled site, whose batch may vary."""
    path = tmp_path_factory.mktemp("file") / "net.onnx"
    conv = "[conv] z = Conv<pads=[1,1,1,1]>(x, w, b)"
    site = " [neg] m = Neg(z) [cat] c = Concat<axis=1>(z, m) [relu] r = Relu(c)"
    network = model(image(conv, v=(5, 12, 3, 3), d=(5,)), f"{site} [next] y = Conv(r, v, d)")
    network.graph.inputs[0].shape = ir.Shape(["n", *network.graph.inputs[0].shape.dims[1:]])
    network.graph.outputs[0].shape = None
    ir.save(network, path)
    return path


@pytest.mark.parametrize("lowering", ["fold", "complement", "auto"])
def test_an_audit_of_an_onnx_file(lowering: str, file: Path) -> None:
    before = file.read_bytes()
    done = audit_file(file, Target("ort-cpu", lowering), ONE, faults=24, seed=2)
    assert len(done.visible) == 24
    assert all(one.examined.proof and one.examined.comparison for one in done.visible)
    assert {"wrong batch row", "dead half-channel"} <= {one.kind for one in done.visible}
    assert file.read_bytes() == before
    assert sorted(file.parent.iterdir()) == [file]


def test_an_audit_of_a_file_by_real_inputs(file: Path, tmp_path: Path) -> None:
    extents = ir.load(file).graph.inputs[0].shape
    assert extents is not None
    zeros = np.zeros((6, *(int(d) for d in extents.dims[1:])), np.float32)  # type: ignore[arg-type]
    np.savez(tmp_path / "zeros.npz", x=zeros)
    done = audit_file(file, Target("ort-cpu", "fold"), ONE, faults=5, inputs=tmp_path / "zeros.npz")
    assert len(done.visible) < len(done.planted)
    assert all(one.examined.caught for one in done.planted)


@pytest.mark.parametrize("wrong", ["openvino", "nothing to lower", "no file"])
def test_files_that_cannot_be_audited(wrong: str, file: Path, tmp_path: Path, capsys) -> None:
    plain = tmp_path / "plain.onnx"
    ir.save(model(image("[conv] y = Conv<pads=[1,1,1,1]>(x, w, b)"), ""), plain)
    asked, said = {
        "openvino": ([str(file), "-t", "openvino"], "an ONNX file is checked on ort-cpu"),
        "nothing to lower": ([str(plain)], "no site of it is lowered"),
        "no file": ([str(tmp_path / "gone.onnx")], "gone.onnx"),
    }[wrong]
    assert run(["audit", *asked, "--faults", "1"]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


def test_the_command_takes_a_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = printed(["audit", str(file), "-t", "ort-cpu:fold", "--faults", "3"], capsys)
    assert code == 0
    assert "3 of 3 visible faults caught" in text
