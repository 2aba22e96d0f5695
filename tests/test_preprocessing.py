"""How a network reads pixels: stated or known, recorded in the bundle, checked when read."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from scoring_data import crelu_score, expected, read_rows

from crelu_deploy.cli import run
from crelu_deploy.errors import CheckpointError, ExportError
from crelu_deploy.preprocessing import Preprocessing, image_input, read_divisors, read_numbers
from crelu_deploy.runner import TensorSpec

FACEBOXES = Preprocessing((104.0, 117.0, 123.0), (1.0,), bgr=True)
TEXTS = {
    "zero to one": (Preprocessing(), "(pixel - 0) / 255"),
    "faceboxes": (FACEBOXES, "(pixel - 104,117,123) / 1, blue first"),
    "fractions": (Preprocessing((0.5,), (63.75, 1e-9)), "(pixel - 0.5) / 63.75,1e-09"),
}


@pytest.mark.parametrize(("how", "text"), TEXTS.values(), ids=TEXTS)
def test_it_is_said_in_words_and_read_back_from_json(how, text):
    assert str(how) == text
    assert Preprocessing.parse(json.loads(json.dumps(asdict(how)))) == how


WHOLE = {"mean": [0], "scale": [255], "bgr": False}
DAMAGED = {
    "list": [1],
    "no mean": {"scale": [1], "bgr": False},
    "number": {**WHOLE, "mean": 3},
    "text": {**WHOLE, "mean": "abc"},
    "nested": {**WHOLE, "scale": [[1]]},
    "huge": {**WHOLE, "scale": [10**400]},
    "nan": {**WHOLE, "mean": [float("nan")]},
    "infinite": {**WHOLE, "scale": [float("inf")]},
    "zero": {**WHOLE, "scale": [1, 0, 1]},
    "empty": {**WHOLE, "mean": []},
    "endless": {**WHOLE, "mean": [0] * 100_000},
    "bgr": {**WHOLE, "bgr": 1},
}


@pytest.mark.parametrize("entry", DAMAGED.values(), ids=DAMAGED)
def test_what_is_damaged_is_refused(entry):
    with pytest.raises(ValueError, match=r"preprocessing|mean|scale"):
        Preprocessing.parse(entry)


NUMBERS = {
    "1": (1.0,),
    "104,117,123": (104.0, 117.0, 123.0),
    "-0.5, 2e1": (-0.5, 20.0),
    "0": (0.0,),
    "": None,
    "1,,2": None,
    "nan": None,
    "inf": None,
    "a": None,
}


@pytest.mark.parametrize(("text", "numbers"), NUMBERS.items())
def test_numbers_are_read(text, numbers):
    if numbers is None:
        with pytest.raises(ValueError, match="expected a number, or one per channel"):
            read_numbers(text)
    else:
        assert read_numbers(text) == numbers
    if numbers and 0 in numbers:
        with pytest.raises(ValueError, match="cannot be divided by 0"):
            read_divisors(text)


def test_an_image_is_one_input():
    spec = TensorSpec("x", "float32", ("N", 3, 8, 8))
    assert image_input([spec]) is spec
    with pytest.raises(ValueError, match="an image is one input, the network has 2"):
        image_input([spec, spec])


# --- from a checkpoint to its bundle --------------------------------------------------------------


def test_architectures_say_it_where_it_is_known(shared_bundle):
    pytest.importorskip("torch")
    from crelu_deploy.bundle import Bundle
    from crelu_deploy.models import MODELS

    known = {name: m.preprocessing for name, m in MODELS.items() if m.preprocessing is not None}
    assert known == {"faceboxes": FACEBOXES, "digits-crelu": Preprocessing()}
    assert Bundle.open(shared_bundle).preprocessing == Preprocessing()


def test_a_checkpoint_says_it_for_a_trained_network(tmp_path):
    torch = pytest.importorskip("torch")
    from crelu_deploy.checkpoint import load, save
    from crelu_deploy.models import build

    how, file = Preprocessing((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)), tmp_path / "net.pt"
    name = "convpool-c-crelu@0.125"
    save(file, build(name), arch=name, num_classes=10, preprocessing=how)
    assert load(file).preprocessing == how
    content = torch.load(file, weights_only=True)
    content["crelu_deploy"]["preprocessing"] = {"mean": "abc"}
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"net.pt: is damaged: its preprocessing"):
        load(file)


STATED = {
    "nothing": ({}, None),
    "one": ({"scale": (2.0,)}, Preprocessing(scale=(2.0,))),
    "all": ({"mean": (1.0,), "scale": (2.0, 3.0), "bgr": False}, "2 numbers for 1 channels"),
    "colour": ({"bgr": True}, "has 1 channels, not 3"),
    "zero": ({"scale": (0.0,)}, "cannot be divided by 0"),
}


@pytest.mark.parametrize(("changes", "outcome"), STATED.values(), ids=STATED)
def test_a_module_has_what_the_user_states(tmp_path, changes, outcome):
    torch = pytest.importorskip("torch")
    from crelu_deploy import export

    settings = {"inputs": ["1x1x6x6"], "preprocessing": changes}
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU())
    if isinstance(outcome, str):
        with pytest.raises(ExportError, match=outcome):
            export(module, tmp_path / "out", **settings)
        assert list(tmp_path.iterdir()) == []
    else:
        assert export(module, tmp_path / "out", **settings).preprocessing == outcome


def test_options_change_what_the_architecture_says(digits, tmp_path, capsys):
    pytest.importorskip("torch")
    from crelu_deploy.bundle import Bundle

    out = tmp_path / "digits.crelu"
    assert run(["export", "-q", str(digits), "-o", str(out), "--mean", "33", "--rgb"]) == 0
    assert "images become (pixel - 33) / 255\n" in capsys.readouterr().out
    assert Bundle.open(out).preprocessing == Preprocessing((33.0,))


# --- from the bundle to the images ----------------------------------------------------------------

SCORED = {
    "the bundle's": ([], 33.0, 255.0),
    "its mean, another scale": (["--scale", "100"], 33.0, 100.0),
    "neither": (["--mean", "0", "--scale", "2"], 0.0, 2.0),
}


@pytest.mark.parametrize(("options", "mean", "scale"), SCORED.values(), ids=SCORED)
def test_images_are_scored_as_the_bundle_records(bundle, tmp_path, options, mean, scale):
    pytest.importorskip("ray", reason="crelu score is not installed: crelu-deploy[ray]")
    image = pytest.importorskip("PIL.Image")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["preprocessing"] = {"mean": [33.0], "scale": [255.0], "bgr": False}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    image.fromarray(pixels).save(tmp_path / "one.png")
    done = crelu_score(bundle, tmp_path / "one.png", "-o", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert f"images   (pixel - {mean:g}) / {scale:g}\n" in done.stdout
    x = (pixels.astype(np.float32) - np.float32(mean)) / np.float32(scale)
    found = np.array(read_rows(tmp_path / "out")["logits"], np.float32)
    np.testing.assert_array_equal(found, expected(bundle, x[None, None], 1, 1))
