"""What is asked of ONNX Runtime under each instruction set; it prints one line of JSON.

Usage: networks.py BUNDLE

Its block of channels; for every lowering, how far the network is from its plain graph, bit for bit
or not; and the bundle's targets, verified against the outputs that PyTorch recorded. The bundle is
written to. This runs without PyTorch, as where a processor is emulated there is none.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from crelu_deploy import load, verify
from crelu_deploy.backends.onnxruntime import block, open_session
from crelu_deploy.bundle import Bundle
from crelu_deploy.lowerings import LOWERINGS, lower
from crelu_deploy.passes import clean
from crelu_deploy.recognition import recognize
from crelu_deploy.samples import Array
from crelu_deploy.targets import Options
from crelu_deploy.writing import save_model

PLAIN, INT8 = "primitive", "ort-cpu-int8"
TARGETS = ("ort-cpu:auto", "ort-cpu:function", INT8)
BATCHES = (1, 8)  # products with one row and with several have kernels of their own

STEM = """<ir_version: 8, opset_import: ["": 17]> g (float[N,3,96,96] x) => (float[] y) {
    a = Conv<strides=[4,4], pads=[3,3,3,3]>(x, w0, b0)
    an = Neg(a) ap = Relu(a) am = Relu(an) ac = Concat<axis=1>(ap, am)
    p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(ac)
    c = Conv<strides=[2,2], pads=[2,2,2,2]>(p, w1, b1)
    cn = Neg(c) cp = Relu(c) cm = Relu(cn) cc = Concat<axis=1>(cp, cm)
    q = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(cc)
    y = Conv(q, w2, b2)
}"""
"""The first layers of FaceBoxes."""
WEIGHTS = ((24, 3, 7, 7), (64, 48, 5, 5), (32, 128, 1, 1))


def stem() -> ir.Model:
    """Return the stem with random weights that keep the size of what flows through."""
    proto, generator = onnx.parser.parse_model(STEM), np.random.default_rng(0)
    for i, shape in enumerate(WEIGHTS):
        weight = generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        bias = generator.standard_normal(shape[0]) / 4
        for name, array in ((f"w{i}", weight), (f"b{i}", bias)):
            tensor = onnx.numpy_helper.from_array(array.astype(np.float32), name)
            proto.graph.initializer.append(tensor)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    recognize(model)
    return clean(model)


def errors(model: ir.Model, inputs: Array) -> dict[str, float]:
    """Return lowering -> its largest error, relative to the largest output; 0 is bit for bit."""
    plain, found = list(outputs(lower(model, PLAIN).model, inputs)), {}
    for name in LOWERINGS:
        if name == PLAIN:
            continue
        pairs = zip(outputs(lower(model, name).model, inputs), plain, strict=True)
        # unlike max, NumPy lets no NaN pass
        found[name] = float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]))
    return found


def outputs(model: ir.Model, inputs: Array) -> Iterator[Array]:
    """Yield the outputs for every batch size, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        with open_session(path, Options(threads=1)) as session:
            for batch in BATCHES:
                yield from session({session.inputs[0].name: inputs[:batch]}).values()


def decibels(bundle: Bundle) -> float:
    """Return the signal-to-noise ratio of the int8 target, over all samples."""
    signal = noise = 0.0
    with load(bundle, INT8, threads=1) as runner:
        for sample in bundle.samples:
            actual = runner(sample.inputs)
            for name, expected in sample.outputs.items():
                signal += float(np.square(expected, dtype=np.float64).sum())
                noise += float(np.square(actual[name] - expected, dtype=np.float64).sum())
    return 10 * float(np.log10(signal / noise))


def main() -> int:
    """Print what was found."""
    bundle = Bundle.open(Path(sys.argv[1]))
    images = np.concatenate([next(iter(s.inputs.values())) for s in bundle.samples])[: BATCHES[-1]]
    noise = np.random.default_rng(1).standard_normal((BATCHES[-1], 3, 96, 96), np.float32)
    verified = {str(v.target): v.passed for v in verify(bundle, TARGETS, Options(threads=1))}
    found = {
        "block": block(),
        "errors": {"digits": errors(bundle.model, images), "stem": errors(stem(), noise)},
        "verified": verified,
        "decibels": decibels(bundle),
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
