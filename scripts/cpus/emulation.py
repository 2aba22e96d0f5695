"""Processors by emulation: qemu's user mode, and a Python for ARM64, in a folder of the cache.

Nothing is installed into this system. Debian's packages come from the mirror that its apt is set
up with, into lists and a state of their own, and are unpacked; wheels come through pip, in the
versions of ``constraints.txt``. Debian 12's own qemu, 7.2, ends when ONNX Runtime reads which
processor it has, so that of the backports is taken where there is one.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
GLIBC = (17, 26, 27, 28, 31, 34)  # the minor versions that wheels for Linux are named after
TESTING = ("pytest", "pytest-timeout")
PROGRAMS = ("qemu-aarch64", "qemu-x86_64")


class NotHere(Exception):
    """What an instruction set needs is not on this machine and cannot be had."""


@dataclass(frozen=True)
class Arm64:
    """A Python for ARM64 in a folder: its interpreter, system libraries and packages."""

    folder: Path

    @property
    def python(self) -> Path:
        """The interpreter."""
        return next((self.folder / "system/usr/bin").glob("python3.*"))

    def variables(self) -> dict[str, str]:
        """Return the environment that shows the interpreter its library and packages."""
        return {
            "PYTHONHOME": str(self.folder / "system/usr"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(self.folder / "site")]),
        }


def cache() -> Path:
    """Return the folder for all of it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "crelu-deploy" / "cpus"


def qemu() -> Path:
    """Return the folder of qemu's programs, after unpacking them into the cache.

    Raises:
        NotHere: This system has no apt, or its mirror no qemu.
    """
    return _made("qemu", _unpack_qemu, "") / "system/usr/bin"


def arm64() -> Arm64:
    """Return the Python for ARM64, after putting it together in the cache.

    Raises:
        NotHere: A package cannot be had.
    """
    wanted = CONSTRAINTS.read_text() + " ".join(requirements())
    return Arm64(_made("arm64", _unpack_arm64, wanted))


def requirements() -> list[str]:
    """Return what the runtime's part of the project and its tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["ort"], *TESTING]


def _made(name: str, make: Callable[[Path], None], content: str) -> Path:
    """Return a folder of the cache that is whole and up to date."""
    digest = hashlib.sha256((content + Path(__file__).read_text()).encode()).hexdigest()
    folder, stamp = cache() / name, cache() / name / "made"
    if stamp.is_file() and stamp.read_text() == digest:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make(folder)
    stamp.write_text(digest)
    return folder


def _unpack_qemu(folder: Path) -> None:
    _debian(folder, "amd64", ["qemu-user"])
    for program in (folder / "system/usr/bin").iterdir():
        if program.name not in PROGRAMS:
            program.unlink()


def _unpack_arm64(folder: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    packages = [f"python{version}-minimal", f"libpython{version}-stdlib", "libstdc++6", "libgomp1"]
    _debian(folder, "arm64", packages)
    tags = [f"--platform=manylinux_2_{minor}_aarch64" for minor in GLIBC]
    _output(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder / "site")),
        *(*tags, "--platform=manylinux2014_aarch64", "--only-binary=:all:"),
        *("--python-version", version, "--implementation", "cp", "-c", str(CONSTRAINTS)),
        *requirements(),
    )


def _debian(folder: Path, architecture: str, packages: Sequence[str]) -> None:
    """Unpack packages and what they depend on into ``system``, for another architecture too."""
    lists, archives = folder / "apt/lists", folder / "apt/archives"
    for part in (lists / "partial", archives / "partial"):
        part.mkdir(parents=True)
    (folder / "apt/status").touch()
    release = _release()
    (folder / "apt/sources.list").write_text(_sources(release))
    apt = [
        *("apt-get", "-qq", "-o", f"Dir::Etc::sourcelist={folder}/apt/sources.list"),
        *("-o", "Dir::Etc::sourceparts=/dev/null", "-o", f"Dir::State={folder}/apt"),
        *("-o", f"Dir::State::status={folder}/apt/status", "-o", f"Dir::Cache={folder}/apt"),
        *("-o", f"APT::Architecture={architecture}", "-o", f"APT::Architectures={architecture}"),
    ]
    _output(*apt, "update")
    install = ("install", "--download-only", "--no-install-recommends", "--yes")
    _output(*apt, "-t", f"{release}-backports", *install, *packages)
    for archive in sorted(archives.glob("*.deb")):
        _output("dpkg-deb", "--extract", str(archive), str(folder / "system"))
    shutil.rmtree(folder / "apt")


def _release() -> str:
    text = Path("/etc/os-release").read_text() if Path("/etc/os-release").is_file() else ""
    found = re.search(r"^VERSION_CODENAME=(\w+)$", text, re.MULTILINE)
    if found is None or not shutil.which("apt-get"):
        raise NotHere("no Debian: no apt to have qemu from")
    return found[1]


def _sources(release: str) -> str:
    """Return the sources of this release and its backports on the mirror that apt knows."""
    form = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    known = (
        line.split("|") for line in _output("apt-get", "indextargets", "--format", form).split()
    )
    mirrors = [uri for uri, suite, component in known if (suite, component) == (release, "main")]
    if not mirrors:
        raise NotHere(f"apt knows no mirror of {release}")
    return "".join(f"deb {mirrors[0]} {release}{tail} main\n" for tail in ("", "-backports"))


def _output(*command: str) -> str:
    """Run a command and return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise NotHere(f"{Path(command[0]).name}: {lines[-1][:160]}")
    return done.stdout
