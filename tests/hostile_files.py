"""Files that nobody means well with: ONNX models, plans, manifests and samples."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ESCAPES = "a\n\x1b[2J\x1b]0;title\x07[red]<script>&|`"
"""A name that moves a terminal's cursor, ends a line, and is markup in Rich, HTML and Markdown."""

VECTOR = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
IMAGE = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 3, 3])


def output(name: str = "y") -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    domain, _, op_type = op.rpartition(".")
    return helper.make_node(op_type, inputs, outputs, domain=domain, **attributes)


def crelu(x: str, y: str, **attributes: Any) -> onnx.NodeProto:
    return node("crelu_deploy.CReLU", [x], [y], **attributes)


def proto(
    *nodes: onnx.NodeProto,
    x: onnx.ValueInfoProto = VECTOR,
    y: str = "y",
    weights: Sequence[onnx.TensorProto] = (),
    opsets: dict[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> bytes:
    """Return a model of these nodes."""
    graph = helper.make_graph(nodes, "g", [x], [output(y)], weights)
    imports = {"": 17, "crelu_deploy": 1, "f": 1} if opsets is None else opsets
    ids = [helper.make_opsetid(domain, version) for domain, version in imports.items()]
    model = helper.make_model(graph, opset_imports=ids, functions=functions, ir_version=8)
    return model.SerializeToString()


def function(name: str, *calls: str) -> onnx.FunctionProto:
    """Return a function that calls others one after the other, or Relu."""
    nodes = [
        node(call, [f"t{i}" if i else "x"], [f"t{i + 1}" if i + 1 < len(calls) else "y"])
        for i, call in enumerate(calls)
    ]
    ids = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, ["x"], ["y"], nodes, ids)


def calling(*functions: onnx.FunctionProto) -> bytes:
    """Return a model that calls the first of these functions."""
    return proto(node(f"f.{functions[0].name}", ["x"], ["y"]), functions=functions)


def doubling(levels: int) -> list[onnx.FunctionProto]:
    """Return functions of which each calls the next one twice."""
    each = [function(f"F{i}", f"f.F{i + 1}", f"f.F{i + 1}") for i in range(levels)]
    return [*each, function(f"F{levels}", "Relu")]


def chain(length: int) -> list[onnx.FunctionProto]:
    """Return functions of which each calls the next one."""
    each = [function(f"F{i}", f"f.F{i + 1}") for i in range(length)]
    return [*each, function(f"F{length}", "Relu")]


def convolution(weight: onnx.TensorProto, *more: onnx.TensorProto) -> bytes:
    """Return a convolution by a weight with a site behind it."""
    nodes = node("Conv", ["x", "w"], ["z"]), crelu("z", "y", axis=1)
    return proto(*nodes, x=IMAGE, weights=[weight, *more])


def tensor(dims: Sequence[int], data: bytes, kind: int = TensorProto.FLOAT) -> onnx.TensorProto:
    """Return a weight whose dimensions, type and data need not agree."""
    return TensorProto(name="w", dims=dims, data_type=kind, raw_data=data)


def external(location: str, **places: int) -> onnx.TensorProto:
    """Return a weight of 32 bytes in another file."""
    weight = TensorProto(name="w", dims=[4, 2, 1, 1], data_type=TensorProto.FLOAT)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **places}.items():
        weight.external_data.add(key=key, value=str(value))
    return weight


