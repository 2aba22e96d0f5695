"""Parquet files: a column per input, of numbers or of encoded images; others are left out.

A column of numbers holds lists, nested or flat, of as many elements as the input's row has. Only
some rows of a file are in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crelu_deploy.runner import TensorSpec
from crelu_deploy.scoring.inputs import Array, Raw, Span

READ_ROWS = 64
"""Rows that are in memory at a time."""

_DAMAGE = (OSError, pa.ArrowException)


def count(path: str, inputs: tuple[TensorSpec, ...]) -> int:
    """Return the number of rows, 1 for a file that cannot be read."""
    try:
        with pq.ParquetFile(path) as file:
            return int(file.metadata.num_rows)
    except _DAMAGE:
        return 1


def read(span: Span, inputs: tuple[TensorSpec, ...]) -> Iterator[Raw]:
    """Yield the rows of a span; what cannot be read is a row with the reason."""
    done = 0
    try:
        with pq.ParquetFile(span.path) as file:
            _check_columns(file.schema_arrow.names, inputs)
            for row in _rows(file, span, inputs):
                done += 1
                yield row
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0]
        yield from [f"cannot be read: {reason}"] * (span.rows - done)


def _check_columns(found: list[str], inputs: tuple[TensorSpec, ...]) -> None:
    for spec in inputs:
        if spec.name not in found:
            there = ", ".join(found) or "none"
            raise pa.ArrowInvalid(f"no column {spec.name!r}; the file has {there}")


def _rows(file: pq.ParquetFile, span: Span, inputs: tuple[TensorSpec, ...]) -> Iterator[Raw]:
    groups, first = _groups(file, span)
    names, left = [spec.name for spec in inputs], span.rows
    for batch in file.iter_batches(READ_ROWS, groups, columns=names, use_threads=False):
        part = batch.slice(first, left)
        first = max(first - len(batch), 0)
        left -= len(part)
        for i in range(len(part)):
            yield _row({spec: part.column(spec.name)[i] for spec in inputs})
        if not left:
            return
    raise pa.ArrowInvalid("the file has fewer rows than before")


def _groups(file: pq.ParquetFile, span: Span) -> tuple[list[int], int]:
    """Return the row groups that hold a span, and how far into the first of them it begins."""
    groups, start, skipped = list[int](), 0, 0
    for i in range(file.metadata.num_row_groups):
        end = start + file.metadata.row_group(i).num_rows
        if end > span.first and start < span.first + span.rows:
            skipped = skipped if groups else span.first - start
            groups.append(i)
        start = end
    return groups, skipped


def _row(scalars: dict[TensorSpec, Any]) -> Raw:
    row: dict[str, Array | bytes] = {}
    for spec, scalar in scalars.items():
        try:
            row[spec.name] = _value(scalar, spec)
        except ValueError as error:
            return f"column {spec.name!r}: {error}"
    return row


def _value(scalar: Any, spec: TensorSpec) -> Array | bytes:
    """Return an encoded image, or the numbers of a list in the shape of the input's row.

    Raises:
        ValueError: It is neither, empty, or of another length.
    """
    if isinstance(scalar, pa.StructScalar) and "bytes" in scalar:  # as Hugging Face writes images
        scalar = scalar["bytes"]
    content = getattr(scalar, "value", scalar)  # of an extension type, such as tensors
    if not scalar.is_valid:
        raise ValueError("the row is empty")
    if pa.types.is_binary(content.type) or pa.types.is_large_binary(content.type):
        return bytes(content.as_py())
    values = getattr(content, "values", None)
    while values is not None and pa.types.is_nested(values.type) and hasattr(values, "flatten"):
        values = values.flatten()
    if values is None or values.null_count or not pa.types.is_primitive(values.type):
        raise ValueError(f"{content.type} is neither an encoded image nor a list of numbers")
    return _shaped(values.to_numpy(zero_copy_only=False), spec)


def _shaped(values: Array, spec: TensorSpec) -> Array:
    shape = [d for d in spec.shape[1:] if isinstance(d, int)]
    if len(shape) != len(spec.shape) - 1:
        raise ValueError(f"a list has no shape, which input {spec} needs; give .npy or .npz files")
    if values.size != math.prod(shape):
        raise ValueError(f"{values.size} numbers; expected {math.prod(shape)} for input {spec}")
    return values.reshape(shape)
