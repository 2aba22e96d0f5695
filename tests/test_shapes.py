"""Texts for inputs and dynamic axes: what is read, what is refused, what each input gets."""

from __future__ import annotations

import re

import pytest

from crelu_deploy.errors import ExportError
from crelu_deploy.shapes import Input, parse_axes, parse_shape, resolve

SHAPES = {
    "1x3x224x224": ("", (1, 3, 224, 224)),
    "7": ("", (7,)),
    "1x1": ("", (1, 1)),
    "image:1x3x8x8": ("image", (1, 3, 8, 8)),
    "input.1:2x5": ("input.1", (2, 5)),
    "serving_default:x:0:1x4": ("serving_default:x:0", (1, 4)),
    "x:2x3": ("x", (2, 3)),
    "2147483647": ("", (2**31 - 1,)),
}

BAD_SHAPES = (
    "",
    ":",
    "x",
    "x:",
    ":1x3",
    "1x",
    "x3",
    "1xx3",
    "0x3",
    "-1x3",
    "-1x-3",
    "1x3.5",
    "1,3,8,8",
    "1X3",
    "[1, 3]",
    "1x3:image",
    "image=1x3",
    "NxCxHxW",
    "1e3",
    "2147483648",
    "65536x32768",
    "9" * 5000,
)


@pytest.mark.parametrize(("text", "expected"), SHAPES.items(), ids=SHAPES)
def test_shape(text, expected):
    assert parse_shape(text) == expected


@pytest.mark.parametrize("text", BAD_SHAPES, ids=lambda text: text[:20])
def test_bad_shape(text):
    with pytest.raises(ValueError, match=re.escape(f"input {text!r}: expected [NAME:]SIZES")):
        parse_shape(text)


AXES = {
    "0": ("", {0}),
    "2,3": ("", {2, 3}),
    "-1,-2": ("", {-1, -2}),
    "height,width": ("", {-2, -1}),
    "batch": ("", {0}),
    "batch,2": ("", {0, 2}),
    "3,3": ("", {3}),
    "none": ("", None),
    "x:none": ("x", None),
    "x:height": ("x", {-2}),
    "a:b:1": ("a:b", {1}),
}

BAD_AXES = (
    "",
    "x:",
    ":2",
    ":none",
    "2,",
    ",2",
    "2;3",
    "2x3",
    "depth",
    "None",
    "none,2",
    "1.0",
    "*",
)


@pytest.mark.parametrize(("text", "expected"), AXES.items(), ids=AXES)
def test_axes(text, expected):
    assert parse_axes(text) == expected


@pytest.mark.parametrize("text", BAD_AXES)
def test_bad_axes(text):
    with pytest.raises(ValueError, match=re.escape(f"dynamic {text!r}: expected [NAME:]AXES")):
        parse_axes(text)


# names, defaults, texts of --input -> shapes
RESOLVED = {
    "default": (("x",), ((1, 3),), (), {"x": (1, 3)}),
    "given": (("x",), None, ("2x3",), {"x": (2, 3)}),
    "given-over-default": (("x",), ((1, 3),), ("2x3",), {"x": (2, 3)}),
    "named": (("x",), None, ("x:2x3",), {"x": (2, 3)}),
    "two-in-order": (("a", "b"), None, ("1x3", "1x4"), {"a": (1, 3), "b": (1, 4)}),
    "two-named": (("a", "b"), None, ("b:1x4", "a:1x3"), {"a": (1, 3), "b": (1, 4)}),
    "named-then-next": (("a", "b"), None, ("a:1x3", "1x4"), {"a": (1, 3), "b": (1, 4)}),
    "next-then-named": (("a", "b"), None, ("1x3", "b:1x4"), {"a": (1, 3), "b": (1, 4)}),
    "second-named-first": (("a", "b"), None, ("b:1x4", "1x3"), {"a": (1, 3), "b": (1, 4)}),
    "optional-left-out": (("x", "mask"), None, ("1x3",), {"x": (1, 3)}),
    "default-and-optional": (("x", "m"), ((1, 3),), ("m:1x1",), {"x": (1, 3), "m": (1, 1)}),
    "last-wins": (("x",), None, ("x:1x3", "x:1x4"), {"x": (1, 4)}),
}


