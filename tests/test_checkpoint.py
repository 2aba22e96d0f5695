"""Checkpoints: every format and wrapper that loads, and every bad file with its own message."""

from __future__ import annotations

import importlib
import os
import pickle
import random
import re
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from real_models import real_model

torch = pytest.importorskip("torch")

import safetensors.torch  # noqa: E402
from checkpoint_files import (  # noqa: E402
    ARCH,
    HUGE_HEADER,
    NAN,
    RAN,
    Payload,
    changed,
    dump,
    exported,
    index,
    legacy,
    net,
    prefixed,
    quantised,
    scripted,
    weights,
    zipped,
)

from crelu_deploy.checkpoint import Format, detect, load, save  # noqa: E402
from crelu_deploy.errors import BuildError, CheckpointError  # noqa: E402
from crelu_deploy.models import build  # noqa: E402

pytestmark = pytest.mark.torch

GOOD: dict[str, tuple[Callable[[], bytes], dict[str, Any], Format, tuple[str, ...]]] = {
    "zip": (lambda: dump(weights()), {}, Format.ZIP, ()),
    "legacy": (lambda: legacy(weights()), {}, Format.LEGACY, ()),
    "safetensors": (lambda: safetensors.torch.save(weights()), {}, Format.SAFETENSORS, ()),
    "lightning": (
        lambda: dump(
            {"state_dict": prefixed("model."), "pytorch-lightning_version": "2", "epoch": 3}
        ),
        {},
        Format.ZIP,
        ("took the entry 'state_dict'", "stripped prefix model."),
    ),
    "timm": (
        lambda: dump({"state_dict": changed(conv1__bias=NAN), "state_dict_ema": weights()}),
        {"ema": True},
        Format.ZIP,
        ("took the entry 'state_dict_ema'",),
    ),
    "averaged": (
        lambda: dump({"model_ema": {"n_averaged": torch.tensor(7), **prefixed("module.")}}),
        {"ema": True},
        Format.ZIP,
        ("took the entry 'model_ema'", "stripped prefix module."),
    ),
    "not-averaged": (
        lambda: dump({"model": weights(), "model_ema": changed(conv1__bias=NAN)}),
        {},
        Format.ZIP,
        ("took the entry 'model'",),
    ),
    "compiled-in-parallel": (
        lambda: dump(prefixed("module._orig_mod.")),
        {},
        Format.ZIP,
        ("removed the marks of torch.compile or FSDP from the keys", "stripped prefix module."),
    ),
    "half": (
        lambda: dump({k: v.half() for k, v in weights().items()}),
        {},
        Format.ZIP,
        ("converted weights from torch.float16",),
    ),
    "named": (lambda: legacy(weights()), {"arch": ARCH}, Format.LEGACY, ()),
    "namespace": (
        lambda: dump({"state_dict": weights(), "args": Namespace(lr=1)}),
        {"trust": True},
        Format.ZIP,
        ("took the entry 'state_dict'",),
    ),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(content: bytes) -> Path:
    """The name says nothing: the content has to."""
    path = Path("model.onnx")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("make", "options", "kind", "notes"), GOOD.values(), ids=GOOD)
def test_loads(here, make, options, kind, notes):
    loaded = load(write(make()), **options)
    assert (loaded.format, loaded.arch, loaded.notes) == (kind, ARCH, notes)
    assert loaded.input_shapes == ((1, 1, 28, 28),)
    assert (loaded.input_names, loaded.output_names) == (("input",), ("logits",))
    assert not loaded.module.training
    tolerance = 1e-3 if "half" in str(notes) or "float16" in str(notes) else 0
    for key, value in weights().items():
        torch.testing.assert_close(
            loaded.module.state_dict()[key], value, rtol=tolerance, atol=tolerance
        )


