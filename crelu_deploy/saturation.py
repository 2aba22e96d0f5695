"""Whether a runtime's products of 8-bit weights saturate on this processor.

Without an 8-bit dot product, kernels multiply activations (0 to 255) by weights (-128 to 127) and
add two products in 16 bits, which end at 32767. Two of 255 x 64 still fit: weights of 7 bits. The
runtime itself is asked, because it chooses the kernel, and what the operating system lists does not
hold under emulation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from crelu_deploy.bundle import Bundle
from crelu_deploy.targets import BACKENDS, INT8, Target

Array = np.ndarray[Any, Any]

WHOLE, REDUCED = 8, 7
"""Bits of a weight: all that int8 has, and those whose products never saturate."""

CHANNELS, LARGEST = 16, 255 * 127
"""Channels of the probe's convolution, and the largest product."""

_PROBE = f"""
<ir_version: 8, opset_import: ["" : 17]>
probe (float[1, {CHANNELS}, 4, 4] x) => (float[1, {CHANNELS}, 4, 4] y)
<float one = {{1}}, float wide = {{{127.0 * CHANNELS}}}, uint8 zero = {{0}}, int8 middle = {{0}}> {{
  q = QuantizeLinear(x, one, zero)
  a = DequantizeLinear(q, one, zero)
  b = DequantizeLinear(w, one, middle)
  c = Conv(a, b)
  r = QuantizeLinear(c, wide, zero)
  y = DequantizeLinear(r, wide, zero)
}}
"""


def saturates(run: Callable[[Path, Array], Array]) -> bool:
    """Let a runtime sum up the largest products there are, and say whether some are lost.

    Args:
        run: Runs the ONNX file at a path on ``x``, float32 ``(1, 16, 4, 4)``, and returns ``y``, of
            the same type and shape.
    """
    model = onnx.parser.parse_model(_PROBE)
    weight = np.full((CHANNELS, CHANNELS, 1, 1), 127, np.int8)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(model, path)
        y = run(path, np.full((1, CHANNELS, 4, 4), 255, np.float32))
    return bool(y.min() < 0.9 * LARGEST * CHANNELS)


def weight_bits(target: Target) -> int:
    """Return how many bits a weight of an int8 target may have on this processor.

    Raises:
        BackendUnavailable: Its runtime is not installed.
    """
    return REDUCED if _saturates(target) else WHOLE


def warning(bundle: Bundle, target: Target) -> str:
    """Return why a built target is less exact on this processor; empty where it is not.

    Raises:
        BackendUnavailable: Its runtime is not installed.
    """
    entry = bundle.manifest["targets"].get(str(target), {})
    whole = BACKENDS[target.backend].precision == INT8 and entry.get("weight_bits", WHOLE) == WHOLE
    if not whole or not _saturates(target):
        return ""
    made = f" on {entry['processor']}" if "processor" in entry else ""
    return (
        f"{target} was made{made} with 8-bit weights, whose products saturate on this processor; "
        f"run here: crelu build {bundle.path} -t {target}"
    )


def _saturates(target: Target) -> bool:
    """Whether 8-bit products of a target's runtime do; GPUs add them in 32 bits."""
    backend = BACKENDS[target.backend]
    return not backend.symmetric and bool(backend.implementation().saturates())
