"""Events out of a stream of lines: newlines are found over whole blocks, values are views of the block that was read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.pipeline.sources._streams import ByteStream

__all__ = ["RAW", "read_lines"]

_FIELDS: list[pa.Field[Any]] = [pa.field("value", pa.binary(), nullable=False), pa.field("position", pa.int64(), nullable=False)]
RAW = pa.schema(_FIELDS)

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_SLACK = 16 << 10
_EMPTY = pa.RecordBatch.from_arrays([pa.array([], pa.binary()), pa.array([], pa.int64())], schema=RAW)

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]


def read_lines(
    stream: ByteStream, *, begin: int, end: int | None, part_bytes: int, batch_bytes: int, max_event_bytes: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Read the lines whose first byte lies in [begin, end), as (start of the part, raw batch).

    A line includes its line end; a last line without one is a line; a line of nothing but spaces, tabs and carriage returns
    is no event. A byte order mark at offset 0 does not belong to the first line's value. Of a line whose content is longer than
    `max_event_bytes` only the first `max_event_bytes` + 1 bytes are kept (white space at either end of them becomes NUL), whatever
    the size of the reads: enough for a decoder to see that it is too long, and all that a dead letter will hold of it.

    Args:
        stream: stands at `begin` - 1 if `begin` > 0 (what begins there is the end of another range's line), else at 0.
        end: None for the whole stream, from 0, cut into a part every `part_bytes`; else there is the one part `begin`.
        batch_bytes: bytes per read, about the size of a batch.
    """
    cutter = _Cutter(stream, begin, end, part_bytes, batch_bytes, max_event_bytes)
    untold = begin
    for start, batch in cutter.batches():
        for empty in range(untold, start, part_bytes):
            yield empty, _EMPTY
        yield start, batch
        untold = start + part_bytes
    total = begin + 1 if end is not None else max(cutter.at, 1)
    for empty in range(untold, total, part_bytes):
        yield empty, _EMPTY


