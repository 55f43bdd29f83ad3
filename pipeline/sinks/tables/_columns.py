"""The columns of a table: what each output column is stored as, and the columns themselves, with nothing hidden in them.

| output | Delta | Iceberg | BigQuery |
|---|---|---|---|
| bool, date32, string, binary, struct | as they are | as they are | as they are |
| dictionary, large, view and fixed variants of text, bytes and lists; date64 | the plain type | the plain type | the plain type |
| int8 int16 int32 int64 | as they are | int32, int64 | int64 |
| uint8 uint16 uint32 | int16 int32 int64 | int32 int32 int64 | int64 |
| uint64 | decimal128(20, 0) | decimal128(20, 0) | decimal128(38, 9) |
| float16, float32, float64 | float32, float64 | float32, float64 | float64 |
| decimals of up to 38 digits | decimal128 | decimal128 | decimal128(38, 9), if it has at most 29 digits before and 9 behind the point |
| timestamp with zone, without; seconds to microseconds | microseconds, of UTC where there is a zone | the same | the same |
| time of day | text, as 22:57:55.000001 | time, microseconds; of nanoseconds text | time, microseconds; of nanoseconds text |
| duration | int64, a count of its unit | the same | the same |
| null | string | string | string |
| list | as it is | as it is | a list that is null comes back empty |

All this is lossless but for the one that says otherwise. Refused, when the job is built: timestamps of nanoseconds, wider decimals, maps,
empty structs, for BigQuery lists in lists and lists that hold nulls, names that the format does not know, and names that differ by
upper and lower case alone. Any column may be null in a table, also one that never is in the output: columns that a later version of the
policy adds are null in the rows that stand already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from eventveil.schemas.errors import Problem, SchemaError
from eventveil.transforms.columns import Kind
from eventveil.transforms.encode.compact import compact

__all__ = ["Format", "as_stored", "columns_of", "stored_schema"]

Format = Literal["delta", "iceberg", "bigquery"]

_TITLES = {"delta": "Delta", "iceberg": "Iceberg", "bigquery": "BigQuery"}
# Engines write Parquet's names and paths with these: Delta without column mapping refuses them, and Iceberg takes a dot for a nested name.
_FORBIDDEN = re.compile(r"[ ,;{}()\n\t=.`]")
_BIGQUERY_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}\Z")


def stored_schema(schema: pa.Schema, format: Format) -> pa.Schema:
    """What a table of this format stores an output's columns as. Raises SchemaError EV219 with all that it cannot store."""
    form = _Form(format)
    problems = [Problem("", 0, "EV219", fact, remedy) for fact, remedy in form.problems(list(schema))]
    if problems:
        raise SchemaError(problems)
    return pa.schema([_field(field, form.stored(field.type)) for field in schema])


