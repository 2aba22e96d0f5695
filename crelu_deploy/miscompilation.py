"""Networks that a runtime is known to have compiled to something else, as small reproducers.

A network that passes its own samples may still hold such a pattern at another shape or precision.
So the runtime is asked; its version would not tell.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from crelu_deploy import op
from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BackendUnavailable, BuildError
from crelu_deploy.op import Array
from crelu_deploy.probe import write_probe
from crelu_deploy.results import Verification
from crelu_deploy.samples import Sample

CHANNELS, EXTENT = 64, 20
"""Channels of each half, and height and width: enough for the runtime's usual kernels."""


@dataclass(frozen=True)
class Reproducer:
    """A network and what it computes.

    Attributes:
        graph: In ONNX's text format, of ``x``, float32 ``(1, 2 * CHANNELS, EXTENT, EXTENT)``, and
            of weights, to ``y``.
        weights: Name -> shape.
        reference: Computes ``y`` of ``x`` and the weights, in float64.
        source: Where it was reported.
    """

    graph: str
    weights: Mapping[str, tuple[int, ...]]
    reference: Callable[[Mapping[str, Array]], Array]
    source: str


def _convolved(x: Array, weight: Array) -> Array:
    """Return a convolution of stride 1 that keeps height and width."""
    reach = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    result: Array = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)
    return result


def _swish(x: Array) -> Array:
    result: Array = x / (1 + np.exp(-x))
    return result


def _bottleneck(v: Mapping[str, Array]) -> Array:
    first, second = np.split(_swish(_convolved(v["x"], v["wide"])), 2, 1)
    inner = _swish(_convolved(second, v["inner"]))
    added = second + _swish(_convolved(inner, v["outer"]))
    return _convolved(np.concatenate([first, second, added], 1), v["last"])


def _site(v: Mapping[str, Array]) -> Array:
    z = _convolved(v["x"], v["first"])
    y = np.maximum(np.concatenate([z, -z], 1), 0)
    added = z + np.maximum(_convolved(y, v["second"]), 0)
    return _convolved(np.concatenate([y, z, added], 1), v["third"])


_ISSUE = "https://github.com/NVIDIA/TensorRT/issues/4854"
_N = CHANNELS

REPRODUCERS: Mapping[str, Reproducer] = {
    "a residual sum that reads half of a split, which a concatenation reads too": Reproducer(
        """
        a = Conv (x, wide)
        b = Sigmoid (a)
        c = Mul (a, b)
        d, e = Split <axis = 1, num_outputs = 2> (c)
        f = Conv <pads = [1, 1, 1, 1]> (e, inner)
        g = Sigmoid (f)
        h = Mul (f, g)
        i = Conv <pads = [1, 1, 1, 1]> (h, outer)
        j = Sigmoid (i)
        k = Mul (i, j)
        l = Add (e, k)
        m = Concat <axis = 1> (d, e, l)
        y = Conv (m, last)
        """,
        {
            "wide": (2 * _N, 2 * _N, 1, 1),
            "inner": (_N, _N, 3, 3),
            "outer": (_N, _N, 3, 3),
            "last": (_N, 3 * _N, 1, 1),
        },
        _bottleneck,
        _ISSUE,
    ),
    "a residual sum that reads the input of a site, which a concatenation reads too": Reproducer(
        """
        z = Conv (x, first)
        c = crelu_deploy.CReLU <axis = 1> (z)
        a = Conv <pads = [1, 1, 1, 1]> (c, second)
        r = Relu (a)
        s = Add (z, r)
        m = Concat <axis = 1> (c, z, s)
        y = Conv (m, third)
        """,
        {
            "first": (_N, 2 * _N, 1, 1),
            "second": (_N, 2 * _N, 3, 3),
            "third": (_N, 4 * _N, 1, 1),
        },
        _site,
        _ISSUE,
    ),
}
"""What is computed wrong -> its reproducer."""


def present(judged: Callable[[Bundle], Verification]) -> tuple[str, ...]:
    """Return which of the known miscompilations a runtime has, in words.

    Args:
        judged: Builds a bundle for the runtime and compares its output with the recorded one.

    Raises:
        BackendUnavailable: The runtime does not run here.
        BuildError: It refuses a reproducer.
    """
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, one) in enumerate(REPRODUCERS.items()):
            found = judged(_written(Path(folder) / str(number), one))
            if found.comparison is None:
                raise (BackendUnavailable if found.skipped else BuildError)(found.error)
            if not found.comparison.passed:
                score = f"{found.comparison.score:.3g}"
                wrong.append(f"this runtime computes {name} wrong (score {score}): {one.source}")
    return tuple(wrong)


def _written(path: Path, one: Reproducer) -> Bundle:
    """Write the bundle of a reproducer, with weights that keep the size of what goes through."""
    generator = np.random.default_rng(0)
    shape = (1, 2 * CHANNELS, EXTENT, EXTENT)
    values = {"x": generator.standard_normal(shape, np.float32)}
    for name, extents in one.weights.items():
        weight = generator.standard_normal(extents, np.float32)
        values[name] = weight * np.float32(np.sqrt(2 / np.prod(extents[1:])))
    y = one.reference({name: x.astype(np.float64) for name, x in values.items()})
    sample = Sample({"x": values["x"]}, {"y": y.astype(np.float32)})
    return write_probe(path, _model(one, values, y.shape), sample)


def _model(one: Reproducer, values: Mapping[str, Array], result: tuple[int, ...]) -> ir.Model:
    shapes = [",".join(map(str, extents)) for extents in (values["x"].shape, result)]
    text = f"""<ir_version: 8, opset_import: ["" : 18, "{op.DOMAIN}" : {op.VERSION}]>
    reproducer (float[{shapes[0]}] x) => (float[{shapes[1]}] y) {{{one.graph}}}"""
    parsed = onnx.parser.parse_model(text)
    weights = [numpy_helper.from_array(values[name], name) for name in one.weights]
    parsed.graph.initializer.extend(weights)
    inferred = onnx.shape_inference.infer_shapes(parsed)
    model = ir.from_proto(inferred)
    function = op.function("CReLU", 18)
    model.functions[function.identifier()] = function
    return model