def nested(depth: int, op: str = "If") -> bytes:
    """Return conditions or loops inside each other, written as bytes: protobuf's API refuses."""
    level = helper.make_graph([node("Neg", ["x"], ["o"])], "g", [], [output("o")])
    content = level.SerializeToString()
    name = {"If": "then_branch", "Loop": "body"}[op]
    for _ in range(depth):
        attribute = _field(1, name.encode()) + _field(6, content) + bytes([0xA0, 1, 5])
        inner = _field(1, b"c") + _field(2, b"o") + _field(4, op.encode()) + _field(5, attribute)
        content = _field(1, inner) + _field(2, b"g") + _field(12, output("o").SerializeToString())
    graph = content + _field(11, VECTOR.SerializeToString())
    return bytes([8, 8]) + _field(7, graph) + _field(8, bytes([16, 17]))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def spelled(name: str, count: int = 1) -> bytes:
    """Return sites spelled out one behind the other, each averaged back, under such names."""
    nodes, x = [], name
    for i in range(count):
        n, p, q, d, y = (f"{name}{k}{i}" for k in "npqdy")
        nodes += [node("Neg", [x], [n]), node("Relu", [x], [p]), node("Relu", [n], [q])]
        nodes += [
            node("Concat", [p, q], [d], axis=1, name=f"{name}{i}"),
            node("Slice", [d, "start", "end", "axis"], [y]),
        ]
        x = y
    weights = [
        numpy_helper.from_array(np.array([value]), key)
        for key, value in (("start", 0), ("end", 2), ("axis", 1))
    ]
    image = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2])
    return proto(*nodes, x=image, y=x, weights=weights)


def long_chain(length: int) -> bytes:
    """Return as many Relus one behind the other."""
    names = ["x", *(f"a{i}" for i in range(length - 1)), "y"]
    return proto(*(node("Relu", [a], [b]) for a, b in itertools.pairwise(names)))


EIGHT = np.ones((4, 2, 1, 1), np.float32)


def whole(values: np.ndarray = EIGHT) -> onnx.TensorProto:
    return numpy_helper.from_array(values, "w")


CYCLE = "nodes read each other's outputs in a cycle"

