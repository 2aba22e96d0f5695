"""One shard: its rows are read, run in batches, and handed to the file that keeps them.

Which rows share a batch is told by the shard alone, so a shard that is done again gives the same
bits: every ``batch`` consecutive rows of it, less those that cannot be read, by shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import DeployError, UnsupportedModel
from crelu_deploy.pipeline import load
from crelu_deploy.preprocessing import Preprocessing
from crelu_deploy.runner import Runner, TensorSpec
from crelu_deploy.scoring.inputs import Array, Raw, Span, reader
from crelu_deploy.scoring.output import (
    Identity,
    Result,
    Scored,
    part_name,
    read_mark,
    save_shard,
    schema_of,
    table_of,
)
from crelu_deploy.scoring.pixels import decode

Row = Mapping[str, Array] | str
"""One row as the network takes it, or why it cannot be taken."""


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of all there are, which become one file."""

    number: int
    spans: tuple[Span, ...]

    @property
    def keys(self) -> Iterator[Identity]:
        """Path and index of each row."""
        return ((s.path, s.first + i) for s in self.spans for i in range(s.rows))


@dataclass(frozen=True)
class Job:
    """What the shards of a run share.

    Attributes:
        bundle: Its folder.
        target: As text.
        out: The folder of the shards' files.
        run: The hash that tells runs apart.
        inputs: What the network reads.
        batch: Rows of one call.
        how: What becomes of pixels.
        readers: Threads that decode the next batch while one runs; 0 decodes in between.
    """

    bundle: Path
    target: str
    out: Path
    run: str
    inputs: tuple[TensorSpec, ...]
    batch: int
    how: Preprocessing
    readers: int = 0


class Scorer:
    """A target that is open on one thread, and scores shard after shard."""

    def __init__(self, job: Job) -> None:
        opened = Bundle.open(job.bundle)
        self.job = job
        self.runner = load(opened, job.target, threads=1)
        # The first call also prepares the runtime, and tells the types that this target gives.
        sample = {name: x[:1] for name, x in opened.samples[0].inputs.items()}
        first = self.runner(sample)
        self.schema = schema_of({name: array.dtype for name, array in first.items()})

    def score(self, shard: Shard) -> Scored:
        """Write a shard's file, unless it is there, and say what it holds.

        Raises:
            BuildError: The folder cannot be written.
        """
        job = self.job
        there = read_mark(job.out / part_name(shard.number), job.run)
        return there or save_shard(job.out, shard.number, job.run, self.schema, self._tables(shard))

    def _tables(self, shard: Shard) -> Iterator[Any]:
        keys = shard.keys
        for rows in load_rows(shard.spans, self.job):
            results = run_rows(self.runner, rows)
            yield table_of(self.schema, list(islice(keys, len(rows))), results)


def load_rows(spans: Sequence[Span], job: Job) -> Iterator[Sequence[Row]]:
    """Yield the rows of spans in batches; at most two are in memory."""
    raws = chain.from_iterable(reader(span.path).read(span, job.inputs) for span in spans)
    parts = iter(lambda: list(islice(raws, job.batch)), [])
    ready = partial(_ready, job=job)
    if not job.readers:
        yield from (list(map(ready, part)) for part in parts)
        return
    with ThreadPoolExecutor(job.readers) as pool:
        before: Iterator[Row] = iter(())
        for part in parts:
            following = pool.map(ready, part)  # begins at once
            if rows := list(before):
                yield rows
            before = following
        yield list(before)


def _ready(raw: Raw, job: Job) -> Row:
    """Decode a row and hold it against what the network reads."""
    if isinstance(raw, str):
        return raw
    row: dict[str, Array] = {}
    try:
        for spec in job.inputs:
            value = raw[spec.name]
            array = decode(value, spec, job.how) if isinstance(value, bytes) else value
            TensorSpec(spec.name, spec.dtype, spec.shape[1:]).check(array)
            row[spec.name] = array
    except (TypeError, ValueError) as error:
        return str(error)
    return row


def run_rows(runner: Runner, rows: Sequence[Row]) -> list[Result]:
    """Run rows, those of one shape together, and return the outputs of each or its error."""
    results: list[Result] = [row if isinstance(row, str) else "" for row in rows]
    shaped: dict[tuple[tuple[int, ...], ...], list[tuple[int, Mapping[str, Array]]]] = {}
    for i, row in enumerate(rows):
        if not isinstance(row, str):
            shapes = tuple(array.shape for array in row.values())
            shaped.setdefault(shapes, []).append((i, row))
    for group in shaped.values():
        for (i, _), result in zip(group, _run([row for _, row in group], runner), strict=True):
            results[i] = result
    return results


def _run(rows: Sequence[Mapping[str, Array]], runner: Runner) -> Sequence[Result]:
    try:
        outputs = runner({name: np.stack([row[name] for row in rows]) for name in rows[0]})
        for name, array in outputs.items():
            if not array.ndim or len(array) != len(rows):
                raise UnsupportedModel(
                    f"output {name!r} has shape {array.shape} for a batch of {len(rows)}: "
                    "its axis 0 is no batch"
                )
    except (DeployError, ValueError) as error:
        return [str(error)] * len(rows)
    return [{name: array[i] for name, array in outputs.items()} for i in range(len(rows))]
