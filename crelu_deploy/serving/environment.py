"""The Python environment of the Triton server, apart from this one: its package wants NumPy 1.

The package nvidia-pytriton holds the server's program, its Python backend, and for each version of
Python the stub in which models run. ONNX Runtime and what reads a bundle lie beside them;
crelu-deploy itself is lent to the server from here, so that both are of one version.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from crelu_deploy.errors import BackendUnavailable, BuildError
from crelu_deploy.pipeline import Progress, silent
from crelu_deploy.staging import reason, staged_folder

VARIABLE = "CRELU_SERVER_ENV"
"""Environment variable with the folder, for the command line and the tests."""

SERVER = "nvidia-pytriton>=0.7,<0.8"
READERS = ("onnx", "onnx-ir", "onnxruntime")
"""What reads a bundle: of the versions that are here, because results are to be the same."""


@dataclass(frozen=True)
class Environment:
    """An environment that holds a server.

    Attributes:
        folder: Of the virtual environment.
        packages: Its site-packages.
    """

    folder: Path
    packages: Path

    @property
    def server(self) -> Path:
        """The server's program."""
        return self.packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def backend(self) -> tuple[Path, ...]:
        """The files of the Python backend, which belong into one folder."""
        root = self.packages / "pytriton" / "tritonserver"
        python = self.packages.parent.name.removeprefix("python")
        stub = root / "python_backend_stubs" / python / "triton_python_backend_stub"
        names = ("libtriton_python.so", "triton_python_backend_utils.py")
        return (*(root / "backends" / "python" / name for name in names), stub)

    @property
    def variables(self) -> dict[str, str]:
        """The server's environment variables.

        The stub takes its modules from the virtual environment of the first ``python3`` in PATH; it
        needs the shared library of that Python.
        """
        python = (self.folder / "bin" / "python").absolute()
        libraries = (self.packages / "nvidia_pytriton.libs", python.resolve().parent.parent / "lib")
        return {
            **os.environ,
            "PATH": _joined(python.parent, os.environ.get("PATH")),
            "LD_LIBRARY_PATH": _joined(*libraries, os.environ.get("LD_LIBRARY_PATH")),
        }


def _joined(*paths: Path | str | None) -> str:
    return os.pathsep.join(str(path) for path in paths if path)


def requirements() -> tuple[str, ...]:
    """Return what is installed into the environment."""
    return (SERVER, "numpy<2", *map(_same, READERS))


def _same(package: str) -> str:
    try:
        return f"{package}=={version(package)}"
    except PackageNotFoundError:
        return package


def default_folder() -> Path:
    """Return where the environment is: other versions of what it holds have another folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    wanted = "\n".join((sys.version, *requirements()))
    name = hashlib.sha256(wanted.encode()).hexdigest()[:12]
    return Path(cache) / "crelu-deploy" / f"triton-{name}"


def find(folder: Path) -> Environment:
    """Return the environment in a folder.

    Raises:
        BackendUnavailable: There is none, it holds no server, or its Python has no stub.
    """
    for packages in sorted(folder.glob("lib/python*/site-packages")):
        found = Environment(folder, packages)
        missing = [file for file in (found.server, *found.backend) if not file.is_file()]
        if not missing:
            return found
        raise BackendUnavailable(
            f"{folder}: holds no Triton server for its Python, {missing[0].name} is missing; run: "
            f"{folder}/bin/pip install {_quoted()}"
        )
    raise BackendUnavailable(
        f"{folder}: is no virtual environment; name a folder that is not there yet, or remove it"
    )


def provide(folder: Path, progress: Progress = silent) -> Environment:
    """Return the environment in a folder, which is made where it is missing.

    Raises:
        BackendUnavailable: What is there holds no server, or the packages cannot be installed.
        BuildError: The folder cannot be written.
    """
    if not folder.exists():
        _make(folder, progress)
    return find(folder)


def _make(folder: Path, progress: Progress) -> None:
    progress(f"install a Triton server into {folder}, once: about 600 MB")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"{folder}: cannot be made: {reason(error)}") from error
    with staged_folder(folder) as stage:
        # The program that runs this may itself be a link within a virtual environment.
        venv.create(stage, with_pip=True, symlinks=True)
        pip = [str(stage / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        options = ("--disable-pip-version-check", "--no-warn-script-location")
        done = subprocess.run(
            [*pip, *options, *requirements()], capture_output=True, text=True, check=False
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise BackendUnavailable(
                f"no Triton server could be installed: {(lines or ['pip failed'])[-1]}; name an "
                f"environment that holds one with --server-env, made by: pip install {_quoted()}"
            )


def _quoted() -> str:
    return " ".join(f"'{requirement}'" for requirement in requirements())
