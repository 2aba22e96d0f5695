"""The models that one target gives: one that a runtime of the server reads, one that runs Python.

<model>/config.pbtxt    what the server is to know
<model>/1/              the model's file, or model.py and a bundle of its one target
<model>/warmup/         the inputs of the first calls, from the bundle's samples
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from crelu_deploy import native
from crelu_deploy.backends.engines import COMPATIBLE, Note, engine_file, note_file
from crelu_deploy.bundle import SAMPLES, Bundle
from crelu_deploy.lowerings.plugin import has_plugins
from crelu_deploy.manifest import MANIFEST
from crelu_deploy.modelfile import read_file
from crelu_deploy.serving import config as configs
from crelu_deploy.serving.signature import Signature
from crelu_deploy.targets import BACKENDS, CARRIED, GPU, Target

VERSION = "1"
"""The one version of a model, a folder's name."""

MOUNT = "/models"
"""Where the repository is on the server's machine, for the one path that must be absolute."""

PYTHON = "python"
NATIVE = {"onnxruntime": "onnxruntime", "onnxruntime_cuda": "onnxruntime", "tensorrt": "tensorrt"}
"""Module of a backend here -> the backend of Triton that reads the same file."""


@dataclass(frozen=True)
class Model:
    """One model of a repository.

    Attributes:
        name: As clients call it.
        target: What it runs.
        backend: The backend of Triton that runs it.
        batch: The largest batch that is formed; 0 where the network has no batch axis.
        library: The compiled library that it needs, within the repository; empty where none.
        runtime: The runtime and version that its file was built by; empty where any reads it.
        compatible: Whether later versions of one major number read that file too.
    """

    name: str
    target: str
    backend: str
    batch: int
    library: str = ""
    runtime: str = ""
    compatible: bool = False


@dataclass(frozen=True)
class Served:
    """A target on its way into a repository.

    Attributes:
        bundle: Where it is.
        target: What it is.
        signature: The network's tensors.
        sizes: The batch sizes that a server is to form.
        stem: What the models' names begin with.
        instances: Copies of each model that run at a time.
    """

    bundle: Bundle
    target: Target
    signature: Signature
    sizes: tuple[int, ...]
    stem: str
    instances: int = 1

    @property
    def name(self) -> str:
        """The name of the model that a runtime of the server reads."""
        return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{self.stem}-{self.target}".replace(":", "-"))

    @property
    def backend(self) -> str:
        """The backend of Triton that reads the target's file; empty where there is none."""
        return NATIVE.get(BACKENDS[self.target.backend].module, "")

    @property
    def files(self) -> tuple[str, ...]:
        """The target's files, relative to the bundle."""
        model = str(self.bundle.artifact(self.target).relative_to(self.bundle.path))
        engine = str(engine_file(self.bundle, self.target).relative_to(self.bundle.path))
        wanted = (model, f"{model}.data", engine, str(note_file(Path(engine))))
        return tuple(name for name in wanted if name in self.bundle.manifest["files"])

    def config(self, name: str, backend: str) -> configs.Config:
        """Return the part of a model's configuration that does not depend on its backend."""
        gpu, instances = BACKENDS[self.target.backend] in GPU, self.instances
        return configs.model_config(
            name, backend, self.signature, sizes=self.sizes, gpu=gpu, instances=instances
        )


def write_models(folder: Path, served: Served) -> list[Model]:
    """Write a target's models into a repository.

    Raises:
        BackendUnavailable: A compiled library that the target needs is not built.
        BuildError: The note of an engine is damaged.
        UnsupportedModel: The network cannot be described to a server.
    """
    makers = {"onnxruntime": _onnxruntime, "tensorrt": _tensorrt}
    native_ = [makers[served.backend](folder, served)] if served.backend else []
    return [*native_, _python(folder, served)]


def _onnxruntime(folder: Path, served: Served) -> Model:
    config = served.config(served.name, "onnxruntime")
    artifact = served.bundle.artifact(served.target)
    configs.use_onnxruntime(config, artifact.name)
    if BACKENDS[served.target.backend] in GPU:
        configs.use_cuda(config)
    library = _copy_library(folder / served.name, served, "onnxruntime")
    if library:
        configs.use_library(config, f"{MOUNT}/{served.name}/{library}")
    version = _write(folder, served, config)
    for name in served.files:
        if not name.endswith((".engine", ".engine.json")):
            shutil.copyfile(served.bundle.path / name, version / Path(name).name)
    return _model(served, config, library)


def _tensorrt(folder: Path, served: Served) -> Model:
    engine = engine_file(served.bundle, served.target)
    note = Note.read(note_file(engine))
    config = served.config(served.name, "tensorrt")
    configs.use_tensorrt(config, engine.name, fixed=served.signature.fixed)
    library = _copy_library(folder / served.name, served, "tensorrt")
    shutil.copyfile(engine, _write(folder, served, config) / engine.name)
    made = _model(served, config, library)
    runtime, compatible = f"{note.runtime} {note.version}", COMPATIBLE in note.flags
    return replace(made, runtime=runtime, compatible=compatible)


def _python(folder: Path, served: Served) -> Model:
    """Write the model that runs the Runner, with a bundle of nothing but its target."""
    config = served.config(f"{served.name}-{PYTHON}", PYTHON)
    configs.use_runner(config, str(served.target))
    version = _write(folder, served, config)
    shutil.copyfile(Path(__file__).with_name("triton_model.py"), version / "model.py")
    _copy_bundle(served, version / "bundle")
    return _model(served, config)


def _model(served: Served, config: configs.Config, library: str = "") -> Model:
    place = f"{config.name}/{library}" if library else ""
    backend, batch = config.backend, config.max_batch_size
    return Model(config.name, str(served.target), backend, batch, place)


def _write(folder: Path, served: Served, config: configs.Config) -> Path:
    """Write a configuration and the files of its warm-up; return the version's folder."""
    model = folder / str(config.name)
    warmup, version = model / configs.WARMUP, model / VERSION
    for made in (model, warmup, version):
        made.mkdir(exist_ok=True)
    (model / "config.pbtxt").write_text(configs.to_text(config), encoding="utf-8")
    for index, spec in enumerate(served.signature.inputs):
        data = np.ascontiguousarray(served.signature.sample[spec.name]).tobytes()
        (warmup / configs.warmup_file(index)).write_bytes(data)
    return version


def _copy_library(model: Path, served: Served, name: str) -> str:
    """Copy the compiled library beside the configuration where the graph asks for it."""
    if served.target.lowering == CARRIED or not has_plugins(
        read_file(served.bundle.artifact(served.target))
    ):
        return ""
    library = native.library(name)
    model.mkdir()
    shutil.copyfile(library, model / library.name)
    return library.name


def _copy_bundle(served: Served, folder: Path) -> None:
    """Copy what the Runner of one target reads: its files, the samples, a manifest of these."""
    bundle, target = served.bundle, str(served.target)
    names = (*served.files, SAMPLES)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, folder / name)
    manifest = {
        **bundle.manifest,
        "files": {name: bundle.manifest["files"][name] for name in names},
        "announced": {},
        "targets": {target: bundle.manifest["targets"][target]},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
