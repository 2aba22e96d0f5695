"""The output folder: what is where, written whole or not at all, checked by hash on opening.

model.onnx          the network with canonical nodes and one function per node type
model.onnx.data     its weights, where they would not fit into one file
samples.npz         inputs and PyTorch's outputs
manifest.json       versions, hashes, inputs, sites, verification
targets/            one lowered model per target that was built
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from crelu_deploy.errors import BuildError, UnsupportedModel
from crelu_deploy.runner import TensorSpec
from crelu_deploy.samples import Sample, load_samples
from crelu_deploy.staging import reason, write_text
from crelu_deploy.targets import FUNCTION, Target
from crelu_deploy.writing import save_model

MANIFEST = "manifest.json"
MODEL = "model.onnx"
SAMPLES = "samples.npz"
TARGETS = "targets"
FORMAT = 1
"""Version of the manifest; a reader refuses a newer one."""


@dataclass
class Bundle:
    """An output folder and its manifest, which ``record`` keeps equal to the file.

    Attributes:
        path: The folder.
        manifest: The content of ``manifest.json``.
        loaded: The network, while its exporter has it in memory.
    """

    path: Path
    manifest: dict[str, Any]
    loaded: ir.Model | None = None

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read the manifest and compare every file with its recorded hash.

        Raises:
            UnsupportedModel: No bundle, a newer format, or a changed or missing file.
        """
        bundle = cls(Path(path), _manifest(Path(path)))
        for name, recorded in bundle.manifest["files"].items():
            file = bundle.path / name
            if not file.is_file():
                raise UnsupportedModel(f"{file}: missing from the bundle; export it again")
            if sha256(file) != recorded:
                raise UnsupportedModel(f"{file}: changed since it was written; export it again")
        return bundle

    @property
    def model(self) -> ir.Model:
        """The network with its canonical nodes; read anew at each use unless it is loaded."""
        return self.loaded or ir.load(self.path / MODEL)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The recorded inputs and PyTorch's outputs."""
        return load_samples(self.path / SAMPLES)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The network's inputs, in order."""
        return tuple(
            TensorSpec(i["name"], i["dtype"], tuple(i["shape"])) for i in self.manifest["inputs"]
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the network's outputs, in order."""
        return tuple(self.manifest["outputs"])

    def artifact(self, target: Target) -> Path:
        """The ONNX file of one target, which exists after it was built.

        The lowering ``function`` is what the bundle's own model is.
        """
        if target.lowering == FUNCTION:
            return self.path / MODEL
        return self.path / TARGETS / f"{str(target).replace(':', '-')}.onnx"

    def write(self, model: ir.Model, target: Target) -> tuple[Path, ...]:
        """Save a target's lowered model and return the files."""
        path = self.artifact(target)
        path.parent.mkdir(exist_ok=True)
        return save_model(model, path)

    def record(self, files: tuple[Path, ...], **entries: Any) -> None:
        """Add files with their hashes, and entries, to the manifest."""
        hashes = {str(file.relative_to(self.path)): sha256(file) for file in files}
        merged = {**self.manifest, **entries, "files": {**self.manifest["files"], **hashes}}
        write_text(self.path / MANIFEST, json.dumps(merged, indent=2) + "\n")
        self.manifest = merged

    def forget(self, target: Target) -> None:
        """Take a target out of the manifest before its file is written anew.

        Whenever the writing ends, the manifest then speaks of no file that it does not fit.
        """
        if str(target) not in self.manifest["targets"]:
            return
        targets = self.manifest["targets"]
        kept = {name: entry for name, entry in targets.items() if name != str(target)}
        artifact = str(self.artifact(target).relative_to(self.path))
        if target.lowering != FUNCTION:
            files = self.manifest["files"]
            self.manifest["files"] = {n: h for n, h in files.items() if not _of(n, artifact)}
        self.record((), targets=kept)


def _of(name: str, artifact: str) -> bool:
    return name == artifact or name.startswith(f"{artifact}.")


def contents(path: Path) -> frozenset[str]:
    """Return the relative names of the files that a bundle at ``path`` consists of.

    Raises:
        UnsupportedModel: There is no bundle.
    """
    return frozenset({MANIFEST, *_manifest(path)["files"]})


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        raise UnsupportedModel(f"{path}: not a bundle, it has no {MANIFEST}; run: crelu export")
    try:
        manifest = dict(json.loads(file.read_text(encoding="utf-8")))
        version = manifest["format"]
        known = version <= FORMAT
        if known:
            _check_fields(manifest)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnsupportedModel(f"{file}: damaged ({error!r}); export again") from error
    if not known:
        raise UnsupportedModel(f"{file}: format {version} is not {FORMAT}; update crelu-deploy")
    for name in manifest["files"]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UnsupportedModel(f"{file}: {name!r} lies outside the bundle")
    return manifest


def _check_fields(manifest: dict[str, Any]) -> None:
    """Read every field that a ``Bundle`` reads later, so that a damaged one is found at once."""
    bundle = Bundle(Path(), manifest)
    named = {site["name"] for site in manifest["sites"]} | manifest["targets"].keys()
    if not (manifest["files"].keys() | named and bundle.inputs and bundle.outputs):
        raise ValueError("no files, inputs or outputs")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_destination(path: Path) -> None:
    """Refuse a destination that a bundle must not replace, before any work is done.

    Raises:
        BuildError: A file, a folder with other content, or a place that cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}."):
            foreign = _foreign(path)
    except OSError as error:
        raise BuildError(f"{path}: cannot be written: {reason(error)}") from error
    if path.is_mount():
        raise BuildError(f"{path}: is a mount point, which stays; choose a folder in it with -o")
    if foreign:
        raise BuildError(
            f"{path}: holds {foreign[0]!r}, which is no part of a bundle; "
            "nothing was touched, choose another folder with -o"
        )


def _foreign(path: Path) -> list[str]:
    """Return what is at ``path`` and would be lost if a new bundle took its place."""
    if not path.exists():
        return []
    if not path.is_dir():
        return [path.name]
    found = sorted(str(f.relative_to(path)) for f in path.rglob("*") if not f.is_dir())
    try:
        known = contents(path)
    except UnsupportedModel:
        return found
    return [name for name in found if name not in known and not _is_artifact(Path(name))]


def _is_artifact(name: Path) -> bool:
    """Whether a file is one that an interrupted build left, which no manifest knows."""
    return name.parts[0] == TARGETS and name.suffix in (".onnx", ".data")
