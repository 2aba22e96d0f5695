"""What ships by default has won a race on this machine, or is the network as it came."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from real_models import real_model
from test_optimizer import CONV, LATE, Graph, counted, run, saved

from crelu_deploy import Bundle, optimize, planner, rules
from crelu_deploy.cli import run as crelu
from crelu_deploy.plan import MEASURED, ORIGINAL, PLAIN, RULE
from crelu_deploy.racing import Arena, Choice
from crelu_deploy.rule import READERS, Preference, Rule
from crelu_deploy.search import Entrants, Found

TAIL = {"w": (4, 3, 3, 3), "b": (4,), "v": (5, 8, 1, 1)}
SHAPE = {"x": (2, 3, 9, 9)}
INPUT = ["2x3x9x9"]


def found(name: str) -> Callable[..., Found]:
    """Return a search that chooses one of the entrants, whatever the clock says."""

    def search(arena: Arena, entered: Entrants, budget: float, progress: object) -> Found:
        assert budget > 0
        return Found(name, entered.choices[name], {entered.plain: 1.0, name: 0.5})

    return search


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(Graph(f"{CONV} {LATE}"), tmp_path)


def test_the_winner_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(planner, "search", found("mirror"))
    done = optimize(source, tmp_path / "out.onnx", inputs=INPUT, race=1)
    assert (set(done.lowerings.values()), done.plan.how) == ({"mirror"}, MEASURED)
    assert done.plan.key["inputs"] == [{"x": "2x3x9x9"}]
    assert done.plan.key.keys() >= {"model", "runtime", "device", "block", "threads"}


def test_where_no_form_is_faster_the_original_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(planner, "search", found(ORIGINAL))
    out = tmp_path / "out.onnx"
    done = optimize(source, out, inputs=INPUT, race=1)
    assert (done.lowerings, done.reasons, done.bit_equal) == ({}, {}, True)
    assert counted(out) == counted(source) == done.before == done.after
    np.testing.assert_array_equal(run(out, SHAPE), run(source, SHAPE))


@pytest.mark.parametrize("dead", [True, False])
def test_what_was_pruned_is_kept_though_no_form_is_faster(dead, tmp_path, monkeypatch):
    monkeypatch.setattr(planner, "search", found(ORIGINAL))
    graph = Graph(f"{CONV} {LATE.replace('y =', 'e =')} y = Conv(e, v)", weights=TAIL)
    source = saved(graph, tmp_path)
    if dead:
        network = onnx.load(source)
        (v,) = (w for w in network.graph.initializer if w.name == "v")
        array = onnx.numpy_helper.to_array(v).copy()
        array[:, 1] = 0
        v.CopyFrom(onnx.numpy_helper.from_array(array, "v"))
        onnx.save(network, source)
    done = optimize(source, tmp_path / "out.onnx", inputs=INPUT, race=1, prune=True)
    assert bool(done.removed) is dead
    assert set(done.lowerings.values()) == ({PLAIN} if dead else set())


def test_what_noise_left_undecided_is_measured_anew(source, tmp_path, monkeypatch):
    def undecided(arena: Arena, entered: Entrants, budget: float, progress: object) -> Found:
        assert not arena.journal.rounds("race", 1)
        arena.journal.add("race", [1.0, 1.0])
        return Found(ORIGINAL, {}, {ORIGINAL: 1.0}, sure=False)

    monkeypatch.setattr(planner, "search", undecided)
    for _ in range(2):
        optimize(source, tmp_path / "out.onnx", inputs=INPUT, race=1)


def test_a_real_race_is_against_the_original(source, tmp_path):
    done = optimize(source, tmp_path / "out.onnx", inputs=INPUT, race=0.05)
    assert done.plan.how == MEASURED
    assert done.plan.ratios[ORIGINAL] == 1
    assert done.plan.ratios.keys() >= {ORIGINAL, PLAIN, "rule", "mirror"}


@pytest.mark.parametrize("arguments", [{"race": 0}, {"race": 5, "check": False}], ids=str)
def test_without_a_race_the_rule_chooses_the_calibrated_one_too(
    arguments: Mapping[str, float], source, tmp_path, monkeypatch
):
    for form in ("mirror", "depthwise"):
        cells = dict.fromkeys(READERS, Preference((form,), 0))
        monkeypatch.setattr(rules, "rule_here", lambda cells=cells: Rule(1, cells, cells))
        done = optimize(source, tmp_path / "out.onnx", inputs=INPUT, **arguments)
        assert (done.plan.how, set(done.lowerings.values())) == (RULE, {form})


def test_one_lowering_for_all_is_no_race(source, tmp_path):
    done = optimize(source, tmp_path / "out.onnx", lowering="mirror", inputs=INPUT, race=5)
    assert done.plan is None


VERBS = {
    "no-race": ["--no-race"],
    "no-budget": ["--budget", "0"],
}


@pytest.mark.parametrize("name", VERBS)
def test_the_command_line_races_unless_told_not_to(name, source, tmp_path, capsys):
    command = ["optimize", str(source), "-o", str(tmp_path / "out.onnx"), "--input", *INPUT, "-q"]
    assert crelu([*command, "--json", *VERBS[name]]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["how"], plan["ratios"]) == (RULE, {})
    assert crelu([*command, "--budget", "0.05"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "timed measured here on 2x3x9x9, " in text
    assert "ratio to the original" in text


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_a_budget_is_a_finite_number(seconds, source, tmp_path, capsys):
    out = tmp_path / "out.onnx"
    assert crelu(["optimize", str(source), "-o", str(out), "--budget", seconds]) == 2
    assert "--budget" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected a number, 0 or more"):
        optimize(source, out, inputs=INPUT, race=float(seconds))
    assert not out.exists()


@pytest.mark.torch
def test_an_export_says_how_its_fastest_form_was_chosen(digits, tmp_path, capsys):
    from crelu_deploy import export

    raced = export(digits, tmp_path / "raced.crelu", race=0.2)
    plan = raced.manifest["plans"]["ort-cpu"]
    assert plan["how"] == MEASURED
    assert plan["ratios"][PLAIN] == 1
    assert plan["key"]["inputs"] == [{"input": "1x1x28x28"}]
    assert plan["choice"] == raced.manifest["targets"]["ort-cpu:auto"]["lowerings"]
    ruled = export(digits, tmp_path / "ruled.crelu", race=0)
    plan = ruled.manifest["plans"]["ort-cpu"]
    assert (plan["how"], plan["ratios"], plan["key"].keys()) == (RULE, {}, {"model"})
    assert plan["choice"] == rules.on_cpu(ruled.model)
    for flags, how in (["--no-race"], RULE), (["--budget", "0.2"], MEASURED):
        out = str(tmp_path / "cli.crelu")
        assert crelu(["export", str(digits), "-o", out, "-q", *flags]) == 0
        assert Bundle.open(out).manifest["plans"]["ort-cpu"]["how"] == how
        assert f"ort-cpu {'by rule' if how == RULE else 'measured here'}" in capsys.readouterr().out


@pytest.mark.torch
def test_a_network_of_a_fixed_batch_is_raced_with_that_batch(digits, tmp_path):
    from crelu_deploy import export

    bundle = export(digits, tmp_path / "b.crelu", race=0.1, inputs=["3x1x28x28"], dynamic=["none"])
    assert bundle.manifest["plans"]["ort-cpu"]["key"]["inputs"] == [{"input": "3x1x28x28"}]


def test_a_race_that_is_stopped_leaves_nothing(source, tmp_path, monkeypatch):
    def stopped(*_: object, **__: object) -> dict[str, Choice]:
        raise KeyboardInterrupt

    monkeypatch.setattr(planner, "search", stopped)
    with pytest.raises(KeyboardInterrupt):
        optimize(source, tmp_path / "out.onnx", inputs=INPUT, race=1)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_the_block_of_the_runtime_is_told_by_the_runtime(tmp_path):
    """FaceBoxes' first convolution has 24 channels: padded to whole blocks, where there are any."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(
        real_model("faceboxes-3ddfa/FaceBoxesProd.onnx"),
        settings,
        providers=["CPUExecutionProvider"],
    )
    graph = onnx.load(settings.optimized_model_filepath).graph
    convs = [node for node in graph.node if node.op_type == "Conv"]
    rows = next(w.dims[0] for w in graph.initializer if w.name == convs[0].input[1])
    assert rows == -(-24 // rules.block()) * rules.block()
