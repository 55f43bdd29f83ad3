"""Columns -> Parquet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from eventveil.transforms.encode.compact import compact_batch

__all__ = ["write_parquet"]


def write_parquet(file: BinaryIO, table: pa.Table, metadata: Mapping[str, str]) -> None:
    """Write a table as one Parquet file, zstd level 1.

    Columns are compacted first: a dictionary page would otherwise hold values that no row shows.

    Args:
        file: open for writing; stays open.
        table: the output's columns.
        metadata: provenance; it becomes the file's key-value metadata.
    """
    batches = [compact_batch(batch) for batch in table.to_batches()]
    schema = batches[0].schema if batches else compact_batch(pa.RecordBatch.from_pylist([], schema=table.schema)).schema
    schema = schema.with_metadata({key.encode(): value.encode() for key, value in metadata.items()})
    plain = pa.Table.from_batches(batches, batches[0].schema if batches else None) if batches else schema.empty_table()
    with pq.ParquetWriter(file, schema, compression="zstd", compression_level=1, store_schema=True) as writer:
        writer.write_table(plain.replace_schema_metadata(schema.metadata))
