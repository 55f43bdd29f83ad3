"""Questions about columns: masks, bitmaps, lengths of lists, text that is not UTF-8."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Column", "Kind", "buffer_of", "flags", "list_lengths", "map_entries", "not_utf8", "numbers_of", "validity"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar

Column: TypeAlias = Any
"""An Arrow array. The stubs give the base class none of the methods of the others, and no types to most results."""
Kind: TypeAlias = Any
"""An Arrow type that is asked for its parameters, as unit or scale: the stubs know these on derived classes only."""

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def buffer_of(values: npt.NDArray[Any]) -> pa.Buffer:
    """The bytes of a numpy array as an Arrow buffer, without copying."""
    view: Any = np.ascontiguousarray(values)
    return pa.py_buffer(view)


def numbers_of(buffer: Any, width: npt.DTypeLike, count: int = -1, offset: int = 0) -> npt.NDArray[Any]:
    """An Arrow buffer (or bytes) as a numpy array, without copying."""
    return np.frombuffer(buffer, width, count, offset)


def flags(mask: Column) -> Mask:
    """A mask as numpy; null counts as false."""
    if mask.null_count:
        mask = mask.fill_null(False)
    return np.array(mask.to_numpy(zero_copy_only=False), dtype=np.bool_)


def list_lengths(array: Any) -> Int64s:
    """Elements of each list or map; none in a null one, whatever its offsets say."""
    lengths = np.diff(np.asarray(array.offsets.to_numpy())).astype(np.int64)
    if array.null_count:
        lengths[flags(_pc.is_null(array))] = 0
    return lengths


def map_entries(array: Any) -> tuple[Column, Column]:
    """Keys and values of all entries of a map column, those of null or invisible maps left out."""
    # The same buffers as a list column: pyarrow flattens lists, and forgets the offset of a map's children.
    children = [array.keys, array.items]
    kind = pa.struct([pa.field("key", children[0].type), pa.field("value", children[1].type)])
    pairs = pa.StructArray.from_buffers(kind, len(children[0]), [None], 0, 0, children)
    listed: Column = pa.ListArray.from_buffers(pa.list_(kind), len(array), array.buffers()[:2], array.null_count, array.offset, [pairs])
    keys, values = listed.flatten().flatten()
    return keys, values


def validity(array: Column) -> pa.Buffer | None:
    """The validity bitmap, beginning at the array's first value."""
    if not array.null_count:
        return None
    return buffer_of(np.packbits(flags(_pc.is_valid(array)), bitorder="little"))


def not_utf8(values: Column) -> Mask | None:
    """Which texts are not UTF-8; None where all are, which one pass over the buffer shows."""
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        pass
    else:
        return None
    raw = values.cast(pa.binary())
    return np.array(
        [value is not None and not _is_utf8(value) for value in raw.to_pylist()], np.bool_
    )  # value by value: only where one is wrong


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
