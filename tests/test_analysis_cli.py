"""``crelu analyze``: every analysis on the trained example, as JSON, text and picture; its data."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tables import mostly

torch = pytest.importorskip("torch")

from crelu_deploy import checkpoint  # noqa: E402
from crelu_deploy.analysis.data import load_images, noise  # noqa: E402
from crelu_deploy.cli import paper  # noqa: E402
from crelu_deploy.errors import BackendUnavailable, DeployError, UnsupportedModel  # noqa: E402
from crelu_deploy.models import build  # noqa: E402

pytestmark = pytest.mark.torch
torch.set_num_threads(1)

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SAMPLES = str(EXAMPLES / "digits_samples.npz")

# analysis -> its options, the layers it lists, fields of each
KINDS = {
    "pairing": (
        (),
        7,
        {"mean", "median", "min", "below_half", "baseline_mean", "ks", "wasserstein"},
    ),
    "outgoing": ((), 6, {"pairs_mean", "pairs_deviation", "others_mean", "others_deviation"}),
    "signs": ((), 6, {"same_sign", "bits", "bits_same_sign", "prunable", "mergeable", "norms"}),
    "invariance": (("--data", SAMPLES, "--rate", "0.2"), 6, {"score", "units", "skipped"}),
    "reconstruction": (
        ("--data", SAMPLES, "--depth", "2"),
        2,
        {"error", "residual", "idempotence", "equations", "unknowns", "rank", "controls"},
    ),
}


@cache
def numbers(kind: str, model: Path) -> str:
    """Return what an analysis prints as JSON; made once."""
    return analyze(kind, model, "--json", *KINDS[kind][0]).stdout


@pytest.fixture(scope="module")
def drawn(digits, tmp_path_factory):
    """A function that makes the picture of an analysis, once; it returns text and path."""

    @cache
    def draw(kind: str) -> tuple[str, Path]:
        pytest.importorskip("PIL.Image", reason="pictures need Pillow")
        pytest.importorskip("matplotlib", reason="plots need matplotlib")
        folder = tmp_path_factory.mktemp(kind) / "plots"
        text = analyze(kind, digits, *KINDS[kind][0], "-o", str(folder)).stdout
        return text, folder / f"{kind}.png"

    return draw


def analyze(kind: str, model: Path, *options: str):
    arguments = ["analyze", kind, str(model), "-q", *options]
    return CliRunner().invoke(paper.cli, arguments, standalone_mode=False, catch_exceptions=False)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers(digits, kind):
    _, count, fields = KINDS[kind]
    found = json.loads(numbers(kind, digits))
    assert found["analysis"] == kind
    assert found["plot"] is None
    assert len(found["layers"]) == count
    assert all(layer.keys() >= fields for layer in found["layers"])


@pytest.mark.parametrize("kind", KINDS)
def test_picture(drawn, kind):
    text, path = drawn(kind)
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    assert f"wrote    {path}" in text
    with image.open(path) as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
        assert picture.width > 300
    assert len(colours) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_text_beside_a_picture_names_every_layer_whole(drawn, kind):
    text, _ = drawn(kind)
    assert all(f"conv{i + 1}" in text for i in range(KINDS[kind][1]))


@mostly("kind", KINDS, fast=["pairing", "outgoing", "signs"])
def test_text_names_every_layer_whole(digits, kind):
    options, count, _ = KINDS[kind]
    text = analyze(kind, digits, *options).stdout
    assert all(f"conv{i + 1}" in text for i in range(count))


def test_invariance_states_its_terms(digits):
    found = json.loads(numbers("invariance", digits))
    terms = {key: found[key] for key in ("rate", "best", "images", "minimum", "position")}
    assert terms == {"rate": 0.2, "best": 0.2, "images": 100, "minimum": 20, "position": "centre"}
    assert "rotations by 5, 10 and 15 degrees" in found["moves"]
    assert all(1 < layer["score"] <= 5 for layer in found["layers"])


def test_reconstruction_of_a_trained_network(digits):
    found = json.loads(numbers("reconstruction", digits))
    first, second = found["stacks"]
    assert first["error"] < 1e-8
    assert first["controls"]["relu"] > 0.3
    assert first["error"] < second["error"] < second["controls"]["relu"]
    assert found["layers"][0]["rank"] == 784


@pytest.mark.parametrize("kind", ["outgoing", "signs"])
def test_a_network_without_crelu_is_refused(tmp_path, kind):
    path = tmp_path / "relu.pt"
    checkpoint.save(path, build("vgg-relu"), arch="vgg-relu", num_classes=10)
    with pytest.raises(UnsupportedModel, match=r"none of the 15 layers ends in a .*CReLU"):
        analyze(kind, path)


def test_an_input_of_unknown_shape_is_refused(tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"w": torch.zeros(1)}, path)
    with pytest.raises(DeployError, match=r"net\.pt"):
        analyze("pairing", path)


SHAPE = (1, 3, 20, 30)


def test_arrays(tmp_path):
    images = np.random.default_rng(0).random((4, *SHAPE[1:]))
    np.savez(tmp_path / "x.npz", input=images, label=np.zeros(4))
    found = load_images(str(tmp_path / "x.npz"), SHAPE)
    assert found.dtype == torch.float32
    assert np.allclose(found.numpy(), images)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "no NPZ file with an array 'input'"),
        (
            {"input": np.zeros((4, 1, 20, 30))},
            "images have shape 4x1x20x30, the network reads 1x3x20x30",
        ),
        ({"input": np.zeros((0, 3, 20, 30))}, "images have shape 0x3x20x30"),
    ],
)
def test_unfit_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UnsupportedModel, match=message):
        load_images(str(tmp_path / "x.npz"), SHAPE)


def test_an_npz_that_is_none_is_refused(tmp_path):
    (tmp_path / "x.npz").write_text("none")
    with pytest.raises(UnsupportedModel, match="no NPZ file"):
        load_images(str(tmp_path / "x.npz"), SHAPE)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_cropped_and_scaled(tmp_path, channels):
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 20:80] = 255  # what remains of 40x100 in the proportions of 20x30
    image.fromarray(pixels).save(tmp_path / "x.png")
    found = load_images(str(tmp_path / "x.png"), (1, channels, 20, 30))
    assert found.shape == (1, channels, 20, 30)
    assert (found[..., 1:-1] == 1).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 3, 4, 4), "cannot be read as a picture"), ((1, 5, 4, 4), "reads 5 channels")],
)
def test_unfit_pictures_are_refused(tmp_path, shape, message):
    pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(UnsupportedModel, match=message):
        load_images(str(tmp_path / "x.png"), shape)


def test_photos_of_scikit_learn(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    folder = tmp_path / "sklearn" / "datasets" / "images"
    folder.mkdir(parents=True)
    (tmp_path / "sklearn" / "__init__.py").write_text("raise RuntimeError('imported')")
    image.new("RGB", (60, 40), (0, 255, 0)).save(folder / "china.jpg")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = load_images("photo:china", SHAPE)
    assert found[0, 1].min() > 0.95
    with pytest.raises(BackendUnavailable, match="photo 'japan' is not here"):
        load_images("photo:japan", SHAPE)


def test_noise_is_seeded():
    assert torch.equal(noise(2, SHAPE), noise(2, SHAPE))
    assert not torch.equal(noise(2, SHAPE), noise(2, SHAPE, seed=1))
