"""What is given to users: sdist and wheel are built, hold what they should, and work alone.

The wheel is built from the sdist, as installers do, and with the setuptools that is here: nothing
is downloaded. It goes into an empty environment, which finds its dependencies where the tests run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from crelu_deploy import __version__

ROOT = Path(__file__).resolve().parent.parent
NEEDED = 77
"""The oldest setuptools that reads ``license`` and ``license-files`` as pyproject.toml has them."""
HOOK = "from setuptools import build_meta; print(build_meta.build_{kind}({folder!r}))"


def command(*words: str | Path, folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def made(kind: str, source: Path, folder: Path) -> Path:
    """Build an sdist or a wheel of the tree ``source`` by the hook that installers call."""
    printed = command(
        sys.executable, "-c", HOOK.format(kind=kind, folder=str(folder)), folder=source
    )
    return folder / printed.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if int(version("setuptools").partition(".")[0]) < NEEDED:
        pytest.skip(f"setuptools {version('setuptools')} is older than {NEEDED}")
    folder = tmp_path_factory.mktemp("dist")
    names = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
    (folder / "tree").mkdir()
    for name in names:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / "tree")
    left_out = shutil.ignore_patterns("__pycache__", "build")
    for name in ("crelu_deploy", "plugins", "tests"):
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=left_out)
    return made("sdist", folder / "tree", folder)


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    return made("wheel", sdist.parent / sdist.name.removesuffix(".tar.gz"), sdist.parent)


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs in an environment that has the wheel and no other copy of it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    installed = ("install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    python = folder / "bin" / "python"
    command(sys.executable, "-m", "pip", "--python", python, *installed, wheel, folder=folder)
    # A plain path: what makes this tree importable there is in .pth files, which are not followed.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"crelu_deploy-{__version__}-py3-none-any.whl"
    info = f"crelu_deploy-{__version__}.dist-info/"
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "crelu_deploy").rglob("*.py")}
    packaged = {name for name in names(wheel) if not name.startswith(info)}
    assert packaged == sources | {"crelu_deploy/py.typed", "crelu_deploy/report/template.html"}
    assert f"{info}licenses/LICENSE" in names(wheel)


def test_the_wheel_says_what_it_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        metadata = archive.read(name).decode()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    unconditional = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.M)
    assert unconditional == ["click", "numpy", "onnx", "onnx-ir", "onnxscript", "rich"]
    assert "# crelu-deploy" in metadata


def test_the_sdist_has_what_the_wheel_is_built_from(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "crelu_deploy/py.typed"} <= inside
    assert [name for name in inside if name.endswith((".so", ".pyc"))] == []


def test_the_installed_programs(programs: Path, tmp_path: Path) -> None:
    assert command(programs / "crelu", "--version", folder=tmp_path).split()[-1] == __version__
    where = "import crelu_deploy; print(crelu_deploy.__file__)"
    file = command(programs / "python", "-c", where, folder=tmp_path).strip()
    assert Path(file).is_relative_to(programs.parent)
    assert "--samples" in command(programs / "crelu-export", "--help", folder=tmp_path)


def test_the_installed_doctor(programs: Path, tmp_path: Path) -> None:
    found = json.loads(command(programs / "crelu", "doctor", "--json", "-q", folder=tmp_path))
    states = {backend["backend"]: backend["works"] for backend in found["backends"]}
    assert states["ort-cpu"] is True
    assert list(tmp_path.iterdir()) == []
