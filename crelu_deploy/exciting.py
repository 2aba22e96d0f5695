"""Inputs are searched that make both halves of every channel of every site fire.

A half that never fires on any sample could be anything: no comparison of outputs would tell. The
search starts from the samples, counts what fires, and follows PyTorch's gradients upwards for what
does not. It is bound by arithmetic, not by time, so that a seed gives the same samples everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crelu_deploy.coverage import FEW, FIRES, Coverage
from crelu_deploy.samples import Arrays

STEPS, PATIENCE = 60, 12
"""Steps upwards at most, and without a new half."""

STRIDE = 0.1
"""Length of a step, over the standard deviation of the input."""

CALLS = 2
"""Calls that are kept at most."""


Bounds = tuple[Tensor, Tensor] | None
"""The least and the largest value of each element of an input."""


@dataclass(frozen=True)
class Program:
    """A captured network whose values can be read by name.

    Attributes:
        module: Its graph, with the weights of the network itself.
        sites: Site -> the name of its input's value and the axis of its channels.
        batched: Whether it takes a single row of a call.
    """

    module: torch.fx.GraphModule
    sites: Mapping[str, tuple[str, int]]
    batched: bool


class Reader(torch.fx.Interpreter):
    """Runs a program up to the last value that is wanted, keeps those, counts multiplications."""

    def __init__(self, program: Program, wanted: Collection[str]) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        self.wanted = wanted
        self.found: dict[str, Tensor] = {}
        self.cost = 0.0

    def run_node(self, n: torch.fx.Node) -> Any:
        """Run a node and keep its value if it is wanted; nothing once all are there."""
        if n.target == "_guards_fn" or len(self.found) == len(self.wanted):
            return None
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.cost += value.numel() * _products(self, n)
        if n.name in self.wanted:
            self.found[n.name] = value
        return value


def _products(reader: Reader, node: torch.fx.Node) -> float:
    """Return how many products one element of a node's result takes."""
    if node.op != "call_function":
        return 0.0
    operator = str(node.target).partition(".")[2]
    if not operator.startswith(("conv", "linear.")):
        return 1.0
    weight = reader.env[node.all_input_nodes[1]]
    return float(weight.numel() / weight.shape[0])


class _Search:
    """The state of one search."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.coverage = Coverage()
        self.spent = 0.0
        self.row = 0.0

    def affords(self, rows: int, *, gradient: bool) -> bool:
        """Whether a run of so many rows is within the budget; a gradient is two more runs."""
        cost = self.row * rows * (3 if gradient else 1)
        return self.spent + cost <= self.coverage.budget

    def peaks(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return per site the peaks of each row and half, ``(rows, 2, channels)``."""
        reader = Reader(self.program, {value for value, _ in self.program.sites.values()})
        reader.run(*inputs, enable_io_processing=False)
        self.spent += reader.cost * (3 if torch.is_grad_enabled() else 1)
        self.row = reader.cost / max(1, len(inputs[0]))
        result = {}
        for site, (value, axis) in self.program.sites.items():
            if (x := reader.found.get(value)) is None:
                continue
            x, axis = (x, axis) if axis else (x[None], 1)
            size = x.detach().double().square().mean().sqrt().clamp(min=1e-30)
            rest = [a for a in range(x.ndim) if a not in (0, axis)]
            both = [x.amax(rest), (-x).amax(rest)] if rest else [x, -x]
            result[site] = torch.stack(both, 1) / size
        return result

    def add(self, peaks: Mapping[str, Tensor]) -> int:
        """Take in the peaks of a call; return how many halves are new."""
        return sum(
            self.coverage.add(site, np.asarray(found.detach().amax(0).double()))
            for site, found in peaks.items()
        )

    def new(self, peaks: Mapping[str, Tensor]) -> int:
        """Return how many halves a call would add."""
        return sum(
            int((np.asarray(found.detach().amax(0)) > FIRES)[self.coverage.silent(site)].sum())
            for site, found in peaks.items()
        )


