"""Values of graphs that are one term must be equal: all values, and all channels of each."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from proof_drawn import run

from crelu_deploy.lowerings.sitenode import site_nodes
from crelu_deploy.proof.constants import Numbers
from crelu_deploy.proof.matching import Register
from crelu_deploy.proof.terms import Terms
from crelu_deploy.proof.views import whole
from crelu_deploy.proof.walk import Walk

NEAR = 1e-3
"""Far above what rounds, far below what another constant changes."""


def walks(models: Sequence[ir.Model]) -> list[Walk]:
    """Read the first model as the canonical one, and the others as lowered."""
    terms, numbers = Terms(), Numbers(None)
    register, found = Register(terms), list[Walk]()
    for model in models:
        names = {site.node: name for name, site in site_nodes(model).items()}
        walk = Walk(terms, numbers, register, names)
        for i, value in enumerate(model.graph.inputs):
            walk.formal(value, i)
        walk.graph(model.graph)
        if terms.frontier is None:
            terms.freeze()
        found.append(walk)
    return found


Arrays = Mapping[str, np.ndarray]


def all_values(model: ir.Model, feeds: Arrays) -> Arrays:
    """Return what ONNX Runtime computes for every value of a model, by name."""
    proto = ir.to_proto(model)
    ends = {end.name for end in proto.graph.output}
    found = [v for node in model.graph for v in node.outputs if v.name and v.name not in ends]
    proto.graph.output.extend(ir.serde.serialize_value(value) for value in found)
    return dict(zip([end.name for end in proto.graph.output], run(proto, feeds), strict=True))


Piece = tuple[Hashable, np.ndarray, float]
"""A term, what it is, and how large the numbers were that it was computed from."""


def pieces(walk: Walk, value: ir.Value, array: np.ndarray) -> Iterator[Piece]:
    """Yield the terms of a value and of each of its channels."""
    term, size = walk.read(value), float(np.abs(array).max(initial=1))
    single = whole(walk.terms, term)
    shape = walk.terms.lead(single).shape if single.scale[0] == 0 else ()
    yield (single.key(), shape), array, size
    extents = [e for e in walk.terms.extents(term) if e is not None]
    if term.axis is None or term.axis >= 0 or len(extents) < len(term):
        return
    assert sum(extents) == array.shape[term.axis], f"{value.name}: the channels' extents"
    for i, part in enumerate(np.split(array, np.cumsum(extents)[:-1], axis=term.axis)):
        scale, shift = float(term.scale[i]), float(term.shift[i])
        if scale == 0:
            assert np.abs(part - shift).max() <= NEAR * size, f"{value.name}: a constant"
        else:
            larger = max(size, abs(shift)) / min(1, abs(scale))
            yield (term.axis, int(term.atoms[i])), (part - shift) / scale, larger


def compared(graphs: Sequence[tuple[ir.Model, Arrays]]) -> int:
    """Compare all that is one term, given what every value is; return how much was."""
    known: dict[Hashable, tuple[str | None, np.ndarray, float]] = {}
    count, models = 0, [model for model, _ in graphs]
    for (model, arrays), walk in zip(graphs, walks(models), strict=True):
        for value in (v for node in model.graph for v in node.outputs):
            array = arrays.get(str(value.name))
            if array is None or array.dtype != np.float32 or not np.isfinite(array).all():
                continue
            for key, part, size in pieces(walk, value, array):
                name, first, most = known.setdefault(key, (value.name, part, size))
                assert first.shape == part.shape, f"{name} and {value.name}: the shapes"
                apart = float(np.abs(first - part).max(initial=0))
                assert apart <= NEAR * max(size, most), f"{name} and {value.name}: {apart}"
                count += first is not part
    return count
