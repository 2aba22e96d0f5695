"""Kill the program at random moments; whatever it was doing, the earlier bundle must stay whole.

Usage: kill_test.py [N] [--seed 0]

Every command runs N/4 times in a process that is killed (SIGKILL): every other time after a random
delay, else just before a random one of the command's operations on files. Then the bundle must
open, with every hash right, and verify; the same command must succeed when it is run again, and
leave no temporary folder. Exit status 1: it was not so.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from crelu_deploy import cli

DIGITS = Path(__file__).resolve().parent.parent / "examples" / "digits_crelu.pt"
BUNDLE = "digits.crelu"

COMMANDS = {
    "export": ("export", str(DIGITS), "-q", "-o", BUNDLE),
    "build": ("build", BUNDLE, "-q", "-t", "ort-cpu", "-t", "ort-cpu:mirror"),
    "bench": ("bench", BUNDLE, "-q", "-t", "ort-cpu:fold", "--runs", "2", "--seconds", "0.1"),
    "plan": ("plan", BUNDLE, "-q", "--budget", "0"),
}
FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir")
"""Audit events of Python that are operations on files."""


def start(command: tuple[str, ...], prepare: Callable[[], object] = lambda: None) -> int:
    """Run a command in a forked process, in silence; return its id."""
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        prepare()
        os._exit(cli.run(command))
    return child


def end(child: int) -> int:
    """Wait for a process and return its exit code, negative if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_file_events(do: Callable[[int], None]) -> Callable[[], None]:
    """Return what makes a process call ``do(i)`` before its i-th operation on files here."""
    seen, here = 0, os.getcwd()

    def hook(name: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if name in FILE_EVENTS and arguments and here in os.path.abspath(str(arguments[0])):
            seen += 1
            do(seen)

    return lambda: sys.addaudithook(hook)


def die_at(event: int) -> Callable[[], None]:
    """Return what makes a process kill itself before its ``event``-th operation on files here."""
    return at_file_events(lambda i: os.kill(os.getpid(), signal.SIGKILL) if i == event else None)


def limits_of(command: tuple[str, ...]) -> tuple[float, int]:
    """Return how long a command takes, in seconds, and its number of operations on files here."""
    began = time.monotonic()
    with mmap.mmap(-1, 8) as shared:
        count = at_file_events(lambda i: struct.pack_into("q", shared, 0, i))
        if end(start(command, count)) != 0:
            raise SystemExit(f"crelu {' '.join(command)}: fails without being killed")
        return time.monotonic() - began, struct.unpack_from("q", shared)[0]


def kill(command: tuple[str, ...], seconds: float) -> int:
    """Kill a command after some time; return its exit code."""
    child = start(command)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return end(child)


def faults(name: str) -> list[str]:
    """Return what is wrong after a kill, and after the command has been run again."""
    found = []
    if end(start(("verify", BUNDLE, "-q"))) != 0:
        found.append("the bundle does not open and verify")
    if end(start(COMMANDS[name])) != 0:
        found.append("the command fails when run again")
    if left := [str(p) for p in Path.cwd().rglob(".*.tmp")]:
        found.append(f"left behind: {left}")
    return found


def main() -> int:
    """Run the kills and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", nargs="?", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng, bad = random.Random(options.seed), 0
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(os.path.realpath(folder))
        limits = {name: limits_of(command) for name, command in COMMANDS.items()}
        for i in range(options.count):
            name = list(COMMANDS)[i // 2 % len(COMMANDS)]
            seconds, events = limits[name]
            moment = rng.uniform(0, seconds) if i % 2 else rng.randint(1, events)
            if i % 2:
                code = kill(COMMANDS[name], moment)
            else:
                code = end(start(COMMANDS[name], die_at(int(moment))))
            ends[f"{name}: {'killed' if code < 0 else 'ended before'}"] += 1
            for fault in faults(name):
                bad += 1
                print(f"{name} killed at {moment}: {fault}", flush=True)
        os.chdir("/")
    for what, times in sorted(ends.items()):
        print(f"{what:24} {times}")
    print(f"{options.count} kills, {bad} faults")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
