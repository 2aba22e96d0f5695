"""Which extents dynamic axes may have: tried on PyTorch and on the exported model alike.

Outside of what PyTorch took for granted while it traced, a model may be right all the same, or
wrong, or the network itself may refuse. Extents on either side of each condition tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from crelu_deploy.guards import Guard, broken, nearest

Extents = Mapping[str, int]
"""The extent of each dynamic axis, by the name that the model has for it."""

Names = Sequence[Sequence[int | str]]
"""One shape per input: an int per fixed axis, a name per dynamic one."""

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Space:
    """The dynamic axes of a network.

    Attributes:
        names: The exported shapes.
        example: The example shapes.
    """

    names: Names
    example: Shapes

    @property
    def extents(self) -> dict[str, int]:
        """The example's extents; axes of one name have one extent."""
        found: dict[str, int] = {}
        for names, shape in zip(self.names, self.example, strict=True):
            for name, extent in zip(names, shape, strict=True):
                if isinstance(name, str):
                    found.setdefault(name, extent)
        return found

    @property
    def batches(self) -> frozenset[str]:
        """The names of dynamic axes 0."""
        firsts = (names[0] for names in self.names if names)
        return frozenset(name for name in firsts if isinstance(name, str))

    def shapes(self, extents: Extents) -> Shapes:
        """Return the shapes of the inputs for these extents; the example's where none is given."""
        known = {**self.extents, **extents}
        return tuple(
            tuple(known[d] if isinstance(d, str) else d for d in names) for names in self.names
        )

    def fitted(self, extents: Extents, guards: Sequence[Guard]) -> dict[str, int] | None:
        """Return the nearest extents that meet every condition, or None."""
        names = list(self.extents)
        shape = [{**self.extents, **extents}[name] for name in names]

        def fits(shapes: Sequence[Sequence[int]]) -> bool:
            return not broken(guards, self.shapes(dict(zip(names, shapes[0], strict=True))))

        axes = {
            kind: [(0, names.index(n)) for n in names if (n in self.batches) is kind]
            for kind in (False, True)
        }
        found = nearest([shape], fits, axes[False]) or nearest([shape], fits, axes[True])
        return None if found is None else dict(zip(names, found[0], strict=True))


MANY = 40
"""Points to try in all, three of each condition."""

LARGEST = 1 << 20
"""Elements of an input that is tried, unless the example has more."""


def critical(space: Space, guards: Sequence[Guard]) -> list[dict[str, int]]:
    """Return extents that break one condition or several, the nearest to the example first."""
    found: list[dict[str, int]] = []
    most = max(LARGEST, *map(math.prod, space.example))
    for guard in guards:
        names = sorted({str(space.names[i][a]) for i, a in guard.axes} & space.extents.keys())
        wrong = [
            point
            for point in _grid(space, names)
            if not guard.holds(shapes := space.shapes(point))
            and max(map(math.prod, shapes)) <= most
        ]
        wrong.sort(key=lambda point: _distance(space, point))
        larger = [point for point in wrong if _growth(space, point) > 0]
        smaller = [point for point in wrong if _growth(space, point) <= 0]
        found += [*larger[:1], *smaller[:1], *wrong[-1:]]
    unique = {tuple(sorted(point.items())): point for point in found}
    return list(unique.values())[:MANY]


def _grid(space: Space, names: Sequence[str]) -> Iterator[dict[str, int]]:
    """Yield extents of some axes: every small one of a single axis, a few of several together."""
    if len(names) == 1:
        far = max(2 * space.extents[names[0]], 512)
        yield from ({names[0]: n} for n in (*range(1, far + 1), 1001, 1920, 4097))
        return
    small = (1, 2, 3, 4, 5, 8, 17, 32, 33, 64, 100) if len(names) < 4 else (1, 2, 5)
    choices = []
    for name in names:
        own = space.extents[name]
        choices.append(sorted({*small, max(own - 1, 1), own, own + 1, 2 * own}))
    yield from (dict(zip(names, point, strict=True)) for point in product(*choices))


def _distance(space: Space, point: Extents) -> float:
    example = space.extents
    return sum(abs(math.log(extent / example[name])) for name, extent in point.items())


def _growth(space: Space, point: Extents) -> int:
    example = space.extents
    return sum(extent - example[name] for name, extent in point.items())


Trial = Callable[[Shapes], bool]
"""Tells whether PyTorch and the model agree on inputs of these shapes."""


def binding(space: Space, guards: Sequence[Guard], agree: Trial) -> tuple[Guard, ...]:
    """Return the conditions that do matter: outside of them, the model differs or PyTorch refuses.

    Each is tried where it is broken. Where both agree, it was only the exporter's caution.
    """
    good: list[frozenset[Guard]] = []
    bad: list[frozenset[Guard]] = []
    for point in critical(space, guards):
        shapes = space.shapes(point)
        (good if agree(shapes) else bad).append(frozenset(broken(guards, shapes)))
    kept: set[Guard] = set()
    while unexplained := [wrong for wrong in bad if not wrong & kept]:
        candidates = sorted(frozenset().union(*unexplained), key=lambda guard: guard.text)
        refuted = {one: sum(one in right for right in good) for one in candidates}
        explains = {one: sum(one in wrong for wrong in unexplained) for one in candidates}
        kept.add(min(candidates, key=lambda one: (refuted[one], -explains[one])))
    return tuple(guard for guard in guards if guard in kept)


def smallest(space: Space, guards: Sequence[Guard], takes: Trial) -> int:
    """Return the least extent that PyTorch takes for all dynamic axes but the batch at once."""

    def works(extent: int) -> bool:
        fitted = space.fitted(dict.fromkeys(space.extents.keys() - space.batches, extent), guards)
        return fitted is not None and takes(space.shapes(fitted))

    high = 1
    top = max((n for name, n in space.extents.items() if name not in space.batches), default=1)
    while high < top and not works(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return high


def wanted(space: Space, least: int) -> list[dict[str, int]]:
    """Return extents worth verifying, for a network that takes ``least`` and more.

    The smallest, multiples of 16 and 32 in both orders, odd ones, and larger ones than the example.
    """
    names = [name for name in space.extents if name not in space.batches]
    if not names:
        return []
    sixteen = 16 * (2 * math.ceil((least + 16) / 32) + 1)
    thirty_two = 32 * (sixteen // 32 + 1)
    elements = max(map(math.prod, space.example))
    growth = 2.0 if elements * 2 ** len(names) <= LARGEST else 1.25
    larger = [math.ceil(growth * space.extents[name]) for name in names]
    return [
        dict.fromkeys(names, least),
        {**_alternating(names, sixteen, thirty_two), **several(space)},
        _alternating(names, thirty_two, sixteen),
        _alternating(names, sixteen + 5, thirty_two + 13),
        dict(zip(names, larger, strict=True)),
    ]


def several(space: Space) -> dict[str, int]:
    """Return a batch of three rows or more, and more than the example has, where it may vary."""
    return {name: max(3, space.extents[name] + 1) for name in sorted(space.batches)}


def _alternating(names: Sequence[str], first: int, second: int) -> dict[str, int]:
    return {name: second if i % 2 else first for i, name in enumerate(names)}


def unverified(space: Space, verified: Iterable[Extents]) -> list[str]:
    """Return the dynamic axes that have had the example's extent alone."""
    seen: dict[str, set[int]] = {name: {extent} for name, extent in space.extents.items()}
    for extents in verified:
        for name, extent in extents.items():
            seen[name].add(extent)
    return [name for name, found in seen.items() if len(found) < 2]
