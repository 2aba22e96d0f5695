"""The runtime's part of the tests under other instruction sets, and what holds there: a table.

Usage: run.py [--only NAME]...

This processor's own set comes first, then lesser ones of x86-64, then ARM64. ``processors.py`` says
how each is had; what cannot be had is a row that says why. Exit status 1: something that ran
was wrong. The logs are in ``build/cpus``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import processors
from emulation import NotHere
from processors import Way
from results import Found, table

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "build" / "cpus"
EXAMPLES = ROOT / "examples"
TOGETHER = 2
SAMPLES = 24

SHORT = ("op", "lowerings", "fold", "depthwise", "complement", "split", "pooled", "concats")
"""The test files that an emulated processor runs: ``tests/test_<name>.py``, without what is marked
as thorough; where kernels run natively, every test of the files below."""

LONG = (
    *SHORT,
    *(
        "recognition",
        "recognition_parts",
        "passes",
        "fold_refusals",
        "complement_refusals",
        "pruning",
    ),
    *("optimizer", "pipeline", "runner", "accuracy", "agreement", "precision", "fuzz"),
    *("quantization", "saturation"),
)
TIMED = "cost_grows"
"""The tests that measure time, which means nothing under emulation."""


def fixture() -> Path:
    """Return a bundle of the trained example, with PyTorch's outputs for some real digits."""
    from crelu_deploy import export

    samples = FOLDER / "samples.npz"
    np.savez(samples, input=np.load(EXAMPLES / "digits_samples.npz")["input"][:SAMPLES])
    return export(EXAMPLES / "digits_crelu.pt", FOLDER / "digits.crelu", samples=samples).path


def examine(name: str, find: Callable[[], Way], bundle: Path) -> Found:
    """Return what is found under one instruction set."""
    try:
        way = find()
    except NotHere as error:
        return Found(name, str(error), ran=False)
    folder = FOLDER / name.replace(", ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    asked, first = _ask(way, folder, bundle)
    tested, second = _test(way, folder)
    print(f"... {name}: done", file=sys.stderr)
    return Found(name, way.how, **asked, **tested, broken=(*first, *second))


def _ask(way: Way, folder: Path, bundle: Path) -> tuple[dict[str, Any], list[str]]:
    """Ask the runtime about the networks; return its answers, and what went wrong."""
    copy = shutil.copytree(bundle, folder / bundle.name)
    script = Path(__file__).resolve().parent / "networks.py"
    status, log = start(way, folder / "networks.log", str(script), str(copy))
    if status:
        return {}, [f"the networks ended with exit status {status}, see {log}"]
    return json.loads(log.read_text().splitlines()[-1]), []


def _test(way: Way, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Run the test files; return how many passed and which failed, and what went wrong."""
    files = [f"tests/test_{name}.py" for name in (SHORT if way.emulated else LONG)]
    report = folder / "tests.xml"
    # faulthandler would take the signal by which instructions are hidden
    plugins = ("-p", "no:faulthandler", "-p", "no:cacheprovider")
    chosen = ("-k", f"not {TIMED}") if way.emulated else ("-m", "")
    options = (*plugins, "--timeout", "0", f"--junit-xml={report}", *chosen)
    status, log = start(way, folder / "tests.log", "-m", "pytest", *options, *files)
    if not report.is_file():
        return {}, [f"the tests ended with exit status {status}, see {log}"]
    passed, failed = count(report)
    broken = status and not failed
    return (
        {"passed": passed, "failed": tuple(failed)},
        [f"the tests ended with exit status {status}, see {log}"] if broken else [],
    )


def count(report: Path) -> tuple[int, list[str]]:
    """Return how many tests of a JUnit file passed, and the names of those that failed."""
    passed, failed = 0, []
    for case in ElementTree.parse(report).iter("testcase"):
        results = {child.tag for child in case}
        if results & {"failure", "error"}:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        passed += not results & {"failure", "error", "skipped"}
    return passed, failed


def start(way: Way, log: Path, *arguments: str) -> tuple[int, Path]:
    """Run a Python with these arguments, its output to a file."""
    variables = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **way.variables}
    with log.open("wb") as stream:
        done = subprocess.run(
            [*way.command, *arguments],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return done.returncode, log


def main() -> int:
    """Examine the instruction sets, two at a time; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="this instruction set")
    given = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    ways = processors.ways(FOLDER)
    names = given.only or list(ways)
    if unknown := [name for name in names if name not in ways]:
        parser.error(f"no instruction set {unknown[0]!r}; here are {'; '.join(ways)}")
    bundle = fixture()
    with ThreadPoolExecutor(TOGETHER) as pool:
        # the slowest first: emulated ones are the last rows
        jobs = {n: pool.submit(partial(examine, n, ways[n], bundle)) for n in names[::-1]}
        found = [jobs[name].result() for name in names]
    print(table(found))
    return 1 if any(row.faults() for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
