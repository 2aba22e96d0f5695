"""A module's outputs as a flat list of named tensors, in the order of the ONNX exporter."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

from crelu_deploy.errors import ExportError  # noqa: E402
from crelu_deploy.tensors import flatten  # noqa: E402

pytestmark = pytest.mark.torch
A, B, C = (torch.full((1,), float(i)) for i in range(3))


class Boxes(NamedTuple):
    boxes: Any
    scores: Any


@dataclass
class Detections:
    labels: Any
    masks: Any = None


CASES = {
    "tensor": (A, {"output": A}),
    "parameter": (torch.nn.Parameter(A), {"output": A}),
    "tuple": ((A, B), {"output_0": A, "output_1": B}),
    "list": ([A, B, C], {"output_0": A, "output_1": B, "output_2": C}),
    "tuple-of-one": ((A,), {"output_0": A}),
    "nested": ((A, [B, (C,)]), {"output_0": A, "output_1_0": B, "output_1_1_0": C}),
    "mapping": ({"z": A, "a": B}, {"z": A, "a": B}),
    "ordered": (OrderedDict(z=A, a=B), {"z": A, "a": B}),
    "mapping-of-tuples": ({"box": (A, B)}, {"box_0": A, "box_1": B}),
    "tuple-of-mappings": (({"s": A}, {"s": B}), {"output_0_s": A, "output_1_s": B}),
    "numbers-as-keys": ({0: A, 1: B}, {"0": A, "1": B}),
    "named-tuple": (Boxes(A, B), {"boxes": A, "scores": B}),
    "dataclass": (Detections(A, B), {"labels": A, "masks": B}),
    "nested-names": ({"head": Boxes(A, {"p": B})}, {"head_boxes": A, "head_scores_p": B}),
    "none": (None, {}),
    "none-inside": ((A, None, B), {"output_0": A, "output_2": B}),
    "none-in-dataclass": (Detections(A), {"labels": A}),
    "empty": ((), {}),
}


@pytest.mark.parametrize(("value", "expected"), CASES.values(), ids=CASES)
def test_flatten(value, expected):
    found = flatten(value)
    assert [name for name, _ in found] == list(expected)
    assert all(one.equal(other) for (_, one), other in zip(found, expected.values(), strict=True))


REFUSED = {
    "number": (3.0, "the module returns a float in 'output'"),
    "text": ({"a": A, "b": "x"}, "the module returns a str in 'b'"),
    "inside": ((A, [B, 7]), "the module returns a int in 'output_1_1'"),
    "set": ({A}, "the module returns a set in 'output'"),
    "type": (Detections, "the module returns a type in 'output'"),
    "array": (A.numpy(), "the module returns a ndarray in 'output'"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_tensor_is_named_with_its_place(value, message):
    with pytest.raises(ExportError, match=re.escape(message) + "; expected tensors"):
        flatten(value)
