"""Columns -> an Avro container file, and the Avro schema of an output."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import fastavro
import pyarrow as pa

from eventveil.schemas.errors import Problem, SchemaError
from eventveil.transforms.columns import Column, Kind
from eventveil.transforms.encode.compact import plain

__all__ = ["as_stored", "output_avro_schema", "write_avro"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_BLOCK_BYTES = 1 << 16
_TIMESTAMPS = {"ms": "timestamp-millis", "us": "timestamp-micros", "ns": "timestamp-nanos"}


def output_avro_schema(schema: pa.Schema, name: str, doc: str = "") -> dict[str, Any]:
    """The Avro schema of output columns. A field is a union with null where the column may be null.

    Args:
        schema: the output's columns.
        name: of the record, with or without namespace; letters that Avro does not allow become underscores.
        doc: the record's documentation.

    Raises:
        SchemaError: (EV219) a column's name or type cannot be written in Avro; all of them at once.
    """
    problems: list[Problem] = []
    full = ".".join(_as_name(part) for part in name.split(".") if part) or "event"
    record = _record(list(schema), full, "", {full}, problems)
    if problems:
        raise SchemaError(problems)
    return {**record, "doc": doc} if doc else record


def write_avro(file: BinaryIO, table: pa.Table, name: str, metadata: Mapping[str, str]) -> None:
    """Write a table as one container file, deflated. The same table and metadata give the same bytes.

    Args:
        file: open for writing; stays open.
        table: the output's columns.
        name: of the record.
        metadata: provenance; it becomes the file's header.

    Raises:
        SchemaError: (EV219) as `output_avro_schema`.
    """
    schema = output_avro_schema(table.schema, name)
    # A random marker between blocks would make a replay differ; nothing but this file's own blocks refers to it.
    marker = hashlib.blake2b(json.dumps([schema, sorted(metadata.items())]).encode(), digest_size=16).digest()
    # One dict per row: fastavro knows no columns.
    rows = (row for batch in table.to_batches() for row in _rows(batch))
    fastavro.writer(file, schema, rows, codec="deflate", sync_interval=_BLOCK_BYTES, sync_marker=marker, metadata=dict(metadata))


def _as_name(text: str) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9_]", "_", text)
    return cleaned if _NAME.match(cleaned) else f"_{cleaned}"


def _record(fields: list[pa.Field[Any]], name: str, path: str, taken: set[str], problems: list[Problem]) -> dict[str, Any]:
    found = []
    for field in fields:
        below = f"{path}.{field.name}" if path else field.name
        if not _NAME.match(field.name):
            problems.append(
                Problem(
                    "", 0, "EV219", f"output name {below} is no name in Avro", "rename it: letters, digits and underscores, no digit first"
                )
            )
        entry: dict[str, Any] = {"name": field.name, "type": _type(field.type, f"{name}_{_as_name(field.name)}", below, taken, problems)}
        if field.nullable:
            entry |= {"type": ["null", entry["type"]], "default": None}
        found.append(entry)
    return {"type": "record", "name": name, "fields": found}


def _unique(name: str, taken: set[str]) -> str:
    """A type's name derived from its path; a.b_c and a_b.c would meet without the number."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


def _type(kind: Kind, name: str, path: str, taken: set[str], problems: list[Problem]) -> Any:
    types = pa.types
    if types.is_dictionary(kind):
        return _type(kind.value_type, name, path, taken, problems)
    if types.is_struct(kind):
        return _record(list(kind), _unique(name, taken), path, taken, problems)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        item = _type(kind.value_type, name, f"{path}[]", taken, problems)
        return {"type": "array", "items": ["null", item] if kind.value_field.nullable else item}
    if types.is_boolean(kind):
        return "boolean"
    if types.is_integer(kind) and kind != pa.uint64():
        return "long" if kind.bit_width == 64 or kind == pa.uint32() else "int"
    if types.is_floating(kind):
        return "double" if kind == pa.float64() else "float"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "string"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        return "bytes"
    if types.is_null(kind):
        return "null"
    if types.is_decimal(kind) and 0 <= kind.scale <= kind.precision:
        return {"type": "bytes", "logicalType": "decimal", "precision": kind.precision, "scale": kind.scale}
    if types.is_date(kind):
        return {"type": "int", "logicalType": "date"}
    if types.is_time32(kind):
        return {"type": "int", "logicalType": "time-millis"}
    if types.is_time64(kind) and kind.unit == "us":
        return {"type": "long", "logicalType": "time-micros"}
    if types.is_timestamp(kind):
        logical = _TIMESTAMPS["ms" if kind.unit == "s" else kind.unit]
        return {"type": "long", "logicalType": logical if kind.tz is not None else f"local-{logical}"}
    problems.append(Problem("", 0, "EV219", f"output {path} has type {kind}, which Avro has no form for", "cast it to another type"))
    return "null"


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows with times as the integers that Avro stores: as Python objects nanoseconds and far years would be lost."""
    columns = [as_stored(column) for column in batch.columns]
    fields = [pa.field(field.name, column.type) for field, column in zip(batch.schema, columns, strict=True)]
    rows: list[dict[str, Any]] = pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)).to_pylist()
    return rows


def as_stored(column: Column) -> Column:
    """The column with its times as the numbers that Avro stores."""
    column = plain(column)
    for stored in (_in_avro_units, _as_counts):
        column = column.cast(stored(column.type))
    return column


def _in_avro_units(kind: Kind) -> Kind:
    if pa.types.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("ms", kind.tz)
    if pa.types.is_time32(kind):
        return pa.time32("ms")
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return pa.date32() if pa.types.is_date(kind) else _nested(kind, _in_avro_units)


def _as_counts(kind: Kind) -> Kind:
    if pa.types.is_timestamp(kind) or pa.types.is_time64(kind):
        return pa.int64()
    return pa.int32() if pa.types.is_date(kind) or pa.types.is_time32(kind) else _nested(kind, _as_counts)


def _nested(kind: Kind, inner: Callable[[Kind], pa.DataType]) -> Kind:
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(inner(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(inner(kind.value_type)))
    return kind
