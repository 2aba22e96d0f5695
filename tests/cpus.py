"""Processors with fewer instructions than this one, for programs that tests start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts" / "cpus"))

from emulation import NotHere
from processors import Way, masked

LEVELS = ("none", "vnni", "avx512", "avx2")
"""What is hidden; each level hides what the ones before it do."""


def way_to(level: str, folder: Path) -> Way:
    """Return how a Python on such a processor is started, or skip the calling test."""
    try:
        return masked(level, folder) if level != "none" else Way("native")
    except NotHere as error:
        pytest.skip(f"{level} cannot be hidden here: {error}")


def start_on(
    level: str, folder: Path, program: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run a Python program on a processor without some instructions."""
    way = way_to(level, folder)
    return subprocess.run(
        [*way.command, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **way.variables},
    )


def run_on(level: str, folder: Path, program: str, *arguments: str) -> str:
    """Return what the program printed."""
    done = start_on(level, folder, program, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout
