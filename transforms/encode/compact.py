"""Columns that hold what they show, and nothing else.

Arrow hides values: a slice keeps the buffer it was cut from, a filtered dictionary column the values that no row
refers to, a null the bytes behind it. Before a column leaves the process, or is kept in a file, it is rebuilt.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.transforms.columns import Column, Kind, buffer_of, flags, list_lengths, map_entries, numbers_of, validity

__all__ = ["compact", "compact_batch", "plain"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar


def compact_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with all its columns rebuilt; dictionary columns come back as plain ones. Metadata stays."""
    columns = [compact(column) for column in batch.columns]
    fields = [
        pa.field(field.name, column.type, field.nullable, field.metadata) for field, column in zip(batch.schema, columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields).with_metadata(batch.schema.metadata))


def compact(array: Column) -> Column:
    """An equal array in buffers of its own: no byte in them comes from a row that it does not show, or from behind a null."""
    if isinstance(array, pa.ExtensionArray):
        return pa.ExtensionArray.from_storage(array.type, compact(array.storage))
    kind = array.type
    if pa.types.is_dictionary(kind):
        return compact(array.dictionary_decode())
    if pa.types.is_null(kind):
        return pa.nulls(len(array))
    if pa.types.is_struct(kind):
        # flatten() also passes the struct's nulls on, so that what they hide is gone below.
        children = [compact(child) for child in array.flatten()]
        fields = [pa.field(field.name, child.type, field.nullable) for field, child in zip(kind, children, strict=True)]
        return pa.StructArray.from_buffers(pa.struct(fields), len(array), [validity(array)], array.null_count, 0, children)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        return _lists(array)
    if pa.types.is_fixed_size_list(kind):
        return compact(array.cast(pa.list_(kind.value_field)))
    if pa.types.is_string_view(kind):
        return compact(array.cast(pa.string()))
    if pa.types.is_binary_view(kind):
        return compact(array.cast(pa.binary()))
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return _texts(array, np.dtype(np.int32))
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return _texts(array, np.dtype(np.int64))
    if pa.types.is_boolean(kind):
        bits = np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False), dtype=np.bool_)
        return pa.Array.from_buffers(kind, len(array), [validity(array), _bits(bits)], array.null_count)
    return _fixed(array)


def plain(array: Column) -> Column:
    """The column in a type that encoders know: dictionaries, views, wide and fixed variants become plain text, bytes and lists."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return plain(array.storage)
    if pa.types.is_dictionary(kind):
        return plain(array.dictionary_decode())
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return array.cast(pa.string())
    if pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind):
        return array.cast(pa.binary())
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return array.cast(pa.list_(kind.value_field))
    return array


def _fixed(array: Column) -> Column:
    """Numbers, times, decimals, fixed bytes: so many bytes a value."""
    width = array.type.bit_width // 8
    data = array.buffers()[1]
    values = np.zeros((len(array), width), np.uint8)
    if data is not None and len(array):
        values[:] = numbers_of(data, np.uint8, len(array) * width, array.offset * width).reshape(len(array), width)
    if array.null_count:
        values[flags(_pc.is_null(array))] = 0
    return pa.Array.from_buffers(array.type, len(array), [validity(array), buffer_of(values)], array.null_count)


def _texts(array: Column, width: np.dtype[Any]) -> Column:
    _, offset_buffer, data = array.buffers()
    if array.null_count:
        # A null may have a length: its bytes are left out by filling it with nothing first.
        bits = validity(array)
        filled = _texts(array.fill_null("" if pa.types.is_string(array.type) or pa.types.is_large_string(array.type) else b""), width)
        return pa.Array.from_buffers(array.type, len(array), [bits, *filled.buffers()[1:]], array.null_count)
    if offset_buffer is None or not offset_buffer.size:
        return pa.array([], array.type)
    offsets = numbers_of(offset_buffer, width)[array.offset : array.offset + len(array) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    content = b"" if data is None else data.slice(first, last - first).to_pybytes()
    return pa.Array.from_buffers(array.type, len(array), [None, buffer_of(offsets - offsets[0]), pa.py_buffer(content)], 0)


def _lists(array: Any) -> Column:
    kind = array.type
    offsets = np.zeros(len(array) + 1, np.int64 if pa.types.is_large_list(kind) else np.int32)
    np.cumsum(list_lengths(array), out=offsets[1:])
    if pa.types.is_map(kind):
        keys, values = (compact(part) for part in map_entries(array))
        rebuilt: Kind = pa.map_(keys.type, kind.item_field.with_type(values.type), kind.keys_sorted)
        items = pa.StructArray.from_buffers(pa.struct([rebuilt.key_field, rebuilt.item_field]), len(keys), [None], 0, 0, [keys, values])
    else:
        items = compact(array.flatten())
        item = kind.value_field.with_type(items.type)
        rebuilt = pa.large_list(item) if pa.types.is_large_list(kind) else pa.list_(item)
    return pa.Array.from_buffers(rebuilt, len(array), [validity(array), buffer_of(offsets)], array.null_count, 0, [items])


def _bits(mask: npt.NDArray[np.bool_]) -> pa.Buffer:
    return buffer_of(np.packbits(mask, bitorder="little"))
