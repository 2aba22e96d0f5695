"""Instruction sets, and how a Python that has just one of them is started here.

A processor with more is told to hide it, so that the runtime takes its kernels for the lesser set
and runs them natively; where CPUID cannot be trapped, qemu emulates a processor that has no more.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import emulation
from emulation import NotHere

from crelu_deploy.machine import features

MASK = Path(__file__).resolve().parent / "cpuid_mask.c"
CPUINFO = Path("/proc/cpuinfo")
UNSUPPORTED = 77  # the mask's exit status where CPUID cannot be trapped
ARM64 = "ARM64"


@dataclass(frozen=True)
class Way:
    """How a Python under some instruction set is started.

    Attributes:
        how: ``native``, ``CPUID masked`` or the emulator and its processor.
        command: What comes before the interpreter's arguments.
        variables: What is added to the environment.
        emulated: Whether it is some thirty times slower, and may have no PyTorch.
    """

    how: str
    command: tuple[str, ...] = (sys.executable,)
    variables: Mapping[str, str] = field(default_factory=dict)
    emulated: bool = False


@dataclass(frozen=True)
class Lesser:
    """An instruction set below that of a newer x86-64 processor.

    Attributes:
        hidden: What the mask hides to get it.
        needed: What the processor must have, a key of ``machine.FEATURES``.
        emulated: qemu's name of a processor that has no more; empty where it emulates none.
    """

    hidden: str
    needed: str
    emulated: str


LESSER = {
    "AVX-512": Lesser("vnni", "AVX-512", ""),
    "AVX2": Lesser("avx512", "AVX2", "Haswell-noTSX"),
    "SSE4.2": Lesser("avx2", "", "Nehalem"),
}


def own() -> str:
    """Return the name of the instruction set that this processor has."""
    if platform.machine() in ("aarch64", "arm64"):
        return ARM64
    here = present()
    best = next((name for name in ("AVX-512", "AVX2") if name in here), "SSE4.2")
    return f"{best}, VNNI" if {"AVX-512 VNNI", "AVX VNNI"} & here else best


def present() -> set[str]:
    """Return what this processor has, in the words of ``machine.FEATURES``, and AVX VNNI."""
    text = CPUINFO.read_text(errors="replace") if CPUINFO.is_file() else ""
    return {*(features(text) or ()), *(["AVX VNNI"] if "avx_vnni" in text.split() else [])}


def ways(folder: Path) -> dict[str, Callable[[], Way]]:
    """Return instruction set -> what finds its way, or raises ``NotHere``; this one's own first."""
    found: dict[str, Callable[[], Way]] = {own(): lambda: Way("native")}
    for name, lesser in LESSER.items():
        found.setdefault(name, lambda lesser=lesser: _lesser(lesser, folder))  # type: ignore[misc]
    found.setdefault(ARM64, arm64)
    return found


def _lesser(lesser: Lesser, folder: Path) -> Way:
    if platform.machine() != "x86_64":
        raise NotHere("this processor is no x86-64")
    if lesser.needed and lesser.needed not in present():
        raise NotHere(f"this processor has no {lesser.needed}")
    try:
        return masked(lesser.hidden, folder)
    except NotHere as error:
        if not lesser.emulated:
            raise NotHere(f"{error}; qemu does not emulate it") from error
        return emulated(lesser.emulated)


def masked(hidden: str, folder: Path) -> Way:
    """Return the way that hides instructions: ``vnni``, ``avx512`` or ``avx2``.

    Raises:
        NotHere: There is no compiler, or no trap for CPUID.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NotHere("no C compiler to make the mask with")
    library = folder / f"cpuid_mask_{hidden}.so"
    command = [compiler, "-O2", "-shared", "-fPIC", str(MASK), "-o", str(library)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise NotHere(f"{MASK.name} does not compile: {made.stderr.strip().splitlines()[-1]}")
    variables = {"CRELU_HIDE": hidden, "LD_PRELOAD": str(library)}
    tried = subprocess.run([sys.executable, "-c", ""], env={**os.environ, **variables}, check=False)
    if tried.returncode == UNSUPPORTED:
        raise NotHere("CPUID cannot be trapped")
    return Way("CPUID masked", variables=variables)


def emulated(processor: str) -> Way:
    """Return the way that emulates an x86-64 processor, with the packages that are here."""
    command = (str(emulation.qemu() / "qemu-x86_64"), "-cpu", processor, sys.executable)
    return Way(f"qemu-x86_64 -cpu {processor}", command, emulated=True)


def arm64() -> Way:
    """Return the way that emulates an ARM64 processor."""
    system = emulation.arm64()
    processor = "neoverse-n1"
    command = (
        *(str(emulation.qemu() / "qemu-aarch64"), "-cpu", processor),
        *("-L", str(system.folder / "system"), str(system.python)),
    )
    return Way(f"qemu-aarch64 -cpu {processor}", command, system.variables(), emulated=True)
