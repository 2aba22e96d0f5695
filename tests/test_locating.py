"""Faults planted into lowered models are found at the site, in words and as a folder to run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import IMAGE, Case, model, run, values
from tables import mostly

from crelu_deploy import Bundle, Options, Target, build
from crelu_deploy.accuracy import Tolerance
from crelu_deploy.bundle import MODEL, SAMPLES
from crelu_deploy.cli import run as crelu
from crelu_deploy.correspondence import Correspondence
from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.locating import Difference, locate
from crelu_deploy.lowerings import lower
from crelu_deploy.manifest import FORMAT
from crelu_deploy.reproducing import reproduce
from crelu_deploy.runner import TensorSpec
from crelu_deploy.samples import Sample, save_samples
from crelu_deploy.sites import find_sites
from crelu_deploy.writing import save_model

ONE = Options(threads=1)
SITE = "crelu_deploy.CReLU<axis=1>"
TWO = Case(
    f"[conv1] p = Conv<pads=[1,1,1,1]>(x, w, b) [first] q = {SITE}(p)"
    f" [conv2] r = Conv<pads=[1,1,1,1]>(q, v) [second] s = {SITE}(r) [conv3] y = Conv(s, u)",
    IMAGE,
    {"w": (6, 4, 3, 3), "b": (6,), "v": (6, 12, 3, 3), "u": (5, 12, 1, 1)},
)
POOLED = Case(
    f"[conv1] p = Conv<pads=[1,1,1,1]>(x, w, b) [first] q = {SITE}(p)"
    f" [pool] m = MaxPool<kernel_shape=[2,2]>(q) [conv2] y = Conv(m, v)",
    IMAGE,
    {"w": (6, 4, 3, 3), "b": (6,), "v": (5, 12, 1, 1)},
)
CHAIN = Case(
    f"[conv1] p = Conv(x, w, b) [first] q = {SITE}(p) [mean] a = GlobalAveragePool(q)"
    " [flat] f = Flatten(a) [fc] y = Gemm(f, v) [side] z = Sigmoid(p)",
    IMAGE,
    {"w": (6, 4, 3, 3), "b": (6,), "v": (12, 5)},
)
SITES = {"first": ("conv1", "conv2"), "second": ("conv2", "conv3")}
LOWERED = ("fold", "depthwise", "split", "complement", "mirror", "function", "primitive")


def bundle_of(path: Path, network: ir.Model) -> Bundle:
    """Write a bundle whose samples are what ONNX Runtime computes without optimisations."""
    path.mkdir()
    names = [str(value.name) for value in network.graph.outputs]
    inputs = [values(f"sample {i}", IMAGE) for i in range(2)]
    outputs = [dict(zip(names, run(network, x), strict=True)) for x in inputs]
    samples = [Sample({"x": x}, y) for x, y in zip(inputs, outputs, strict=True)]
    save_samples(path / SAMPLES, tuple(samples))
    bundle = Bundle(path, {"format": FORMAT, "files": {}})
    bundle.record(
        (*save_model(network, path / MODEL), path / SAMPLES),
        source=None,
        inputs=[asdict(TensorSpec("x", "float32", ("N", *IMAGE[1:])))],
        outputs=names,
        sites=[asdict(site) for site in find_sites(network)],
        targets={},
    )
    return bundle


def faulty(path: Path, network: ir.Model, lowering: str, fault: Callable) -> tuple[Bundle, Target]:
    """Build a target, plant the fault into its file and record that as if it had been built so."""
    bundle, target = bundle_of(path, network), Target("ort-cpu", lowering)
    (built,) = build(bundle, [target], ONE)
    assert built.error == ""
    artifact = bundle.artifact(target)
    lowered = ir.load(artifact)
    before = sum(np.abs(y).sum() for y in run(lowered, values("sample 0", IMAGE)))
    fault(lowered)
    assert before != sum(np.abs(y).sum() for y in run(lowered, values("sample 0", IMAGE)))
    save_model(lowered, artifact)
    bundle.record((artifact,))
    return bundle, target


def scope(lowered: ir.Model, site: str) -> list[ir.Node]:
    """Return the nodes that a site was lowered to: those of the function's body, if it is one."""
    nodes = [node for node in lowered.graph if (node.name or "").startswith(f"{site}/")]
    return nodes or [node for function in lowered.functions.values() for node in function]