def as_stored(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """The batch's columns as a table stores them: rebuilt first, so that no byte comes from a row or from behind a null."""
    columns = [compact(batch.column(field.name)).cast(field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def columns_of(schema: pa.Schema, format: Format) -> dict[str, pa.DataType]:
    """A table's columns by name. Libraries give their own variants of our types: these become ours again."""
    form = _Form(format)
    return {field.name: form.stored(field.type) for field in schema}


@dataclass(frozen=True)
class _Form:
    format: Format

    def stored(self, kind: Kind) -> pa.DataType:
        """The type that stands for this one; of one that cannot be stored whatever it is."""
        types = pa.types
        if isinstance(kind, pa.ExtensionType):
            return self.stored(kind.storage_type)
        if types.is_dictionary(kind):
            return self.stored(kind.value_type)
        if types.is_struct(kind):
            return pa.struct([_field(field, self.stored(field.type)) for field in kind])
        if _is_list(kind):
            return pa.list_(pa.field("element", self.stored(kind.value_type)))
        if types.is_null(kind) or types.is_large_string(kind) or types.is_string_view(kind):
            return pa.string()
        if types.is_large_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
            return pa.binary()
        if types.is_integer(kind):
            return self._integer(kind)
        if types.is_floating(kind):
            return pa.float64() if kind == pa.float64() or self.format == "bigquery" else pa.float32()
        if types.is_decimal(kind) and self.format == "bigquery":
            return pa.decimal128(38, 9) if self._holds(kind) else kind
        if types.is_decimal(kind) and kind.precision <= 38:
            return pa.decimal128(kind.precision, kind.scale)
        if types.is_date(kind):
            return pa.date32()
        if types.is_timestamp(kind) and kind.unit != "ns":
            return pa.timestamp("us", None if kind.tz is None else "UTC")
        if types.is_time(kind):
            return pa.string() if self.format == "delta" or kind == pa.time64("ns") else pa.time64("us")
        return pa.int64() if types.is_duration(kind) else kind

    def problems(self, fields: Sequence[pa.Field[Any]], above: str = "") -> Iterator[tuple[str, str]]:
        """Fact and remedy of each column that cannot be stored."""
        seen: dict[str, str] = {}
        for field in fields:
            path = f"{above}.{field.name}" if above else field.name
            if not self._is_name(field.name):
                letters = "letters, digits and underscores" if self.format == "bigquery" else "no blanks, dots or any of , ; { } ( ) = `"
                yield f"output name {path} is no name in {_TITLES[self.format]}", f"rename it: {letters}"
            if field.name.lower() in seen:
                fact = f"output names {seen[field.name.lower()]} and {path} are one in {_TITLES[self.format]}, which does not tell case"
                yield fact, "rename one of the two"
            seen[field.name.lower()] = path
            yield from self._of_type(field.type, path)

    def _of_type(self, kind: Kind, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(kind, pa.ExtensionType):
            yield from self._of_type(kind.storage_type, path)
        elif pa.types.is_dictionary(kind):
            yield from self._of_type(kind.value_type, path)
        elif pa.types.is_struct(kind) and kind.num_fields:
            yield from self.problems(list(kind), path)
        elif _is_list(kind) and not (self.format == "bigquery" and _is_list(kind.value_type)):
            if self.format == "bigquery" and kind.value_field.nullable:
                yield f"output {path} is a list that may hold nulls, which BigQuery has no form for", "drop it, or correct the event schema"
            yield from self._of_type(kind.value_type, f"{path}[]")
        elif not _is_leaf(self.stored(kind)) or not self._holds(self.stored(kind)):
            remedy = "cast it to timestamp[us]" if pa.types.is_timestamp(kind) else "cast it to another type, or to string"
            yield f"output {path} has type {kind}, which {_TITLES[self.format]} has no form for", remedy

    def _is_name(self, name: str) -> bool:
        if self.format == "bigquery":
            return _BIGQUERY_NAME.match(name) is not None
        return bool(name) and _FORBIDDEN.search(name) is None

    def _integer(self, kind: Kind) -> pa.DataType:
        if kind == pa.uint64():
            return pa.decimal128(38, 9) if self.format == "bigquery" else pa.decimal128(20, 0)
        signed = pa.types.is_signed_integer(kind)
        width = kind.bit_width if signed else 2 * kind.bit_width
        if self.format == "bigquery":
            return pa.int64()
        if self.format == "iceberg":
            width = max(width, 32)
        return {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[width]

    def _holds(self, kind: Kind) -> bool:
        if not pa.types.is_decimal(kind):
            return True
        scale, whole = int(kind.scale), int(kind.precision - kind.scale)
        return 0 <= scale <= 9 and whole <= 29 if self.format == "bigquery" else min(scale, whole) >= 0


def _is_list(kind: Kind) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_leaf(kind: Kind) -> bool:
    types = pa.types
    if types.is_timestamp(kind):
        return bool(kind.unit == "us")
    known: Any = (types.is_boolean, types.is_integer, types.is_floating, types.is_string, types.is_binary, types.is_date32, types.is_time)
    return any(is_one(kind) for is_one in known) or (types.is_decimal128(kind) and kind.precision <= 38)


def _field(field: pa.Field[Any], kind: pa.DataType) -> pa.Field[Any]:
    return pa.field(field.name, kind)
