"""The fastest mix of lowerings, found by racing whole networks.

Neighbouring sites share layouts and fused activations, so a site's best form depends on the others.
All uniform choices and the rule's race against the network as it is; then one site of the best is
changed at a time, for the better beyond chance. Nothing is chosen that did not beat the network as
it is in a last race of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from crelu_deploy.lowerings import LOWERINGS
from crelu_deploy.plan import ORIGINAL, PLAIN
from crelu_deploy.racing import MARGIN, Arena, Choice, Verdict
from crelu_deploy.rule import candidates
from crelu_deploy.targets import FUNCTION

FINALISTS = 2
SCREENING = 3
"""Rounds at least in which all forms are compared, before the best meet again."""


@dataclass(frozen=True)
class Entrants:
    """The forms that race.

    Attributes:
        plain: The name of the network as it is, among ``choices``.
        choices: Name -> site -> lowering, no two of them alike.
        able: Site -> the lowerings that it can have.
    """

    plain: str
    choices: Mapping[str, Choice]
    able: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        name: The fastest choice: a name in ``Entrants.choices``, or ``mix``.
        choice: Site -> lowering.
        ratios: Every form that was timed -> its time over that of the network as it is.
        sure: Whether nothing seemed faster that the rounds were too few, or too unsteady, to tell.
    """

    name: str
    choice: Choice
    ratios: Mapping[str, float]
    sure: bool = True


def entrants(model: ir.Model, rule: Choice, *, original: bool = False) -> Entrants:
    """Return the uniform choices and the rule's, for a model with canonical nodes.

    A site that cannot have a uniform choice's lowering has the rule's.

    Args:
        model: The model.
        rule: The rule's choice, for every site.
        original: Whether the network as it is is a file that the timer knows as ``ORIGINAL``, and
            not ``primitive`` everywhere.
    """
    able = candidates(model, list(rule))
    uniform = {
        name: {site: name if name in able[site] else rule[site] for site in rule}
        for name in LOWERINGS
        if name != FUNCTION and any(name in able[site] for site in rule)
    }
    choices = {PLAIN: uniform.pop(PLAIN), "rule": rule, **uniform}
    plain = ORIGINAL if original else PLAIN
    return Entrants(plain, _distinct({plain: {}, **choices} if original else choices), able)


def _distinct(choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """Leave out what an earlier name stands for too: one network has one time."""
    found: dict[str, Choice] = {}
    for name, choice in choices.items():
        if dict(choice) not in [dict(other) for other in found.values()]:
            found[name] = choice
    return found


def search(
    arena: Arena,
    entered: Entrants,
    budget: float,
    progress: Callable[[str], None],
) -> Found:
    """Return the fastest choice found.

    Args:
        arena: Where to race.
        entered: What races.
        budget: Seconds for all races; a quarter is for all forms and a quarter for the last race,
            which goes on for half as much again where it is undecided. Races take longer where a
            few rounds of them do.
        progress: Told what is being timed.
    """
    plain, choices = entered.plain, dict(entered.choices)
    progress("race: all forms")
    first = arena.race(choices, budget / 4, SCREENING)
    ratios = {name: verdict.ratio for name, verdict in first.items()}
    others = sorted((name for name in choices if name != plain), key=lambda name: ratios[name])
    mix = _improve(arena, choices[others[0]], entered.able, budget * 3 / 4, progress)
    choices = _distinct({**choices, "mix": mix})
    finalists = others[:FINALISTS] + ["mix"] * ("mix" in choices)
    finals = {name: choices[name] for name in (plain, *finalists)}
    progress("race: the best once more")
    last = arena.race(finals, budget / 4)
    if not _sure(last):
        progress("race: the best for longer")
        last = arena.race(finals, budget * 3 / 4)
    ratios |= {name: verdict.ratio for name, verdict in last.items()}
    winners = [name for name in finalists if last[name].wins]
    name = min(winners, key=lambda name: ratios[name], default=plain)
    return Found(name, choices[name], ratios, sure=_sure(last))


def _sure(last: Mapping[str, Verdict]) -> bool:
    """Whether nothing seems faster than the winners that is not surely so."""
    won = min((v.ratio for v in last.values() if v.wins), default=1.0)
    return not any(v.ratio < won * (1 - MARGIN) and not v.wins for v in last.values())


def _improve(
    arena: Arena,
    choice: Choice,
    able: Mapping[str, Sequence[str]],
    until: float,
    progress: Callable[[str], None],
) -> Choice:
    """Change one site at a time for the better, until nothing is gained or the time is up."""
    unchanged, current = 0, dict(choice)
    for site in itertools.cycle(able):
        left = until - arena.spent
        if unchanged == len(able) or left <= 0:
            break
        others = {n: {**current, site: n} for n in able[site] if n != current[site]}
        progress(f"race: {site}")
        better = _winner(arena, current, others, left / (len(able) - unchanged) / 2)
        unchanged = 0 if better else unchanged + 1
        current = dict(better or current)
    return current


def _winner(
    arena: Arena, current: Choice, others: Mapping[str, Choice], seconds: float
) -> Choice | None:
    """Return the choice that beats the current one in two races, the second of these two alone."""
    if not others:
        return None
    first = arena.race({"": current, **others}, seconds * 2 / 3, SCREENING)
    name = min(others, key=lambda other: first[other].ratio)
    if first[name].ratio >= 1:
        return None
    second: Mapping[str, Verdict] = arena.race({"": current, name: others[name]}, seconds / 3)
    return others[name] if second[name].wins else None
