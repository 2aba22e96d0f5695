"""Which lowering each site gets, as a file: chosen by rule or measured, and what it holds for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crelu_deploy.errors import UnsupportedModel
from crelu_deploy.lowerings import LOWERINGS, NATIVE
from crelu_deploy.staging import write_text
from crelu_deploy.targets import BACKENDS

RULE, MEASURED = "rule", "measured"


PLAIN, ORIGINAL = "primitive", "original"
"""What every choice is compared with: the form that a plain export has, or a file as it came."""

RACE = 5.0
"""Seconds that an export or an optimisation races the forms of a network, unless told otherwise."""


@dataclass(frozen=True)
class Plan:
    """A lowering for every site of one model on one backend.

    Attributes:
        backend: The backend it is for.
        how: ``rule`` or ``measured``.
        choice: Site -> lowering.
        key: What it holds for: the model's hash and, where measured, the runtime, the device, the
            threads and the shapes of the inputs.
        ratios: Choices that were timed, in words -> time over the baseline's time.
    """

    backend: str
    how: str
    choice: Mapping[str, str]
    key: Mapping[str, Any] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the plan as JSON.

        Raises:
            BuildError: The file cannot be written.
        """
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read what ``save`` wrote, perhaps edited by hand.

        Raises:
            UnsupportedModel: No file, no plan, or an unknown lowering.
        """
        try:
            return cls.parse(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UnsupportedModel(f"{path}: no such file") from error
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UnsupportedModel(f"{path}: not a plan: {error}") from error

    @classmethod
    def parse(cls, data: Any) -> Plan:
        """Read the plan's JSON object.

        Raises:
            TypeError, KeyError, ValueError: It is none.
        """
        choice = {str(site): str(lowering) for site, lowering in dict(data["choice"]).items()}
        for site, lowering in choice.items():
            if lowering not in LOWERINGS and lowering not in NATIVE:
                raise ValueError(f"site {site[:80]!r} has the unknown lowering {lowering[:80]!r}")
        if data["backend"] not in BACKENDS:
            raise ValueError(f"a plan for the unknown backend {str(data['backend'])[:80]!r}")
        if data["how"] not in (RULE, MEASURED):
            raise ValueError(
                f"a plan made {str(data['how'])[:80]!r}, expected {RULE} or {MEASURED}"
            )
        ratios = {str(name): _ratio(ratio) for name, ratio in dict(data["ratios"]).items()}
        return cls(str(data["backend"]), data["how"], choice, _key(data["key"]), ratios)

    def check(self, backend: str, model_hash: str) -> None:
        """Refuse a plan that was made for something else.

        Raises:
            UnsupportedModel: Another backend, or another model.
        """
        if self.backend != backend:
            raise UnsupportedModel(f"the plan is for {self.backend}, not for {backend}")
        if self.key.get("model") not in (None, model_hash):
            raise UnsupportedModel(
                "the plan was made for another model (its hash differs); plan again, or remove "
                "'model' from the plan's key to use it all the same"
            )


def _ratio(value: Any) -> float:
    if not isinstance(value, int | float) or not 0 < value < 1e300:
        raise ValueError(f"the ratio {str(value)[:80]} is no number above 0")
    return float(value)


def _key(data: Any) -> dict[str, Any]:
    """Return what a plan holds for, where the parts that are shown can be."""
    key = dict(data)
    inputs = key.get("inputs", [])
    known = isinstance(inputs, list) and all(isinstance(one, dict) for one in inputs)
    if not known or not all(isinstance(shape, str) for one in inputs for shape in one.values()):
        raise ValueError("the inputs that a plan was made with are no list of names and shapes")
    if not isinstance(key.get("threads", 0), int):
        raise ValueError("the threads that a plan was made with are no number")
    return key
