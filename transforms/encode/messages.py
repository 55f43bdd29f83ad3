"""Columns -> one message per row: JSON without a line feed, or an Avro datum, plain or behind the id that a schema registry gave."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.transforms.encode.avro_events import avro_rows, output_avro_schema

__all__ = ["avro_messages", "json_messages", "wire_header"]

_pc: Any = pc  # the stubs know no slices of bytes


def json_messages(lines: pa.Array[Any]) -> list[bytes]:
    """Lines of `encode_json` as messages."""
    found: list[bytes] = _pc.binary_slice(lines, 0, -1).to_pylist()
    return found


def avro_messages(schema: pa.Schema, name: str, header: bytes = b"") -> Callable[[pa.RecordBatch], list[bytes]]:
    """What turns a batch of these columns into datums of `output_avro_schema(schema, name)`, each behind `header`.

    Raises:
        SchemaError: (EV219) a column's name or type cannot be written in Avro.
    """
    parsed = fastavro.parse_schema(output_avro_schema(schema, name))

    def encode(batch: pa.RecordBatch) -> list[bytes]:
        buffer, ends = io.BytesIO(), [0]
        # One dict per row: fastavro knows no columns.
        for row in avro_rows(batch):
            buffer.write(header)
            fastavro.schemaless_writer(buffer, parsed, row)
            ends.append(buffer.tell())
        data = buffer.getvalue()
        return [data[start:end] for start, end in pairwise(ends)]

    return encode


def wire_header(schema_id: int) -> bytes:
    """What stands before a datum whose schema is in a registry. Source: Confluent wire format, magic byte 0."""
    return b"\0" + schema_id.to_bytes(4, "big")
