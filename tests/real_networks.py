"""Networks that people trained outside PyTorch and ONNX, written as ONNX graphs from their tables.

Weights come in as arrays; the files they are in are no part of this repository.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]
Attribute = int | float | str | Sequence[int]
FLOAT = onnx.TensorProto.FLOAT


class Network:
    """A graph under construction: operators in order, constants by name."""

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def op(self, op_type: str, *inputs: str, name: str = "", **attributes: Attribute) -> str:
        """Add an operator and return its output, which has the operator's name."""
        name = name or f"{op_type}_{len(self._nodes)}"
        node = helper.make_node(op_type, inputs, [name], name)
        node.attribute.extend(helper.make_attribute(key, v) for key, v in attributes.items())
        self._nodes.append(node)
        return name

    def constant(self, name: str, array: Array) -> str:
        """Add a constant, once, and return its name."""
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def split(self, x: str) -> list[str]:
        """Return the two halves of x on axis 1."""
        outputs = [f"{x}_val", f"{x}_gate"]
        self._nodes.append(helper.make_node("Split", [x], outputs, f"{x}_split", axis=1))
        return outputs

    def model(self, x: Sequence[int | str], outputs: Mapping[str, int]) -> onnx.ModelProto:
        """Return the checked model: input ``x`` of this shape, outputs of these ranks."""
        graph = helper.make_graph(
            self._nodes,
            "network",
            [helper.make_tensor_value_info("x", FLOAT, x)],
            [helper.make_tensor_value_info(n, FLOAT, [None] * rank) for n, rank in outputs.items()],
            list(self._constants.values()),
        )
        imports = [helper.make_opsetid("", self._opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


class _Caffe:
    """Caffe's layers, whose blobs are ``<layer>|<index>`` with ``|`` for ``/`` in the name."""

    def __init__(self, blobs: Mapping[str, Array]) -> None:
        self._blobs = blobs
        self.net = Network(opset=13)

    def blob(self, layer: str, index: int) -> Array:
        return self._blobs[f"{layer.replace('/', '|')}|{index}"]

    def conv(self, x: str, layer: str, *, stride: int = 1, pad: int = 0) -> str:
        weight = self.net.constant(f"{layer}/weight", self.blob(layer, 0))
        bias = self.net.constant(f"{layer}/bias", self.blob(layer, 1))
        window: dict[str, Attribute] = {"strides": [stride] * 2, "pads": [pad] * 4}
        return self.net.op("Conv", x, weight, bias, name=layer, **window)

    def batch_norm(self, x: str, layer: str) -> str:
        """Caffe keeps the sums of means and variances, and by how much to divide them."""
        factor = self.blob(layer, 2)
        mean, variance = self.blob(layer, 0) / factor, self.blob(layer, 1) / factor
        one, zero = np.ones_like(mean), np.zeros_like(mean)
        arrays = {"one": one, "zero": zero, "mean": mean, "variance": variance}
        constants = [self.net.constant(f"{layer}/{key}", a) for key, a in arrays.items()]
        return self.net.op("BatchNormalization", x, *constants, name=layer, epsilon=1e-5)

    def scale(self, x: str, layer: str) -> str:
        gamma, beta = (
            self.net.constant(f"{layer}/{key}", self.blob(layer, i).reshape(-1, 1, 1))
            for i, key in enumerate(("gamma", "beta"))
        )
        return self.net.op("Add", self.net.op("Mul", x, gamma), beta, name=layer)

    def crelu(self, x: str, name: str) -> str:
        """A Power layer of scale -1, a Concat, a Scale for both halves together, a ReLU."""
        minus = self.net.constant("minus", np.float32([-1]))
        negated = self.net.op("Mul", x, minus, name=f"{name}neg")
        joint = self.net.op("Concat", x, negated, name=f"{name}concat", axis=1)
        return self.net.op("Relu", self.scale(joint, f"{name}scale"), name=f"{name}relu")

    def block(self, x: str, layer: str, names: Sequence[str], **window: int) -> str:
        """Conv, batch norm, scale and ReLU; ``names`` are what the three add to the layer's."""
        conv, norm, scale = (f"{layer}{name}" for name in names)
        x = self.conv(x, conv, **window)
        return self.net.op("Relu", self.scale(self.batch_norm(x, norm), scale))

    def inception(self, x: str, name: str) -> str:
        def block(x: str, branch: str, pad: int) -> str:
            names = ("/conv", "/bn", "/bn_scale")
            return self.block(x, f"{name}/incep/{branch}", names, pad=pad)

        pooled = self.net.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
        branches = [
            block(x, "0", 0),
            block(block(x, "1_reduce", 0), "1_0", 1),
            block(block(block(x, "2_reduce", 0), "2_0", 1), "2_1", 1),
            block(pooled, "poolproj", 0),
        ]
        return self.net.op("Concat", *branches, axis=1)

    def heads(self, maps: Mapping[str, str], kind: str) -> str:
        """Convolutions of the maps, channels last, flattened and joined."""
        flat = []
        for layer, x in maps.items():
            y = self.conv(x, f"{layer}_{kind}", pad=1)
            y = self.net.op("Transpose", y, perm=[0, 2, 3, 1])
            flat.append(self.net.op("Flatten", y, axis=1))
        return self.net.op("Concat", *flat, name=f"mbox_{kind}", axis=1)


def faceboxes_caffe(blobs: Mapping[str, Array]) -> onnx.ModelProto:
    """Return FaceBoxes as trained in Caffe, in the PVANet style: two sites with scale and shift.

    The input is (N, 3, H, W); the outputs are ``mbox_loc`` (N, 4 A) and ``mbox_conf`` (N, 2 A),
    the second before the softmax.
    """
    caffe = _Caffe(blobs)
    x = "x"
    for name, stride, pad in (("conv1", 4, 3), ("conv2", 2, 3)):
        x = caffe.batch_norm(caffe.conv(x, name, stride=stride, pad=pad), f"{name}bn")
        x = caffe.crelu(x, name)
        x = caffe.net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    for name in ("conv2_1", "conv2_2", "conv2_3"):
        x = caffe.inception(x, name)
    maps = {"inception3": x}
    for name in ("conv3", "conv4"):
        x = caffe.block(x, f"{name}_1", ("", "bn", "scale"))
        x = caffe.block(x, f"{name}_2", ("", "bn", "scale"), stride=2, pad=1)
        maps[f"{name}_2"] = x
    outputs = {caffe.heads(maps, kind): 2 for kind in ("loc", "conf")}
    return caffe.net.model(("N", 3, "H", "W"), outputs)


class _Flow:
    """Layers of a flow's coupling network, whose weights are under their place in a list."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._weights = weights
        self.net = Network(opset=17)

    def conv(self, x: str, name: str, *, pad: int) -> str:
        parts = [self.net.constant(n, self._weights[n]) for n in (f"{name}.weight", f"{name}.bias")]
        return self.net.op("Conv", x, *parts, name=name, pads=[pad] * 4)

    def celu(self, x: str, name: str) -> str:
        """The concatenated ELU: ``concat(elu(x), elu(-x))``."""
        first = self.net.op("Elu", x)
        second = self.net.op("Elu", self.net.op("Neg", x))
        return self.net.op("Concat", first, second, name=name, axis=1)

    def gated(self, x: str, name: str) -> str:
        """A residual block, gated by half of its last convolution's channels."""
        y = self.conv(self.celu(x, f"{name}.net.0"), f"{name}.net.1", pad=1)
        y = self.conv(self.celu(y, f"{name}.net.2"), f"{name}.net.3", pad=0)
        value, gate = self.net.split(y)
        gated = self.net.op("Mul", value, self.net.op("Sigmoid", gate))
        return self.net.op("Add", x, gated, name=name)

    def layer_norm(self, x: str, name: str) -> str:
        """Normalise each pixel over its channels."""
        centred = self.net.op("Sub", x, self._mean(x))
        variance = self._mean(self.net.op("Mul", centred, centred))
        epsilon = self.net.constant("epsilon", np.float32(1e-5))
        deviation = self.net.op("Sqrt", self.net.op("Add", variance, epsilon))
        gamma, beta = (
            self.net.constant(n, self._weights[n]) for n in (f"{name}.gamma", f"{name}.beta")
        )
        y = self.net.op("Mul", self.net.op("Div", centred, deviation), gamma)
        return self.net.op("Add", y, beta, name=name)

    def _mean(self, x: str) -> str:
        return self.net.op("ReduceMean", x, axes=[1], keepdims=1)


def coupling_network(weights: Mapping[str, Array]) -> onnx.ModelProto:
    """Return the network of one coupling layer of a flow on digits: seven concatenated ELUs.

    ``weights`` are those under ``flows.<K>.network.nn.`` in the checkpoint. The input is
    (N, 1, H, W), the output (N, 2, H, W).
    """
    flow = _Flow(weights)
    x = flow.conv("x", "0", pad=1)
    for i in (1, 3, 5):
        x = flow.layer_norm(flow.gated(x, f"{i}"), f"{i + 1}")
    y = flow.conv(flow.celu(x, "7"), "8", pad=1)
    return flow.net.model(("N", 1, "H", "W"), {y: 4})
