"""Made inputs have the type, the range and the variety of what a network reads."""

from __future__ import annotations

import numpy as np
import pytest

from crelu_deploy.preprocessing import Preprocessing
from crelu_deploy.runner import TensorSpec
from crelu_deploy.stimuli import made_inputs, pictures

TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
FACES = Preprocessing((104.0, 117.0, 123.0), (1.0,), bgr=True)
UNIT = Preprocessing()


def bits(call: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in call.items()}


@pytest.mark.parametrize("name", TYPES)
def test_made_inputs_have_the_type_and_are_seeded(name):
    dtype = np.dtype(name).name
    specs = (TensorSpec("a", dtype, (50, 40)), TensorSpec("b", dtype, (50, 40)))
    shapes = {"a": (50, 40), "b": (50, 40)}
    first, again, other = (made_inputs(specs, shapes, seed) for seed in (7, 7, 8))
    assert bits(first) == bits(again)
    assert bits(first) != bits(other)
    assert not np.array_equal(first["a"], first["b"])
    assert first["a"].dtype == dtype
    if first["a"].dtype.kind == "f":
        assert abs(first["a"].astype(float).mean()) < 0.1
        assert abs(first["a"].astype(float).std() - 1) < 0.1
    elif dtype == "uint8":
        assert len(np.unique(first["a"])) > 250
    else:
        assert set(np.unique(first["a"])) == {0, 1}


def test_made_inputs_take_the_given_shapes():
    specs = (TensorSpec("x", "float32", ("N", 3)), TensorSpec("m", "int64", ("N",)))
    found = made_inputs(specs, {"x": (0, 3), "m": (5,)}, 0)
    assert {name: array.shape for name, array in found.items()} == {"x": (0, 3), "m": (5,)}


# how pixels are read, shape -> least and largest value
READ = {
    "faces": (FACES, (3, 3, 64, 48), -123, 151),
    "unit": (UNIT, (3, 1, 28, 28), 0, 1),
    "one-pixel": (FACES, (2, 3, 1, 1), -123, 151),
    "negative": (Preprocessing((0.0,), (-1.0,)), (2, 3, 9, 9), -255, 0),
}


@pytest.mark.parametrize(("how", "shape", "low", "high"), READ.values(), ids=READ)
def test_pictures_are_what_the_network_reads_of_pixels(how, shape, low, high):
    spec = TensorSpec("x", "float32", shape)
    x = made_inputs([spec], {"x": shape}, 0, how)["x"]
    assert (x.shape, x.dtype) == (shape, np.float32)
    assert low <= x.min() <= x.max() <= high
    if shape[2] > 8:
        assert np.ptp(x) > 0.6 * (high - low)


OTHER = {"rank": (1, 3), "channels": (1, 5, 8, 8), "numbers": (1, 1, 8, 8)}


@pytest.mark.parametrize("shape", OTHER.values(), ids=OTHER)
def test_what_is_no_picture_gets_noise(shape):
    spec = TensorSpec("x", "float32", shape)
    plain, read = (made_inputs([spec], {"x": shape}, 0, how)["x"] for how in (None, FACES))
    assert np.array_equal(plain, read)


def test_pictures_have_patches_of_every_size():
    """Neighbours are alike, as in photos, and far pixels are not."""
    pixels = pictures((8, 3, 96, 96), np.random.default_rng(0))
    assert np.array_equal(pixels, np.rint(pixels))
    centred = pixels - pixels.mean((2, 3), keepdims=True)
    shares = [
        float((centred[..., step:] * centred[..., : 96 - step]).mean() / (centred**2).mean())
        for step in (1, 8, 80)
    ]
    assert shares[0] > 0.8 > shares[1] > 0.2 > abs(shares[2])
