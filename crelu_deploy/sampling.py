"""The inputs that an export records: the user's or made ones, and what is searched beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crelu_deploy.coverage import Coverage
from crelu_deploy.exciting import Program, excite
from crelu_deploy.preprocessing import Preprocessing
from crelu_deploy.runner import TensorSpec
from crelu_deploy.samples import Array, Arrays, Sample, read_inputs, wrapped
from crelu_deploy.shapes import Input
from crelu_deploy.stimuli import GAINS, is_picture, made_inputs, prepared

Shapes = Sequence[tuple[int, ...]]

SEVERAL = 8
"""Calls of the user's that inputs of other shapes are made of."""

MEASURED = 16
"""Samples of the user's on which is counted what fires."""


@dataclass(frozen=True)
class Maker:
    """Makes the inputs of one network.

    Attributes:
        wanted: How many random calls, or the user's file.
        inputs: The network's inputs and their example shapes.
        how: How it reads pixels, where that is known.
        seed: Of everything random.
    """

    wanted: int | str | os.PathLike[str]
    inputs: tuple[Input, ...]
    how: Preprocessing | None
    seed: int
    _known: dict[str, Array] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def example(self) -> Shapes:
        """The example shapes."""
        return [one.shape for one in self.inputs]

    def made(self, specs: Sequence[TensorSpec], shapes: Shapes, number: int = 0) -> Arrays:
        """Return a call of these shapes; another one for each number."""
        named = {spec.name: shape for spec, shape in zip(specs, shapes, strict=True)}
        return made_inputs(specs, named, self.seed + number * (number + 1), self.how)

    def draw(self, specs: Sequence[TensorSpec], shapes: Shapes) -> Arrays:
        """Return a call of other shapes than the example's: of the user's values, if any."""
        return self.another(specs, shapes, 1)

    def another(self, specs: Sequence[TensorSpec], shapes: Shapes, number: int) -> Arrays:
        """Return a call of these shapes; another one for each number, from 1 on.

        Noise would say nothing of a network that is calibrated on real values.
        """
        if isinstance(self.wanted, int):
            return self.made(specs, shapes, number)
        known = self._values(specs)
        return {
            spec.name: wrapped(np.roll(known[spec.name], 1 - number, 0), shape)
            for spec, shape in zip(specs, shapes, strict=True)
        }

    def _values(self, specs: Sequence[TensorSpec]) -> Arrays:
        """Return the values of each input in the user's file, which is read once for all shapes."""
        if not self._known:
            calls = self.calls(specs, 0)[:SEVERAL]
            self._known.update({s.name: np.concatenate([c[s.name] for c in calls]) for s in specs})
        return self._known

    def calls(self, specs: Sequence[TensorSpec], there: int) -> list[Arrays]:
        """Return the user's inputs, or random ones of the example's shape.

        Samples that are there already count among the random ones that were asked for.

        Raises:
            UnsupportedModel: The user's file cannot be read or does not fit.
        """
        if isinstance(self.wanted, int):
            number = max(1, self.wanted - there)
            return [self.made(specs, self.example, i) for i in (0, *range(2, number + 1))]
        batch = self.inputs[0].shape[0] if self.inputs[0].shape else 1
        return list(read_inputs(Path(self.wanted), tuple(specs), batch))

    def check(self, specs: Sequence[TensorSpec]) -> None:
        """Read the user's file once, before the network is exported for a long time.

        Raises:
            UnsupportedModel: The user's file cannot be read or does not fit.
        """
        if isinstance(self.wanted, int):
            return
        loose = [
            replace(
                spec,
                shape=tuple(
                    "any" if axis in one.dynamic or (axis == 0 and one.batch) else extent
                    for axis, extent in enumerate(one.shape)
                ),
            )
            for spec, one in zip(specs, self.inputs, strict=True)
        ]
        self.calls(loose, 0)

    def search(
        self,
        program: Program | None,
        specs: Sequence[TensorSpec],
        own: Sequence[Sample],
        others: Sequence[Sample],
        accept: Callable[[Arrays], bool],
    ) -> Coverage:
        """Search inputs that make what is silent on the samples fire; return what fires then.

        Args:
            program: The network; nothing is searched without.
            specs: Its inputs.
            own: Samples of the example's shapes.
            others: Samples of other extents, the first of which has several rows.
            accept: Takes a call that was found; tells whether its outputs can be compared.
        """
        if program is None or not program.sites:
            return Coverage()
        samples = [*own[:MEASURED], *others[:1]] if program.batched else [*own[:MEASURED]]
        if program.batched and isinstance(self.wanted, int):
            samples = samples[-1:]
        shapes = [samples[-1].inputs[spec.name].shape for spec in specs]
        starts = [self.another(specs, shapes, number) for number in (3, 4, 5)]
        first = specs[0]
        limits = self._limits(shapes[0], np.dtype(first.dtype))
        if limits is None and isinstance(self.wanted, int) and np.dtype(first.dtype).kind == "f":
            for gain, start in zip(GAINS, starts, strict=True):
                np.multiply(start[first.name], gain, out=start[first.name])
        return excite(program, [sample.inputs for sample in samples], starts, limits, accept)

    def _limits(
        self, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return what black and white pixels become, where the input is a picture."""
        if self.how is None or not is_picture(shape, self.how):
            return None
        black, white = (
            prepared(np.full((1, shape[1], 1, 1), pixel, np.float32), self.how).astype(dtype)
            for pixel in (0, 255)
        )
        ends = (np.minimum(black, white), np.maximum(black, white))
        return torch.from_numpy(ends[0]), torch.from_numpy(ends[1])
