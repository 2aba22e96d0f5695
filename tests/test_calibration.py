"""The rule fitted to a machine: the fit, what is kept of it, and the races it is made of."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest
from clock import Simulated
from graphs import Case, model

from crelu_deploy import calibration, rules
from crelu_deploy.calibration import LENGTHS, Point, calibrate, limit, preference
from crelu_deploy.errors import BuildError
from crelu_deploy.rule import FORMS, READERS, Preference, Rule, added
from crelu_deploy.targets import Options

# time folded over time otherwise, by added products -> the limit
FITS = {
    "never pays": ({9: 1.1, 27: 1.2, 100: 1.5}, 0),
    "always pays": ({9: 0.8, 27: 0.9, 100: 0.95}, 100),
    "crosses": ({9: 0.8, 27: 0.9, 100: 1.1, 200: 1.5}, 27),
    "one outlier among gains": ({9: 0.8, 27: 1.02, 100: 0.9, 200: 1.5}, 100),
    "one lucky gain above": ({9: 0.8, 27: 1.3, 100: 0.95, 200: 1.5}, 9),
    "not in order": ({200: 1.5, 27: 0.9, 9: 0.8, 100: 1.1}, 27),
}


@pytest.mark.parametrize("name", FITS)
def test_the_limit_is_where_folding_saves_most(name):
    ratios, expected = FITS[name]
    assert limit(ratios) == expected


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "crelu-deploy" / "rule.json"


# what the forms take of the plain graph's time in two networks -> what is preferred
PREFERENCES = {
    "the fastest first": (
        [{"mirror": 0.95, "split": 0.8, "fold": 0.9}, {"mirror": 0.9, "split": 0.7, "fold": 0.9}],
        Preference(("split", "mirror", "primitive"), 0),
    ),
    "none is faster": (
        [{"mirror": 0.995, "fold": 0.9}, {"mirror": 0.995, "fold": 1.2}],
        Preference(("primitive",), 10),
    ),
    "one that not all can have": (
        [{"mirror": 0.9, "pooled": 0.1, "fold": 2}, {"mirror": 0.9, "fold": 2}],
        Preference(("mirror", "primitive"), 0),
    ),
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_the_preference_follows_the_times(name):
    ratios, expected = PREFERENCES[name]
    points = [Point(10.0 * (i + 1), {"primitive": 1.0, **r}) for i, r in enumerate(ratios)]
    assert preference(points) == expected


def uniform(forms: tuple[str, ...], fold: int, block: int = 16) -> Rule:
    cells = dict.fromkeys(READERS, Preference(forms, fold))
    return Rule(block, cells, cells)


def test_a_kept_rule_is_the_rule_of_auto(cache):
    network = model(Case("z = Conv(x, w)", (1, 4, 9, 9), {"w": (16, 4, 5, 5)}))
    assert rules.rule_here() == rules.FITTED[rules.block()]
    for rule, lowering in (
        (uniform(("mirror",), 100), "fold"),
        (uniform(("mirror",), 99), "mirror"),
    ):
        assert rules.keep(rule) == cache
        assert rules.rule_here() == rule
        assert rules.choice(network, "ort-cpu") == {"site": lowering}


def changed(data: dict, **rule: object) -> dict:
    return {**data, "rule": {**data["rule"], **rule}}


DAMAGED = {
    "another processor": lambda data: {**data, "key": {**data["key"], "device": "abacus"}},
    "another runtime": lambda data: {**data, "key": {**data["key"], "onnxruntime": "0.1"}},
    "other instructions": lambda data: {**data, "key": {**data["key"], "block": 4}},
    "limits of an earlier version": lambda data: {**data, "rule": {"whole": 100, "padded": 250}},
    "an unknown form": lambda data: changed(
        data, whole={key: {"forms": ["melt"], "fold": 1} for key in READERS}
    ),
    "a limit in words": lambda data: changed(
        data, whole={key: {"forms": ["mirror"], "fold": "many"} for key in READERS}
    ),
    "no block": lambda data: changed(data, block=0),
    "a list": lambda data: [data],
    "nothing": lambda data: None,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_rule_for_something_else_is_not_used(name, cache):
    rules.keep(uniform(("mirror",), 7))
    cache.write_text(json.dumps(DAMAGED[name](json.loads(cache.read_text()))))
    assert rules.rule_here() == rules.FITTED[rules.block()]


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "crelu-deploy").write_text("a file")
    with pytest.raises(BuildError, match="cannot be made"):
        rules.keep(uniform(("mirror",), 7))


def simulated(model: ir.Model, _: object) -> Simulated:
    """Return a machine on which folding costs .5 % for each term, and ``split`` saves a third."""
    rows = model.graph.initializers["w"].const_value
    terms = rows.size / rows.shape[0]
    times = {"fold": 0.5 + 0.005 * terms, "split": 0.67, "mirror": 0.9}
    return Simulated(lambda choice, lane: 10 * times.get(choice["site"], 1.1))


@pytest.mark.parametrize("block", [1, 8, 16])
def test_every_form_is_fitted(block):
    found = calibrate(block, Options(threads=1), timing=simulated)
    assert found.rule.block == block
    for kind, cells in (("whole", found.rule.whole), ("padded", found.rule.padded)):
        assert set(cells) == set(READERS)
        assert cells["layers"].forms == ("split", "mirror", "primitive")
        assert cells["others"].forms == ("mirror", "primitive")  # split refuses such a site
        assert len(found.points[kind]["pools"]) == len(LENGTHS)
        (first, *_) = found.points[kind]["pools"]
        assert set(first.ratios) == {*FORMS, "fold"}
    # With split for .67 a fold of up to 34 terms is better; 27 of them were tried, and 45.
    assert found.rule.whole["layers"].fold == 27
    assert found.rule.padded["layers"].fold == int(added(27, 3 * max(block, 8) + 4, block)) or block


def test_the_races_run_here(monkeypatch):
    monkeypatch.setattr(calibration, "LENGTHS", LENGTHS[:2])
    found = calibrate(rules.block(), Options(threads=1), seconds=0.1)
    for by in found.points.values():
        for points in by.values():
            assert all(0.02 < ratio < 50 for point in points for ratio in point.ratios.values())
    assert rules.keep(found.rule)
    assert rules.rule_here() == found.rule
