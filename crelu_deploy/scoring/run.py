"""``score``: from a bundle and files to a folder of Parquet files, each input in one row."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from crelu_deploy.bundle import MODEL, Bundle
from crelu_deploy.errors import BuildError, UnsupportedModel
from crelu_deploy.locking import reserved
from crelu_deploy.pipeline import AnyTarget, parse_targets
from crelu_deploy.preprocessing import Changes, Preprocessing, image_input
from crelu_deploy.runner import TensorSpec
from crelu_deploy.scoring.cluster import Share, connected, score_shards
from crelu_deploy.scoring.inputs import (
    FORMATS,
    IMAGES,
    Source,
    Span,
    cut,
    find_sources,
    fingerprint,
)
from crelu_deploy.scoring.ledger import Run, check_folder, claim, clean
from crelu_deploy.scoring.output import Scored
from crelu_deploy.scoring.shard import Job, Shard
from crelu_deploy.targets import BACKENDS, GPU, Target

Progress = Callable[[str], None]

SECONDS_BETWEEN = 2.0
"""Between two reports of progress."""


@dataclass(frozen=True)
class Settings:
    """What is chosen.

    Attributes:
        batch: Rows of one call of the network.
        shard_rows: Rows of one file, the unit that is done again after a loss.
        pixels: What becomes of them, where it is not what the bundle records.
        cpus: Cores of an actor: one runs the network, the others decode ahead.
        gpus: GPUs of an actor; None for one where the target needs one.
        address: Ray's, or None for a Ray of this machine alone.
        max_errors: Rows with an error that end the run when there are more; None for no limit.
    """

    batch: int = 32
    shard_rows: int = 1024
    pixels: Changes = field(default_factory=Changes)
    cpus: int = 1
    gpus: float | None = None
    address: str | None = None
    max_errors: int | None = None


@dataclass(frozen=True)
class Summary:
    """A finished run.

    Attributes:
        out: The folder.
        rows: Inputs, of this run and those before it.
        errors: Rows with an error instead of outputs.
        example: The first of them.
        shards: Files.
        resumed: How many of the files were there already.
        seconds: This run took.
        preprocessing: What became of pixels; None where no input is an image.
    """

    out: Path
    rows: int
    errors: int
    example: str
    shards: int
    resumed: int
    seconds: float
    preprocessing: Preprocessing | None = None


def score(
    bundle: str | Path,
    data: Sequence[str | Path],
    out: str | Path,
    *,
    target: AnyTarget = "ort-cpu",
    settings: Settings | None = None,
    progress: Progress = lambda _: None,
) -> Summary:
    """Score every row of the data; what an earlier, killed run has finished is not done again.

    Args:
        bundle: The folder. Every machine sees it, data and out under the same paths.
        data: Image folders, and image, ``.npy``, ``.npz`` and ``.parquet`` files.
        out: The folder to write.
        target: ``BACKEND[:LOWERING]``, built before.
        settings: What is chosen.
        progress: Told what is being done.

    Raises:
        UnsupportedModel: No bundle, or nothing that can be scored.
        BuildError: The target is not built, the folder is another's, or too many rows failed.
        BackendUnavailable: Ray or a runtime is missing.
    """
    chosen, place = settings or Settings(), Path(out).absolute()
    opened = Bundle.open(Path(bundle).absolute())
    (wanted,) = parse_targets([target])
    check_folder(place)
    _check_built(opened, wanted)
    progress("look at the inputs")
    job, run, shards = _plan(opened, wanted, place, [Path(path) for path in data], chosen)
    _make_parent(place)
    with reserved(place):
        done = claim(place, run)
        _check_errors(done, chosen.max_errors)
        start = time.perf_counter()
        if missing := [shard for shard in shards if shard.number not in done]:
            _score_missing(job, run, missing, done, chosen, progress)
        summary = _summary(place, run, done, len(shards) - len(missing), start)
    return replace(summary, preprocessing=job.how if _may_hold_images(shards) else None)


def _score_missing(
    job: Job,
    run: Run,
    missing: Sequence[Shard],
    done: dict[int, Scored],
    chosen: Settings,
    progress: Progress,
) -> None:
    progress("start Ray" if chosen.address is None else f"join Ray at {chosen.address}")
    try:
        with connected(chosen.address):
            found = score_shards(job, missing, _share(job.target, chosen))
            _follow(found, done, run, chosen.max_errors, progress)
    finally:
        clean(job.out)  # of killed actors, or of all when the run was ended


def _check_built(bundle: Bundle, target: Target) -> None:
    if BACKENDS[target.backend].lowered and str(target) not in bundle.manifest["targets"]:
        raise BuildError(
            f"{bundle.path}: {target} is not built; run: crelu build {bundle.path} -t {target}"
        )


def _make_parent(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"{out}: cannot be made: {error.strerror}") from error


def _plan(
    bundle: Bundle, target: Target, out: Path, data: Sequence[Path], chosen: Settings
) -> tuple[Job, Run, list[Shard]]:
    inputs = bundle.inputs
    batch = _batch(inputs, chosen.batch)
    sources = find_sources(data, inputs)
    how = replace(bundle.preprocessing or Preprocessing(), **chosen.pixels)
    _check_images(inputs, sources, how)
    spans = (Span(source.path, 0, source.rows) for source in sources)
    shards = [Shard(i, part) for i, part in enumerate(cut(spans, chosen.shard_rows))]
    settings = {"batch": batch, "shard_rows": chosen.shard_rows, "pixels": vars(how)}
    rows = sum(source.rows for source in sources)
    network = _network_hash(bundle, target)
    run = Run(network, fingerprint(sources), str(target), settings, rows, len(shards))
    readers = chosen.cpus - 1
    job = Job(bundle.path, str(target), out, run.hash, inputs, batch, how, readers)
    return job, run, shards


def _batch(inputs: Sequence[TensorSpec], wanted: int) -> int:
    """Return the rows of a call: what is wanted, or 1 where the network takes no more.

    Raises:
        UnsupportedModel: An input has no batch axis, or one that is fixed to more than 1.
    """
    for spec in inputs:
        axis = spec.shape[0] if spec.shape else 0
        if isinstance(axis, int) and axis != 1:
            raise UnsupportedModel(
                f"input {spec}: its batch is not free; export the network without --dynamic none"
            )
    return 1 if any(spec.shape[0] == 1 for spec in inputs) else wanted


def _check_images(
    inputs: Sequence[TensorSpec], sources: Sequence[Source], how: Preprocessing
) -> None:
    """Refuse at once what would be an error in every row."""
    image = next((s.path for s in sources if Path(s.path).suffix.lower() in IMAGES), None)
    if image is None:
        return
    try:
        how.check(image_input(inputs))
    except ValueError as error:
        raise UnsupportedModel(f"{image}: {error}") from error


def _may_hold_images(shards: Iterable[Shard]) -> bool:
    suffixes = (Path(span.path).suffix.lower() for shard in shards for span in shard.spans)
    return any(FORMATS[suffix] != "arrays" for suffix in suffixes)


def _network_hash(bundle: Bundle, target: Target) -> str:
    """Return a hash of the files that the target is made of."""
    own = f"{bundle.artifact(target).relative_to(bundle.path).with_suffix('')}."
    files = bundle.manifest["files"]
    named = {name: hash_ for name, hash_ in files.items() if name.startswith((MODEL, own))}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _share(target: str, chosen: Settings) -> Share:
    needs = any(backend.name == Target.parse(target).backend for backend in GPU)
    gpus = (1.0 if needs else 0.0) if chosen.gpus is None else chosen.gpus
    return Share(chosen.cpus, gpus)


def _follow(
    found: Iterable[Scored],
    done: dict[int, Scored],
    run: Run,
    max_errors: int | None,
    progress: Progress,
) -> None:
    """Note each finished shard in ``done``.

    Raises:
        BuildError: More rows failed than are allowed.
    """
    said = 0.0
    for scored in found:
        done[scored.number] = scored
        _check_errors(done, max_errors)
        if time.monotonic() - said >= SECONDS_BETWEEN:
            said = time.monotonic()
            progress(_state(done, run))
    progress(_state(done, run))


def _state(done: dict[int, Scored], run: Run) -> str:
    rows, errors = (sum(getattr(s, name) for s in done.values()) for name in ("rows", "errors"))
    return f"scored {rows:,} of {run.rows:,} rows" + (f", {errors:,} errors" if errors else "")


def _check_errors(done: dict[int, Scored], limit: int | None) -> None:
    errors = sum(scored.errors for scored in done.values())
    if limit is not None and errors > limit:
        raise BuildError(
            f"{errors} rows failed, more than --max-errors {limit}; the first: {_first(done)}; "
            "finished shards stay"
        )


def _first(done: dict[int, Scored]) -> str:
    return next((s.example for _, s in sorted(done.items()) if s.example), "")


def _summary(out: Path, run: Run, done: dict[int, Scored], resumed: int, start: float) -> Summary:
    errors = sum(scored.errors for scored in done.values())
    if errors == run.rows:
        raise BuildError(f"not one of {run.rows} rows could be scored; the first: {_first(done)}")
    lost = run.shards - len(done)
    if lost:
        raise BuildError(f"{out}: {lost} shards were not finished; run this again")
    seconds = time.perf_counter() - start
    return Summary(out, run.rows, errors, _first(done), run.shards, resumed, seconds)
