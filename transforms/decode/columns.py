"""Questions about columns: masks, bitmaps, lengths of lists, text that is not UTF-8."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["flags", "list_lengths", "map_entries", "not_utf8", "validity"]

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def flags(mask: pa.BooleanArray) -> Mask:
    """A mask as numpy; null counts as false."""
    if mask.null_count:
        mask = mask.fill_null(False)
    return np.array(mask.to_numpy(zero_copy_only=False), dtype=np.bool_)


def list_lengths(array: Any) -> Int64s:
    """Elements of each list or map; none in a null one, whatever its offsets say."""
    lengths = np.diff(np.asarray(array.offsets.to_numpy())).astype(np.int64)
    if array.null_count:
        lengths[flags(pc.is_null(array))] = 0
    return lengths


def map_entries(array: Any) -> tuple[pa.Array, pa.Array]:
    """Keys and values of all entries of a map column, those of null or invisible maps left out."""
    # The same buffers as a list column: pyarrow flattens lists, and forgets the offset of a map's children.
    children = [array.keys, array.items]
    kind = pa.struct([pa.field("key", children[0].type), pa.field("value", children[1].type)])
    pairs = pa.StructArray.from_buffers(kind, len(children[0]), [None], 0, 0, children)
    listed = pa.ListArray.from_buffers(pa.list_(kind), len(array), array.buffers()[:2], array.null_count, array.offset, [pairs])
    keys, values = listed.flatten().flatten()
    return keys, values


def validity(array: pa.Array) -> pa.Buffer | None:
    """The validity bitmap, beginning at the array's first value."""
    if not array.null_count:
        return None
    return pa.py_buffer(np.packbits(flags(pc.is_valid(array)), bitorder="little"))


def not_utf8(values: pa.Array) -> Mask | None:
    """Which texts are not UTF-8; None where all are, which one pass over the buffer shows."""
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        pass
    else:
        return None
    raw = values.cast(pa.binary())
    return np.array([value is not None and not _is_utf8(value) for value in raw.to_pylist()], np.bool_)  # value by value: only where one is wrong


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
