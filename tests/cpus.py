"""Processors with fewer instructions than this one, for programs that tests start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "scripts" / "cpus" / "cpuid_mask.c"
LEVELS = ("none", "vnni", "avx512", "avx2")
"""What is hidden; each level hides what the ones before it do."""
UNSUPPORTED = 77


def run_on(level: str, folder: Path, program: str, *arguments: str) -> str:
    """Run a Python program on a processor without some instructions; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    if level != "none":
        environment |= {"CRELU_HIDE": level, "LD_PRELOAD": str(_compiled(folder))}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=environment,
    )
    if level != "none" and done.returncode == UNSUPPORTED:
        pytest.skip(f"this machine does not let a program hide {level}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def _compiled(folder: Path) -> Path:
    """Compile the library that hides instructions."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: cc is not in PATH")
    library = folder / "cpuid_mask.so"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:  # it is written for x86-64 Linux
        pytest.skip(f"{SOURCE.name} does not compile here: {done.stderr.splitlines()[:1]}")
    return library
