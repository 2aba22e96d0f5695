"""ONNX files from anywhere: the good are read, each bad one ends in one clear line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import write_bundle
from onnx import numpy_helper

from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.reading import read_model

TEXT = (
    '<ir_version: 8, opset_import: ["": 17]> g (float[2,3] x) => (float[2,4] y) '
    "{ y = MatMul(x, w) }"
)
WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def proto() -> onnx.ModelProto:
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return model


WHOLE = proto().SerializeToString()


def external(model: onnx.ModelProto, location: str, tensor: onnx.TensorProto) -> bytes:
    """Return the model with a tensor of it kept in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "48")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return model.SerializeToString()


def as_initializer(location: str) -> bytes:
    model = proto()
    return external(model, location, model.graph.initializer[0])


def as_constant(location: str) -> bytes:
    model = proto()
    weight = model.graph.initializer.pop()
    node = onnx.helper.make_node("Constant", [], ["w"], value=weight)
    model.graph.node.insert(0, node)
    return external(model, location, model.graph.node[0].attribute[0].t)


def in_a_branch(location: str) -> bytes:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (bool c, float[3,4] x) => (float[3,4] y) '
        "{ y = If(c) <then_branch = t () => (float[3,4] a) { a = Neg(x) }, "
        "else_branch = e () => (float[3,4] b) { b = Add(x, w) }> }"
    )
    branch = next(a.g for a in model.graph.node[0].attribute if a.name == "else_branch")
    branch.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return external(model, location, branch.initializer[0])


def in_a_function(location: str) -> bytes:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "f": 1]> g (float[2,3] x) => (float[2,4] y) '
        "{ y = f.Times(x) } "
        '<domain: "f", opset_import: ["": 17]> Times (x) => (y) { y = MatMul(x, w) }'
    )
    weight = numpy_helper.from_array(WEIGHT, "w")
    body = model.functions[0].node
    body.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=weight))
    return external(model, location, body[0].attribute[0].t)


PLACES = {
    "initializer": as_initializer,
    "constant": as_constant,
    "branch": in_a_branch,
    "function": in_a_function,
}


@pytest.mark.parametrize("name", ["m.onnx", "m", "m.json", "m.onnxtxt", "m.bin", "ä b.onnx"])
def test_the_content_counts_not_the_name(tmp_path, name):
    (tmp_path / name).write_bytes(WHOLE)
    for path in (tmp_path / name, str(tmp_path / name)):
        model = read_model(path)
        assert [node.op_type for node in model.graph] == ["MatMul"]
        weight = model.graph.initializers["w"].const_value
        assert weight is not None
        assert np.array_equal(weight.numpy(), WEIGHT)


def test_a_bundles_folder_is_its_model(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    assert [node.op_type for node in read_model(bundle.path).graph] == ["Conv", "CReLU"]


def test_a_folder_that_is_no_bundle(tmp_path):
    with pytest.raises(UnsupportedModel, match="not a bundle, it has no manifest"):
        read_model(tmp_path)


def random_bytes(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


BAD = {
    "empty": (b"", "not an ONNX model, or one without outputs"),
    "text": (b"# weights\n", "not a readable ONNX model: "),
    "json": (b'{"graph": {}}', "not a readable ONNX model: "),
    "zip": (b"PK\x03\x04" + bytes(60), "not a readable ONNX model: "),
    "pickle": (b"\x80\x02}q\x00.", "not a"),
    "cut-by-one": (WHOLE[:-1], "not a readable ONNX model: "),
    "cut-in-half": (WHOLE[: len(WHOLE) // 2], "not a readable ONNX model: "),
    "cut-to-ten": (WHOLE[:10], "not a"),
    "random": (random_bytes(1000), "not a readable ONNX model: "),
    "graph-only": (proto().graph.SerializeToString(), "not a"),
    "no-graph": (onnx.ModelProto(ir_version=8).SerializeToString(), "without outputs"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", ["m.onnx", "m.json"])
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnsupportedModel, match=re.escape(f"{path}: ")) as caught:
        read_model(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300


@pytest.mark.parametrize("name", ["missing.onnx", "no/such/m.onnx"])
def test_missing_files(tmp_path, name):
    with pytest.raises(UnsupportedModel, match=re.escape(f"{tmp_path / name}: no such file")):
        read_model(tmp_path / name)


def test_a_path_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnsupportedModel, match="Not a directory"):
        read_model(tmp_path / "file" / "m.onnx")


def test_random_damage_never_ends_in_another_error(tmp_path):
    path = tmp_path / "m.onnx"
    generator = np.random.default_rng(0)
    refused = 0
    for i in range(600):
        damaged = bytearray(WHOLE[: generator.integers(1, len(WHOLE))] if i % 2 else WHOLE)
        for _ in range(3):
            damaged[generator.integers(len(damaged))] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            read_model(path)
        except UnsupportedModel:
            refused += 1
    assert refused > 300


@pytest.mark.parametrize("build", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "sub/../w.bin"])
def test_weights_in_another_file_of_the_folder(tmp_path, build, location):
    (tmp_path / "sub").mkdir()
    (tmp_path / location).write_bytes(WEIGHT.tobytes())
    (tmp_path / "m.onnx").write_bytes(build(location))
    assert read_model(tmp_path / "m.onnx").graph.outputs[0].name == "y"


def test_weights_in_another_file_are_read_from_there(tmp_path, monkeypatch):
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "m.onnx").write_bytes(as_initializer("w.bin"))
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "m.onnx", Path("m.onnx")):
        weight = read_model(path).graph.initializers["w"].const_value
        assert weight is not None
        assert np.array_equal(weight.numpy(), WEIGHT)


@pytest.mark.parametrize("build", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("location", ["../w.bin", "a/../../w.bin", "absolute", "link"])
def test_weights_outside_the_folder_are_refused(tmp_path, build, location):
    folder, secret = tmp_path / "model", tmp_path / "w.bin"
    folder.mkdir()
    secret.write_bytes(WEIGHT.tobytes())
    (folder / "link").symlink_to(secret)
    place = str(secret) if location == "absolute" else location
    (folder / "m.onnx").write_bytes(build(place))
    with pytest.raises(UnsupportedModel, match=r"outside the folder of m\.onnx; refused") as caught:
        read_model(folder / "m.onnx")
    assert f"weight 'w' is kept in {place!r}" in str(caught.value)


@pytest.mark.parametrize("build", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "."])
def test_weights_that_are_missing(tmp_path, build, location):
    (tmp_path / "m.onnx").write_bytes(build(location))
    message = f"weight 'w' is kept in {(tmp_path / location).resolve()}: no such file"
    with pytest.raises(UnsupportedModel, match=re.escape(message)):
        read_model(tmp_path / "m.onnx")
