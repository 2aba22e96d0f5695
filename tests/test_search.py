"""The search on a simulated clock: what it finds, what noise cannot make it believe, and that it
goes on where it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from clock import Cost, Simulated, busy, quiet, wandering
from graphs import Case, model

from crelu_deploy.latency import Paired
from crelu_deploy.plan import ORIGINAL, PLAIN
from crelu_deploy.racing import Arena, Journal, Verdict, journal
from crelu_deploy.search import Entrants, Found, entrants, search

SITES = ("a", "b", "c")
FORMS = ("primitive", "fold", "split", "mirror")
ABLE = {"a": FORMS, "b": FORMS, "c": ("primitive", "fold", "mirror")}
UNIFORM = {
    form: {site: form if form in ABLE[site] else "primitive" for site in SITES} for form in FORMS
}
ENTERED = Entrants(PLAIN, {**UNIFORM, "rule": {"a": "fold", "b": "split", "c": "fold"}}, ABLE)


def summed(saved: Mapping[str, float], base: float = 10.0) -> Cost:
    """Return the cost of a network of which ``"site form"`` saves so many milliseconds."""
    return lambda choice, lane: base - sum(saved.get(f"{s} {f}", 0.0) for s, f in choice.items())


def searched(timer: Simulated, budget: float = 20.0, kept: Path | None = None) -> Found:
    return search(Arena(timer, Journal(kept)), ENTERED, budget, lambda _: None)


# what each form of a site saves of 10 ms -> the choice that is the fastest
LANDSCAPES = {
    "the rule is right": (
        {"a fold": 2, "b split": 1, "c fold": 1},
        {"a": "fold", "b": "split", "c": "fold"},
    ),
    "one uniform choice": (
        {"a mirror": 1, "b mirror": 1, "c mirror": 1},
        {"a": "mirror", "b": "mirror", "c": "mirror"},
    ),
    "a mix that nobody proposed": (
        {"a split": 1, "b fold": 1, "c mirror": 1, "a fold": -1, "b split": -1},
        {"a": "split", "b": "fold", "c": "mirror"},
    ),
    "only the plain graph": (
        {f"{site} {form}": -1 for site in SITES for form in FORMS[1:]},
        dict.fromkeys(SITES, "primitive"),
    ),
    "a gain below the margin beside a large one": (
        {"a split": 2, "c mirror": 0.05},
        {"a": "split", "b": "split", "c": "primitive"},
    ),
    "a gain below the margin": ({"a fold": 0.05}, dict.fromkeys(SITES, "primitive")),
    "nothing matters": ({}, dict.fromkeys(SITES, "primitive")),
}


@pytest.mark.parametrize("noise", [quiet, wandering], ids=["quiet", "wandering"])
@pytest.mark.parametrize("name", LANDSCAPES)
def test_the_fastest_choice_is_found(name, noise):
    saved, fastest = LANDSCAPES[name]
    assert dict(searched(Simulated(summed(saved), noise)).choice) == fastest


def test_neighbours_that_only_pay_together_are_found_from_a_uniform_choice():
    def cost(choice: Mapping[str, str], lane: int) -> float:
        return 8.0 if choice["a"] == choice["b"] == "split" else 10.0 + (choice["a"] == "split")

    found = searched(Simulated(cost))
    assert (found.choice["a"], found.choice["b"]) == ("split", "split")


@pytest.mark.parametrize("noise", [quiet, wandering, busy], ids=["quiet", "wandering", "busy"])
@pytest.mark.parametrize("name", LANDSCAPES)
def test_no_noise_makes_it_choose_what_is_slower(name, noise):
    cost = summed(LANDSCAPES[name][0])
    plain = cost(dict.fromkeys(SITES, "primitive"), 0)
    for seed in range(12):
        found = searched(Simulated(cost, noise, seed=seed), budget=8)
        assert cost(found.choice, 0) <= plain, seed


def test_what_cannot_be_told_apart_is_left_as_it_is():
    kept = [searched(Simulated(summed({}), busy, seed=seed)).name for seed in range(40)]
    assert kept == [PLAIN] * 40


def test_what_only_seems_faster_is_told():
    def flighty(generator: np.random.Generator, calls: int) -> np.ndarray:
        return np.exp(generator.normal(0, 2, calls))

    saved = {f"{site} mirror": 2 for site in SITES}
    found = [searched(Simulated(summed(saved), flighty, seed=n), budget=3) for n in range(10)]
    assert {one.name for one in found} == {PLAIN}
    assert sum(not one.sure for one in found) >= 3
    assert searched(Simulated(summed(saved), quiet), budget=3).sure
    assert searched(Simulated(summed({}), quiet), budget=3).sure


def test_a_form_that_is_slower_in_one_way_of_calling_is_not_chosen():
    def cost(choice: Mapping[str, str], lane: int) -> float:
        folded = sum(form == "fold" for form in choice.values())
        return 10 + (3 * folded if lane else -2 * folded)

    assert searched(Simulated(cost, lanes=1)).choice == dict.fromkeys(SITES, "fold")
    assert searched(Simulated(cost, lanes=2)).choice == dict.fromkeys(SITES, "primitive")


def sure(ratio: float) -> Paired:
    return Paired(ratio, ratio, ratio, ratio)


# the comparisons of the lanes -> whether a form wins
VERDICTS = {
    "faster": ([sure(0.9)], True),
    "within the margin": ([sure(0.995)], False),
    "faster in one, the same in the other": ([sure(0.9), Paired(1, 0.99, 1.005, 1)], True),
    "faster in one, perhaps slower in the other": ([sure(0.5), Paired(1, 0.9, 1.1, 1)], False),
    "perhaps faster": ([Paired(0.8, 0.6, 1.001, 0.8)], False),
    "too few rounds": ([Paired(0.5, 0.0, float("inf"), 0.5)], False),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_what_wins(name):
    lanes, wins = VERDICTS[name]
    assert Verdict(tuple(lanes)).wins is wins


MIX = summed(LANDSCAPES["a mix that nobody proposed"][0])


@pytest.mark.parametrize("step", [1, 7, 40])
def test_a_search_that_is_stopped_goes_on_where_it_was(tmp_path, step):
    whole = Simulated(MIX)
    expected = searched(whole, kept=tmp_path / "whole.jsonl")
    timer = Simulated(MIX, patience=0)
    stops = 0
    while True:
        timer.patience = timer.measured + step if stops < 10 else None
        try:
            found = searched(timer, kept=tmp_path / "stopped.jsonl")
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == 10
    assert found == expected
    assert timer.measured == whole.measured  # and no round was measured twice


def test_a_search_that_is_repeated_measures_nothing(tmp_path):
    first, again = Simulated(MIX, busy), Simulated(MIX, busy, seed=1)
    kept = tmp_path / "kept.jsonl"
    assert searched(first, kept=kept) == searched(again, kept=kept)
    assert again.measured == 0


def test_a_longer_search_adds_to_what_is_there(tmp_path):
    kept = tmp_path / "kept.jsonl"
    first, again = Simulated(MIX), Simulated(MIX)
    searched(first, budget=2, kept=kept)
    searched(again, budget=4, kept=kept)
    fresh = Simulated(MIX)
    searched(fresh, budget=4)
    assert again.measured == fresh.measured - first.measured


def test_the_budget_is_kept():
    timer = Simulated(MIX)
    searched(timer, budget=20)
    assert 10 < timer.clock < 21


def test_a_slow_network_is_called_a_few_times_only():
    timer = Simulated(lambda choice, lane: MIX(choice, lane) * 1000)
    searched(timer, budget=5)
    assert timer.measured == 3 + 8  # all forms three times; the plain graph and the best, eight


DAMAGE = {
    "cut off": lambda line: line[: len(line) // 2],
    "no number": lambda line: json.dumps([json.loads(line)[0], "fast", 1.0]),
    "negative": lambda line: json.dumps([json.loads(line)[0], 1.0, -1.0]),
    "infinite": lambda line: line.replace("]", ", Infinity]"),
    "another form": lambda line: '{"race": 1}',
    "deep": lambda line: "[" * 10_000,
    "a number without end": lambda line: f'["r", 1{"0" * 400}, 2]',
    "not text": lambda line: "\udcff",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_line_is_measured_again(tmp_path, name):
    kept = tmp_path / "kept.jsonl"
    expected = searched(Simulated(MIX), kept=kept)
    lines = kept.read_text().splitlines()
    lines[-1] = DAMAGE[name](lines[-1])
    kept.write_text("\n".join(lines) + "\n", errors="surrogateescape")
    timer = Simulated(MIX)
    assert searched(timer, kept=kept).choice == expected.choice
    assert timer.measured == 1


def test_what_follows_a_line_that_was_cut_off_is_kept(tmp_path):
    kept = tmp_path / "kept.jsonl"
    searched(Simulated(MIX), kept=kept)
    kept.write_text(kept.read_text()[:-7])
    searched(Simulated(MIX), kept=kept)
    timer = Simulated(MIX)
    searched(timer, kept=kept)
    assert timer.measured == 0


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert journal({"model": "a"}).path is None


def test_a_journal_is_for_one_place_and_can_be_forgotten(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    journal({"model": "a", "device": "x"}).add("race", [1.0, 2.0, 3.0])
    assert journal({"device": "x", "model": "a"}).rounds("race", 2)
    assert not journal({"model": "a", "device": "y"}).rounds("race", 2)
    assert not journal({"model": "a", "device": "x"}).rounds("race", 3)
    journal({"model": "a", "device": "x"}).forget()
    assert not journal({"model": "a", "device": "x"}).rounds("race", 2)


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "in a file"])
def test_a_cache_that_cannot_be_used_is_done_without(tmp_path, kind):
    path = tmp_path / "kept.jsonl" if kind != "in a file" else tmp_path / "file" / "kept.jsonl"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        path.parent.write_text("no folder")
    timer = Simulated(MIX)
    assert searched(timer, kept=path) == searched(Simulated(MIX))


def test_the_entrants_of_a_network():
    network = model(Case("z = Conv(x, w)", (1, 3, 9, 9), {"w": (16, 3, 3, 3)}))
    found = entrants(network, {"site": "fold"})
    assert found.plain == PLAIN
    assert found.choices == {
        "primitive": {"site": "primitive"},
        "rule": {"site": "fold"},
        "depthwise": {"site": "depthwise"},
        "mirror": {"site": "mirror"},
    }
    assert set(found.able["site"]) == {"fold", "depthwise", "mirror", "primitive"}
    other = entrants(network, {"site": "fold"}, original=True)
    assert list(other.choices) == [ORIGINAL, "primitive", "rule", "depthwise", "mirror"]


def test_a_site_that_cannot_have_a_uniform_form_has_the_rules():
    case = Case(
        "p = Conv(x, w) [first] q = crelu_deploy.CReLU<axis=1>(p) z = Conv(q, v)",
        (1, 3, 9, 9),
        {"w": (16, 3, 3, 3), "v": (16, 32, 3, 3)},
    )
    found = entrants(model(case), {"first": "fold", "site": "mirror"})
    assert found.choices["split"] == {"first": "split", "site": "mirror"}
