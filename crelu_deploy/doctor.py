"""Which backends work on this machine, and the command that brings the others."""

from __future__ import annotations

from dataclasses import dataclass

from crelu_deploy.errors import BackendUnavailable
from crelu_deploy.targets import BACKENDS


@dataclass(frozen=True)
class Health:
    """The state of one backend here.

    Attributes:
        backend: Its name.
        works: Whether its runtime could be loaded.
        summary: What it is, or what is missing and how to get it.
    """

    backend: str
    works: bool
    summary: str


def diagnose() -> tuple[Health, ...]:
    """Load the runtime of every backend and say how that went."""
    found = []
    for backend in BACKENDS.values():
        try:
            backend.implementation()
        except BackendUnavailable as error:
            found.append(Health(backend.name, False, str(error)))
        except (ImportError, OSError) as error:  # installed, but a library of its is missing
            reason = " ".join(str(error).split())
            found.append(Health(backend.name, False, f"installed but broken: {reason}"))
        else:
            found.append(Health(backend.name, True, backend.summary))
    return tuple(found)
