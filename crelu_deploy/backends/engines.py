"""What TensorRT and TensorRT-RTX have in common: engines, what is noted of them, how they run.

An engine is built in a process of its own. Beside it lies a note, ``<engine>.json``: the runtime's
version, the devices and shapes it is for, and its final layers. The note is compared with this
machine before the engine is read, because an engine of another version or device fails with a
message that names neither.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crelu_deploy.backends.engine_process import run_worker
from crelu_deploy.backends.engine_progress import PERIOD
from crelu_deploy.bundle import TARGETS, Bundle, sha256
from crelu_deploy.errors import BuildError
from crelu_deploy.profiles import Range, ranges
from crelu_deploy.results import Engine
from crelu_deploy.staging import staged_file
from crelu_deploy.targets import Options, Target

REFIT, COMPATIBLE = "REFIT", "VERSION_COMPATIBLE"
"""Flags of a builder: weights can be replaced; later versions of one major number read it."""


@dataclass(frozen=True)
class Recipe:
    """What an engine is built with.

    Attributes:
        runtime: The Python module that builds it.
        name: The runtime's name for people.
        devices: What it is for; whether the builder is told so is ``ahead``.
        ahead: Whether it is built without the device.
        plugins: Compiled libraries that it needs.
        carried: Whether it carries the kernel that such a library would hold.
    """

    runtime: str
    name: str
    devices: tuple[str, ...]
    ahead: bool
    plugins: tuple[Path, ...] = ()
    carried: bool = False


@dataclass(frozen=True)
class Note:
    """What is to be known of an engine without reading it.

    Attributes:
        runtime: The runtime's name for people.
        version: Its version, the only one that reads the engine.
        devices: What it was built for, such as ``SM86``.
        ranges: Input -> its range of shapes.
        layers: The final layers, after all fusion: the name and the type of each.
        flags: What it was allowed beside, as ``FLAGS`` names it.
    """

    runtime: str
    version: str
    devices: tuple[str, ...]
    ranges: Mapping[str, Range]
    layers: tuple[Mapping[str, str], ...]
    flags: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Note:
        """Read the note beside an engine.

        Raises:
            BuildError: There is none, or it is damaged.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            shapes = {
                name: Range(*(tuple(found[key]) for key in ("smallest", "likely", "largest")))
                for name, found in data["ranges"].items()
            }
            layers = tuple({"name": x["name"], "type": x["type"]} for x in data["layers"])
            texts = (data["runtime"], data["version"], tuple(data["devices"]))
            return cls(*texts, shapes, layers, tuple(data["flags"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BuildError(
                f"{path}: not the note of an engine ({error!r}); build again"
            ) from error

    @property
    def pointwise(self) -> tuple[str, ...]:
        """Names of the layers of TensorRT-RTX that only activate, negate and join.

        They are named after the operators in them; in a fused convolution none remains.
        """
        kernels = (layer["name"] for layer in self.layers if layer["type"] == "kgen")
        return tuple(name for name in kernels if "Relu" in name or "Neg" in name)

    @property
    def kinds(self) -> dict[str, int]:
        """Type of final layer -> how many there are, ``pointwise`` apart from the others."""
        pointwise = self.pointwise
        names = ("pointwise" if x["name"] in pointwise else x["type"] for x in self.layers)
        return dict(Counter(names).most_common())

    def check(self, version: str, device: str | None, again: str) -> None:
        """Refuse an engine that this machine cannot run.

        Args:
            version: The runtime's version here.
            device: The device here, in the words of ``devices``; None where there is none.
            again: The command that builds the engine here.

        Raises:
            BuildError: It was built by another version, or for other devices.
        """
        if version != self.version and not self._is_read_by(version):
            raise BuildError(
                f"the engine was built by {self.runtime} {self.version}, here is {version}, which "
                f"does not read it; run: {again}"
            )
        if device is not None and device not in self.devices:
            raise BuildError(
                f"the engine was built for {', '.join(self.devices)}, this GPU is {device}; "
                f"run: {again}"
            )

    def _is_read_by(self, version: str) -> bool:
        """Whether another version reads it: a later one of the same major number, if so built."""
        here, there = (tuple(map(int, v.split(".")[:3])) for v in (version, self.version))
        return COMPATIBLE in self.flags and here[0] == there[0] and here > there


def engine_file(bundle: Bundle, target: Target) -> Path:
    """Return where a target's engine is; its note has ``.json`` behind that name."""
    return bundle.path / TARGETS / f"{str(target).replace(':', '-')}.engine"


def note_file(engine: Path) -> Path:
    """Return where the note of an engine is."""
    return engine.with_name(f"{engine.name}.json")


def command(bundle: Bundle, target: Target, verb: str) -> str:
    """Return the command line that does something with a target."""
    return f"crelu {verb} {bundle.path} -t {target}"


def build_engine(bundle: Bundle, target: Target, options: Options, recipe: Recipe) -> Engine:
    """Build the engine of a target's lowered file.

    Returns:
        Its layers; the files are the engine, its note and, where it was built on its device, the
        timings of tactics.

    Raises:
        BuildError: The runtime refuses the model or crashes on it, or a file cannot be written.
    """
    shapes = {name: array.shape for name, array in bundle.samples[0].inputs.items()}
    found = ranges(bundle.inputs, shapes, options.shapes)
    engine = engine_file(bundle, target)
    engine.parent.mkdir(exist_ok=True)
    timings = engine.with_name(f"{recipe.runtime}.timings")
    with staged_file(engine) as temporary:
        if timings.is_file() and not recipe.ahead:
            temporary.with_name(timings.name).write_bytes(timings.read_bytes())
        job = make_job(bundle.artifact(target), temporary, found, recipe, options)
        told = run_worker(job, lambda text: options.progress(f"build {target} {text}"))
        note = Note(
            *(recipe.name, told["version"], recipe.devices, found),
            layers=tuple(told["layers"]),
            flags=tuple(job["flags"]),
        )
        note_file(temporary).write_text(json.dumps(asdict(note), indent=1) + "\n")
        staged = sorted(temporary.parent.iterdir())
        _announce(bundle, engine, staged)
    return Engine(tuple(engine.with_name(file.name) for file in staged), note.kinds)


def make_job(
    model: Path, engine: Path, shapes: Mapping[str, Range], recipe: Recipe, options: Options
) -> dict[str, Any]:
    """Return what ``engine_worker`` reads: an ONNX file to build, where to, for what and how."""
    return {
        "runtime": recipe.runtime,
        "name": recipe.name,
        "model": str(model),
        "engine": str(engine),
        "timings": "" if recipe.ahead else str(engine.with_name(f"{recipe.runtime}.timings")),
        "ranges": {name: list(asdict(found).values()) for name, found in shapes.items()},
        "devices": list(recipe.devices) if recipe.ahead else [],
        "plugins": [str(path) for path in recipe.plugins],
        "carried": recipe.carried,
        "flags": [flag for flag, asked in _asked(options).items() if asked],
        "workspace": options.workspace,
        "period": PERIOD,
        "tf32": options.tf32,
        "verbose": options.verbose,
    }


def _asked(options: Options) -> dict[str, bool]:
    return {REFIT: options.refit, COMPATIBLE: options.version_compatible}


def _announce(bundle: Bundle, engine: Path, staged: Sequence[Path]) -> None:
    """Say in the manifest which of its files are about to be replaced, and by what."""
    new = {str(engine.with_name(f.name).relative_to(bundle.path)): sha256(f) for f in staged}
    bundle.record((), announced={n: h for n, h in new.items() if n in bundle.manifest["files"]})