@pytest.mark.parametrize(
    ("names", "defaults", "texts", "expected"), RESOLVED.values(), ids=RESOLVED
)
def test_inputs_get_their_shapes(names, defaults, texts, expected):
    inputs = resolve(names, defaults, [parse_shape(text) for text in texts], ())
    assert {one.name: one.shape for one in inputs} == expected
    assert [one.name for one in inputs] == [name for name in names if name in expected]
    assert all(one.batch and not one.dynamic for one in inputs)


# texts of --dynamic -> dynamic axes and batch of a (4 axes) and b (2 axes)
DYNAMIC = {
    "": (Input("a", (1, 3, 8, 8)), Input("b", (1, 5))),
    "batch": (Input("a", (1, 3, 8, 8), frozenset({0})), Input("b", (1, 5), frozenset({0}))),
    "a:height,width": (Input("a", (1, 3, 8, 8), frozenset({2, 3})), Input("b", (1, 5))),
    "a:2 a:3": (Input("a", (1, 3, 8, 8), frozenset({2, 3})), Input("b", (1, 5))),
    "-1": (Input("a", (1, 3, 8, 8), frozenset({3})), Input("b", (1, 5), frozenset({1}))),
    "a:-1,3": (Input("a", (1, 3, 8, 8), frozenset({3})), Input("b", (1, 5))),
    "none": (Input("a", (1, 3, 8, 8), batch=False), Input("b", (1, 5), batch=False)),
    "b:none": (Input("a", (1, 3, 8, 8)), Input("b", (1, 5), batch=False)),
    "none a:2": (
        Input("a", (1, 3, 8, 8), frozenset({2}), batch=False),
        Input("b", (1, 5), batch=False),
    ),
}


@pytest.mark.parametrize(("texts", "expected"), DYNAMIC.items(), ids=DYNAMIC)
def test_inputs_get_their_axes(texts, expected):
    defaults = tuple(one.shape for one in expected)
    axes = [parse_axes(text) for text in texts.split()]
    assert resolve(("a", "b"), defaults, (), axes) == expected


# names, defaults, --input, --dynamic -> message
REFUSED = {
    "no-shape": (("x",), None, "", "", "the shape of input 'x' is unknown; give it, such as"),
    "unknown-name": (("x", "y"), None, "z:1x3", "", "no input 'z'; the inputs are: x, y"),
    "too-many": (("x",), None, "1x3 1x4", "", r"no input for the shape 1x4; the inputs are: x"),
    "gap": (("a", "b"), None, "b:1x3", "", "the shape of input 'a' is unknown"),
    "unknown-dynamic": (("x",), ((1, 3),), "", "z:1", "no input 'z'; the inputs are: x"),
    "unused-dynamic": (("x", "m"), ((1, 3),), "", "m:0", "no input 'm'; the inputs are: x"),
    "axis": (("x",), ((1, 3),), "", "2", "dynamic axis 2 is outside the 2 axes of input 'x'"),
    "negative": (("x",), ((1, 3),), "", "-3", "dynamic axis -3 is outside the 2 axes of input 'x'"),
    "no-height": (("x",), ((3,),), "", "height", "dynamic axis -2 is outside the 1 axes"),
}


@pytest.mark.parametrize(
    ("names", "defaults", "texts", "dynamic", "message"), REFUSED.values(), ids=REFUSED
)
def test_impossible_inputs(names, defaults, texts, dynamic, message):
    shapes = [parse_shape(text) for text in texts.split()]
    with pytest.raises(ExportError, match=message):
        resolve(names, defaults, shapes, [parse_axes(text) for text in dynamic.split()])