def change(node: ir.Node, index: int, edit: Callable) -> None:
    """Edit a copy of a node's constant."""
    value = node.inputs[index]
    value.const_value = ir.tensor(edit(value.const_value.numpy().copy()), name=value.name)


def scaled(rows: slice) -> Callable:
    def edit(array: np.ndarray) -> np.ndarray:
        array[rows] *= 1.25
        return array

    return edit


def swapped(lowered: ir.Model, site: str, lowering: str) -> None:
    """Exchange the halves."""
    if lowering == "fold":
        producer = lowered.graph.node(SITES[site][0])
        for index in (1, 2)[: len(producer.inputs) - 1]:
            change(producer, index, lambda a: np.roll(a, len(a) // 2, axis=0))
        return
    if lowering == "split":
        halves = [lowered.graph.node(f"{SITES[site][1]}/Conv{end}") for end in ("", "_1")]
        first, second = (half.inputs[0] for half in halves)
        halves[0].replace_input_with(0, second)
        halves[1].replace_input_with(0, first)
        return
    concat = next(node for node in scope(lowered, site) if node.op_type == "Concat")
    first, second = concat.inputs
    concat.replace_input_with(0, second)
    concat.replace_input_with(1, first)


def without_relu(lowered: ir.Model, site: str, lowering: str) -> None:
    """Leave out an activation."""
    relu = next(node for node in scope(lowered, site) if node.op_type == "Relu")
    relu.op_type = "Identity"


def wrong_weight(lowered: ir.Model, site: str, lowering: str) -> None:
    """Change a weight that the lowering made, of the second half where there is one."""
    producer, consumer = SITES[site]
    if lowering == "fold":
        change(lowered.graph.node(producer), 1, scaled(np.s_[7:8]))
    elif lowering == "complement":
        change(lowered.graph.node(consumer), 1, scaled(np.s_[:, 8]))
    elif lowering == "split":
        change(lowered.graph.node(f"{consumer}/Conv_1"), 1, scaled(np.s_[:, 2]))
    else:
        node = next(node for node in scope(lowered, site) if node.op_type == "Conv")
        change(node, 1, scaled(np.s_[2:3]))


FAULTS = [
    *((swapped, name) for name in LOWERED),
    *((without_relu, name) for name in LOWERED),
    *((wrong_weight, name) for name in ("fold", "depthwise", "split", "complement")),
]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("fault", "lowering"), FAULTS, ids=lambda f: getattr(f, "__name__", f))
def test_a_fault_in_a_lowered_site(fault, lowering: str, site: str, tmp_path: Path) -> None:
    planted = faulty(tmp_path / "b", model(TWO, ""), lowering, lambda m: fault(m, site, lowering))
    found = locate(*planted, ONE)
    assert found.reference.score == 0
    # one function serves all sites, so the first one shows it
    expected = "first" if lowering == "function" else site
    assert (found.first.where, found.first.sites) == ("in", (expected,))
    assert next(e.site for e in found.sites if not e.comparison.passed) == expected
    behind = lowering in ("split", "complement")
    assert found.first.node == (f"Conv {SITES[site][1]}" if behind else f"CReLU {expected}")
    assert not found.first.comparison.passed


NODES = {
    "before": ("conv1", ("before", ("first",))),
    "between": ("conv2", ("behind", ("first",))),
    "last": ("conv3", ("behind", ("second",))),
}


@pytest.mark.parametrize("case", NODES)
@pytest.mark.parametrize("lowering", ["mirror", "primitive", "depthwise"])
def test_a_fault_in_a_plain_weight(case: str, lowering: str, tmp_path: Path) -> None:
    name, expected = NODES[case]
    planted = faulty(
        tmp_path / "b",
        model(TWO, ""),
        lowering,
        lambda m: change(m.graph.node(name), 1, scaled(np.s_[1:2])),
    )
    first = locate(*planted, ONE).first
    assert (first.where, first.sites) == expected
    assert first.node == f"Conv {name}"


def test_a_fault_in_the_exported_model_shows_in_the_reference(tmp_path: Path) -> None:
    def fault(exported: ir.Model) -> None:
        change(exported.graph.node("conv1"), 1, scaled(np.s_[1:2]))

    found = locate(*faulty(tmp_path / "b", model(TWO, ""), "function", fault), ONE)
    assert not found.reference.passed
    assert found.first is None


def wrong_consumer(lowered: ir.Model) -> None:
    """Let the consumer of the second site read the first one."""
    other = next(v for node in lowered.graph for v in node.outputs if v.name == "q")
    lowered.graph.node("conv3").replace_input_with(0, other)


@pytest.mark.parametrize("lowering", ["fold", "depthwise", "mirror", "primitive"])
def test_a_consumer_that_reads_another_value(lowering: str, tmp_path: Path) -> None:
    first = locate(*faulty(tmp_path / "b", model(TWO, ""), lowering, wrong_consumer), ONE).first
    assert (first.where, first.sites) == ("behind", ("second",))
    assert (first.value, first.node) == ("y", "Conv conv3")


def test_a_pooled_site(tmp_path: Path) -> None:
    def fault(lowered: ir.Model) -> None:
        concat = next(node for node in lowered.graph if node.op_type == "Concat")
        concat.replace_input_with(1, concat.inputs[0])

    first = locate(*faulty(tmp_path / "b", model(POOLED, ""), "complement", fault), ONE).first
    assert (first.where, first.sites, first.value) == ("in", ("first",), "m")


def test_values_that_change_their_meaning_are_not_compared(tmp_path: Path) -> None:
    original = model(CHAIN, "", outputs=["y", "z"])
    lowered = lower(original, "complement")
    names = Correspondence(original, lowered.model, lowered.applied).names
    assert names == ["p", "y", "z"]
    folded = lower(original, "fold")
    between = Correspondence(original, folded.model, folded.applied)
    assert between.names == ["p", "q", "a", "f", "y", "z"]
    assert between.folded == {"p": "first"}


def test_two_lowerings_in_one_weight_are_both_named(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", model(TWO, ""))
    choice = {"first": "complement", "second": "fold"}
    bundle.record(
        (),
        plans={
            "ort-cpu": {
                "backend": "ort-cpu",
                "how": "rule",
                "choice": choice,
                "key": {},
                "ratios": {},
            }
        },
    )
    target = Target.parse("ort-cpu")
    build(bundle, [target], ONE)
    lowered = ir.load(bundle.artifact(target))
    change(lowered.graph.node("conv2"), 1, scaled(np.s_[3:4]))
    save_model(lowered, bundle.artifact(target))
    bundle.record((bundle.artifact(target),))
    first = locate(bundle, target, ONE).first
    assert (first.where, first.sites) == ("in", ("second", "first"))


@pytest.mark.parametrize("lowering", LOWERED)
@pytest.mark.parametrize("case", [TWO, POOLED], ids=["two", "pooled"])
def test_nothing_is_found_where_nothing_is_wrong(case: Case, lowering: str, tmp_path) -> None:
    bundle = bundle_of(tmp_path / "b", model(case, ""))
    target = Target("ort-cpu", lowering)
    build(bundle, [target], ONE)
    found = locate(bundle, target, ONE)
    assert found.first is None
    assert all(error.comparison.passed and error.values for error in found.sites)
    assert [error.site for error in found.sites] == [site.name for site in find_sites(bundle.model)]


def test_the_worst_element_comes_with_its_inputs(tmp_path: Path) -> None:
    planted = faulty(
        tmp_path / "b", model(TWO, ""), "mirror", lambda m: swapped(m, "first", "mirror")
    )
    first = locate(*planted, ONE).first
    index = first.comparison.worst.partition(":")[0].removeprefix("q")
    sample, channel, row, column = json.loads(index)
    (said,) = first.inputs
    place = sample, channel % 6, row, column
    assert said == f"p[{', '.join(map(str, place))}] = {first.known['p'][place]!s}"
    assert f"expected {first.known['q'][sample, channel, row, column]!s}" in first.comparison.worst


def test_a_tolerance_decides(tmp_path: Path) -> None:
    def fault(lowered: ir.Model) -> None:
        change(lowered.graph.node("conv1"), 1, lambda a: a * np.float32(1.001))

    planted = faulty(tmp_path / "b", model(TWO, ""), "mirror", fault)
    assert locate(*planted, ONE).first is not None
    assert locate(*planted, ONE, tolerance=Tolerance(0.1, 0.1)).first is None


def test_a_backend_without_sites_is_refused(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", model(TWO, ""))
    with pytest.raises(UnsupportedModel, match="torch runs the PyTorch module"):
        locate(bundle, Target("torch", ""), ONE)


def polygraphy(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the folder's script, which calls nothing but Polygraphy."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["sh", str(folder / "run.sh")],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.slow
@mostly("case", ["part", "whole"], fast=["part"])
def test_polygraphy_alone_shows_the_difference(case: str, tmp_path: Path) -> None:
    pytest.importorskip("polygraphy", reason="Polygraphy is not installed")

    def fault(lowered: ir.Model) -> None:
        if case == "part":
            return without_relu(lowered, "second", "primitive")
        return change(lowered.graph.node("conv1"), 1, lambda a: a * np.float32(1.01))

    bundle, target = faulty(tmp_path / "b", model(TWO, ""), "primitive", fault)
    first = locate(bundle, target, ONE).first
    folder = tmp_path / "reproduce"
    said = reproduce(bundle, target, first, folder)
    assert said.startswith(f"cd {folder} && polygraphy run model.onnx --onnxrt --load-inputs")
    part = ir.load(folder / "model.onnx")
    assert [v.name for v in part.graph.inputs] == (["r"] if case == "part" else ["x"])
    failed = polygraphy(folder)
    assert (failed.returncode, "FAILED" in failed.stdout) == (1, True), failed.stdout
    mended = ir.convenience.extract(
        lower(bundle.model, "primitive").model.graph,
        inputs=[str(v.name) for v in part.graph.inputs],
        outputs=[first.value],
    )
    ir.save(ir.Model(mended, ir_version=8), folder / "model.onnx")
    assert polygraphy(folder).returncode == 0


def test_a_folder_keeps_what_is_not_its_own(tmp_path: Path) -> None:
    pytest.importorskip("polygraphy", reason="Polygraphy is not installed")
    bundle, target = faulty(
        tmp_path / "b", model(TWO, ""), "mirror", lambda m: swapped(m, "first", "mirror")
    )
    folder = tmp_path / "reproduce"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    first = locate(bundle, target, ONE).first
    for _ in range(2):
        reproduce(bundle, target, first, folder)
    assert sorted(f.name for f in folder.iterdir()) == [
        *("expected.json", "inputs.json", "model.onnx", "notes.txt", "run.sh")
    ]
    assert isinstance(first, Difference)


def test_the_command_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    bundle, _ = faulty(
        tmp_path / "b", model(TWO, ""), "fold", lambda m: wrong_weight(m, "second", "fold")
    )
    build(bundle, ["ort-cpu:mirror"], ONE)
    arguments = ["verify", "b", "-t", "ort-cpu:fold", "-t", "ort-cpu:mirror", "--locate", "-q"]
    assert crelu([*arguments, "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    folded, mirrored = data["located"]
    assert mirrored["first"] is None
    assert (folded["first"]["where"], folded["first"]["sites"]) == ("in", ["second"])
    assert [site["passed"] for site in folded["sites"]] == [True, False]
    assert crelu(arguments) == 1
    out = capsys.readouterr().out
    assert "first    in site second: value s, sample 0" in out
    assert "first    no value is beyond tolerance" in out
    if shutil.which("polygraphy"):
        assert (tmp_path / "reproduce" / "ort-cpu-fold" / "expected.json").is_file()


def test_a_function_of_another_name_is_left_alone(tmp_path):
    """The domain is anyone's to write in; what has no reference is not replaced by one."""
    network = model(TWO, "")
    body = ir.node("Relu", [ir.val("x")])
    graph = ir.Graph(body.inputs, body.outputs, nodes=[body], opset_imports={"": 17})
    unknown = ir.Function("crelu_deploy", "unknown", "", graph=graph, attributes=[])
    network.functions[unknown.identifier()] = unknown
    bundle, target = bundle_of(tmp_path / "bundle", network), Target("ort-cpu", "mirror")
    (built,) = build(bundle, [target], ONE)
    assert built.error == ""
    assert all(e.comparison.passed for e in locate(bundle, target, ONE).sites)