# name -> its bytes, and what the one line of the refusal says of ``inspect``, or "" if it is read
MODELS: dict[str, tuple[Callable[[], bytes], str]] = {
    "own-function": (lambda: calling(function("A", "f.A")), "calls itself: f:A -> f:A"),
    "mutual": (
        lambda: calling(function("A", "f.B"), function("B", "f.A")),
        r"calls itself: f:(A -> f:B -> f:A|B -> f:A -> f:B)",
    ),
    "doubling": (lambda: calling(*doubling(40)), "unfold to [0-9]{13} nodes, 41 calls deep"),
    "call-chain": (lambda: calling(*chain(5000)), "unfold to 5001 nodes, 5001 calls deep"),
    "deep-if": (lambda: nested(1000), "not a readable ONNX model: .*(MaxDepth|recursion|pars)"),
    "deep-loop": (lambda: nested(1000, "Loop"), "not a readable ONNX model"),
    "cycle": (lambda: proto(node("Add", ["x", "a"], ["y"]), node("Neg", ["y"], ["a"])), CYCLE),
    "reads-itself": (lambda: proto(node("Add", ["x", "y"], ["y"])), CYCLE),
    "names-twice": (
        lambda: proto(node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])),
        "not a readable ONNX model",
    ),
    "undefined-input": (
        lambda: proto(node("Relu", ["nowhere"], ["y"])),
        "'nowhere' is read, but no node computes it",
    ),
    "no-nodes": (lambda: proto(), "'y' is read, but no node computes it"),
    "input-is-output": (lambda: proto(y="x"), ""),
    "unknown-domain": (lambda: proto(node("d.Op", ["x"], ["y"])), ""),
    "opset-1": (lambda: proto(node("Relu", ["x"], ["y"]), opsets={"": 1}), ""),
    "opset-99": (lambda: proto(node("Relu", ["x"], ["y"]), opsets={"": 99}), ""),
    "opset-negative": (lambda: proto(node("Relu", ["x"], ["y"]), opsets={"": -5}), ""),
    "opset-missing": (lambda: proto(node("Relu", ["x"], ["y"]), opsets={}), ""),
    "axis-outside": (lambda: proto(crelu("x", "y", axis=9)), "axis 9 is outside rank 1"),
    "axis-negative": (lambda: proto(crelu("x", "y", axis=-9)), "axis -9 is outside rank 1"),
    "axis-huge": (lambda: proto(crelu("x", "y", axis=2**62)), "is outside rank 1"),
    "axis-missing": (lambda: proto(crelu("x", "y")), "its axis must be an integer"),
    "axis-float": (lambda: proto(crelu("x", "y", axis=0.5)), "its axis must be an integer"),
    "axis-text": (lambda: proto(crelu("x", "y", axis="0")), "its axis must be an integer"),
    "no-input": (
        lambda: proto(node("crelu_deploy.CReLU", [], ["y"], axis=0)),
        "CReLU node '' has 0 inputs and 1 outputs, expected 1 and 1",
    ),
    "empty-input": (lambda: proto(crelu("", "y", axis=0)), "has 0 inputs and 1 outputs"),
    "three-inputs": (
        lambda: proto(node("crelu_deploy.CReLU", ["x"] * 3, ["y"], axis=0)),
        "has 3 inputs and 1 outputs",
    ),
    "no-output": (
        lambda: proto(
            node("crelu_deploy.CReLU", ["x"], [], axis=0, name="s"), node("Neg", ["x"], ["y"])
        ),
        "CReLU node 's' has 1 inputs and 0 outputs",
    ),
    "two-outputs": (
        lambda: proto(node("crelu_deploy.CReLU", ["x"], ["y", "z"], axis=0)),
        "has 1 inputs and 2 outputs",
    ),
    "affine-without-shift": (
        lambda: proto(node("crelu_deploy.AffineCReLU", ["x", "x"], ["y"], axis=0)),
        "has 2 inputs and 1 outputs, expected 3 and 1",
    ),
    "concat-axis-text": (
        lambda: proto(
            node("Relu", ["x"], ["p"]),
            node("Neg", ["x"], ["n"]),
            node("Relu", ["n"], ["q"]),
            node("Concat", ["p", "q"], ["y"], axis="one"),
        ),
        "not valid ONNX: ",
    ),
    "huge-dims": (
        lambda: convolution(tensor([1 << 40, 1 << 20], b"1234")),
        "weight 'w' does not hold what its shape 1099511627776x1048576 says",
    ),
    "overflowing-dims": (
        lambda: convolution(tensor([1 << 62, 1 << 62, 4], b"")),
        "weight 'w' does not hold what its shape",
    ),
    "negative-dims": (
        lambda: convolution(tensor([-4, -2, 1, 1], bytes(32))),
        "weight 'w' does not hold what its shape -4x-2x1x1 says",
    ),
    "short-data": (lambda: convolution(tensor([4, 2, 1, 1], bytes(28))), "weight 'w' does not"),
    "long-data": (lambda: convolution(tensor([4, 2, 1, 1], bytes(36))), "weight 'w' does not"),
    "odd-data": (lambda: convolution(tensor([4, 2, 1, 1], bytes(7))), "weight 'w' does not"),
    "no-data": (lambda: convolution(tensor([4, 2, 1, 1], b"")), "weight 'w' does not"),
    "unknown-type": (lambda: convolution(tensor([4, 2], bytes(32), 77)), "not a readable ONNX"),
    "weight-twice": (lambda: convolution(whole(), whole(EIGHT[:2])), "is there twice"),
    "nan": (lambda: convolution(whole(EIGHT * np.nan)), ""),
    "inf": (lambda: convolution(whole(EIGHT * np.inf)), ""),
    "escapes": (lambda: spelled(ESCAPES), ""),
    "huge-names": (lambda: spelled("x" * 100_000), "a name of 10000[0-9] characters"),
    "nodes-10000": (lambda: long_chain(10_000), ""),
    "sites-200": (lambda: spelled("s", 200), ""),
    "absolute": (lambda: convolution(external("/etc/passwd")), "kept in '/etc/passwd', outside"),
    "parent": (lambda: convolution(external("../secret")), "kept in '../secret', outside the f"),
    "link": (lambda: convolution(external("link")), "kept in 'link', outside the folder"),
    "external-short": (
        lambda: convolution(external("data", offset=10)),
        "of 32 bytes is kept in bytes 10 to 42 of .*data, which has 32",
    ),
    "external-offset": (lambda: convolution(external("data", offset=-4)), "not a readable ONNX"),
    "external-length": (lambda: convolution(external("data", length=1 << 60)), "bytes 0 to 1152"),
    "device": (lambda: convolution(external("/dev/zero")), "kept in '/dev/zero', outside the f"),
    "huge-input": (
        lambda: proto(
            node("Relu", ["x"], ["y"]),
            x=helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 10**12]),
        ),
        "",
    ),
    "negative-input": (
        lambda: proto(
            node("Relu", ["x"], ["y"]),
            x=helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, -3]),
        ),
        "",
    ),
    "constant-of-80-GB": (
        lambda: proto(
            node("ConstantOfShape", ["s"], ["z"]),
            node("Add", ["x", "z"], ["y"]),
            weights=[numpy_helper.from_array(np.array([2 * 10**10]), "s")],
        ),
        "",
    ),
}


