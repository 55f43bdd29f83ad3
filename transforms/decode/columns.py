"""Questions about columns: masks, bitmaps, lengths of lists, text that is not UTF-8."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["flags", "list_lengths", "not_utf8", "validity"]

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def flags(mask: pa.BooleanArray) -> Mask:
    """A mask as numpy; null counts as false."""
    if mask.null_count:
        mask = mask.fill_null(False)
    return np.array(mask.to_numpy(zero_copy_only=False), dtype=np.bool_)


def list_lengths(array: Any) -> Int64s:
    """Elements of each list; none in a null one, whatever its offsets say."""
    if array.null_count == 0:
        return np.diff(np.asarray(array.offsets.to_numpy())).astype(np.int64)
    return np.asarray(pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)


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
