"""NaN and infinities pass every lowering that does not say otherwise, and `verify` tells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from graphs import ALL, OFF, Case, image, model, run, values

from crelu_deploy import extremes
from crelu_deploy.accuracy import Comparison
from crelu_deploy.bundle import Bundle
from crelu_deploy.cli import run as command
from crelu_deploy.errors import BuildError, UnsupportedModel
from crelu_deploy.lowerings import LOSES, LOWERINGS, lower
from crelu_deploy.pipeline import verify
from crelu_deploy.render.stages import verifications_json, verifications_parts
from crelu_deploy.results import Verification
from crelu_deploy.runner import Runner, TensorSpec
from crelu_deploy.targets import Target

BEFORE = "[conv] z = Conv<pads=[1,1,1,1]>(x, w, b)"
POSITIVE = {"w": np.abs(values("w", (6, 4, 3, 3))), "v": np.abs(values("v", (5, 12, 1, 1)))}
POOL = "MaxPool<kernel_shape=[2,2],strides=[2,2]>(c)"
# what reads the site: of positive weights, so that infinities of one sign alone meet
READERS = {
    "output": "[site] y = crelu_deploy.CReLU<axis=1>(z)",
    "conv": "[site] c = crelu_deploy.CReLU<axis=1>(z) [next] y = Conv(c, v)",
    "pool": f"[site] c = crelu_deploy.CReLU<axis=1>(z) [pool] y = {POOL}",
}


def network(reader: str):
    weights = POSITIVE if reader == "conv" else {"w": POSITIVE["w"]}
    return model(image(BEFORE, **weights), READERS[reader])


def fused_relus_keep_nan(level: ort.GraphOptimizationLevel) -> bool:
    """Tell whether NaN passes a Relu behind a convolution; with SSE alone it becomes 0."""
    x, wide = np.full((2, 4, 7, 9), np.nan, np.float32), {"u": (8, 4, 3, 3)}
    behind = model(Case("z = Conv(x, u)", x.shape, wide), "y = Relu(z)")
    return bool(np.isnan(run(behind, x, level)[0]).any())


def kinds(array: np.ndarray) -> np.ndarray:
    """Tell NaN, both infinities, usual numbers and the largest apart."""
    return np.where(np.abs(array) < 1e30, 0, array)


def differs(name: str, reader: str, value: float, level: ort.GraphOptimizationLevel) -> bool:
    """Tell whether a lowering makes of a value something else than the unlowered network."""
    original = network(reader)
    lowered = lower(original, name)
    if name not in lowered.applied.values():
        return False
    x = np.abs(values("x", (2, 4, 7, 9)))
    x[0, 1, 2:5, 3:7] = value  # whole windows of the pool too
    expected, actual = run(original, x)[0], run(lowered.model, x, level)[0]
    return not np.array_equal(kinds(actual), kinds(expected), equal_nan=True)


@pytest.mark.parametrize("level", [OFF, ALL], ids=["off", "all"])
@pytest.mark.parametrize("name", LOWERINGS)
def test_what_a_lowering_keeps(name: str, level: ort.GraphOptimizationLevel) -> None:
    found = {
        (reader, what)
        for reader in READERS
        for what, value in extremes.VALUES.items()
        if differs(name, reader, value, level)
    }
    if not fused_relus_keep_nan(level):
        found = {(reader, what) for reader, what in found if what != "NaN"}
    assert bool(found) == (name in LOSES)
    assert found <= {("conv", "inf"), ("conv", "-inf")}


class Answering(Runner):
    """A target that gives its input, with some elements changed, or refuses it."""

    def __init__(self, **changes: float) -> None:
        self.inputs, self.outputs = (TensorSpec("x", "float32", (2, 3)),), ("x",)
        self.changes = changes

    def _run(self, feeds):
        if "refuse" in self.changes:
            raise BuildError("no NaN here")
        return [np.nan_to_num(feeds["x"], **self.changes) if self.changes else feeds["x"]]


FIRST = {"i": np.ones((2, 3), np.int64), "x": np.ones((2, 3), np.float32)}
RECORDED = {what: extremes.counted(call) for what, call in extremes.calls(FIRST).items()}
BIG = {"posinf": np.inf, "neginf": -np.inf}
# a target, the lowerings of its sites -> what is told
TOLD = {
    "kept": (Answering(), ["fold"], "as PyTorch's"),
    "runtime": (
        *(Answering(nan=0, **BIG), ["fold", "mirror"]),
        "NaN gives finite numbers, PyTorch's 1 NaN; that is the runtime's doing",
    ),
    "lowering": (
        *(Answering(nan=np.nan, posinf=0, neginf=-np.inf), ["fold", "split"]),
        "inf gives finite numbers, PyTorch's 1 inf; split makes NaN of an infinity that a layer "
        "reads; the runtime may change them too",
    ),
    "refused": (Answering(refuse=1), ["fold"], "refused: no NaN here"),
}


@pytest.mark.parametrize(("runner", "lowerings", "said"), TOLD.values(), ids=TOLD)
def test_what_a_target_makes_of_them(runner: Runner, lowerings: list[str], said: str) -> None:
    first = {"x": FIRST["x"]}
    assert extremes.told(runner, first, RECORDED, lowerings) == said
    assert extremes.told(runner, first, {}, lowerings) == ""


def test_each_is_in_one_element_of_the_first_input_of_floats() -> None:
    assert {
        what: {kind: int(kind == what) for kind in extremes.VALUES} for what in extremes.VALUES
    } == RECORDED
    assert FIRST["x"].all()
    assert extremes.calls({"i": FIRST["i"]}) == {}


@pytest.mark.torch
def test_a_bundle_says_what_pytorch_makes_of_them(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.extremes["NaN"] == {"NaN": 10, "inf": 0, "-inf": 0}
    for entry in opened.manifest["verification"].values():
        assert entry["extremes"] == "as PyTorch's"
    (found,) = verify(opened, ["ort-cpu:primitive"])
    assert found.extremes == "as PyTorch's"
    assert verifications_json([found])["targets"][0]["extremes"] == "as PyTorch's"
    other = replace(found, extremes="inf gives 1 NaN, PyTorch's 1 inf")
    for verification, shown in ((found, False), (other, True)):
        headings = [part.heading for part in verifications_parts([verification], 2)]
        assert ("NaN and infinities as inputs" in headings) is shown
    manifest = json.loads((bundle / "manifest.json").read_text())
    for wrong in ({"NaN": {}}, {"nan": 1}, {**opened.extremes, "inf": {"NaN": 0}}):
        (bundle / "manifest.json").write_text(json.dumps({**manifest, "extremes": wrong}))
        with pytest.raises(UnsupportedModel, match="damaged"):
            Bundle.open(bundle)


def test_an_answer_that_differs_is_no_failure() -> None:
    found = Verification(Target.parse("ort-cpu"), Comparison(0, 0, ""), extremes="NaN gives")
    assert found.passed


def test_the_command_leaves_it_out_where_none_was_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bundles import write_bundle

    made = write_bundle(tmp_path / "bundle")
    assert command(["verify", str(made.path), "-t", "ort-cpu:fold", "--threads", "1"]) == 0
    assert "NaN" not in capsys.readouterr().out
