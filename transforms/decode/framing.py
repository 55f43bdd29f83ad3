"""Framing: which values look like one JSON object, judged over a whole batch before a parser sees any of it.

The parser reads a stream of documents and does not care where a message ends. What stands here makes sure that it
cannot matter: each value, without white space at its ends, begins with ``{``, ends with ``}`` and holds no line end,
and values are parsed with a line end between them. Then no document can reach over a line: what is open when a line
ends is either a text, in which a line end is an error, or it follows a ``}``, after which the ``{`` of the next line
is an error. So n lines that parse to n documents are one document each. A line end inside also keeps ``null`` and blank lines away:
a block of nothing but ``null`` kills pyarrow's process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.transforms.columns import Column, Kind, numbers_of

__all__ = ["Frames", "contents", "frame", "is_plain"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_SPACE = np.zeros(256, np.bool_)
_SPACE[[0x20, 0x09, 0x0A, 0x0D]] = True
_ROUNDS = 4


@dataclass(frozen=True)
class Frames:
    """Attributes:
    data: the bytes of the batch.
    start, end: where each value stands in `data`, without white space at its ends.
    misframed, too_large: which rows are refused for it; no row stands in both.
    one_per_line: whether every value ends in a line feed, so that `lines` are ready to parse as they are.
    """

    data: pa.Buffer
    start: Int64s
    end: Int64s
    misframed: Mask
    too_large: Mask
    one_per_line: bool
    lines: pa.Buffer

    def value(self, row: int) -> bytes:
        """One value, without white space at its ends."""
        return self.data.slice(int(self.start[row]), int(self.end[row] - self.start[row])).to_pybytes()

    def texts(self, rows: Int64s) -> dict[int, bytes]:
        """Many values by row; one copy of the batch, then slices of it, costs a fifth of asking Arrow for each."""
        first = int(self.start.min(initial=0))
        blob = self.data.slice(first, int(self.end.max(initial=0)) - first).to_pybytes()
        starts, ends = (self.start[rows] - first).tolist(), (self.end[rows] - first).tolist()
        return {row: blob[start:end] for row, start, end in zip(rows.tolist(), starts, ends, strict=True)}

    def __len__(self) -> int:
        return len(self.start)


def frame(values: Column, max_bytes: int) -> Frames:
    """Find the values in their buffer, without copying, and judge each as it would be judged alone.

    Args:
        values: binary or text, of either width; nulls are misframed.
        max_bytes: the largest value, white space at its ends not counted.
    """
    offsets, data, buffer = _parts(values)
    first, last = int(offsets[0]), int(offsets[-1])
    start, end, trimmed = _trim(offsets, data)
    size = end - start
    too_large = size > max_bytes
    bad = size < 2
    inside = np.where(bad, first, start) if bad.any() else start
    if last > first:
        bad |= (data[inside] != 0x7B) | (data[np.maximum(end - 1, first)] != 0x7D)
    if values.null_count:
        bad |= np.asarray(_pc.is_null(values).to_numpy(zero_copy_only=False))
        too_large &= ~bad
    span = data[first:last]
    # One pass over the bytes says whether there is any control character but those that were trimmed away.
    if int(np.count_nonzero(span < 0x20)) != trimmed:
        at = np.flatnonzero((span == 0x0A) | (span == 0x0D) | (span == 0x00)) + first
        row = np.searchsorted(offsets, at, side="right") - 1
        bad[row[(at >= start[row]) & (at < end[row])]] = True
    bad &= ~too_large
    one_per_line = (
        bool(len(start)) and not values.null_count and bool((np.diff(offsets) > 0).all()) and bool((data[offsets[1:] - 1] == 0x0A).all())
    )
    return Frames(buffer, start, end, bad, too_large, one_per_line, buffer.slice(first, last - first))


def is_plain(kind: Kind) -> bool:
    """Whether a column's values lie one behind the other in one buffer."""
    types = pa.types
    return bool(types.is_binary(kind) or types.is_string(kind) or types.is_large_binary(kind) or types.is_large_string(kind))


def contents(values: Column) -> pa.Buffer:
    """The bytes of all values, one after the other, without copying."""
    offsets, _, buffer = _parts(values)
    return buffer.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))


def _parts(values: Column) -> tuple[Int64s, npt.NDArray[np.uint8], pa.Buffer]:
    kind = values.type
    if not is_plain(kind):
        values = values.cast(pa.large_binary())
        kind = values.type
    width = np.int64 if pa.types.is_large_binary(kind) or pa.types.is_large_string(kind) else np.int32
    _, offsets, buffer = values.buffers()
    if buffer is None:
        buffer = pa.py_buffer(b"")
    if offsets is None or not offsets.size:
        return np.zeros(len(values) + 1, np.int64), np.zeros(0, np.uint8), buffer
    found = numbers_of(offsets, width)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    return found, numbers_of(buffer, np.uint8), buffer


def _trim(offsets: Int64s, data: npt.NDArray[np.uint8]) -> tuple[Int64s, Int64s, int]:
    """Start and end of each value without white space, and how many of the bytes outside are control characters."""
    start, end, controls = offsets[:-1].copy(), offsets[1:].copy(), 0
    for edge, step in ((end, -1), (start, 1)):
        open_ = np.flatnonzero(start < end)
        for _ in range(_ROUNDS):
            byte = data[edge[open_] - (step < 0)]
            space = _SPACE[byte]
            if not space.any():
                open_ = open_[:0]
                break
            controls += int(np.count_nonzero(byte[space] < 0x20))
            open_ = open_[space]
            edge[open_] += step
            open_ = open_[start[open_] < end[open_]]
        for row in open_.tolist():  # long runs of white space: each value on its own, at C speed
            value = data[start[row] : end[row]].tobytes()
            rest = value.rstrip(b" \t\r\n") if step < 0 else value.lstrip(b" \t\r\n")
            gone = value[len(rest) :] if step < 0 else value[: len(value) - len(rest)]
            controls += len(gone) - gone.count(b" ")
            edge[row] += step * len(gone)
    return start, end, controls
