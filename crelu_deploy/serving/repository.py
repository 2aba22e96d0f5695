"""A Triton model repository made from a bundle, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crelu_deploy.backends.engines import Note, engine_file, note_file
from crelu_deploy.bundle import Bundle
from crelu_deploy.pipeline import (
    AnyBundle,
    AnyTarget,
    Progress,
    opened_bundle,
    parse_targets,
    silent,
)
from crelu_deploy.serving.admission import admit
from crelu_deploy.serving.destination import check_destination, write_marker
from crelu_deploy.serving.models import Model, Served, write_models
from crelu_deploy.serving.readme import readme
from crelu_deploy.serving.signature import preferred_sizes, signature
from crelu_deploy.staging import staged_folder
from crelu_deploy.targets import Target

LARGEST_BATCH = 16
"""The largest batch that a server forms unless told otherwise."""

DEFAULT = ("ort-cpu",)


@dataclass(frozen=True)
class Repository:
    """A model repository on disk.

    Attributes:
        path: The folder that a server is pointed to.
        models: What it serves.
    """

    path: Path
    models: tuple[Model, ...]


def package(
    bundle: AnyBundle,
    out: str | os.PathLike[str],
    targets: Sequence[AnyTarget] = DEFAULT,
    *,
    largest: int = LARGEST_BATCH,
    instances: int = 1,
    progress: Progress = silent,
) -> Repository:
    """Write a model repository that serves some targets of a bundle.

    Args:
        bundle: Where the targets are.
        out: The folder to write; a repository that was written before is replaced.
        targets: What to serve. Each must agree with PyTorch.
        largest: The largest batch that the server forms; an engine may have a lower limit.
        instances: Copies of each model that run at a time. One has every core; of several, each
            has one thread, which takes longer for a request and less of the cores for all.
        progress: Told what is being done.

    Raises:
        BackendUnavailable: tritonclient or a compiled library is missing.
        BuildError: A target is not built or not verified, or the folder cannot be written.
        UnsupportedModel: The bundle is damaged, or a server cannot be told of its network.
    """
    path, opened = Path(out), opened_bundle(bundle)
    check_destination(path)
    wanted = tuple(dict.fromkeys(parse_targets(targets)))
    for target in wanted:
        admit(opened, target, progress)
    return write_repository(
        opened, path, wanted, largest=largest, instances=instances, progress=progress
    )


def write_repository(
    bundle: Bundle,
    path: Path,
    targets: Sequence[Target],
    *,
    largest: int,
    instances: int = 1,
    progress: Progress,
) -> Repository:
    """Write the repository of targets that were admitted, to a place that was checked.

    Raises:
        BackendUnavailable, BuildError, UnsupportedModel: As ``package`` does.
    """
    network, stem = signature(bundle), bundle.path.resolve().name.removesuffix(".crelu")
    models = list[Model]()
    with staged_folder(path) as stage:
        for target in targets:
            progress(f"package {target}")
            sizes = preferred_sizes(bundle, target, _limit(bundle, target, largest))
            models += write_models(stage, Served(bundle, target, network, sizes, stem, instances))
        text = readme(stem, models, bundle.preprocessing)
        (stage / "README.md").write_text(text, encoding="utf-8")
        write_marker(stage, models)
    return Repository(path, tuple(models))


def _limit(bundle: Bundle, target: Target, largest: int) -> int:
    """Return the largest batch that a target takes, at most ``largest``."""
    note = note_file(engine_file(bundle, target))
    if not note.is_file():
        return largest
    return min(largest, *(r.largest[0] for r in Note.read(note).ranges.values() if r.largest))
