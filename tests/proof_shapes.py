"""Networks that declare few of their shapes."""

from __future__ import annotations

import onnx_ir as ir
import test_lowerings
from graphs import Case, model


def opened(canonical: ir.Model) -> ir.Model:
    """Return a model whose outputs are declared with their rank alone."""
    for value in canonical.graph.outputs:
        value.shape = ir.Shape([None] * len(value.shape or ()))
    return canonical


IN_FUNCTION = {
    "pooled": (
        "[site] s = crelu_deploy.CReLU<axis=1>(x) p = MaxPool<kernel_shape = [2, 2]>(s)",
        (5, 8, 1, 1),
        "[conv] y = Conv(p, k)",
    ),
    "scaled": (
        "p = ReduceMax<axes = [1]>(x) a = Reciprocal(p) [conv] q = Conv(a, k) z = Neg(q)",
        (5, 1, 1, 1),
        "[site] s = crelu_deploy.CReLU<axis=1>(z) y = Concat<axis=1>(s, q)",
    ),
}


def in_function(text: str, weight: tuple[int, ...], rest: str) -> ir.Model:
    """Return a model of a function with a site, whose shapes only its call tells."""
    case = Case(text, (2, 4, 7, 9), {"k": weight})
    made = test_lowerings.with_function(model(case, rest, infer=False))
    for function in made.functions.values():
        function.inputs[0].shape = None
    return made
