"""What TensorRT and TensorRT-RTX have in common: engines, what is noted of them, how they run.

An engine is built in a process of its own. Beside it lies a note, ``<engine>.json``: the runtime's
version, the devices and shapes it is for, and its final layers. The note is compared with this
machine before the engine is read, because an engine of another version or device fails with a
message that names neither.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crelu_deploy.bundle import TARGETS, Bundle, sha256
from crelu_deploy.errors import BuildError
from crelu_deploy.profiles import Range, ranges
from crelu_deploy.staging import staged_file
from crelu_deploy.targets import Options, Target

WORKER = "crelu_deploy.backends.engine_worker"


@dataclass(frozen=True)
class Recipe:
    """What an engine is built with.

    Attributes:
        runtime: The Python module that builds it.
        name: The runtime's name for people.
        devices: What it is for; whether the builder is told so is ``ahead``.
        ahead: Whether it is built without the device.
        plugins: Compiled libraries that it needs.
    """

    runtime: str
    name: str
    devices: tuple[str, ...]
    ahead: bool
    plugins: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Note:
    """What is to be known of an engine without reading it.

    Attributes:
        runtime: The runtime's name for people.
        version: Its version, the only one that reads the engine.
        devices: What it was built for, such as ``SM86``.
        ranges: Input -> its range of shapes.
        layers: The final layers, after all fusion: the name and the type of each.
    """

    runtime: str
    version: str
    devices: tuple[str, ...]
    ranges: Mapping[str, Range]
    layers: tuple[Mapping[str, str], ...]

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
            return cls(data["runtime"], data["version"], tuple(data["devices"]), shapes, layers)
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

    def check(self, version: str, device: str | None, again: str) -> None:
        """Refuse an engine that this machine cannot run.

        Args:
            version: The runtime's version here.
            device: The device here, in the words of ``devices``; None where there is none.
            again: The command that builds the engine here.

        Raises:
            BuildError: It was built by another version, or for other devices.
        """
        if version != self.version:
            raise BuildError(
                f"the engine was built by {self.runtime} {self.version}, here is {version}, which "
                f"does not read it; run: {again}"
            )
        if device is not None and device not in self.devices:
            raise BuildError(
                f"the engine was built for {', '.join(self.devices)}, this GPU is {device}; "
                f"run: {again}"
            )


def engine_file(bundle: Bundle, target: Target) -> Path:
    """Return where a target's engine is; its note has ``.json`` behind that name."""
    return bundle.path / TARGETS / f"{str(target).replace(':', '-')}.engine"


def note_file(engine: Path) -> Path:
    """Return where the note of an engine is."""
    return engine.with_name(f"{engine.name}.json")


def command(bundle: Bundle, target: Target, verb: str) -> str:
    """Return the command line that does something with a target."""
    return f"crelu {verb} {bundle.path} -t {target}"


def build_engine(
    bundle: Bundle, target: Target, options: Options, recipe: Recipe
) -> tuple[Path, ...]:
    """Build the engine of a target's lowered file.

    Returns:
        The engine, its note and, where it was built on its device, the timings of tactics.

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
        told = run_worker(make_job(bundle.artifact(target), temporary, found, recipe, options))
        layers = tuple(told["layers"])
        note = Note(recipe.name, told["version"], recipe.devices, found, layers)
        note_file(temporary).write_text(json.dumps(asdict(note), indent=1) + "\n")
        staged = sorted(temporary.parent.iterdir())
        _announce(bundle, engine, staged)
    return tuple(engine.with_name(file.name) for file in staged)


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
        "tf32": options.tf32,
        "verbose": options.verbose,
    }


def _announce(bundle: Bundle, engine: Path, staged: Sequence[Path]) -> None:
    """Say in the manifest which of its files are about to be replaced, and by what."""
    new = {str(engine.with_name(f.name).relative_to(bundle.path)): sha256(f) for f in staged}
    bundle.record((), announced={n: h for n, h in new.items() if n in bundle.manifest["files"]})


def run_worker(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run one build in a process of its own and return what it says of the engine.

    Raises:
        BuildError: It failed or crashed, with the last line that it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", WORKER, str(file)], capture_output=True, text=True, check=False
        )
    if job["verbose"]:
        sys.stderr.write(done.stderr)
    if done.returncode:
        raise BuildError(f"{job['name']} {_ending(done.returncode)}: {_last_line(done.stderr)}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _ending(status: int) -> str:
    return "refuses it" if status > 0 else f"crashed on it ({signal.Signals(-status).name})"


def _last_line(log: str) -> str:
    return next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "no message")
