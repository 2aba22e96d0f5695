"""Faults that the outputs hide are found behind the site, and right targets are far from it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from crelu_deploy import Bundle, Options, Target, build, export, verify
from crelu_deploy.auditing import audit
from crelu_deploy.behind import Witness
from crelu_deploy.bundle import SAMPLES
from crelu_deploy.correspondence import consumed
from crelu_deploy.errors import BuildError
from crelu_deploy.nn import CReLU
from crelu_deploy.render.stages import verifications_json
from crelu_deploy.results import SiteError, Verification
from crelu_deploy.samples import Arrays, Sample, load_samples, save_samples, telling
from crelu_deploy.writing import save_model

pytestmark = pytest.mark.torch

ONE = Options(threads=1)
LOWERED = ("fold", "depthwise", "split", "complement", "mirror", "primitive")


class Deep(nn.Module):
    """Four sites; one channel of the second layer is a thousandth of the others."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 16), (32, 16), (32, 16), (32, 16))
        self.layers = nn.ModuleList(nn.Conv2d(n, m, 3, padding=1) for n, m in widths)
        self.act, self.last = CReLU(), nn.Linear(32, 4)
        with torch.no_grad():
            for layer in self.layers:
                nn.init.kaiming_normal_(layer.weight)
            self.layers[1].weight[5] *= 1e-3
            self.layers[1].bias[5] *= 1e-3

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.act(layer(x))
        return self.last(x.mean((2, 3))).softmax(1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("deep") / "out"
    made = export(Deep(), path, inputs=["1x3x16x16"], race=0)
    build(made, [f"ort-cpu:{name}" for name in LOWERED], ONE)
    return Bundle.open(path)


def convolutions(model: ir.Model) -> list[ir.Node]:
    """Return the network's own layers, without the convolutions that a lowering put in."""
    return [n for n in model.graph if n.op_type == "Conv" and n.inputs[1].shape[1] > 1]


def change(node: ir.Node, index: int, edit: Callable[[np.ndarray], object]) -> None:
    """Edit a copy of a node's constant in place."""
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    edit(array)
    value.const_value = ir.tensor(array, name=value.name)


def one_half_of_a_channel(model: ir.Model) -> None:
    """Zero the negative half of channel 3 of the first layer, which folding made a filter."""
    first = convolutions(model)[0]
    change(first, 1, lambda w: w[19].fill(0))
    change(first, 2, lambda b: b[19:20].fill(0))


def rounded_to_float16(model: ir.Model) -> None:
    def edit(w: np.ndarray) -> None:
        w[...] = w.astype(np.float16)

    change(convolutions(model)[0], 1, edit)


def a_neighbours_bias(model: ir.Model) -> None:
    def edit(b: np.ndarray) -> None:
        b[2] = b[3]

    change(convolutions(model)[0], 2, edit)


def a_column_off(model: ir.Model) -> None:
    """Let the second layer read channel 4 where it should read channel 3, in one filter."""

    def edit(w: np.ndarray) -> None:
        w[7, 3] = w[7, 4]

    change(convolutions(model)[1], 1, edit)


def a_tiny_channel(model: ir.Model) -> None:
    """An error of 0.3 % in the channel that is a thousandth of the others."""
    change(convolutions(model)[1], 1, lambda w: w[5].__imul__(1.003))


FAULTS: dict[str, tuple[Callable[[ir.Model], None], str, str]] = {
    "half": (one_half_of_a_channel, "fold", "0"),
    "float16, folded": (rounded_to_float16, "fold", "0"),
    "float16": (rounded_to_float16, "primitive", "0"),
    "bias": (a_neighbours_bias, "mirror", "0"),
    "column": (a_column_off, "depthwise", "0"),
    "column, complement": (a_column_off, "complement", "0"),
    "tiny": (a_tiny_channel, "primitive", "0"),
    "tiny, folded": (a_tiny_channel, "fold", "0"),
}
"""Name -> what is changed, in which form, the number of the first site behind which it shows."""


def planted(bundle: Bundle, folder: Path, form: str, fault: Callable[[ir.Model], None]) -> Bundle:
    """Return a copy of the bundle's target with a fault in it."""
    target = Target("ort-cpu", form)
    model = ir.load(bundle.artifact(target))
    fault(model)
    copy = Bundle(folder, bundle.manifest, bundle.model)
    copy.artifact(target).parent.mkdir()
    save_model(model, copy.artifact(target))
    return copy


def scores(errors: tuple[SiteError, ...]) -> list[float]:
    return [one.comparison.score for one in errors if one.comparison is not None]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_shows_behind_its_site(name: str, bundle: Bundle, tmp_path: Path) -> None:
    fault, form, site = FAULTS[name]
    copy = planted(bundle, tmp_path, form, fault)
    errors, why = Witness(bundle, ONE).judge(Target("ort-cpu", form), bundle=copy)
    assert why == ""
    wrong = Verification(Target("ort-cpu", form), None, sites=errors).wrong
    assert wrong is not None
    assert wrong is errors[int(site)]
    assert max(scores(errors)) > 20


@pytest.mark.parametrize("form", LOWERED)
def test_a_right_target_is_far_from_the_limit(form: str, bundle: Bundle) -> None:
    (found,) = verify(bundle, [f"ort-cpu:{form}"], ONE)
    assert found.passed
    assert [one.site for one in found.sites] == [s["name"] for s in bundle.manifest["sites"]]
    assert len(scores(found.sites)) == 4
    assert max(scores(found.sites)) < 0.5


def test_what_the_outputs_hide_fails_with_its_place(bundle: Bundle, tmp_path: Path) -> None:
    """The tiny channel is nothing to a softmax behind two more layers; only its own noise tells."""
    target = Target("ort-cpu", "primitive")
    folder = tmp_path / "out"
    shutil.copytree(bundle.path, folder)
    copy = Bundle.open(folder)
    model = ir.load(copy.artifact(target))
    a_tiny_channel(model)
    save_model(model, copy.artifact(target))
    copy.record((copy.artifact(target),))
    (found,) = verify(copy, [target], ONE)
    assert found.comparison is not None
    assert found.comparison.passed
    assert not found.passed
    unproved = replace(found, proof=None)
    assert not unproved.passed
    assert re.match(r"behind site act: sample \d conv2d_1\[\d, 5, \d+, \d+\]: exp", unproved.why)
    (row,) = verifications_json([unproved])["targets"]
    assert not row["passed"]
    assert row["worst"] == unproved.why
    assert [one["passed"] for one in row["behind"]] == [False, True, True, True]
    assert row["behind"][0]["values"] == ["conv2d_1"]


def test_an_audit_counts_it(bundle: Bundle) -> None:
    done = audit(bundle, Target("ort-cpu", "primitive"), ONE, faults=6)
    assert len(done.visible) == 6
    assert all(one.examined.comparison for one in done.visible)


def with_samples(bundle: Bundle, folder: Path, behind: Callable[[Arrays], Arrays]) -> Bundle:
    """Return a copy of the bundle with other noise behind its sites."""
    shutil.copytree(bundle.path, folder)
    samples = load_samples(bundle.path / SAMPLES)
    save_samples(folder / SAMPLES, tuple(replace(s, behind=behind(s.behind)) for s in samples))
    copy = Bundle.open(bundle.path)
    copy = Bundle(folder, copy.manifest)
    copy.record((folder / SAMPLES,))
    return copy


def test_a_bundle_without_noise_is_judged_by_the_size_of_channels(bundle, tmp_path: Path) -> None:
    old = with_samples(bundle, tmp_path / "old", lambda _: {})
    (found,) = verify(old, ["ort-cpu:fold"], ONE)
    assert found.passed
    assert 0 < max(scores(found.sites)) < 0.5


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda floor: floor[:3], "noise of value 'conv2d_1' does not fit"),
        (lambda floor: floor[:, :1], "does not fit"),
        (lambda floor: floor.astype(np.float32), "does not fit"),
        (lambda floor: floor * np.nan, "does not fit"),
    ],
)
def test_noise_of_another_network_is_refused(damage, message, bundle, tmp_path: Path) -> None:
    made = with_samples(
        bundle, tmp_path / "bad", lambda known: {n: damage(floor) for n, floor in known.items()}
    )
    (found,) = verify(made, ["ort-cpu:mirror"], ONE)
    assert not found.passed
    assert message in found.error


