"""Rows out of a Parquet file, by row groups."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from eventveil.pipeline.sources._streams import damaged, duplicate

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

__all__ = ["read_rows", "row_group_ranges"]

_MOST_ROWS = 1 << 16


def row_group_ranges(path: str, file: io.FileIO, part_bytes: int) -> list[tuple[int, int]]:
    """Consecutive row groups of together at most `part_bytes` of decompressed data; a larger one stands alone.

    Raises StorageError EV403 if the file is no Parquet file.
    """
    metadata = _open(path, file).metadata
    ranges: list[tuple[int, int]] = []
    size = 0
    for group in range(metadata.num_row_groups):
        bytes_ = metadata.row_group(group).total_byte_size
        if ranges and size + bytes_ <= part_bytes:
            ranges[-1] = (ranges[-1][0], group + 1)
            size += bytes_
        else:
            ranges.append((group, group + 1))
            size = bytes_
    return ranges or [(0, 0)]


def read_rows(
    path: str, file: io.FileIO, begin: int, end: int | None, batch_bytes: int, part_bytes: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of the row groups [begin, end), as (number of the part's first row, raw batch).

    A row group that is larger than `part_bytes` becomes several parts, cut at rows that its metadata decides, so that they are the
    same on every run.

    Raises StorageError EV403 if a page is damaged or has a codec that this build of Arrow does not know.
    """
    parquet = _open(path, file)
    metadata = parquet.metadata
    end = metadata.num_row_groups if end is None else end
    groups = [metadata.row_group(group) for group in range(begin, end)]
    row = sum(metadata.row_group(group).num_rows for group in range(begin))
    rows, bytes_ = sum(group.num_rows for group in groups), sum(group.total_byte_size for group in groups)
    per_row = max(bytes_ / rows, 1.0) if rows else 1.0
    rows_of_part = max(rows, 1) if bytes_ <= part_bytes else max(int(part_bytes / per_row), 1)
    batch_rows = min(max(int(batch_bytes / per_row), 1), _MOST_ROWS)
    schema = parquet.schema_arrow.remove_metadata()
    fields = [schema.field(name) for name in range(len(schema))]
    part, stop = row, row + rows
    if row == stop:
        yield row, _batch(pa.RecordBatch.from_arrays([pa.array([], field.type) for field in fields], schema=schema), row)
        return
    batches = parquet.iter_batches(batch_size=batch_rows, row_groups=list(range(begin, end)), use_threads=False)
    while row < stop:
        try:
            batch = next(batches)
        except StopIteration:
            raise damaged(path, f"the rows end at {row}, before the number that the file names") from None
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise damaged(path, f"a row group at row {row} is damaged, or has a codec that is not known here") from None
        while batch.num_rows:
            here = batch.slice(0, part + rows_of_part - row)
            yield part, _batch(here, row)
            batch = batch.slice(here.num_rows)
            row += here.num_rows
            part = row if row == part + rows_of_part else part


def _batch(rows: pa.RecordBatch, first: int) -> pa.RecordBatch:
    fields = [rows.schema.field(number) for number in range(rows.num_columns)]
    struct = pa.StructArray.from_arrays(rows.columns, fields=fields)
    positions = pa.array(range(first, first + rows.num_rows), pa.int64())
    schema = pa.schema([pa.field("row", struct.type, nullable=False), pa.field("position", pa.int64(), nullable=False)])
    return pa.RecordBatch.from_arrays([struct, positions], schema=schema)


def _open(path: str, file: io.FileIO) -> ParquetFile:
    # Imported where it is used: a job of JSON lines starts without it.
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(pa.PythonFile(duplicate(file), mode="r"), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise damaged(path, "not a Parquet file, or truncated") from None
