"""Which values of a lowered model mean the same as in the unlowered one, and whose work they are.

Lowering keeps the names of values, but not every value: folding doubles the channels between a
producer and its site, and ``complement`` has another tensor up to the consumers that it rewrites.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from crelu_deploy.lowerings import fold
from crelu_deploy.lowerings.complement import THROUGH
from crelu_deploy.lowerings.consumers import READERS
from crelu_deploy.lowerings.sitenode import SiteNode, site_nodes
from crelu_deploy.lowerings.values import is_onnx
from crelu_deploy.writing import save_model

IN, BEHIND, BEFORE, WITHOUT = "in", "behind", "before", "without"
"""Where a value is: in a site's lowered form, behind a site, before the first; or there is none."""


def observable(model: ir.Model) -> dict[str, ir.Value]:
    """Return the tensors that nodes of the main graph compute, by name, in topological order."""
    return {
        str(value.name): value
        for node in model.graph
        for value in node.outputs
        if value.name and isinstance(value.type, ir.TensorType | None)
    }


def consumed(model: ir.Model) -> dict[str, ir.Value]:
    """Return every site's output, and what the layers compute that are the first behind it."""
    sites = site_nodes(model).values()
    found = [v for site in sites for v in (site.y, *_down(site.y, _of_layer))]
    computed = observable(model)
    return {str(v.name): v for v in found if v.name in computed}


def _of_layer(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and is_onnx(node, *READERS)


def _down(value: ir.Value, stop: Callable[[ir.Value], bool]) -> Iterator[ir.Value]:
    """Yield the first value to stop at on every way down from one."""
    waiting, seen = [value], {value}
    for current in waiting:
        for node in current.consumers():
            for new in node.outputs:
                if new in seen:
                    continue
                seen.add(new)
                if stop(new):
                    yield new
                else:
                    waiting.append(new)


def expose(model: ir.Model, names: Iterable[str], path: Path, *, alone: bool = False) -> None:
    """Write a copy of a model with more outputs, or with these alone and what they need."""
    copy = model.clone()
    values = observable(copy)
    if alone:
        copy.graph.outputs.clear()
    for name in names:
        if not values[name].is_graph_output():
            copy.graph.outputs.append(values[name])
    if alone:
        common.RemoveUnusedNodesPass()(copy)
    save_model(copy, path)


@dataclass
class Correspondence:
    """An unlowered model and a lowered one.

    Attributes:
        original: The unlowered one.
        lowered: The lowered one.
        lowerings: Site -> the lowering it has.
        names: The values that both have with the same meaning, in topological order; those in
            ``folded`` only where their shapes are equal.
        folded: The values between a producer and the site that is folded into it -> the site.
    """

    original: ir.Model
    lowered: ir.Model
    lowerings: Mapping[str, str]
    names: list[str] = field(init=False)
    folded: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._sites = site_nodes(self.original)
        self._values = observable(self.original)
        self._of_node = {site.node: name for name, site in self._sites.items()}
        plans = fold.plans(self._sites)
        kept = {
            name: plan
            for name, plan in plans.items()
            if isinstance(plan, fold.Plan) and self.lowerings.get(name) == "fold"
        }
        self.folded = {
            str(link.value.name): name for name, plan in kept.items() for link in plan.chain.links
        }
        other = {str(p.site.y.name) for p in kept.values() if p.interleaving is not None}
        for name, site in self._sites.items():
            if self.lowerings.get(name) == "complement":
                other |= _complemented(site)
        there = observable(self.lowered)
        self.names = [name for name in self._values if name in there and name not in other]

    @property
    def sites(self) -> Collection[str]:
        """The names of the sites of the unlowered network."""
        return self._sites.keys()

    def checkpoints(self, site: str, compared: Collection[str]) -> Iterator[str]:
        """Yield the site's output or, where that was not compared, the nearest values behind it."""
        y = self._sites[site].y
        here = y.name in compared
        nearest = [y] if here else _down(y, lambda value: value.name in compared)
        yield from (str(value.name) for value in nearest)

    def behind(self, site: str) -> tuple[str, ...]:
        """Return the values that tell of the site's work and of its consumers'.

        On every way down the first that both models have of what a layer computes, a site, or the
        network itself; where there is none, the nearest of any kind.
        """
        y, known = self._sites[site].y, {name for name in self.names if name not in self.folded}
        wanted = known & consumed(self.original).keys()
        found = [y] if y.is_graph_output() else []
        found += _down(y, lambda v: v.name in (known if v.is_graph_output() else wanted))
        names = tuple(str(value.name) for value in found if value.name in known)
        return names or tuple(self.checkpoints(site, known))

    def blame(self, name: str, compared: Collection[str]) -> tuple[str, tuple[str, ...]]:
        """Return where the first differing value is, and the sites that this speaks of."""
        value = self._values[name]
        for where, sites in (
            (IN, self._inside(value, compared)),
            (BEHIND, self._nearest(value, upwards=True)),
            (BEFORE, self._nearest(value, upwards=False)),
        ):
            if found := tuple(dict.fromkeys(sites)):
                return where, found
        return WITHOUT, ()

    def _inside(self, value: ir.Value, compared: Collection[str]) -> Iterator[str]:
        """Yield the sites whose lowered forms lie between the compared values and this one."""
        waiting = [value]
        for current in waiting:
            node = current.producer()
            if node is None:
                continue
            if node in self._of_node:
                yield self._of_node[node]
            elif current.name in self.folded:
                yield self.folded[str(current.name)]
            waiting += [v for v in node.inputs if v and v.name not in compared and v not in waiting]

    def _nearest(self, value: ir.Value, *, upwards: bool) -> Iterator[str]:
        """Yield the first sites on every way up or down from a value."""
        waiting = [value]
        for current in waiting:
            nodes = [current.producer()] if upwards else list(current.consumers())
            for node in nodes:
                if node in self._of_node:
                    yield self._of_node[node]
                elif node is not None:
                    further = node.inputs if upwards else node.outputs
                    waiting += [v for v in further if v and v not in waiting]


def _complemented(site: SiteNode) -> set[str]:
    """Return the values that hold concat(x, relu(x)) in place of the site's output."""
    if any(is_onnx(node, "MaxPool") for node in site.y.consumers()):
        return {str(site.y.name)}  # the pools behind it have what they had
    waiting = [site.y]
    for value in waiting:
        for node in value.consumers():
            if is_onnx(node, *THROUGH):
                waiting += [v for v in node.outputs if v not in waiting]
    return {str(value.name) for value in waiting}
