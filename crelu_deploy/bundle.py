"""The output folder: what is where, written whole or not at all, checked by hash on opening.

model.onnx          the network with canonical nodes and one function per node type
model.onnx.data     its weights, where they would not fit into one file
samples.npz         inputs and PyTorch's outputs
manifest.json       versions, hashes, inputs, sites, verification
targets/            one lowered model per target that was built
report.*            the results of the last bench, as JSON, Markdown and a page
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from crelu_deploy.errors import BuildError, UnsupportedModel
from crelu_deploy.guards import Limits
from crelu_deploy.manifest import MANIFEST, read_manifest
from crelu_deploy.modelfile import read_file
from crelu_deploy.preprocessing import Preprocessing
from crelu_deploy.runner import TensorSpec
from crelu_deploy.samples import Sample, load_samples, usual
from crelu_deploy.staging import is_scratch, reason, scratch, staged_file, write_text
from crelu_deploy.targets import FUNCTION, Target
from crelu_deploy.writing import write_model

MODEL = "model.onnx"
SAMPLES = "samples.npz"
TARGETS = "targets"
REPORTS = ("report.json", "report.md", "report.html")
"""The results of the last bench: the data first, then what shows them."""


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
        bundle = cls(Path(path), read_manifest(Path(path)))
        try:
            bundle._settle()
        except UnsupportedModel:
            if read_manifest(bundle.path) == bundle.manifest:
                raise
            return cls.open(path)  # A build replaced files meanwhile.
        return bundle

    def reload(self) -> None:
        """Open the bundle again if another process has changed it since.

        Raises:
            UnsupportedModel: As ``open`` does.
        """
        if read_manifest(self.path) != self.manifest:
            self.manifest = Bundle.open(self.path).manifest

    def _hash(self, name: str) -> str:
        file = self.path / name
        if not os.path.isfile(file):  # never raises, whatever the name
            raise UnsupportedModel(f"{file}: missing from the bundle; export it again")
        return sha256(file)

    def _settle(self) -> None:
        """Compare hashes with those recorded, or with those announced for files all replaced."""
        recorded, announced = self.manifest["files"], self.manifest.get("announced", {})
        found = {name: self._hash(name) for name in recorded}
        if announced and all(found.get(name) == new for name, new in announced.items()):
            recorded = {**recorded, **announced}
        for name, hash_ in found.items():
            if hash_ != recorded[name]:
                file = self.path / name
                raise UnsupportedModel(f"{file}: changed since it was written; export it again")
        self.manifest = {**self.manifest, "files": recorded, "announced": {}}

    @property
    def model(self) -> ir.Model:
        """The network with its canonical nodes; read anew at each use unless it is loaded."""
        return self.loaded or read_file(self.path / MODEL)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The recorded inputs and PyTorch's outputs.

        Raises:
            UnsupportedModel: They cannot be read, or are not those of the manifest's network.
        """
        samples = load_samples(self.path / SAMPLES)
        for sample in samples:
            sample.check(self.inputs, self.outputs)
        return samples

    @property
    def usual(self) -> tuple[Sample, ...]:
        """The samples without those that were searched, which are like nothing a network reads.

        What is reduced in precision is made for usual values, and judged by them.
        """
        return usual(self.samples, self.searched)

    @property
    def searched(self) -> int:
        """How many of the last samples were searched."""
        return int(self.manifest.get("searched", 0))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The network's inputs, in order."""
        return tuple(
            TensorSpec(i["name"], i["dtype"], tuple(i["shape"])) for i in self.manifest["inputs"]
        )

    @property
    def limits(self) -> Limits:
        """What the network demands of the extents of its inputs."""
        return Limits.parse(self.manifest.get("guards", []), self.manifest["inputs"])

    @property
    def allow_nan(self) -> bool:
        """Whether PyTorch's outputs may be NaN or infinite."""
        return bool(self.manifest.get("allow_nan", False))

    @property
    def coverage(self) -> dict[str, dict[str, int]]:
        """Per site, channels in all, those of which both halves fire on a sample, those of none."""
        found: dict[str, dict[str, int]] = self.manifest.get("coverage", {})
        return found

    @property
    def extremes(self) -> dict[str, dict[str, int]]:
        """What was put into an input -> how much of it PyTorch's outputs had; see ``extremes``."""
        found: dict[str, dict[str, int]] = self.manifest.get("extremes", {})
        return found

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How its inputs are made of pixels; None where nobody said."""
        entry = self.manifest.get("preprocessing")
        return None if entry is None else Preprocessing.parse(entry)

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
        """Save a target's lowered model and return the files.

        The manifest announces them first: whenever a process is killed, it fits what is there.

        Raises:
            BuildError: A file cannot be written; what was there is kept.
            UnsupportedModel: The folder of the targets is a link to somewhere else.
        """
        path = self.artifact(target)
        _make_folder(path.parent)
        with staged_file(path) as temporary:
            files = write_model(model, temporary)
            new = {str(path.with_name(f.name).relative_to(self.path)): sha256(f) for f in files}
            self.record((), announced={n: h for n, h in new.items() if n in self.manifest["files"]})
        self.manifest = {**self.manifest, "files": {**self.manifest["files"], **new}}
        return tuple(path.with_name(file.name) for file in files)

    def replace_text(self, name: str, text: str) -> None:
        """Write one of ``REPORTS``, announced to the manifest as ``write`` does.

        Raises:
            BuildError: It cannot be written; what was there is kept.
        """
        if name in self.manifest["files"]:
            self.record((), announced={name: hashlib.sha256(text.encode()).hexdigest()})
        write_text(self.path / name, text)
        self.record((self.path / name,))

    def record(self, files: tuple[Path, ...], **entries: Any) -> None:
        """Add files with their hashes, and entries, to the manifest."""
        hashes = {str(file.relative_to(self.path)): sha256(file) for file in files}
        known = {**self.manifest["files"], **hashes}
        merged = {**self.manifest, "files": known, "announced": {}, **entries}
        text = json.dumps(merged, indent=2)
        write_text(self.path / MANIFEST, f"{text}\n")
        self.manifest = json.loads(text)


def _make_folder(path: Path) -> None:
    if path.is_symlink():
        raise UnsupportedModel(f"{path}: is a link, which could lead out of the bundle; refused")
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise BuildError(f"{path}: cannot be made: {reason(error)}") from error


def contents(path: Path) -> frozenset[str]:
    """Return the relative names of the files that a bundle at ``path`` consists of.

    Raises:
        UnsupportedModel: There is no bundle.
    """
    return frozenset({MANIFEST, *read_manifest(path)["files"]})


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
        with scratch(path):
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
    files = [f.relative_to(path) for f in path.rglob("*") if not f.is_dir()]
    found = sorted(str(f) for f in files if not any(map(is_scratch, f.parts)))
    try:
        known = contents(path)
    except UnsupportedModel:
        return found
    return [name for name in found if name not in known and not _is_artifact(Path(name))]


ARTIFACTS = (".onnx", ".data", ".engine", ".json", ".timings")


def _is_artifact(name: Path) -> bool:
    """Whether a file is one that an interrupted build left, which no manifest knows."""
    if str(name) in REPORTS:
        return True
    return name.parts[0] == TARGETS and name.suffix in ARTIFACTS
