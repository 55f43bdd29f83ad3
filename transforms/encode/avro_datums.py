"""Columns -> one Avro datum per row, without touching a row in Python.

A record's bytes are those of its fields, one after the other; a list's are its length, its elements and a zero. So a batch is written
as JSON is (json_events.py): pieces of columns, joined. Times are those of `output_avro_schema`.
Source: Avro 1.12 specification, binary encoding.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.transforms.columns import Column, Kind, buffer_of, flags, list_lengths, numbers_of
from eventveil.transforms.encode.avro_events import as_stored
from eventveil.transforms.encode.compact import plain

__all__ = ["encode_avro"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar

_Parts: TypeAlias = "list[bytes | Column]"
_NULL, _VALUE = b"\0", b"\2"  # which case of a union with null it is, as a varint


def encode_avro(batch: pa.RecordBatch, schema: pa.Schema, header: bytes = b"") -> pa.BinaryArray:
    """One datum of `output_avro_schema(schema)` for each row.

    Args:
        batch: columns of `schema`, by name. What may be null in them says `schema`.
        header: what stands before each datum.
    """
    parts: _Parts = [header] if header else []
    for field in schema:
        parts += _field(as_stored(batch.column(field.name)), field.type, field.nullable)
    datums: pa.BinaryArray = _join(parts, batch.num_rows)
    return datums


def _field(array: Column, kind: Kind, nullable: bool) -> _Parts:
    """`kind` is the column's type as `schema` has it: the column itself is stored as numbers, and says nothing of nulls."""
    if not array.null_count:
        return [_VALUE, *_value(array, kind)] if nullable else _value(array, kind)
    if not nullable:
        raise ValueError("a null where the schema has none")
    valid = array.is_valid()
    # What a null hides must not be looked at: below a missing record nothing has to be there.
    there = _join([_VALUE, *_value(array.filter(valid), kind)], len(array) - array.null_count)
    return [_pc.replace_with_mask(pa.repeat(pa.scalar(_NULL), len(array)), valid, there)]


def _value(array: Column, kind: Kind) -> _Parts:
    """The pieces of each value of a column without nulls."""
    if pa.types.is_dictionary(kind):
        return _value(array, kind.value_type)
    array = plain(array)
    stored = array.type
    if pa.types.is_struct(stored):
        parts: _Parts = []
        for field, child in zip(kind, array.flatten(), strict=True):
            parts += _field(child, field.type, field.nullable)
        return parts
    if pa.types.is_list(stored):
        return _items(array, kind)
    if pa.types.is_boolean(stored):
        return [_rows(flags(array).astype(np.uint8).reshape(-1, 1))]
    if pa.types.is_floating(stored):
        width = 8 if pa.types.is_float64(stored) else 4
        floats = np.asarray(array.to_numpy(zero_copy_only=False), f"<f{width}")
        return [_rows(floats.view(np.uint8).reshape(-1, width))]
    if pa.types.is_decimal(stored):
        array = _unscaled(array)
    elif not (pa.types.is_string(stored) or pa.types.is_binary(stored)):
        return [_varints(array.to_numpy(zero_copy_only=False).astype(np.int64))]
    lengths = _pc.binary_length(array).to_numpy(zero_copy_only=False).astype(np.int64)
    return [_varints(lengths), array.cast(pa.binary())]


def _items(array: Any, kind: Kind) -> _Parts:
    items = array.flatten()
    lengths = list_lengths(array).astype(np.int64)
    sums = np.zeros(len(array) + 1, np.int32)
    np.cumsum(lengths, out=sums[1:])
    offsets: Column = pa.array(sums)
    texts = _join(_field(items, kind.value_type, kind.value_field.nullable), len(items))
    joined = _pc.binary_join(pa.ListArray.from_arrays(offsets, texts), b"")
    # A list without elements is its end alone.
    return [_pc.if_else(pa.array(lengths > 0), _varints(lengths), b""), joined, b"\0"]


def _varints(numbers: npt.NDArray[np.int64]) -> Column:
    """Zigzag numbers in as many groups of seven bits as they need, the lowest first."""
    zigzag = ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)
    widths = np.ones(len(numbers), np.int64)
    most = max(1, -(-int(zigzag.max(initial=0)).bit_length() // 7))
    for group in range(1, most):
        widths += zigzag >= np.uint64(1 << 7 * group)
    groups = np.empty((len(numbers), most), np.uint8)
    for group in range(most):
        groups[:, group] = (zigzag >> np.uint64(7 * group)).astype(np.uint8) | 0x80
    groups[np.arange(len(numbers)), widths - 1] &= 0x7F
    if most == 1:
        return _rows(groups)
    return _cut(groups[np.arange(most) < widths[:, None]], widths)


def _unscaled(array: Column) -> Column:
    """Decimals as their unscaled numbers, two's complement, highest byte first, in as few bytes as hold the sign."""
    width = array.type.bit_width // 8
    little = numbers_of(array.buffers()[1], np.uint8, len(array) * width, array.offset * width).reshape(-1, width)
    big = little[:, ::-1]
    sign = (big[:, :1] >> 7) * np.uint8(0xFF)
    # A byte that only repeats the sign is needed where the next one would show another.
    spare = (big[:, :-1] == sign) & ((big[:, 1:] >> 7) == (sign >> 7))
    skipped = np.where(spare.all(axis=1), width - 1, np.argmin(spare, axis=1)) if width > 1 else np.zeros(len(big), np.int64)
    return _cut(big[np.arange(width) >= skipped[:, None]], width - skipped)


def _rows(rows: npt.NDArray[np.uint8]) -> Column:
    """Rows of one width."""
    return _cut(rows.reshape(-1), np.full(len(rows), rows.shape[1], np.int64))


def _cut(data: npt.NDArray[np.uint8], widths: npt.NDArray[np.int64]) -> Column:
    offsets = np.zeros(len(widths) + 1, np.int32)
    np.cumsum(widths, out=offsets[1:])
    return pa.Array.from_buffers(pa.binary(), len(widths), [None, buffer_of(offsets), buffer_of(np.ascontiguousarray(data))], 0)


def _join(parts: _Parts, rows: int) -> Column:
    """The pieces of each value, one after the other."""
    if all(isinstance(part, bytes) for part in parts):
        return pa.repeat(pa.scalar(b"".join(part for part in parts if isinstance(part, bytes)), pa.binary()), rows)
    if len(parts) == 1:
        return parts[0]
    return _pc.binary_join_element_wise(*parts, b"")
