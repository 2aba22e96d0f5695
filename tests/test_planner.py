"""Plans as files, and the search for the fastest mix on the runtime itself."""

from __future__ import annotations

import json

import pytest

from crelu_deploy import pipeline, planner
from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.plan import MEASURED, RULE, Plan
from crelu_deploy.rules import on_cpu
from crelu_deploy.targets import Options

ONE = Options(threads=1)
MADE = Plan("ort-cpu", MEASURED, {"a": "fold"}, {"model": "abc", "batches": [1]}, {"mix": 0.5})


def test_a_plan_survives_a_file(tmp_path):
    MADE.save(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == MADE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choice": {"a": "folded"}}, "'a' has the unknown lowering 'folded'"),
        ({"choice": {"a": "9" * 5000}}, "unknown lowering '9{80}'$"),
        ({"choice": 7}, "not a plan"),
        ({"ratios": {"mix": "fast"}}, "not a plan"),
        ({"key": None}, "not a plan"),
        ({"key": {"inputs": 5}}, "no list of names and shapes"),
        ({"key": {"inputs": [{"x": 5}]}}, "no list of names and shapes"),
        ({"key": {"threads": "all"}}, "are no number"),
        ({"how": None}, "a plan made 'None'"),
        ({"ratios": {"mix": 10**400}}, "is no number above 0"),
        ({"ratios": {"mix": float("nan")}}, "is no number above 0"),
        ({"ratios": {"mix": -1}}, "is no number above 0"),
    ],
)
def test_damaged_plans_are_refused(tmp_path, change, message):
    MADE.save(tmp_path / "plan.json")
    data = {**json.loads((tmp_path / "plan.json").read_text()), **change}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(UnsupportedModel, match=message):
        Plan.read(tmp_path / "plan.json")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"choice": {}}', "\xff"])
def test_other_files_are_no_plans(tmp_path, text):
    (tmp_path / "plan.json").write_text(text, encoding="latin-1")
    with pytest.raises(UnsupportedModel, match=r"plan\.json: not a plan"):
        Plan.read(tmp_path / "plan.json")


def test_a_missing_plan_is_named(tmp_path):
    with pytest.raises(UnsupportedModel, match="no such file"):
        Plan.read(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("backend", "model_hash", "message"),
    [("trt", "abc", "for ort-cpu, not for trt"), ("ort-cpu", "abd", "made for another model")],
)
def test_a_plan_for_something_else_is_refused(backend, model_hash, message):
    with pytest.raises(UnsupportedModel, match=message):
        MADE.check(backend, model_hash)


def test_a_plan_is_noted_in_the_bundle_and_used_by_auto(bundle):
    made = planner.make_plan(bundle, ONE, budget=1)
    assert made.how == MEASURED
    assert made.key["threads"] == 1
    assert made.key["inputs"] == [{"input": "1x1x28x28"}]
    assert made.ratios["primitive"] == 1
    (built,) = pipeline.build(bundle, ["ort-cpu"])
    assert not built.error
    assert dict(built.lowerings) == dict(made.choice)
    (verified,) = pipeline.verify(bundle, ["ort-cpu"])
    assert verified.passed


def test_without_a_budget_the_rule_chooses(bundle):
    bundle = Bundle.open(bundle)
    made = planner.make_plan(bundle, budget=0)
    assert made.how == RULE
    assert made.choice == on_cpu(bundle.model)
    assert not made.ratios


def test_a_plan_that_is_made_again_is_the_same_until_it_is_to_be_fresh(bundle):
    first = planner.make_plan(bundle, ONE, budget=0.5, batches=[2])
    assert first.key["inputs"] == [{"input": "2x1x28x28"}]
    assert planner.make_plan(bundle, ONE, budget=0.5, batches=[2]) == first
    assert planner.make_plan(bundle, ONE, budget=0.5, batches=[2], fresh=True) != first


def test_a_plan_edited_by_hand_is_replayed(bundle, tmp_path):
    bundle = Bundle.open(bundle)
    made = planner.make_plan(bundle, budget=0)
    first = next(iter(made.choice))
    made.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    data["choice"][first] = "depthwise"
    (tmp_path / "plan.json").write_text(json.dumps(data))
    planner.use(bundle, Plan.read(tmp_path / "plan.json"))
    (built,) = pipeline.build(bundle, ["ort-cpu"])
    assert built.lowerings[first] == "depthwise"
    data["key"]["model"] = "0"
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(UnsupportedModel, match="another model"):
        planner.use(bundle, Plan.read(tmp_path / "plan.json"))
