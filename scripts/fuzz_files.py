"""Damaged and hostile files, through the command line: each costs one line at most.

Usage: fuzz_files.py [N] [--seed 0] [--only KIND]

N files are made from good ones by changing bytes and by changing what the bytes mean, and given to
``crelu``. Each must end in success, or in exit code 1 and one line on stderr, within SECONDS, with
MEMORY bytes of address space beyond what the imports take, without a file outside the output
folder. Failures are printed with the files that cause them, which are kept. Exit status 1: some.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_kinds
import torch

import crelu_deploy.deployment
import crelu_deploy.planner  # noqa: F401
from crelu_deploy import cli
from crelu_deploy.cli import commands, planning  # noqa: F401
from crelu_deploy.render import stages  # noqa: F401

SECONDS = 60
MEMORY = 3 << 30
CASES_PER_PROCESS = 50
OUTPUT = "out"


@dataclass(frozen=True)
class Case:
    """One file and the commands that read it.

    Attributes:
        kind: What the file was before it was damaged.
        number: Its number; with the seed of the run it makes the file again.
        commands: Command lines, run in a folder of their own.
        files: Names in that folder and their content.
    """

    kind: str
    number: int
    commands: tuple[tuple[str, ...], ...]
    files: dict[str, bytes]


def cases(count: int, seed: int, only: str | None) -> Iterator[Case]:
    """Yield cases, the kinds in turn."""
    kinds = fuzz_kinds.kinds()
    names = [only] if only else list(kinds)
    for number in range(count):
        name = names[number % len(names)]
        rng = random.Random(f"{seed} {number} {name}")
        kind = kinds[name]
        yield Case(name, number, kind.commands(rng), kind.files(rng))


def attempt(case: Case, sandbox: Path) -> dict[str, Any]:
    """Run a case in this process; return how each command ended, and what is wrong with it."""
    shutil.rmtree(sandbox, ignore_errors=True)
    (sandbox / OUTPUT).mkdir(parents=True)
    (sandbox / "tmp").mkdir()
    for name, content in case.files.items():
        (sandbox / name).parent.mkdir(exist_ok=True)
        (sandbox / name).write_bytes(content)
    os.chdir(sandbox)
    before = outside(sandbox, case)
    codes, faults, start = [], [], time.monotonic()
    for command in case.commands:
        code, said = run(command, sandbox.parent / "stderr")
        codes.append(code)
        faults += judge(code, said)
    if outside(sandbox, case) != before:
        faults.append(f"files outside the output folder: {outside(sandbox, case) ^ before}")
    return {"codes": codes, "faults": faults, "seconds": time.monotonic() - start}


def outside(sandbox: Path, case: Case) -> frozenset[tuple[str, int]]:
    """Return the files that no command may touch, with their sizes."""
    written = ("bundle/", f"{OUTPUT}/")  # A bundle is where its targets are written.
    found = ((str(f.relative_to(sandbox)), f) for f in sandbox.rglob("*") if f.is_file())
    return frozenset((n, f.stat().st_size) for n, f in found if not n.startswith(written))


def run(command: tuple[str, ...], log: Path) -> tuple[int | str, str]:
    """Return the exit code, or the exception, and all that was written to stderr."""
    kept = os.dup(2)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
        try:
            code: int | str = cli.run(command)
        except BaseException as error:  # It would be a traceback.
            code = f"{type(error).__name__}: {error}"[:300]
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
    return code, log.read_text(errors="replace")


def judge(code: int | str, said: str) -> list[str]:
    """Return what is wrong with the end of a command."""
    lines = said.splitlines()
    if code == 0:
        return [f"success, and yet on stderr: {said[:300]}"] if lines else []
    if code != 1:
        return [f"ended with {code}"]
    if len(lines) != 1 or not lines[0].startswith("error: ") or not lines[0].isprintable():
        return [f"not one line on stderr: {said[:600]}"]
    return [f"a line of {len(lines[0])} characters"] if len(lines[0]) > 2000 else []


def work(batch: list[Case], sandbox: Path, out: int) -> None:
    """Run cases in a forked process under the memory limit; write a line for each."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    tempfile.tempdir = str(sandbox / "tmp")
    os.environ["TMPDIR"] = tempfile.tempdir
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    for case in batch:
        os.write(out, (json.dumps(attempt(case, sandbox)) + "\n").encode())


def supervise(batch: list[Case], sandbox: Path) -> list[dict[str, Any]]:
    """Return the results of a batch up to the first case that hangs or kills its process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        work(batch, sandbox, writer)
        os._exit(0)
    os.close(writer)
    results: list[dict[str, Any]] = []
    with os.fdopen(reader, "rb", buffering=0) as stream:
        while len(results) < len(batch):
            ready, _, _ = select.select([stream], [], [], SECONDS)
            line = stream.readline() if ready else b""
            if not line.endswith(b"\n"):
                break
            results.append(json.loads(line))
    if len(results) < len(batch):
        what = "its process died" if ready else f"no end within {SECONDS} s"
        os.kill(child, signal.SIGKILL)
        results.append({"codes": [], "faults": [what], "seconds": SECONDS})
    os.waitpid(child, 0)
    return results


def keep(case: Case, folder: Path) -> Path:
    """Write a failing case down; return where."""
    place = folder / f"{case.kind}-{case.number}"
    for name, content in case.files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def main() -> int:
    """Run the cases and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", nargs="?", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz_files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    todo = list(cases(options.count, options.seed, options.only))
    ends: Counter[str] = Counter()
    failed, start, slowest = 0, time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        while todo:
            for result in supervise(todo[:CASES_PER_PROCESS], Path(folder) / "sandbox"):
                case = todo.pop(0)
                ends.update(f"{case.kind} exit {code}" for code in result["codes"])
                for fault in result["faults"]:
                    failed += 1
                    print(f"{keep(case, options.keep)}: {fault}", flush=True)
                slowest = max(slowest, result["seconds"])
    for end, times in sorted(ends.items()):
        print(f"{end:24} {times}")
    print(
        f"{options.count} files, {failed} faults, slowest {slowest:.1f} s, all "
        f"{time.monotonic() - start:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
