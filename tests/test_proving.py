"""Where proofs are made: a refuted target is not built, not written, and does not pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest
from bundles import write_bundle
from graphs import model
from proof_faults import NETWORKS, half, numbers

from crelu_deploy import optimizer, pipeline
from crelu_deploy.auditing.editing import Graph
from crelu_deploy.auditing.faults import KINDS
from crelu_deploy.bundle import Bundle
from crelu_deploy.cli import run
from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.lowerings import Lowered, lower
from crelu_deploy.optimizer import optimize
from crelu_deploy.pipeline import build, verify
from crelu_deploy.proof import Proof, SiteProof, prove
from crelu_deploy.render.proofs import proof_json, proof_line, proofs_parts
from crelu_deploy.results import Verification
from crelu_deploy.targets import Options, Target
from crelu_deploy.writing import save_model

ONE = Options(threads=1)


@pytest.fixture
def small(tmp_path: Path) -> Bundle:
    """A bundle without targets."""
    return write_bundle(tmp_path / "bundle")


def wrongly(monkeypatch: pytest.MonkeyPatch, where: ModuleType) -> None:
    """Let a module's lowerings drop a bias."""

    def wrong(network: ir.Model, choice: object) -> Lowered:
        done = lower(network, choice)  # type: ignore[arg-type]
        assert KINDS["dropped bias"](Graph(done.model, np.random.default_rng(0)))
        return done

    monkeypatch.setattr(where, "lower", wrong)


def test_a_refuted_target_is_not_built(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    wrongly(monkeypatch, pipeline)
    (done,) = build(small, ["ort-cpu:mirror"], ONE)
    assert "ort-cpu:mirror is refuted, nothing was written: site site: Conv" in done.error
    assert "bias expected" in done.error
    assert small.manifest["targets"] == {}
    assert not small.artifact(done.target).exists()


@pytest.mark.parametrize("check", [True, False])
def test_a_refuted_file_is_not_written(
    check: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, site, _ = NETWORKS["mirror"]
    save_model(model(case, site), tmp_path / "network.onnx")
    wrongly(monkeypatch, optimizer)
    with pytest.raises(UnsupportedModel, match=r"nothing was written: .*bias expected"):
        optimize(tmp_path / "network.onnx", tmp_path / "out.onnx", lowering="fold", check=check)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("form", ["fold", "complement", "function"])
@pytest.mark.parametrize("prune", [True, False])
def test_what_is_written_is_proved(form: str, prune: bool, tmp_path: Path) -> None:
    case, site, _ = NETWORKS["complement"]
    save_model(model(case, site), tmp_path / "network.onnx")
    out = tmp_path / "out.onnx"
    done = optimize(tmp_path / "network.onnx", out, lowering=form, prune=prune, check=False)
    assert done.proof is not None
    expected = "proved up to 1 rounding" if form == "complement" else "weights equal bit for bit"
    assert expected in str(done.proof.sites["site"])


PROVED = {"site": "proved: weights equal bit for bit"}


@pytest.mark.parametrize("target", ["ort-cpu:fold", "ort-cpu:function"])
def test_the_manifest_keeps_the_proof(target: str, small: Bundle) -> None:
    (done,) = build(small, [target], ONE)
    assert done.proof is not None
    kept = Bundle.open(small.path).manifest["targets"][target]["proof"]
    assert kept == {"sites": PROVED, "faults": [], "open": ""}
    (found,) = verify(small, [target], ONE)
    assert found.passed
    assert found.proof == done.proof


CHANGES: dict[str, Callable[[ir.Model], None]] = {
    "dead half": numbers("conv", 1, half(5)),
    "rounded": numbers("conv", 1, lambda a: a.astype(np.float16).astype(np.float32)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_was_changed_does_not_pass(name: str, small: Bundle) -> None:
    target = Target.parse("ort-cpu:fold")
    build(small, [target], ONE)
    changed = ir.load(small.artifact(target))
    changed.graph[0].name = "conv"
    CHANGES[name](changed)
    small.record(small.write(changed, target))  # its hash is that of the file
    (found,) = verify(Bundle.open(small.path), [target], ONE)
    assert not found.passed
    assert "its file is refuted: site site: Conv conv: output channel" in found.why


def test_verify_says_it_in_text_and_in_json(
    small: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    build(small, ["ort-cpu:fold"], ONE)
    assert run(["verify", str(small.path), "-q"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "ort-cpu:fold site proved: weights equal bit for bit" in text
    assert run(["verify", str(small.path), "-q", "--json"]) == 0
    (target,) = json.loads(capsys.readouterr().out)["targets"]
    assert target["proof"]["proved"] is True
    assert target["proof"]["sites"]["site"]["roundings"] == 0


SITES = {"a": SiteProof(), "b": SiteProof(1), "c": SiteProof(2), "d": SiteProof(judged=False)}
LINES = {
    "many": (
        Proof(SITES),
        "1 site proved: weights equal bit for bit, 1 site proved up to 1 rounding, "
        "1 site proved up to 2 roundings, 1 site not judged: it, or too much before it, "
        "is not proved",
    ),
    "refuted": (Proof({"a": SiteProof(fault="x")}, ("site a: x", "site b: y")), "site a: x"),
    "open": (Proof(open="int8"), "not provable: int8"),
    "nothing": (Proof(), "nothing but the sites was to be changed, and nothing was"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_proof_in_a_line(name: str) -> None:
    proof, said = LINES[name]
    assert said in proof_line(proof)
    told = proof_json(proof)
    assert told is not None
    assert told["proved"] is (name == "nothing")


def test_targets_without_a_proof_have_no_table() -> None:
    assert proofs_parts({"torch": None}) == []
    assert proof_json(None) is None
    table = proofs_parts({"a": Proof(open="int8"), "b": Proof({}, ("outside the sites: z",))})
    assert [part.row_count for part in table] == [2]


def test_a_refuted_target_never_passes() -> None:
    proof = Proof({"a": SiteProof(fault="x")}, ("site a: x",))
    found = Verification(Target.parse("ort-cpu:fold"), None, proof=proof)
    assert (found.passed, found.why) == (False, "its file is refuted: site a: x")


def test_a_network_that_cannot_be_followed_is_not_refuted() -> None:
    case, site, form = NETWORKS["mirror"]
    canonical = model(case, site)
    lowered = lower(canonical, form).model
    canonical.graph.node("next").attributes["strides"] = ir.AttrFloat32("strides", 1.0)
    del canonical.graph.node("site").attributes["axis"]
    proof = prove(canonical, lowered)
    assert not proof.refuted
    assert proof.open.startswith("the network itself: it cannot be followed: ")