def tensors(call: Arrays) -> list[Tensor]:
    """Return a call's arrays as PyTorch's, in copies."""
    return [torch.from_numpy(array.copy()) for array in call.values()]


def excite(
    program: Program,
    samples: Sequence[Arrays],
    drawn: Sequence[Arrays],
    limits: Bounds,
    accept: Callable[[Arrays], bool],
) -> Coverage:
    """Search inputs that make what is silent on the samples fire; return what fires then.

    Args:
        program: The network.
        samples: Inputs by name that are there already.
        drawn: Calls to start from: the one that makes the most fire is taken first.
        limits: The least and the largest value of an element of the first input.
        accept: Takes a call that was found; tells whether its outputs can be compared.
    """
    search, found = _Search(program), 0
    with torch.no_grad():
        for sample in samples:
            search.add(search.peaks(tensors(sample)))
    rows = len(next(iter(drawn[0].values())))
    while found < CALLS and not search.coverage.complete and search.affords(rows, gradient=True):
        silent, _ = search.coverage.missing
        call, peaks = _climbed(search, _best(search, drawn), limits)
        if search.new(peaks) < max(1, FEW * silent) or not accept(call):
            break
        search.add(peaks)
        found += 1
    return search.coverage


def _best(search: _Search, calls: Sequence[Arrays]) -> Arrays:
    """Return the call whose first row makes the most fire that is silent."""
    best, most = calls[0], -1
    with torch.no_grad():
        for call in calls:
            row = {k: v[:1] for k, v in call.items()} if search.program.batched else call
            rows = len(next(iter(row.values())))
            if not search.affords(rows, gradient=False):
                break
            if (new := search.new(search.peaks(tensors(row)))) > most:
                best, most = call, new
    return best


def _climbed(search: _Search, start: Arrays, limits: Bounds) -> tuple[Arrays, Mapping[str, Tensor]]:
    """Follow the gradient of what is silent from one call; return the best on the way."""
    first, *others = tensors(start)
    spread = float(first.double().std()) if first.numel() > 1 else 0.0
    stride = STRIDE * (spread or 1.0)
    best, most, waited = first, -1, 0
    best_peaks: dict[str, Tensor] = {}
    for _ in range(STEPS):
        climbing = first.is_floating_point() and first.dtype != torch.float16
        x = first.detach().requires_grad_(climbing)
        with torch.set_grad_enabled(climbing):
            peaks = search.peaks([x, *others])
            wanted = _wanted(search, peaks)
        waited += 1
        if (new := search.new(peaks)) > most:
            best, most, waited = x.detach(), new, 0
            best_peaks = {site: found.detach() for site, found in peaks.items()}
        over = not search.affords(len(x), gradient=True)
        if not climbing or wanted is None or waited > PATIENCE or over:
            break
        (gradient,) = torch.autograd.grad(wanted, x)
        first = _moved(x.detach(), gradient, stride, limits)
    return {**start, next(iter(start)): best.numpy()}, best_peaks


def _wanted(search: _Search, peaks: Mapping[str, Tensor]) -> Tensor | None:
    """Return what is to grow: the peaks of silent halves, each in a row of its own."""
    terms = []
    for site, found in peaks.items():
        silent = torch.from_numpy(search.coverage.silent(site))
        rows = torch.arange(silent.numel()).reshape(silent.shape) % len(found)
        own = torch.nn.functional.one_hot(rows, len(found)).permute(2, 0, 1).bool()
        terms.append(found[own & silent].clamp(max=5 * FIRES).sum())
    total = sum(terms, torch.zeros(()))
    return total if total.requires_grad else None


def _moved(x: Tensor, gradient: Tensor, stride: float, limits: Bounds) -> Tensor:
    """Go a step up, as far in every row, and stay within the limits."""
    axes = list(range(1, x.ndim))
    length = gradient.square().mean(axes, keepdim=True).sqrt().clamp(min=1e-30)
    x = x + stride * gradient / length
    return x if limits is None else torch.minimum(torch.maximum(x, limits[0]), limits[1])
