"""What works on this machine, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crelu_deploy.doctor import Health
from crelu_deploy.machine import Machine
from crelu_deploy.tables import Section, add, printable, section

if TYPE_CHECKING:  # it loads the runtime, which may be missing
    from crelu_deploy.calibration import Calibration


def health_json(found: Sequence[Health], machine: Machine) -> dict[str, Any]:
    """Return the state of every backend, and the machine."""
    return {
        "backends": [{**asdict(health), "works": health.works} for health in found],
        "machine": asdict(machine),
    }


def health_parts(found: Sequence[Health], machine: Machine) -> list[Section | str]:
    """Return a row per backend, what is wrong with each and the command, and the machine."""
    table = section("backends", "backend!", "!", "version!", "")
    wrong: dict[tuple[str, str], list[Health]] = {}
    for health in found:
        add(table, health.backend, health.state, health.version, health.summary * health.works)
        if not health.works:
            wrong.setdefault((health.state, health.fix or health.summary), []).append(health)
    return [table, *(line for group in wrong.values() for line in _lines(group)), _machine(machine)]


def _lines(group: Sequence[Health]) -> list[str]:
    """Return what is wrong with backends that one command mends, or that have one reason."""
    first, names = group[0], ", ".join(health.backend for health in group)
    reason = first.summary.removesuffix(f"run: {first.fix}").rstrip("; ")
    lines = [f"{first.state:8} {names}: {printable(reason)}"]
    return [*lines, f"         run: {printable(first.fix)}"] if first.fix else lines


def _machine(machine: Machine) -> Section:
    table = section("machine", "!", "")
    features = "not told" if machine.features is None else ", ".join(machine.features) or "none"
    add(table, "processor", machine.cpu)
    add(table, "instructions listed", features)  # which an emulator may not have
    add(table, "cores", machine.cores)
    add(
        table,
        "memory",
        "not told" if machine.memory is None else f"{machine.memory / 2**30:.1f} GiB",
    )
    add(table, "NVIDIA GPU", "; ".join(machine.gpus) or "none, or no driver")
    for name, place in machine.libraries.items():
        add(table, f"library for {name}", place)
    add(table, "system", f"{machine.system}, Python {machine.python}")
    return table


def calibration_json(found: Calibration, file: Path) -> dict[str, Any]:
    """Return the rule fitted here, what was measured for it, and where it is kept."""
    return {**asdict(found), "file": str(file)}


def calibration_table(found: Calibration) -> Section:
    """Return what was fitted for each kind of site, and the times over the plain graph's."""
    table = section(
        f"rule of auto, fitted here; blocks of {found.rule.block}",
        *("channels", "readers", "fold up to>", "then"),
    )
    for kind, name, preferences in (
        ("whole", "full blocks", found.rule.whole),
        ("padded", "others", found.rule.padded),
    ):
        for readers, preferred in preferences.items():
            points = found.points[kind][readers]
            means = {
                form: math.exp(sum(math.log(p.ratios[form]) for p in points) / len(points))
                for form in preferred.forms
            }
            forms = ", ".join(f"{form} {mean:.2f} x" for form, mean in means.items())
            add(table, name, readers, preferred.fold, forms)
    return table
