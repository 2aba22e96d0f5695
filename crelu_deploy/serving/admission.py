"""Which targets may be served: those that agree with PyTorch, by a check made here and now."""

from __future__ import annotations

from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BuildError
from crelu_deploy.pipeline import Progress, verify
from crelu_deploy.report import read_report
from crelu_deploy.targets import BACKENDS, Target

_COMPARED = ("onnxruntime", "onnxruntime_cuda", "openvino")
"""Modules of backends that run the lowered file itself, which a report names by its hash."""


def admit(bundle: Bundle, target: Target, progress: Progress) -> None:
    """Refuse a target that is not verified.

    A report of ``crelu bench`` or ``crelu deploy`` counts when it is on the very file; all else is
    verified here. No report names an engine by its hash: it is packaged where it runs.

    Raises:
        BuildError: The target was not built, cannot run here, or differs from PyTorch.
    """
    if not BACKENDS[target.backend].lowered:
        raise BuildError(f"{target} is PyTorch itself, to compare with; package another target")
    if str(target) not in bundle.manifest["targets"]:
        raise BuildError(
            f"{bundle.path}: {target} is not built; run: crelu build {bundle.path} -t {target}"
        )
    if _reported(bundle, target):
        return
    (found,) = verify(bundle, [target], progress=progress)
    if not found.passed:
        why = found.why or (found.comparison.worst if found.comparison else "it did not run")
        raise BuildError(
            f"{bundle.path}: {target} is not verified, so it is not packaged: {why}; where it "
            f"runs, run: crelu bench {bundle.path} -t {target}"
        )


def _reported(bundle: Bundle, target: Target) -> bool:
    """Whether the bundle's report says that the file as it is now agrees with PyTorch."""
    if BACKENDS[target.backend].module not in _COMPARED:
        return False
    name = str(bundle.artifact(target).relative_to(bundle.path))
    rows = (read_report(bundle) or {}).get("targets", [])
    return any(
        row.get("target") == str(target)
        and row.get("passed") is True
        and row.get("sha256") == bundle.manifest["files"].get(name)
        for row in rows
    )
