"""The Parquet file of one shard: the input's identity in every row, outputs as columns.

Columns: ``path`` and ``index``, the input; ``error``, null where there is none; per output a list
``<name>`` of its elements in C order and a list ``<name>.shape``, null where there is an error.
The file says in its metadata which run it belongs to, so a finished shard is known by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crelu_deploy.errors import BuildError
from crelu_deploy.scoring.inputs import Array
from crelu_deploy.staging import reason

IDENTITY = ("path", "index", "error")
GROUP_BYTES = 32 << 20
"""A row group is written when it has this many bytes: what a shard holds in memory."""

TEMPORARY = ".part-*.tmp"
"""Files that are being written, or that a killed process left."""

ATTEMPTS = 8
"""How many processes may die of one shard before the run ends: an input may crash a runtime."""

_MARK = "crelu."

Identity = tuple[str, int]
Result = Mapping[str, Array] | str
"""One row's outputs, or why it has none."""


@dataclass(frozen=True)
class Scored:
    """A finished shard.

    Attributes:
        number: From 0 on.
        rows: How many it has.
        errors: How many of them have an error.
        example: Path and error of the first of those; empty where there is none.
    """

    number: int
    rows: int
    errors: int
    example: str = ""


def part_name(number: int) -> str:
    """Return the name of a shard's file."""
    return f"part-{number:07d}.parquet"


def schema_of(types: Mapping[str, np.dtype[Any]]) -> pa.Schema:
    """Return the columns for outputs of these element types.

    Raises:
        BuildError: An output has the name of another column.
    """
    fields = [("path", pa.string()), ("index", pa.int64()), ("error", pa.string())]
    for name, dtype in types.items():
        fields.append((name, pa.list_(pa.from_numpy_dtype(dtype))))
        fields.append((f"{name}.shape", pa.list_(pa.int64())))
    names = [name for name, _ in fields]
    for name in types:
        if names.count(name) > 1:
            raise BuildError(f"output {name!r} has the name of another column; rename it")
    return pa.schema(fields)


def table_of(schema: pa.Schema, keys: Sequence[Identity], results: Sequence[Result]) -> pa.Table:
    """Return rows with their identity."""
    said = [r if isinstance(r, str) else None for r in results]
    columns: list[Any] = [[_text(path) for path, _ in keys], [index for _, index in keys], said]
    for name in schema.names[len(IDENTITY) :: 2]:
        arrays = [None if isinstance(r, str) else r[name] for r in results]
        shapes = [None if a is None else np.array(a.shape, np.int64) for a in arrays]
        columns += [
            _lists(arrays, schema.field(name)),
            _lists(shapes, schema.field(f"{name}.shape")),
        ]
    typed = zip(columns, schema.types, strict=True)
    arrays_ = [c if isinstance(c, pa.Array) else pa.array(c, kind) for c, kind in typed]
    return pa.Table.from_arrays(arrays_, schema=schema)


def _text(path: str) -> str:
    r"""Return a path that Parquet can hold: bytes that are no UTF-8 are written as ``\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _lists(arrays: Sequence[Array | None], field: pa.Field) -> pa.Array:
    """Return a column of lists, null for None, without a Python object per element."""
    flat = [a.reshape(-1) for a in arrays if a is not None]
    kind = field.type.value_type
    values = pa.array(np.concatenate(flat) if flat else [], kind)
    offsets: list[int | None] = []
    end = 0
    for array in arrays:
        offsets.append(None if array is None else end)
        end += 0 if array is None else array.size
    return pa.ListArray.from_arrays(pa.array([*offsets, end], pa.int32()), values)


def save_shard(
    folder: Path, number: int, run: str, schema: pa.Schema, tables: Iterable[pa.Table]
) -> Scored:
    """Write a shard, which has its name only when it is whole.

    Raises:
        BuildError: The folder cannot be written, or too many processes died of this shard.
    """
    tally = _Tally(number)
    try:
        with _attempt(folder, number) as file:
            with pq.ParquetWriter(file, schema, use_dictionary=list(IDENTITY[::2])) as writer:
                for table in _groups(tally.watch(tables)):
                    writer.write_table(table)
                writer.add_key_value_metadata(tally.mark(run))
            file.flush()
            Path(file.name).replace(folder / part_name(number))
    except OSError as error:
        raise BuildError(f"{folder}: cannot be written: {reason(error)}") from error
    return tally.scored


@contextmanager
def _attempt(folder: Path, number: int) -> Iterator[BinaryIO]:
    """Yield a new file, which is removed in the end unless it was renamed.

    A process that dies leaves its file, so the files there count the attempts that failed.
    """
    for attempt in range(ATTEMPTS):
        temporary = folder / f".{Path(part_name(number)).stem}.{attempt}.tmp"
        try:
            file = temporary.open("xb")
        except FileExistsError:
            continue
        try:
            with file:
                yield file
        finally:
            temporary.unlink(missing_ok=True)
        return
    raise BuildError(
        f"{folder}: {ATTEMPTS} processes died of shard {number}: one of its inputs crashes the "
        "runtime; find it with a smaller --shard in another folder, and leave it out"
    )


class _Tally:
    """Counts what passes by."""

    def __init__(self, number: int) -> None:
        self.scored = Scored(number, 0, 0)

    def watch(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            before, errors = self.scored, table.column("error")
            wrong = table.num_rows - errors.null_count
            example = before.example or (_example(table) if wrong else "")
            rows, total = before.rows + table.num_rows, before.errors + wrong
            self.scored = Scored(before.number, rows, total, example)
            yield table

    def mark(self, run: str) -> dict[str, str]:
        fields = {"run": run, **vars(self.scored)}
        return {f"{_MARK}{name}": str(value) for name, value in fields.items()}


def _example(table: pa.Table) -> str:
    row = table.filter(table.column("error").is_valid()).slice(0, 1).to_pylist()[0]
    return f"{row['path']}[{row['index']}]: {row['error']}"


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables to row groups."""
    group: list[pa.Table] = []
    for table in tables:
        group.append(table)
        if sum(part.nbytes for part in group) >= GROUP_BYTES:
            yield pa.concat_tables(group)
            group = []
    if group:
        yield pa.concat_tables(group)


def read_mark(file: Path, run: str) -> Scored | None:
    """Return what a shard's file says of itself; None where it is damaged or of another run."""
    try:
        with pq.ParquetFile(file) as opened:
            found = {k.decode(): v.decode() for k, v in (opened.metadata.metadata or {}).items()}
        mark = {k.removeprefix(_MARK): v for k, v in found.items() if k.startswith(_MARK)}
        number, rows, errors = (int(mark[name]) for name in ("number", "rows", "errors"))
        return Scored(number, rows, errors, mark["example"]) if mark["run"] == run else None
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
