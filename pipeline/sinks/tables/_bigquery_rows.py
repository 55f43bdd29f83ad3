"""Rows -> requests that BigQuery takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["LARGEST_REQUEST", "in_requests", "without_null_lists"]

_lists: Any = pa.ListArray  # the stubs know no offsets made of numbers

LARGEST_REQUEST = 8 << 20
"""Bytes of rows in one request; the service takes 10 MB with all that is around them."""


def in_requests(rows: pa.Table) -> Iterator[tuple[bytes, int]]:
    """The rows in batches of at most so many bytes, as Arrow's IPC writes them, and how many rows each has. A single row may be larger."""
    for batch in rows.combine_chunks().to_batches():
        yield from _halved(batch)


def _halved(batch: pa.RecordBatch) -> Iterator[tuple[bytes, int]]:
    data = batch.serialize().to_pybytes()
    if len(data) <= LARGEST_REQUEST or batch.num_rows <= 1:
        yield data, batch.num_rows
        return
    half = batch.num_rows // 2
    yield from _halved(batch.slice(0, half))
    yield from _halved(batch.slice(half))


def without_null_lists(rows: pa.Table) -> pa.Table:
    """The rows with empty lists in place of null ones: a repeated field is never null."""
    columns = [_filled(column) for batch in rows.combine_chunks().to_batches() for column in batch.columns]
    return pa.Table.from_arrays(columns, schema=rows.schema)


def _filled(column: pa.Array[Any]) -> pa.Array[Any]:
    array: Any = column
    kind = array.type
    if pa.types.is_list(kind):
        offsets = np.zeros(len(array) + 1, np.int32)
        np.cumsum(np.asarray(pc.fill_null(pc.list_value_length(array), 0)), out=offsets[1:])
        array = _lists.from_arrays(pa.array(offsets), _filled(array.flatten()), type=kind)
    elif pa.types.is_struct(kind):
        children = [_filled(child) for child in array.flatten()]
        array = pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())
    found: pa.Array[Any] = array
    return found
