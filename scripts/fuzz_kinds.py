"""Good files of every kind that the program reads, and which commands read them damaged."""

from __future__ import annotations

import functools
import io
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import safetensors.torch
import torch
from fuzz_mutations import (
    altered_json,
    altered_onnx,
    altered_safetensors,
    altered_zip,
    damaged,
    flipped,
)

import crelu_deploy
from crelu_deploy.bundle import sha256

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import hostile_files  # noqa: E402

DIGITS = ROOT / "examples" / "digits_crelu.pt"
Commands = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Kind:
    """What a file is for.

    Attributes:
        files: Makes the folder's files, one of them damaged.
        commands: Says what is run on them.
    """

    files: Callable[[random.Random], dict[str, bytes]]
    commands: Callable[[random.Random], Commands]


@functools.cache
def good() -> Mapping[str, bytes]:
    """Return the good files; made in a process of their own, so that no thread is left here."""
    weights = torch.load(DIGITS, weights_only=True)["state_dict"]
    net = crelu_deploy_module()
    legacy, modern, program = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(weights, legacy, _use_new_zipfile_serialization=False)
    torch.save({"state_dict": weights, "epoch": 3, "args": [1, "a", None]}, modern)
    with warnings.catch_warnings(action="ignore"):
        torch.export.save(torch.export.export(net, (torch.zeros(2, 1, 28, 28),)), program)
    return {
        "legacy": legacy.getvalue(),
        "modern": modern.getvalue(),
        "own": DIGITS.read_bytes(),
        "safetensors": safetensors.torch.save(weights),
        "program": program.getvalue(),
        "samples": hostile_files.npz(input=hostile_files.IMAGES),
    }


def crelu_deploy_module() -> torch.nn.Module:
    """Return the digits network."""
    from crelu_deploy.checkpoint import load

    return load(DIGITS).module


@functools.cache
def bundle() -> Mapping[str, bytes]:
    """Return the files of the digits network's bundle."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        crelu_deploy.export(DIGITS, path)
        return {str(f.relative_to(folder)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def resealed(files: Mapping[str, bytes], name: str, content: bytes) -> dict[str, bytes]:
    """Return a bundle with another file in it whose hash is right."""
    manifest = json.loads(files["bundle/manifest.json"])
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        manifest["files"][name.removeprefix("bundle/")] = sha256(Path(file.name))
    return {**files, name: content, "bundle/manifest.json": json.dumps(manifest).encode()}


EXPORT = "export", "file", "-q", "-o", "out/bundle"
QUICK = "--runs", "1", "--seconds", "0.1"


def _checkpoint(rng: random.Random) -> dict[str, bytes]:
    content = good()[rng.choice(("legacy", "modern", "own"))]
    mutations = (altered_zip,) if content.startswith(b"PK") else ()
    return {"file": damaged(content, rng, *mutations)}


def _onnx(rng: random.Random) -> dict[str, bytes]:
    kept = {"data": bytes(32), "secret": bytes(32)}
    sources = [make for name, (make, _) in hostile_files.MODELS.items() if "0000" not in name]
    content = bundle()["bundle/model.onnx"] if rng.random() < 0.5 else rng.choice(sources)()
    if rng.random() < 0.02:
        return {**kept, "file": content}
    try:
        return {**kept, "file": damaged(content, rng, altered_onnx)}
    except onnx.onnx_cpp2py_export.checker.ValidationError:
        raise
    except Exception:  # The file of the corpus cannot be parsed at all.
        return {**kept, "file": flipped(content, rng)}


def _onnx_commands(rng: random.Random) -> Commands:
    form = rng.choice(("auto", "mirror", "fold", "split", "complement", "depthwise", "primitive"))
    prune = ("--prune",) if rng.random() < 0.3 else ()
    inspect = "inspect", "file", "-q"
    return inspect, ("optimize", "file", "-q", "-o", "out/o.onnx", "--lowering", form, *prune)


def _plan(rng: random.Random) -> dict[str, bytes]:
    choice = {f"act{i}": rng.choice(("fold", "mirror", "function")) for i in range(1, 7)}
    whole = {"backend": "ort-cpu", "how": "rule", "choice": choice, "key": {}, "ratios": {"a": 1}}
    return {**bundle(), "file": damaged(json.dumps(whole).encode(), rng, altered_json)}


def _manifest(rng: random.Random) -> dict[str, bytes]:
    name = "bundle/manifest.json"
    return {**bundle(), name: damaged(bundle()[name], rng, altered_json)}


def _inner(rng: random.Random) -> dict[str, bytes]:
    """A bundle whose model or samples are damaged and whose hashes are right."""
    name, mutation = rng.choice(
        (("bundle/model.onnx", altered_onnx), ("bundle/samples.npz", altered_zip))
    )
    return resealed(bundle(), name, damaged(bundle()[name], rng, mutation))


def _bundle_commands(rng: random.Random) -> Commands:
    verbs = {
        "verify": ("verify", "bundle", "-q"),
        "build": ("build", "bundle", "-q", "-t", rng.choice(("ort-cpu", "ort-cpu:mirror"))),
        "bench": ("bench", "bundle", "-q", *QUICK),
        "plan": ("plan", "bundle", "-q", "--budget", "0"),
        "inspect": ("inspect", "bundle", "-q"),
        "torch": ("verify", "bundle", "-q", "-t", "torch"),
    }
    return tuple(verbs[name] for name in rng.sample(sorted(verbs), 2))


def kinds() -> Mapping[str, Kind]:
    """Return every kind of file."""
    trust = (*EXPORT, "--trust")
    samples = ("export", str(DIGITS), "-q", "--samples", "file", "-o", "out/bundle")
    return {
        "pt": Kind(_checkpoint, lambda rng: (EXPORT,)),
        "safetensors": Kind(
            lambda rng: {"file": damaged(good()["safetensors"], rng, altered_safetensors)},
            lambda rng: (EXPORT,),
        ),
        "pt2": Kind(
            lambda rng: {"file": damaged(good()["program"], rng, altered_zip)},
            lambda rng: (EXPORT, trust),
        ),
        "onnx": Kind(_onnx, _onnx_commands),
        "plan": Kind(_plan, lambda rng: (("plan", "bundle", "-q", "--plan", "file"),)),
        "manifest": Kind(_manifest, _bundle_commands),
        "bundle": Kind(_inner, _bundle_commands),
        "samples": Kind(
            lambda rng: {"file": damaged(good()["samples"], rng, altered_zip)},
            lambda rng: (samples,),
        ),
    }
