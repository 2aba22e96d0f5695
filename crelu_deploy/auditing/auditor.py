"""Faults are planted into copies of a lowered graph, and its verification looks at each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir

from crelu_deploy.accuracy import compare_outputs
from crelu_deploy.auditing.editing import Graph
from crelu_deploy.auditing.faults import KINDS
from crelu_deploy.runner import TensorSpec
from crelu_deploy.samples import Arrays, read_inputs
from crelu_deploy.targets import Progress, silent

ROWS = 4
"""Rows of real inputs in a call where the batch may vary, so that a wrong row is visible."""

TRIES = 20
"""How often a kind may find no place, before it is left out."""

INVISIBLE = 2
"""How many faults that are not visible may be planted for one that is asked for."""


@dataclass(frozen=True)
class Examined:
    """What a verification said of a graph with a fault.

    Attributes:
        proof: What the proof said; empty where it did not notice.
        comparison: What the comparison of outputs said; empty where it did not notice.
        visible: Whether the fault changes the outputs beyond tolerance: for the inputs that were
            given, or else for those that the verification compares on.
    """

    proof: str
    comparison: str
    visible: bool

    @property
    def caught(self) -> bool:
        """Whether the verification as a whole notices."""
        return bool(self.proof or self.comparison)


@dataclass(frozen=True)
class Planted:
    """One fault and who caught it.

    Attributes:
        kind: A key of ``faults.KINDS``.
        where: What was changed.
        examined: What the verification said.
    """

    kind: str
    where: str
    examined: Examined


class Subject(Protocol):
    """A lowered graph that passes its verification."""

    @property
    def name(self) -> str:
        """Return what it is called."""

    @property
    def provable(self) -> bool:
        """Whether the graph can be proved at all."""

    def model(self) -> ir.Model:
        """Return the graph, anew."""

    def examined(self, model: ir.Model) -> Examined:
        """Verify a changed graph."""


@dataclass(frozen=True)
class Audit:
    """What became of the faults that were planted into a graph.

    Attributes:
        name: Of the graph.
        planted: The faults, in the order they were planted.
        provable: Whether the graph can be proved at all.
    """

    name: str
    planted: tuple[Planted, ...]
    provable: bool

    @property
    def visible(self) -> tuple[Planted, ...]:
        """The faults that matter."""
        return tuple(one for one in self.planted if one.examined.visible)

    @property
    def missed(self) -> tuple[Planted, ...]:
        """The visible faults that nothing caught."""
        return tuple(one for one in self.visible if not one.examined.caught)


def plant(subject: Subject, *, faults: int, seed: int, progress: Progress = silent) -> Audit:
    """Plant faults of every kind, one in each copy, and verify the copies.

    Args:
        subject: What they are planted into.
        faults: How many visible ones to plant; the kinds take turns.
        seed: Of what chooses the places.
        progress: Told what is being done.
    """
    found, visible = list[Planted](), 0
    for kind, model, where in _faults(subject, np.random.default_rng(seed)):
        progress(f"visible fault {visible + 1} of {faults}: {kind}")
        found.append(Planted(kind, where, subject.examined(model)))
        visible += found[-1].examined.visible
        if visible == faults or len(found) - visible == INVISIBLE * faults:
            break
    return Audit(subject.name, tuple(found), subject.provable)


def _faults(subject: Subject, random: np.random.Generator) -> Iterator[tuple[str, ir.Model, str]]:
    """Yield faults, the kinds in turn; a kind that finds no place is left out."""
    tries = dict.fromkeys(KINDS, 0)
    for kind in cycle(KINDS):
        if all(tried > TRIES for tried in tries.values()):
            return
        if tries[kind] > TRIES:
            continue
        model = subject.model()
        where = KINDS[kind](Graph(model, random))
        if where is None:
            tries[kind] += 1
        else:
            yield kind, model, where


def real_inputs(path: Path, specs: tuple[TensorSpec, ...]) -> tuple[Arrays, ...]:
    """Return the calls of an NPZ file by which faults are visible or not.

    Raises:
        UnsupportedModel: It cannot be read, or its arrays are not the network's inputs.
    """
    batch = specs[0].shape[0]
    if isinstance(batch, int):
        return read_inputs(path, specs, batch)
    rows = read_inputs(path, specs, 1)
    return tuple(
        {name: np.concatenate([row[name] for row in group]) for name in group[0]}
        for group in (rows[i : i + ROWS] for i in range(0, len(rows), ROWS))
    )


def differs(outputs: Sequence[Arrays], clean: Sequence[Arrays]) -> bool:
    """Tell whether outputs differ beyond the tolerance of their types."""
    pairs = zip(outputs, clean, strict=True)
    return not all(compare_outputs(now, before).passed for now, before in pairs)
