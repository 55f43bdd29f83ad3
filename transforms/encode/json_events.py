"""Columns -> lines of JSON, without touching a row in Python.

A record's text is its fields' texts joined with the names between them; a list's text is the joined texts of its
elements. Escaping is a pass over the column, made only if the column holds a byte that needs it.

How values look: integers in all their digits; decimals exactly, without trailing zeros; floats in the fewest digits that read
back the same, so that 10.0 is ``10`` (JSON has one kind of number); a float that is no number as null; timestamps with a zone as instants
with ``Z``, those without one without; fractions of seconds only where they are not zero; bytes as base64 with padding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.transforms.columns import Column, buffer_of, list_lengths, numbers_of
from eventveil.transforms.encode.compact import plain
from eventveil.transforms.keys.canonical import canonical

__all__ = ["encode_json", "output_json_schema"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar

_Parts: TypeAlias = "list[str | Column]"
_MOST_BYTES = 2**31 - 1
_ESCAPES = {0x08: "\\b", 0x09: "\\t", 0x0A: "\\n", 0x0C: "\\f", 0x0D: "\\r"}
_BASE64 = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8)


def encode_json(batch: pa.RecordBatch) -> pa.BinaryArray | pa.LargeBinaryArray:
    """One object and a line feed for each row. Nulls are written as null.

    Large binary where the text could pass 2 GB.
    """
    columns = [plain(column) for column in batch.columns]
    if batch.num_rows > 1 and _bound(columns, batch.schema.names) + 3 * batch.num_rows > _MOST_BYTES:
        half = batch.num_rows // 2
        halves = (encode_json(batch.slice(0, half)), encode_json(batch.slice(half)))
        whole: Column = pa.concat_arrays([part.cast(pa.large_binary()) for part in halves])
    else:
        whole = _join([*_object(columns, batch.schema.names), "\n"], batch.num_rows).cast(pa.binary())
    result: pa.BinaryArray | pa.LargeBinaryArray = whole
    return result


def _parts(array: Column) -> _Parts:
    """What stands for each value, as pieces to be joined: constants and columns of text without nulls."""
    array = plain(array)
    kind = array.type
    if pa.types.is_struct(kind):
        parts = _object(array.flatten(), [field.name for field in kind])
    elif pa.types.is_list(kind):
        parts = ["[", _items(array), "]"]
    elif pa.types.is_string(kind):
        parts = ['"', _escaped(array), '"']
    elif pa.types.is_binary(kind):
        parts = ['"', _base64(array), '"']
    elif pa.types.is_floating(kind):
        return [_floats(array)]
    elif pa.types.is_decimal(kind):
        # Plain, without trailing zeros: Arrow's own text may have an exponent, and 30 of scale 9 would be 30.000000000.
        parts = [canonical(array).cast(pa.string())]
    elif pa.types.is_temporal(kind) and not pa.types.is_duration(kind):
        parts = ['"', _time(array), '"']
    else:
        parts = [(array.cast(pa.int64()) if pa.types.is_duration(kind) else array).cast(pa.string())]
    if not array.null_count:
        return parts
    return [_pc.if_else(_pc.is_valid(array), _join(parts, len(array)), "null")]


def _join(parts: Sequence[str | Column], rows: int) -> Column:
    """The pieces of each value, one after the other."""
    if all(isinstance(part, str) for part in parts):
        return pa.repeat(pa.scalar("".join(str(part) for part in parts)), rows)
    merged: list[str | Column] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return merged[0] if len(merged) == 1 else _pc.binary_join_element_wise(*merged, "")


def _object(columns: Sequence[Column], names: Sequence[str]) -> _Parts:
    parts: _Parts = ["{"]
    for number, (name, column) in enumerate(zip(names, columns, strict=True)):
        parts += [("," if number else "") + json.dumps(name, ensure_ascii=False) + ":", *_parts(column)]
    return [*parts, "}"]


def _items(array: Any) -> Column:
    """The elements of each list, joined by commas; empty for a null list."""
    items = array.flatten()
    sums = np.zeros(len(array) + 1, np.int32)
    np.cumsum(list_lengths(array), out=sums[1:])
    offsets: Column = pa.array(sums)
    return _pc.binary_join(pa.ListArray.from_arrays(offsets, _join(_parts(items), len(items))), ",")


def _slice_of(array: Column) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Offsets and bytes of a string or binary column: those of its own rows."""
    _, offsets, data = array.buffers()
    if offsets is None or not offsets.size:
        return np.zeros(len(array) + 1, np.int32), np.zeros(0, np.uint8)
    found = numbers_of(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    content = np.zeros(0, np.uint8) if data is None else numbers_of(data, np.uint8)[found[0] : found[-1]]
    return found - found[0], content


def _escaped(array: Column) -> Column:
    _, data = _slice_of(array)
    if not len(data):
        return array
    raw = data.tobytes()  # to search in bytes is several times faster than to compare in numpy, the copy included
    if b"\\" in raw:
        array = _pc.replace_substring(array, "\\", "\\\\")
    if b'"' in raw:
        array = _pc.replace_substring(array, '"', '\\"')
    if data.min() < 0x20:
        for code in np.unique(data[data < 0x20]).tolist():
            array = _pc.replace_substring(array, chr(code), _ESCAPES.get(code, f"\\u{code:04x}"))
    return array


def _floats(array: Column) -> Column:
    finite = _pc.is_finite(array)
    text = array.cast(pa.string())
    if not array.null_count and _pc.all(finite).as_py() is not False:
        return text
    return _pc.if_else(finite.fill_null(False), text, "null")


def _time(array: Column) -> Column:
    """Dates, times of day and timestamps as ISO 8601; a fraction only where it is not zero."""
    kind = array.type
    if pa.types.is_date32(kind):
        return array.cast(pa.string())
    if pa.types.is_date64(kind):
        return array.cast(pa.date32(), safe=False).cast(pa.string())
    mark = ""
    if pa.types.is_timestamp(kind):
        mark = "" if kind.tz is None else "Z"
        array = array.cast(pa.timestamp(kind.unit, "UTC")).cast(pa.timestamp(kind.unit)) if kind.tz is not None else array
    text = _whole_seconds(array)
    if text is None:
        text = array.cast(pa.string())
        if kind.unit != "s":
            text = _pc.replace_substring_regex(text, r"\.0+$", "")
    if pa.types.is_timestamp(kind):
        lengths = _pc.min_max(_pc.binary_length(text))
        ordinary = lengths["min"].as_py() is None or (lengths["min"].as_py() >= 19 and lengths["max"].as_py() <= 29)
        text = _pc.utf8_replace_slice(text, 10, 11, "T") if ordinary else _pc.replace_substring(text, " ", "T", max_replacements=1)
    return _pc.binary_join_element_wise(text, mark, "") if mark else text


def _whole_seconds(array: Column) -> Column | None:
    """Text of times that all fall on whole seconds: a cast to seconds is cheaper than cutting fractions off; None if they do not."""
    kind = array.type
    if not pa.types.is_timestamp(kind) or kind.unit == "s":
        return None
    counts = array.cast(pa.int64())
    numbers = np.asarray((counts.fill_null(0) if counts.null_count else counts).to_numpy(zero_copy_only=False))
    per_second = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[kind.unit]
    seconds, rest = np.divmod(numbers, per_second)
    if rest.any():
        return None
    mask = np.asarray(_pc.is_null(array).to_numpy(zero_copy_only=False)) if array.null_count else None
    return pa.array(seconds, pa.int64(), mask=mask).cast(pa.timestamp("s")).cast(pa.string())


def _base64(array: Column) -> Column:
    """RFC 4648 base64 with padding of a whole column."""
    if array.null_count:
        array = array.fill_null(b"")
    offsets, data = _slice_of(array)
    lengths = np.diff(offsets)
    groups = (lengths + 2) // 3
    ends = np.cumsum(groups, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    padded = np.zeros(total * 3, np.uint8)
    if len(data):
        padded[np.arange(len(data)) + np.repeat((ends - groups) * 3 - offsets[:-1], lengths)] = data
    triples = padded.reshape(-1, 3)
    text = np.empty((total, 4), np.uint8)
    text[:, 0] = triples[:, 0] >> 2
    text[:, 1] = (triples[:, 0] & 0x03) << 4 | triples[:, 1] >> 4
    text[:, 2] = (triples[:, 1] & 0x0F) << 2 | triples[:, 2] >> 6
    text[:, 3] = triples[:, 2] & 0x3F
    text = _BASE64[text]
    last = ends - 1
    text[last[lengths % 3 == 1], 2] = 0x3D
    text[last[(lengths % 3 != 0)], 3] = 0x3D
    starts = np.zeros(len(lengths) + 1, np.int32)
    starts[1:] = ends * 4
    return pa.StringArray.from_buffers(len(lengths), buffer_of(starts), buffer_of(text))


def _bound(columns: Sequence[Column], names: Sequence[str]) -> int:
    """No more bytes than this are written for these columns as an object."""
    return sum(_bound_of(column) + len(column) * (6 * len(name.encode()) + 6) for name, column in zip(names, columns, strict=True))


def _bound_of(array: Column) -> int:
    array = plain(array)
    kind = array.type
    if pa.types.is_struct(kind):
        return _bound(array.flatten(), [field.name for field in kind]) + 6 * len(array)
    if pa.types.is_list(kind):
        items = array.flatten()
        return _bound_of(items) + len(items) + 6 * len(array)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return 6 * len(_slice_of(array)[1]) + 8 * len(array)
    return 64 * len(array)


def output_json_schema(schema: pa.Schema, name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of the lines that `encode_json` writes for this schema.

    Args:
        schema: the output's columns.
        name: title of the schema.
    """
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name, **_object_schema(list(schema))}


def _object_schema(fields: Sequence[pa.Field[Any]]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {field.name: _value_schema(field) for field in fields},
        "required": [field.name for field in fields],
        "additionalProperties": False,
    }


# First match wins; the test is on the type, the result what JSON Schema says of it.
_SCALARS: tuple[tuple[Callable[[Any], bool], dict[str, Any]], ...] = (
    (pa.types.is_boolean, {"type": "boolean"}),
    (pa.types.is_integer, {"type": "integer"}),
    (pa.types.is_duration, {"type": "integer"}),
    (pa.types.is_floating, {"type": "number"}),
    (pa.types.is_decimal, {"type": "number"}),
    (pa.types.is_date, {"type": "string", "format": "date"}),
    (pa.types.is_time, {"type": "string", "pattern": "^[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]+)?$"}),
    (pa.types.is_binary, {"type": "string", "contentEncoding": "base64"}),
    (pa.types.is_large_binary, {"type": "string", "contentEncoding": "base64"}),
    (pa.types.is_fixed_size_binary, {"type": "string", "contentEncoding": "base64"}),
)


def _value_schema(field: pa.Field[Any]) -> dict[str, Any]:
    kind = field.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        found = _object_schema(list(kind))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        found = {"type": "array", "items": _value_schema(kind.value_field)}
    elif pa.types.is_timestamp(kind):
        zone = "" if kind.tz is None else "Z"
        found = {"type": "string", "pattern": f"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T[0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}(\\.[0-9]+)?{zone}$"}
        if kind.tz is not None:
            found["format"] = "date-time"
    else:
        found = dict(next((shape for is_kind, shape in _SCALARS if is_kind(kind)), {"type": "string"}))
    return {**found, "type": [found["type"], "null"]} if field.nullable else found
