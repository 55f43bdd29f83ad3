"""Columns -> one message per row: JSON without a line feed, or an Avro datum, plain or behind the id that a schema registry gave."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from eventveil.transforms.encode.avro_datums import encode_avro

__all__ = ["avro_messages", "json_messages", "wire_header"]

_pc: Any = pc  # the stubs know no slices of bytes


def json_messages(lines: pa.Array[Any]) -> list[bytes]:
    """Lines of `encode_json` as messages."""
    found: list[bytes] = _pc.binary_slice(lines, 0, -1).to_pylist()
    return found


def avro_messages(batch: pa.RecordBatch, schema: pa.Schema, header: bytes = b"") -> list[bytes]:
    """Datums of `output_avro_schema(schema)`, each behind `header`."""
    found: list[Any] = encode_avro(batch, schema, header).to_pylist()
    return found


def wire_header(schema_id: int) -> bytes:
    """What stands before a datum whose schema is in a registry. Source: Confluent wire format, magic byte 0."""
    return b"\0" + schema_id.to_bytes(4, "big")
