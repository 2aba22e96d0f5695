"""What a latency depends on in this machine: processor, memory, graphics processors, libraries."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crelu_deploy import native
from crelu_deploy.environment import cpu_name
from crelu_deploy.errors import BackendUnavailable
from crelu_deploy.targets import Options

FEATURES: Mapping[str, str] = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-512 VNNI": "avx512_vnni",
    "AVX-512 BF16": "avx512_bf16",
    "AMX BF16": "amx_bf16",
    "AMX INT8": "amx_int8",
    "NEON": "asimd",
    "SVE": "sve",
}
"""Instructions that kernels of the runtimes use -> their flag in ``/proc/cpuinfo``."""


@dataclass(frozen=True)
class Machine:
    """This machine.

    Attributes:
        cpu: The processor's name.
        features: The keys of ``FEATURES`` that it has; None where the system does not tell.
        cores: Logical cores that this process may use.
        memory: Bytes of memory; None where the system does not tell.
        gpus: Name, driver and memory of each NVIDIA GPU.
        libraries: A compiled library -> its path, or why there is none.
        system: The operating system.
        python: The version of Python.
    """

    cpu: str
    features: tuple[str, ...] | None
    cores: int
    memory: int | None
    gpus: tuple[str, ...]
    libraries: Mapping[str, str]
    system: str
    python: str


def examine() -> Machine:
    """Return what this machine is."""
    return Machine(
        cpu_name(),
        features(_read(Path("/proc/cpuinfo"))),
        Options().cores,
        memory(),
        gpus(),
        libraries(),
        platform.platform(terse=True),
        platform.python_version(),
    )


def _read(path: Path) -> str:
    """Return a file's text; empty where there is none, as on other systems than Linux."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def features(cpuinfo: str) -> tuple[str, ...] | None:
    """Return the keys of ``FEATURES`` that the text of ``/proc/cpuinfo`` lists."""
    for line in cpuinfo.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(key for key, flag in FEATURES.items() if flag in flags.split())
    return None


def memory() -> int | None:
    """Return the bytes of memory."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def gpus() -> tuple[str, ...]:
    """Return what ``nvidia-smi`` says of each GPU; nothing where there is no driver."""
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return tuple(_gpu(line) for line in lines if line.strip())


def _gpu(line: str) -> str:
    name, driver, total = (*(part.strip() for part in line.split(",")), "?", "?")[:3]
    return f"{name}, driver {driver}, {total}"


def libraries() -> dict[str, str]:
    """Return where the compiled libraries are, or why they are not found."""
    found = {}
    for name in native.LIBRARIES:
        try:
            found[name] = str(native.library(name))
        except BackendUnavailable as error:
            found[name] = str(error)
    return found
