"""The rule fitted to a machine: the fit, what is kept of it, and the races it is made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from graphs import Case, model

from crelu_deploy import rules
from crelu_deploy.calibration import LENGTHS, Point, calibrate, limit
from crelu_deploy.errors import BuildError
from crelu_deploy.plan import CPU, Rule
from crelu_deploy.targets import Options

# time folded over time otherwise, by products in a sum -> the limit
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
    assert limit(tuple(Point(*point) for point in ratios.items())) == expected


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "crelu-deploy" / "rule.json"


def test_a_kept_rule_is_the_rule_of_auto(cache):
    network = model(Case("z = Conv(x, w)", (1, 4, 9, 9), {"w": (16, 4, 5, 5)}))
    assert rules.rule_here() == CPU
    assert rules.choice(network, "ort-cpu") == {"site": "fold"}
    assert rules.keep(Rule(whole=99)) == cache
    assert rules.rule_here() == Rule(whole=99)
    assert rules.choice(network, "ort-cpu") == {"site": "depthwise"}


DAMAGED = {
    "another processor": lambda data: {**data, "key": {**data["key"], "device": "abacus"}},
    "another runtime": lambda data: {**data, "key": {**data["key"], "onnxruntime": "0.1"}},
    "an unknown limit": lambda data: {**data, "rule": {"height": 3}},
    "a limit in words": lambda data: {**data, "rule": {"whole": "many"}},
    "a list": lambda data: [data],
    "nothing": lambda data: None,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_rule_for_something_else_is_not_used(name, cache):
    rules.keep(Rule(whole=7))
    cache.write_text(json.dumps(DAMAGED[name](json.loads(cache.read_text()))))
    assert rules.rule_here() == CPU


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "crelu-deploy").write_text("a file")
    with pytest.raises(BuildError, match="cannot be made"):
        rules.keep(CPU)


def test_the_races_run_and_longer_sums_pay_less():
    found = calibrate(Options(threads=1), seconds=4)
    for points in found.points.values():
        assert [p.terms for p in points] == sorted(c * k * k for c, k in LENGTHS)
        shortest = min(point.ratio for point in points[:3])
        assert 0.2 < shortest < points[-1].ratio < 5
    assert (found.rule.whole, found.rule.padded) == tuple(limit(p) for p in found.points.values())