WITH_GRAPH: dict[str, tuple[Callable[[], bytes], Format]] = {
    "module": (lambda: dump(net()), Format.ZIP),
    "legacy-module": (lambda: legacy(net()), Format.LEGACY),
    "module-in-dict": (lambda: dump({"model": net(), "epoch": 3}), Format.ZIP),
    "torchscript": (scripted, Format.TORCHSCRIPT),
    "exported": (exported, Format.EXPORTED),
}


# PyTorch 2.13 raises these against itself while it writes.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize(("make", "kind"), WITH_GRAPH.values(), ids=WITH_GRAPH)
def test_files_with_a_graph_load_when_trusted(here, make, kind):
    path = write(make())
    with pytest.raises(CheckpointError, match="pass --trust if you trust its source"):
        load(path)
    with pytest.raises(CheckpointError, match="with its own graph: leave out --arch faceboxes"):
        load(path, trust=True, arch="faceboxes")
    loaded = load(path, trust=True)
    assert (loaded.format, loaded.arch, loaded.module.training) == (kind, None, False)
    assert loaded.notes[-1] == f"ran code of the {kind.value}"
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded.module(x), net()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_exported_program_brings_its_inputs(here):
    loaded = load(write(exported()), trust=True)
    assert loaded.input_shapes == ((2, 1, 28, 28),)
    assert loaded.input_names == ("input",)
    assert len(loaded.output_names) == 1


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty: copy or download"),
    "text": (lambda: b"epoch 1, loss 0.3\n" * 9, "is a text file, not a checkpoint"),
    "umlaut-at-the-limit": (lambda: b"a" + "ä".encode() * 40000, "is a text file"),
    "lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "is a git-lfs pointer, not the file itself: run `git lfs pull`",
    ),
    "html": (lambda: b"\n<!DOCTYPE html><title>404</title>", "is a web page.*download it again"),
    "index": (index, r"is the index of a sharded.*5 files: part-0.*\.\.\..*merge the shards"),
    "index-broken": (lambda: b'{"weight_map": 3}', "is the index of a sharded checkpoint: merge"),
    "onnx": (lambda: b"\x08\x0a\x12\x07pytorch:\x91\x80", "is an ONNX model.*`crelu optimize`"),
    "gguf": (lambda: b"GGUF\3\0\0\0", "is a GGUF file"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n\0", "is an HDF5 file"),
    "numpy": (lambda: b"\x93NUMPY\1\0v\0", "is a NumPy array"),
    "gzip": (lambda: b"\x1f\x8b\x08\0", "is compressed with gzip: unpack it first"),
    "tar": (lambda: b"\xff" * 257 + b"ustar", "is a tar archive"),
    "noise": (lambda: b"\xff\xfe\x00\x01\x99", "starts with the bytes ff fe 00 01 99"),
    "pickle": (lambda: pickle.dumps({"a": 1}), "is a plain pickle"),
    "truncated-zip": (lambda: dump(weights())[:9999], "is a zip archive that is corrupt or cut"),
    "truncated-legacy": (lambda: legacy(weights())[:9999], "before PyTorch 1.6 that is corrupt"),
    "damaged-zip": (
        lambda: dump(weights()).replace(b"conv1.weight", b"conv1\xff\xfeeight"),
        "is a torch.save archive that is corrupt or cut off",
    ),
    "foreign-zip": (lambda: zipped(a=b"b"), "is a zip archive, but not one that PyTorch wrote"),
    "npz": (lambda: zipped(**{"a.npy": b"b"}), "is a NumPy .npz file"),
    "bomb": (
        lambda: zipped(zipfile.ZIP_DEFLATED, **{"m__data.pkl": b"", "m__data__0": bytes(1 << 25)}),
        "unpacks to 33554432: refused",
    ),
    "truncated-safetensors": (
        lambda: safetensors.torch.save(weights())[:9999],
        "is a safetensors file that is corrupt or cut off",
    ),
    "safetensors-header": (lambda: HUGE_HEADER, "header claims 1152921504606846976 bytes, in a"),
    "safetensors-no-json": (
        lambda: (8).to_bytes(8, "little") + b"{bad json",
        "is a safetensors file that is corrupt",
    ),
    "module": (lambda: dump(net()), "needs code .crelu_deploy.nn.CReLU, .*pass --trust if you"),
    "legacy-module": (lambda: legacy(net()), "needs code .torch.nn.modules.container.Sequential"),
    "namespace": (
        lambda: dump({"state_dict": weights(), "args": Namespace(lr=1)}),
        "needs code .argparse.Namespace.: save model.state_dict",
    ),
    "payload": (lambda: dump({"a": Payload()}), r"needs code \(posix.mkdir\)"),
    "legacy-payload": (lambda: legacy([Payload()]), r"needs code \(posix.mkdir\)"),
    "tensor": (lambda: dump(torch.zeros(2)), "holds no state_dict .found Tensor.: save model"),
    "list": (lambda: dump([torch.zeros(2)]), "holds no state_dict .found list."),
    "numbers": (lambda: dump({"epoch": 3, "loss": 0.1}), "found dict with epoch, loss.: save"),
    "no-keys": (lambda: dump({}), "found dict with no keys"),
    "optimizer": (
        lambda: dump(torch.optim.SGD(net().parameters(), 0.1, momentum=0.9).state_dict()),
        "holds the state of an optimizer and no weights",
    ),
    "entry": (lambda: dump(changed() | {"lr": 0.1}), "state_dict entry 'lr' is not a tensor but f"),
    "quantised": (lambda: dump(changed(conv1__bias=quantised())), "conv1.bias is quantised .*int8"),
    "meta": (
        lambda: dump(changed(conv1__bias=torch.empty(16, device="meta"))),
        "conv1.bias has a shape but no data .meta device.",
    ),
    "sparse": (
        lambda: dump(changed(conv1__bias=torch.zeros(16).to_sparse())),
        "conv1.bias is sparse",
    ),
    "expanded": (
        lambda: dump(changed(conv7__weight=torch.zeros(1).expand(1 << 40, 48, 1, 1))),
        "conv7.weight is larger than its storage",
    ),
    "nan": (lambda: dump(changed(conv1__bias=NAN)), "conv1.bias: 2 of 16 values are NaN or inf"),
    "overflow": (
        lambda: dump(changed(conv1__bias=torch.full((16,), 1e300, dtype=torch.float64))),
        "conv1.bias: 16 of 16 values are NaN or infinite",
    ),
    "integers": (
        lambda: dump(changed(conv1__bias=torch.zeros(16, dtype=torch.int8))),
        "conv1.bias holds torch.int8, expected torch.float32",
    ),
    "unknown-network": (
        lambda: dump({"fc.weight": torch.zeros(3, 4), "x.bias": torch.zeros(3)}),
        "no known architecture has tensors such as fc.weight, x.bias; .*--arch NAME",
    ),
    "newer": (
        lambda: dump({"crelu_deploy": {"arch": ARCH, "version": 2}, "state_dict": weights()}),
        "checkpoint of version 2, this program reads up to 1: install a newer",
    ),
    "own-unknown": (
        lambda: dump(
            {"crelu_deploy": {"arch": "os:getcwd", "version": 1}, "state_dict": weights()}
        ),
        "unknown architecture 'os:getcwd' .known: ",
    ),
    "terminal-escape": (
        lambda: dump({"\x1b[31m\nfc": torch.zeros(3)}),
        r"has tensors such as \[31m fc; ",
    ),
}