class Payload:
    """Says that it ran when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("the payload ran",)


def npz(**arrays: np.ndarray) -> bytes:
    """Return an NPZ file; ``__`` in a name stands for a slash."""
    file = io.BytesIO()
    np.savez(file, **{name.replace("__", "/"): array for name, array in arrays.items()})
    return file.getvalue()


def npy_header(shape: str, dtype: str = "<f4") -> bytes:
    """Return an NPY file without data."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text


def zipped(compression: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    """Return a zip archive of NPY files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def bomb(size: int) -> bytes:
    """Return an NPZ file whose one array of zeros unpacks to so many bytes."""
    shape = f"({size // 784 // 4}, 1, 28, 28)"
    return zipped(zipfile.ZIP_DEFLATED, input=npy_header(shape) + bytes(size))


IMAGES = np.zeros((2, 1, 28, 28), np.float32)

# name -> an NPZ file for the digits network, and what the refusal says
SAMPLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "float64": (lambda: npz(input=IMAGES.astype(np.float64)), "expected float32, got float64"),
    "big-endian": (lambda: npz(input=IMAGES.astype(">f4")), "expected float32, got >f4"),
    "text": (lambda: npz(input=np.array(["a"] * 2)), "expected float32, got <U1"),
    "rank": (lambda: npz(input=IMAGES[0]), "expected"),
    "no-rows": (lambda: npz(input=IMAGES[:0]), "number of rows, at least"),
    "other-name": (lambda: npz(x=IMAGES), "no array named 'input'; the file has x"),
    "objects": (lambda: npz(input=np.array([Payload()], dtype=object)), "Object arrays cannot be"),
    "pickle": (lambda: pickle.dumps(Payload()), "not a readable NPZ file"),
    "huge-shape": (
        lambda: zipped(input=npy_header("(1099511627776, 1, 28, 28)")),
        "Unable to allocate",
    ),
    "overflowing-shape": (lambda: zipped(input=npy_header(f"({1 << 70},)")), "not a readable NPZ"),
    "negative-shape": (lambda: zipped(input=npy_header("(-2, 1, 28, 28)")), "not a readable NPZ"),
    "code-in-shape": (lambda: zipped(input=npy_header("__import__('os')")), "not a readable NPZ"),
    "bomb": (lambda: bomb(1 << 27), "unpacks to 13[0-9]+: refused"),
    "no-zip": (lambda: b"PK\3\4" + bytes(50), "not a readable NPZ file"),
    "escapes": (lambda: npz(**{ESCAPES: IMAGES}), "no array named 'input'; the file has a"),
}

DEEP = "[" * 5000 + "]" * 5000

# name -> a plan as JSON text, and what the refusal says
PLANS: dict[str, tuple[str, str]] = {
    "list": ("[]", "not a plan"),
    "number": ("1e999", "not a plan"),
    "empty": ("", "not a plan"),
    "deep": (DEEP, "not a plan"),
    "no-choice": ('{"backend": "ort-cpu"}', "not a plan"),
    "choice-list": ('{"choice": [1], "backend": "ort-cpu", "how": "", "ratios": {}}', "not a plan"),
    "choice-text": ('{"choice": "abc", "ratios": {}}', "not a plan"),
    "unknown-lowering": ('{"choice": {"act1": "x"}, "ratios": {}}', "the unknown lowering 'x'"),
    "lowering-list": ('{"choice": {"act1": ["fold"]}, "ratios": {}}', "the unknown lowering"),
    "ratio-text": ('{"choice": {}, "ratios": {"a": "b"}}', "not a plan"),
    "no-key": ('{"choice": {}, "ratios": {}, "backend": "", "how": ""}', "not a plan"),
    "key-list": (
        '{"choice": {}, "ratios": {}, "backend": "ort-cpu", "how": "", "key": [1]}',
        "not a plan",
    ),
    "other-backend": (
        '{"choice": {}, "ratios": {}, "backend": "\\u001b[2J\\n", "how": "", "key": {}}',
        "a plan for the unknown backend",
    ),
    "other-model": (
        '{"choice": {}, "ratios": {}, "backend": "ort-cpu", "how": "", "key": {"model": "0"}}',
        "made for another model",
    ),
    "unknown-site": (
        json.dumps(
            {
                "choice": {ESCAPES: "fold"},
                "ratios": {},
                "backend": "ort-cpu",
                "how": "",
                "key": {},
            }
        ),
        "the plan names the site",
    ),
}

# name -> fields of a manifest, and what the refusal says
SITE = {
    "name": "a",
    "spelling": "node",
    "activation": "relu",
    "producer": "",
    "reason": "",
    "axis": 1,
    "affine": False,
    "foldable": True,
}
MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "files-number": ({"files": {"model.onnx": 5}}, "damaged"),
    "files-nul": ({"files": {"a\0b": "0"}}, "missing from the bundle"),
    "files-surrogate": ({"files": {"\ud800": "0"}}, "missing from the bundle"),
    "files-long": ({"files": {"a" * 5000: "0"}}, "damaged"),
    "files-folder": ({"files": {".": "0"}}, "missing from the bundle"),
    "files-escapes": ({"files": {ESCAPES: "0"}}, "missing from the bundle"),
    "inputs-number": ({"inputs": [{"name": "x", "dtype": "float32", "shape": 5}]}, "damaged"),
    "inputs-dtype": ({"inputs": [{"name": "x", "dtype": "O", "shape": [1]}]}, "damaged"),
    "inputs-name": ({"inputs": [{"name": 5, "dtype": "float32", "shape": [1]}]}, "damaged"),
    "inputs-dim": ({"inputs": [{"name": "x", "dtype": "float32", "shape": [[]]}]}, "damaged"),
    "outputs-numbers": ({"outputs": [1, 2]}, "damaged"),
    "sites-text": ({"sites": "abc"}, "damaged"),
    "sites-number": ({"sites": [1]}, "damaged"),
    "sites-name-alone": ({"sites": [{"name": "a"}]}, "damaged"),
    "sites-axis": ({"sites": [{**SITE, "axis": True}]}, "damaged"),
    "sites-reason": ({"sites": [{**SITE, "reason": None}]}, "damaged"),
    "near-misses-text": ({"near_misses": "\ud800"}, "damaged"),
    "near-misses-number": ({"near_misses": [{"name": "a", "reason": 5}]}, "damaged"),
    "notes-number": ({"notes": [1]}, "damaged"),
    "targets-lowerings": ({"targets": {"ort-cpu:auto": {"lowerings": {"a": 5}}}}, "damaged"),
    "targets-reasons": ({"targets": {"ort-cpu:auto": {"reasons": "abc"}}}, "damaged"),
    "targets-empty": ({"targets": {"ort-cpu:auto": {}}}, "damaged .KeyError.'lowerings"),
    "targets-unknown": (
        {"targets": {ESCAPES: {"lowerings": {}, "reasons": {}}}},
        "unknown target 'a",
    ),
    "announced-list": ({"announced": ["model.onnx"]}, "damaged"),
    "announced-foreign": ({"announced": {"../x": "0"}}, "damaged"),
    "plans-number": ({"plans": 5}, "damaged"),
    "plans-broken": ({"plans": {"ort-cpu": {"choice": 3}}}, "damaged"),
    "source-number": ({"source": 5}, "damaged"),
}
