"""Rows of a table -> the bytes of one Parquet file."""

from __future__ import annotations

import io
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["encoded"]


def encoded(rows: pa.Table, metadata: Mapping[str, str]) -> memoryview:
    """The file: zstd level 1, provenance as its key-value metadata, types of Parquet alone.

    Args:
        rows: compacted, and at most a shard. What their fields say of themselves (an Iceberg field's number) goes along.
    """
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, rows.schema, compression="zstd", compression_level=1, store_schema=False) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata(dict(metadata))
    return buffer.getbuffer()
