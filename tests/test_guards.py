"""Conditions on extents: what is read, what is refused, what they say and what fits nearby."""

from __future__ import annotations

import re

import pytest

from crelu_deploy.guards import LONGEST, MOST, Guard, Limits, from_pytorch, nearest, statements

NAMES = (("batch", 3, "height", "width"),)

# PyTorch's text -> the condition, extents of axis 3 that meet it, some that do not
READ = {
    "at-most": ("L['x'].size()[3] <= 80", "d0_3 <= 80", (1, 80), (81, 4000)),
    "no-map-of-one": (
        "(1 + (((-1) + L['x'].size()[3]) // 128)) != 1",
        "1 + (-1 + d0_3) // 128 != 1",
        (129, 720),
        (1, 128),
    ),
    "modulo": ("(L['x'].size()[3] % 4) == 0", "d0_3 % 4 == 0", (4, 64), (1, 66)),
    "functions": (
        "max(1, math.trunc(0.5*torch.sym_float(L['x'].size()[3]))) == 8",
        "max(1, trunc(0.5 * sym_float(d0_3))) == 8",
        (16, 17),
        (15, 18),
    ),
    "or": ("L['x'].size()[3] < 3 or L['x'].size()[3] > 9", None, (2, 10), (3, 9)),
    "zero-divided": ("(8 // (L['x'].size()[3] - 4)) >= 1", None, (5, 12), (4, 13)),
}


@pytest.mark.parametrize(("text", "expected", "meets", "breaks"), READ.values(), ids=READ)
def test_a_line_of_pytorch_is_read(text, expected, meets, breaks):
    (guard,) = from_pytorch(text, ["x"])
    assert expected in (None, guard.text)
    assert guard.axes == {(0, 3)}
    assert [guard.holds([(1, 3, 8, n)]) for n in (*meets, *breaks)] == [True, True, False, False]


def test_both_sides_of_and_are_conditions():
    found = from_pytorch("L['x'].size()[2] > 2 and L['x'].size()[3] < 9", ["x"])
    assert [guard.text for guard in found] == ["d0_2 > 2", "d0_3 < 9"]


def test_inputs_are_told_apart():
    (guard,) = from_pytorch("L['image'].size()[2] == L['depth'].size()[0]", ["image", "depth"])
    assert guard.axes == {(0, 2), (1, 0)}
    assert guard.holds([(1, 3, 8), (8,)])
    assert not guard.holds([(1, 3, 8), (9,)])


HOSTILE = {
    "code": "__import__('os').system('true')",
    "attribute": "d0_0.__class__ == 1",
    "name": "x == 1",
    "power": "9 ** 9 ** 9 == d0_0",
    "shift": "1 << 1000000 == d0_0",
    "text": "'a' * 4 == d0_0",
    "huge": f"d0_0 == {2**41}",
    "long": f"d0_0 == {'1 + ' * LONGEST}1",
    "lambda": "(lambda: 1)() == d0_0",
    "keyword": "max(1, key=d0_0)",
    "nested": "(" * 300 + "d0_0" + ")" * 300,
    "nothing": "",
    "statement": "d0_0 = 1",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_condition_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"condition"):
        Guard(text)


def test_a_condition_of_something_else_is_refused():
    with pytest.raises(ValueError, match="condition"):
        from_pytorch("L['y'].size()[2] == 3", ["x"])


# conditions -> words
WORDS = {
    "at-most": (["d0_3 <= 80"], ("width at most 80",)),
    "at-least": (["d0_2 >= 11"], ("height at least 11",)),
    "range": (["d0_2 >= 3", "d0_2 < 10"], ("height from 3 to 9",)),
    "exactly": (["d0_0 == 4"], ("batch exactly 4",)),
    "multiple": (["d0_2 % 4 == 0"], ("height a multiple of 4",)),
    "rests": (["d0_2 % 4 < 2"], ("height 0 or 1 more than a multiple of 4",)),
    "some": (["max(d0_2 == 3, d0_2 == 7)"], ("height one of 3, 7",)),
    "none": (["d0_2 < 1"], ("height of no extent",)),
    "relation": (["d0_2 == d0_3"], ("height == width",)),
}


@pytest.mark.parametrize(("texts", "expected"), WORDS.values(), ids=WORDS)
def test_conditions_in_words(texts, expected):
    assert statements([Guard(text) for text in texts], NAMES) == expected


# conditions, shape -> what the refusal says
REFUSED = {
    "width": (["d0_3 <= 80"], (1, 3, 8, 81), "needs width at most 80; got width 81; .*: width 80"),
    "multiple": (["d0_2 % 4 == 0"], (1, 3, 18, 8), "a multiple of 4; got height 18; .*height 20"),
    "relation": (["d0_2 == d0_3"], (1, 3, 8, 9), "height == width; got height 8, width 9"),
    "impossible": (["d0_2 > 9999"], (1, 3, 8, 9), "fits: none"),
}


@pytest.mark.parametrize(("texts", "shape", "message"), REFUSED.values(), ids=REFUSED)
def test_a_shape_that_does_not_fit_is_refused_with_one_that_does(texts, shape, message):
    inputs = [{"name": "x", "shape": list(NAMES[0])}]
    limits = Limits.parse(texts, inputs)
    if not message.endswith("none"):
        limits.check([(1, 3, 8, 8)])
    with pytest.raises(ValueError, match=message):
        limits.check([shape])


@pytest.mark.parametrize(
    "entry",
    ["d0_0 == 1", [1], None, ["d1_0 == 1"], ["d0_4 == 1"], ["x"], ["d0_0 == 1"] * (MOST + 1)],
    ids=["text", "number", "none", "input", "axis", "name", "many"],
)
def test_damaged_limits_are_refused(entry):
    with pytest.raises(ValueError, match="condition"):
        Limits.parse(entry, [{"name": "x", "shape": list(NAMES[0])}])


def test_the_nearest_shape_moves_as_few_axes_as_it_can():
    def fits(shapes):
        return shapes[0][2] % 4 == 0 and shapes[0][3] % 4 == 0

    assert nearest([(1, 3, 9, 16)], fits, [(0, 2), (0, 3)]) == ((1, 3, 8, 16),)
    assert nearest([(1, 3, 9, 16)], fits, []) is None
    assert re.fullmatch(
        r"\(1, 3, \d+, \d+\)", str(nearest([(1, 3, 6, 6)], fits, [(0, 2), (0, 3)])[0])
    )


@pytest.mark.parametrize("text", ["-" * 1500 + "d0_0<1", "-" * 3900 + "d0_0<1"])
def test_a_condition_nested_too_deep_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        Guard(text)