def refusal(path: Path, **options: Any) -> str:
    """The one line, without the path that must come first."""
    with pytest.raises(CheckpointError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert "weights_only" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_refused(here, capfd, make, message):
    text = refusal(write(make()))
    assert re.search(message, text), text
    assert not RAN.exists()
    assert capfd.readouterr() == ("", "")


WRITERS: dict[str, Callable[[], bytes]] = {
    "zip": lambda: dump(weights()),
    "legacy": lambda: legacy(weights()),
    "safetensors": lambda: safetensors.torch.save(weights()),
    "module": lambda: dump(net()),
}


def damage(content: bytes, rng: random.Random) -> bytes:
    """Overwrite, drop or add a few bytes, mostly near either end, where the structure is."""
    mutant = bytearray(content)
    for _ in range(rng.choice((1, 3, 20))):
        near = rng.randrange(min(len(mutant), rng.choice((64, 4096, len(mutant)))))
        place = near if rng.random() < 0.6 else len(mutant) - 1 - near
        new = rng.randbytes(1 if rng.random() < 0.8 else rng.randrange(9))
        mutant[place : place + rng.choice((len(new), len(new), 5))] = new
    return bytes(mutant)


def outcome(path: Path) -> str:
    """The message of the refusal, or nothing where the file loads."""
    try:
        load(path)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("make", WRITERS.values(), ids=WRITERS)
def test_damaged_files_load_or_are_refused(here, make):
    content, rng = make(), random.Random(0)
    outcomes = [outcome(write(damage(content, rng))) for _ in range(80)]
    assert all(text.isprintable() for text in outcomes)
    assert sum(text != "" for text in outcomes) > 30


def test_payload_runs_only_when_trusted(here):
    path = write(dump([Payload()]))
    assert "posix.mkdir" in refusal(path)
    assert not RAN.exists()
    assert refusal(path, trust=True).startswith("holds no state_dict (found list)")
    assert RAN.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("make", [scripted, exported])
def test_damaged_archives_are_refused_in_silence(here, capfd, make):
    damaged = re.sub(rb"__torch__|conv2d", lambda match: b"?" * len(match[0]), make())
    text = refusal(write(damaged), trust=True)
    assert f"that PyTorch {torch.__version__} cannot load (" in text
    assert text.endswith("damaged, or of another version; save a state_dict")
    assert capfd.readouterr() == ("", "")


FITS: dict[str, tuple[Callable[[], object], dict[str, Any], str]] = {
    "missing": (
        lambda: {k: v for k, v in weights().items() if k != "conv3.bias"},
        {"arch": ARCH},
        r"do not fit the architecture: 1 missing \(conv3.bias\)$",
    ),
    "unexpected": (
        lambda: weights() | {f"extra{i}": torch.zeros(1) for i in range(5)},
        {"arch": ARCH},
        r"fit the architecture: 5 unexpected \(extra0, extra1, extra2, 2 more\)$",
    ),
    "shape": (
        lambda: changed(conv1__weight=torch.zeros(16, 3, 3, 3)),
        {"arch": ARCH},
        r"1 of another shape \(conv1.weight is 16x3x3x3 in place of 16x1x3x3\)$",
    ),
    "classes-differ": (
        lambda: changed(conv7__bias=torch.zeros(7)),
        {"arch": ARCH},
        r"1 of another shape \(conv7.bias is 7 in place of 10\)$",
    ),
    "other-architecture": (
        weights,
        {"arch": "faceboxes"},
        r"147 missing \(conv1.conv.weight, .*; 14 unexpected \(conv1.weight, conv1.bias, ",
    ),
    "twins": (
        lambda: build("convpool-c-avr").state_dict(),
        {},
        "fit 2 architectures.*--arch convpool-c-relu or --arch convpool-c-avr$",
    ),
    "unknown-arch": (weights, {"arch": "digit-crelu"}, "unknown .*closest: digits-crelu"),
    "no-average": (weights, {"ema": True}, "no moving average of weights .found dict with conv1."),
    "no-average-of-module": (net, {"ema": True, "trust": True}, "no moving .*found Sequential"),
    "no-module": (weights, {"arch": "absent.part:make"}, "--arch absent.part:make failed: Module"),
    "no-attribute": (weights, {"arch": "nets:absent"}, "nets:absent failed: AttributeError"),
    "factory-raises": (weights, {"arch": "nets:broken"}, "ZeroDivisionError: division by zero"),
    "no-network": (weights, {"arch": "nets:number"}, "must return a torch.nn.Module, got int"),
    "factory-differs": (weights, {"arch": "nets:Tiny"}, r"1 missing \(last.weight\); 14 unexp"),
}
NETS = """
import torch
class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(2, 3, bias=False)
        self.register_buffer("mask", torch.zeros(2), persistent=False)
    def forward(self, x):
        return self.last(x) + 1
def number(): return 3
def broken(): return 1 / 0
"""


@pytest.fixture
def nets(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module ``nets`` in the working directory, forgotten afterwards."""
    Path("nets.py").write_text(NETS)
    monkeypatch.delitem(sys.modules, "nets", raising=False)


@pytest.mark.parametrize(("make", "options", "message"), FITS.values(), ids=FITS)
def test_misfits(nets, make, options, message):
    text = refusal(write(dump(make())), **options)
    assert re.search(message, text), text


@pytest.mark.parametrize("prefix", ["", "module.", "model.net."])
def test_factory(nets, prefix):
    path = write(dump({f"{prefix}last.weight": torch.ones(3, 2)}))
    loaded = load(path, arch="nets:Tiny")
    assert torch.equal(loaded.module(torch.ones(1, 2)), torch.full((1, 3), 3.0))
    assert (loaded.arch, loaded.input_shapes, loaded.input_names) == ("nets:Tiny", None, ())
    assert loaded.notes == ((f"stripped prefix {prefix}",) if prefix else ())


def test_module_of_absent_code(nets):
    sys.path.insert(0, "")
    try:
        content = dump(importlib.import_module("nets").Tiny())
    finally:
        sys.path.remove("")
    Path("nets.py").unlink()
    del sys.modules["nets"]
    text = refusal(write(content), trust=True)
    assert re.search(r"needs code which is not here \(No module named 'nets'\): run from", text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such file"),
        (Path.mkdir, "is a folder: give the checkpoint file inside it"),
        (os.mkfifo, "is a device or a pipe: give a file"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels"),
    ],
    ids=["missing", "folder", "pipe", "loop"],
)
def test_not_a_file(here, make, message):
    path = here / "a  b"
    make(path)
    assert refusal(path).startswith(message)
    with pytest.raises(CheckpointError, match=message):
        detect(path)


@pytest.mark.parametrize(
    ("file", "notes"),
    [
        ("faceboxes-3ddfa/FaceBoxesProd.pth", 0),
        ("faceboxes-anime/FaceBoxes_epoch_90.pth", 0),
        ("faceboxes-wider/FaceBoxes.pth", 2),
    ],
)
def test_faceboxes_weights_are_recognised(file, notes):
    loaded = load(real_model(file))
    assert (loaded.arch, loaded.format) == ("faceboxes", Format.LEGACY)
    assert (loaded.input_names, loaded.output_names) == (("input",), ("loc", "conf"))
    assert len(loaded.notes) == notes
    scores = loaded.module(torch.zeros(1, 3, 128, 128))[1]
    torch.testing.assert_close(scores.sum(-1), torch.ones(1, 341))


@pytest.mark.parametrize("name", ["faceboxes", "convpool-c-avr", "vgg-crelu-1-3"])
def test_saved_checkpoint_needs_no_hints(here, name):
    net = build(name, num_classes=3)
    save("net.pt", net, arch=name, num_classes=3)
    loaded = load("net.pt")
    assert (loaded.arch, loaded.format, loaded.notes) == (name, Format.ZIP, ())
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[key], value)
    assert [path.name for path in here.iterdir()] == ["net.pt"]


def test_failed_save_leaves_the_earlier_file(here):
    path = here / "net.pt"
    path.write_bytes(b"earlier")
    with pytest.raises(AttributeError):  # Not a module.
        save(path, 3, arch=ARCH, num_classes=10)  # type: ignore[arg-type]
    assert path.read_bytes() == b"earlier"
    with pytest.raises(BuildError, match=r"absent/net.pt: cannot be written: No such file"):
        save(here / "absent" / "net.pt", net(), arch=ARCH, num_classes=10)
    assert [path.name for path in here.iterdir()] == ["net.pt"]