class _Cutter:
    """Cuts a stream into lines. `at` is the offset up to which it has come."""

    def __init__(self, stream: ByteStream, begin: int, end: int | None, part_bytes: int, batch_bytes: int, max_event_bytes: int) -> None:
        self.at = max(begin - 1, 0)
        self._stream = stream
        self._begin, self._end = begin, end
        self._part_bytes, self._batch_bytes, self._max = part_bytes, batch_bytes, max_event_bytes
        self._slack = min(_SLACK, batch_bytes // 4 + 1)

    def batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(start of the part, batch with rows), in the order of the stream."""
        held: Bytes = np.empty(0, np.uint8)
        ended = skipping = False
        while not ended and (self._end is None or self.at < self._end):
            data, ended = self._read(held)
            newlines = np.flatnonzero(data == 10)
            if skipping:
                # The rest of a line that is too long: nothing of it is kept.
                dropped = int(newlines[0]) + 1 if len(newlines) else len(data)
                skipping = not len(newlines)
                data, newlines = data[dropped:], newlines[1:] - dropped
                self.at += dropped
            ends: Offsets = newlines.astype(np.int64) + 1
            if ended and len(data) and not (len(ends) and ends[-1] == len(data)):
                ends = np.append(ends, len(data))
            taken = 0
            for start, first, last, starts in self._runs(ends, ended):
                batch = self._batch(data, starts[first:last], ends[first:last])
                if batch.num_rows:
                    yield start, batch
                taken = int(ends[last - 1])
            if self._end is not None and len(ends):
                taken = int(ends[-1])
            held = data[taken:]
            self.at += taken
            waiting = len(ends) and taken < ends[-1]
            if not (ended or skipping or waiting) and len(held) > self._max + 1 + len(_BOM):
                if self.at >= self._begin and (self._end is None or self.at < self._end):
                    yield self._part_at(self.at), self._first_bytes(held)
                self.at += len(held)
                held, skipping = held[:0], True

    def _read(self, held: Bytes) -> tuple[Bytes, bool]:
        """What was held back with the next bytes behind it, and whether the stream has ended."""
        offset = self.at + len(held)
        target = self._end if self._end is not None else (offset // self._part_bytes + 1) * self._part_bytes
        # A little past the end of the part, so that its last line does not ask for a read, and a batch, of its own.
        left = max(target - offset, 0)
        room = left + self._slack if left <= self._batch_bytes + self._slack else self._batch_bytes
        buffer: Bytes = np.empty(len(held) + room, np.uint8)
        buffer[: len(held)] = held
        view = memoryview(cast(Any, buffer))
        filled = len(held)
        while filled < len(buffer):
            got = self._stream.readinto(view[filled:])
            if not got:
                return buffer[:filled], True
            filled += got
        return buffer, False

    def _runs(self, ends: Offsets, ended: bool) -> Iterator[tuple[int, int, int, Offsets]]:
        """The lines of each part: its start, and the slice [first, last) of the lines."""
        if not len(ends):
            return
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        if self._end is not None:
            first, last = np.searchsorted(starts, [self._begin - self.at, self._end - self.at]).tolist()
            if first < last:
                yield self._begin, first, last, starts
            return
        parts = (starts + self.at) // self._part_bytes
        cuts = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(parts)]
        if not ended and len(cuts) > 2 and ends[-1] - starts[cuts[-2]] <= 2 * self._slack:
            # The first lines of a new part, read along with the end of the one before, wait for more of their own.
            cuts.pop()
        for first, last in pairwise(cuts):
            yield int(parts[first]) * self._part_bytes, first, last, starts

    def _part_at(self, position: int) -> int:
        return self._begin if self._end is not None else position // self._part_bytes * self._part_bytes

    def _batch(self, data: Bytes, starts: Offsets, ends: Offsets) -> pa.RecordBatch:
        """The lines as a batch; without copying, unless one is blank or too long."""
        offsets = np.empty(len(starts) + 1, np.int32)
        offsets[0] = starts[0]
        offsets[1:] = ends
        if self.at == 0 and starts[0] == 0 and data[:3].tobytes() == _BOM:
            offsets[0] = len(_BOM)
        # An array gives its bytes without a copy; the library's types do not say so.
        buffers = [None, pa.py_buffer(cast(Any, offsets)), pa.py_buffer(cast(Any, data))]
        values: pa.Array[Any] = pa.BinaryArray.from_buffers(pa.binary(), len(starts), buffers)
        positions: pa.Array[Any] = pa.array(starts + self.at)
        too_long = self._too_long(data, offsets)
        if too_long is not None:
            cut = [self._cut(data[offsets[row] : offsets[row + 1]]) for row in np.flatnonzero(too_long)]
            values = pc.replace_with_mask(values, pa.array(too_long), pa.array(cut, pa.binary()))
        blank = self._blank(data, offsets, too_long)
        if len(blank):
            keep = np.ones(len(starts), bool)
            keep[blank] = False
            values, positions = values.filter(pa.array(keep)), positions.filter(pa.array(keep))
        return pa.RecordBatch.from_arrays([values, positions], schema=RAW)

    def _too_long(self, data: Bytes, offsets: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_] | None:
        """Which lines have more content than is allowed, the line end apart; None: none has."""
        sizes = np.diff(offsets)
        if int(sizes.max()) <= self._max:
            return None
        newline = (sizes > 0) & (data[offsets[1:] - 1] == 10)
        returned = newline & (sizes > 1) & (data[offsets[1:] - 2] == 13)
        return np.asarray(sizes - newline - returned > self._max)

    def _blank(self, data: Bytes, offsets: npt.NDArray[np.int32], too_long: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.int64]:
        """The numbers of the lines that hold nothing. One that is too long counts as an event: its end need not have been read."""
        suspect = (offsets[:-1] == offsets[1:]) | (data[np.minimum(offsets[:-1], len(data) - 1)] <= 32)
        if too_long is not None:
            suspect &= ~too_long
        # Line by line, but only where a line begins with white space, which events hardly ever do.
        rows = np.flatnonzero(suspect)
        return np.array([row for row in rows if not data[offsets[row] : offsets[row + 1]].tobytes().strip(_BLANK)], np.int64)

    def _first_bytes(self, held: Bytes) -> pa.RecordBatch:
        """A batch of one: the beginning of a line whose end was not reached."""
        mark = len(_BOM) if self.at == 0 and held[:3].tobytes() == _BOM else 0
        return pa.RecordBatch.from_arrays([pa.array([self._cut(held[mark:])], pa.binary()), pa.array([self.at], pa.int64())], schema=RAW)

    def _cut(self, line: Bytes) -> bytes:
        value = bytearray(line[: self._max + 1])
        # A decoder trims white space before it measures; what is left might be within the limit, and even read as an event.
        for end in (0, -1):
            if value[end] in _BLANK:
                value[end] = 0
        return bytes(value)
