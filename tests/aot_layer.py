"""The ahead-of-time plugin inside TensorRT's own Python layer, without TensorRT: a child process.

The dispatch runtime's package holds that layer and the registry, and lacks the builder. Here it is
imported as ``tensorrt``, with the names of formats that only the builder's package has, and with
extents that are Python numbers in place of the builder's expressions.

Usage: aot_layer.py CASES [LIBRARY]. CASES is a JSON list of ``[shape, axis]``; the library of the
native plugin is loaded first. Prints a list of what TensorRT would do with each case: the output's
types and shape, and for each pair of type and format that it may choose the launch: kernel, grid
and block, numbers, bytes of shared memory, length of the PTX.
"""

from __future__ import annotations

import enum
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import tensorrt_dispatch_bindings as dispatch


class Format(enum.IntEnum):
    """As in TensorRT's ``TensorFormat``."""

    LINEAR, CHW2, HWC8, CHW4, CHW16, CHW32, DHWC8, CDHW32, HWC, DLA_LINEAR, DLA_HWC4 = range(11)
    HWC16, DHWC = 11, 12


class Extent:
    """A dimension of known size, in place of the builder's expression."""

    def __init__(self, value: int) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return self.value


RULES = {
    "SUM": lambda a, b: a + b,
    "PROD": lambda a, b: a * b,
    "MAX": max,
    "CEIL_DIV": lambda a, b: -(-a // b),
}


class Extents:
    """In place of the builder of expressions."""

    def constant(self, value: int) -> Extent:
        return Extent(value)

    def operation(self, operation: Any, a: Extent, b: Extent) -> Extent:
        return Extent(RULES[operation.name](a.value, b.value))


def install() -> ModuleType:
    """Make the dispatch runtime importable as TensorRT, with what it lacks."""
    module = ModuleType("tensorrt")
    module.__dict__.update({k: v for k, v in vars(dispatch).items() if k != "__name__"})
    module.__dict__.update(TensorFormat=Format, ITensor=type("ITensor", (), {}))
    module.__dict__.update(IDimensionExpr=Extent, DimsExprs=lambda length: [None] * length)
    module.__dict__.update(ISymExpr=type("ISymExpr", (), {}))
    module.__dict__.update(
        PluginTensorDesc=SimpleNamespace, DynamicPluginTensorDesc=SimpleNamespace
    )
    sys.modules["tensorrt"] = module
    return module


def described(shape: list[int], dtype: Any, layout: Format) -> Any:
    """Return a tensor's descriptor as TensorRT passes it to the plugin."""
    desc = SimpleNamespace(dims=dispatch.Dims(shape), type=dtype, format=layout, scale=1.0)
    return SimpleNamespace(desc=desc)


def launches(plugin: Any, module: Any, shape: list[int], wide: list[int]) -> list[Any]:
    """Return type, format, kernel, grid, block and numbers of each pair that the plugin offers."""
    x, y = (described(s, module.DataType.FLOAT, Format.LINEAR) for s in (shape, wide))
    pairs = plugin.get_supported_format_combinations([x, y], 1)
    found = []
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert (first.type, first.format) == (second.type, second.format)
        tensors = [described(s, first.type, first.format) for s in (shape, wide)]
        grid, numbers = SimpleNamespace(), Numbers()
        plugin.set_tactic(0)
        plugin.get_launch_params(None, tensors, 1, grid, numbers, Extents())
        entry, ptx = plugin.get_kernel([tensors[0].desc], [tensors[1].desc])
        sizes = [
            getattr(grid, f"{what}_{i}").expr.value for what in ("grid", "block") for i in "xyz"
        ]
        row = [first.type.name, first.format.name, entry, sizes, numbers.values()]
        found.append([*row, grid.shared_mem.expr.value, len(ptx)])
    return found


class Numbers(dict):  # type: ignore[type-arg]
    """In place of what takes a kernel's extra numbers."""

    nbSymExprs = 0

    def values(self) -> list[int]:  # type: ignore[override]
        assert sorted(self) == list(range(self.nbSymExprs))
        assert {self[i].dtype.name for i in self} == {"INT32"}
        return [self[i].expr.value for i in range(self.nbSymExprs)]


def main() -> None:
    """Register the plugin and ask it."""
    module = install()
    from crelu_deploy import plugin_aot

    for library in sys.argv[2:]:
        assert module.get_plugin_registry().load_library(library) is not None
    plugin_aot.register()
    plugin_aot.register()  # nothing happens
    creator = module.get_plugin_registry().get_creator("CReLU", "1", "crelu_deploy")
    request = module.QuickPluginCreationRequest.STRICT_AOT
    answers = []
    for shape, axis in json.loads(sys.argv[1]):
        number = np.array([axis], np.int32)
        field = module.PluginField("axis", number, module.PluginFieldType.INT32)
        fields = module.PluginFieldCollection([field])
        phase = module.TensorRTPhase.BUILD
        plugin = creator.create_plugin("CReLU", "crelu_deploy", fields, phase, request)
        types = plugin.get_output_data_types([module.DataType.HALF], [len(shape)])
        (wide,) = plugin.get_output_shapes([[Extent(e) for e in shape]], [], Extents())
        wide = [extent.value for extent in wide]
        answers.append([[t.name for t in types], wide, launches(plugin, module, shape, wide)])
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