def test_a_wrong_reference_judges_nothing_right(bundle: Bundle) -> None:
    witness = Witness(bundle, ONE)
    for arrays in witness.known.values():
        arrays["output"][...] += 1e-3
    errors, _ = witness.judge(Target("ort-cpu", "mirror"))
    assert not any(one.comparison is None or one.comparison.passed for one in errors)
    assert all("model.onnx without optimisations" in one.comparison.worst for one in errors)


def test_where_nothing_is_looked_into(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = Witness(bundle, ONE)
    assert witness.judge(Target("torch", "")) == ((), "")
    assert witness.judge(Target("ort-cpu-int8", "primitive")) == ((), "")

    def refuse(*_: object) -> None:
        raise BuildError("more outputs")

    monkeypatch.setattr("crelu_deploy.backends.onnxruntime.open_copy", refuse)
    (found,) = verify(bundle, ["ort-cpu:mirror"], ONE)
    assert found.sites == ()
    assert found.note == "the values behind its sites were not compared: more outputs"


def test_openvino_shows_its_values_too(bundle: Bundle) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    build(bundle, ["openvino:split"], ONE)
    errors, why = Witness(Bundle.open(bundle.path), ONE).judge(Target("openvino", "split"))
    assert why == ""
    assert len(scores(errors)) == 4
    assert max(scores(errors)) < 0.5


def test_every_value_has_the_noise_of_its_own(bundle: Bundle) -> None:
    """The names of a captured program are those of the model: errors are a few roundings."""
    witness = Witness(bundle, ONE)
    assert witness.samples
    for number, sample in witness.samples.items():
        assert sample.behind.keys() == consumed(bundle.model).keys()
        for name, floor in sample.behind.items():
            size = np.sqrt(np.mean(np.square(witness.known[number][name])))
            assert 2**-28 < np.median(floor[:, 0]) / size < 2**-18, name


def test_which_samples_tell() -> None:
    rows = [1, 3, 2, 3, 1, 1]
    made = [Sample({"x": np.zeros((n, 2), np.float32)}, {}) for n in rows]
    assert list(telling(made, 2)) == [1, 4, 5]
    assert list(telling(made, 0)) == [1]
    assert list(telling(made[:1], 9)) == [0]
