"""A window in shards: of bounded size, and the same however its rows came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from tempfile import gettempdir
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.pipeline.sinks._scratch import Scratch
from eventveil.schemas.errors import StorageError
from eventveil.transforms.batch import ORDER, ROLL, WINDOW
from eventveil.transforms.columns import Column, buffer_of, numbers_of
from eventveil.transforms.encode.compact import plain
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.keys.prf import macs

__all__ = ["INTERNAL", "Batches", "in_shards"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar

Int64s = npt.NDArray[np.int64]
Batches = Callable[[], Iterator[pa.RecordBatch]]

# Columns of veiled batches that never leave.
INTERNAL = (ORDER, WINDOW, ROLL)

# A shard is as large as a part of bounded input.
_SHARD_BYTES = 32 << 20
_SHARD_ROWS = 1 << 17
# What is in memory at a time; of a window that is larger the rest is put aside.
_HELD_BYTES = 64 << 20
_HEAD_BITS = 16


def in_shards(batches: Batches, rows: int, size: int, *, keep: bool, folder: str | None = None) -> Iterator[tuple[int, pa.Table]]:
    """The rows of a window, shard by shard; shards without rows are left out.

    How many shards there are, and which row is in which, depends on the rows alone, however they are cut into batches: by the
    leading bits of `$order`, or, with `keep`, by the rows' numbers. Some 64 MB are held at a time, and the rows of one shard; what
    is more is put aside.

    Args:
        batches: gives the window's batches from the beginning each time it is called: once, or up to three times where there is
            more than can be held.
        rows: how many there are.
        size: what they take, roughly: a large window is not held in vain.
        keep: leave the rows in their order.
        folder: on whose disk rows are put aside; None: where temporary files stand.

    Raises:
        StorageError: EV408 where there are more or fewer rows; EV404 where they cannot be put aside.
    """
    held: list[pa.RecordBatch] | None = [] if size <= _HELD_BYTES else None
    heads = np.zeros(1 << _HEAD_BITS, np.int64)
    found = weight = 0
    for batch in _bare(batches):
        found += batch.num_rows
        weight += _weight(batch)
        heads += 0 if keep else np.bincount(_heads(batch.column(ORDER)), minlength=len(heads))
        if held is not None:
            held.append(batch)
            held = held if weight <= _HELD_BYTES else None
    if found != rows:
        raise _incomplete(found, rows)
    if not found:
        return
    kept = held

    def again() -> Iterator[pa.RecordBatch]:
        return _bare(batches) if kept is None else iter(kept)

    count = 1 << _bits_for(found, weight)
    with Scratch(folder or gettempdir()) as scratch:
        parts = _in_turn(again(), -(-found // count)) if keep else _by_key(again(), _Spread(count, heads, again), count, scratch)
        for shard, pieces in parts:
            # One copy of the shard: its pieces may be many, and each a slice of something large.
            table = pa.Table.from_batches(pieces).combine_chunks()
            found -= len(table)
            yield shard, table
    if found:
        raise _incomplete(rows - found, rows)


class _Spread:
    """Which row is in which of `count` shards: that of the leading bits of its `$order`.

    Rows with one `$order` may be too many for a shard: those of events without an id that come out alike, or of a policy that
    takes for an id what is none. Then their content decides, and among rows with the same content, which nothing can tell apart,
    the number of each.

    Args:
        heads: how many rows there are for each beginning of `$order`.
        again: gives all batches.
    """

    def __init__(self, count: int, heads: Int64s, again: Batches) -> None:
        self._count = count
        # Keyed beginnings are even: what has a quarter of a shard, or several times its share, is one `$order`.
        most = max(int(heads.sum()) // (4 * count), 4 * int(heads.sum()) >> _HEAD_BITS)
        self._crowded = heads > (most if count > 1 else heads)
        self._alike = np.zeros(len(heads), bool)
        self._seen: Counter[bytes] = Counter()
        if self._crowded.any():
            contents = np.zeros(len(heads), np.int64)
            for batch in again():
                contents += np.bincount(_heads(self._contents(batch, self._rows(batch))), minlength=len(contents))
            self._alike = contents > most

    def shards(self, batch: pa.RecordBatch) -> Int64s:
        """The shard of each row. Batches come in turn, each once."""
        shards = _heads(batch.column(ORDER)) >> (_HEAD_BITS + 1 - self._count.bit_length())
        rows = self._rows(batch)
        if len(rows):
            contents = self._contents(batch, rows)
            heads = _heads(contents)
            alike = np.flatnonzero(self._alike[heads])
            spread = heads.copy()
            spread[alike] += self._numbers(contents.take(pa.array(alike)).to_pylist())
            shards[rows] = spread % self._count
        return shards

    def _rows(self, batch: pa.RecordBatch) -> Int64s:
        return np.flatnonzero(self._crowded[_heads(batch.column(ORDER))]).astype(np.int64)

    @staticmethod
    def _contents(batch: pa.RecordBatch, rows: Int64s) -> Column:
        """A digest of each of these rows, `$order` included."""
        chosen = batch.take(cast(Any, pa.array(rows)))
        lines = encode_json(chosen.select([name for name in chosen.schema.names if name not in INTERNAL])).cast(pa.binary())
        whole = _pc.binary_join_element_wise(chosen.column(ORDER).cast(pa.binary()), lines, b"")
        # No secret is needed: what it tells is in the row itself.
        digests = macs("blake2b", [bytes(32)], None, whole, 16)
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(rows), [None, buffer_of(digests)])

    def _numbers(self, contents: list[bytes]) -> Int64s:
        """Of each row the number among those with the same content."""
        numbers = []
        for content in contents:
            numbers.append(self._seen[content])
            self._seen[content] += 1
        return np.array(numbers, np.int64)


def _by_key(batches: Iterable[pa.RecordBatch], spread: _Spread, count: int, scratch: Scratch) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
    """Shards by `$order`; when the batches are more than can be held, they are put aside."""
    pieces: list[list[pa.RecordBatch]] = [[] for _ in range(count)]
    held = 0
    for batch in batches:
        weight = _weight(batch)
        held += weight
        if held > _HELD_BYTES:
            for number, piece in enumerate(pieces):
                if piece:
                    scratch.add(number, piece)
                    piece.clear()
            held = weight
        if count > 1:
            shards = spread.shards(batch)
            rows = np.argsort(shards, kind="stable")
            cuts = np.searchsorted(shards[rows], np.arange(count + 1)).tolist()
            batch = batch.take(cast(Any, pa.array(rows)))
        else:
            cuts = [0, batch.num_rows]
        for piece, (start, end) in zip(pieces, pairwise(cuts)):
            if start < end:
                piece.append(batch.slice(start, end - start))
    for number in range(count):
        found, pieces[number] = scratch.take(number) + pieces[number], []
        if found:
            yield number, found


def _in_turn(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
    """So many rows at a time, as they come."""
    pieces: list[pa.RecordBatch] = []
    number = free = 0
    for batch in batches:
        while batch.num_rows:
            if not free:
                if pieces:
                    yield number, pieces
                    number += 1
                pieces, free = [], rows
            pieces.append(batch.slice(0, free))
            batch = batch.slice(pieces[-1].num_rows)
            free -= pieces[-1].num_rows
    if pieces:
        yield number, pieces


def _weight(batch: pa.RecordBatch) -> int:
    """Bytes that the rows take as they leave: the sum over rows, whichever batches these are in."""
    return sum(_bytes_of(column) for name, column in zip(batch.schema.names, batch.columns) if name not in INTERNAL)


def _bytes_of(column: Column) -> int:
    column = plain(column)
    kind = column.type
    if pa.types.is_struct(kind):
        return sum(_bytes_of(child) for child in column.flatten())
    if pa.types.is_list(kind):
        return 4 * len(column) + _bytes_of(column.flatten())
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return 4 * len(column) + (_pc.sum(_pc.binary_length(column)).as_py() or 0)
    return len(column) if pa.types.is_boolean(kind) else len(column) * kind.bit_width // 8


def _heads(keys: Column) -> Int64s:
    """The leading bits of keys of 16 bytes."""
    return numbers_of(keys.buffers()[1], ">u2")[8 * keys.offset : 8 * (keys.offset + len(keys)) : 8].astype(np.int64)


def _bits_for(rows: int, weight: int) -> int:
    """How many bits number the shards."""
    shards = max(1, -(-rows // _SHARD_ROWS), -(-weight // _SHARD_BYTES))
    return min((shards - 1).bit_length(), _HEAD_BITS)


def _bare(batches: Batches) -> Iterator[pa.RecordBatch]:
    """The batches without their marks: these differ, and do not belong to the output."""
    return (batch.replace_schema_metadata(None) for batch in batches() if batch.num_rows)


def _incomplete(found: int, rows: int) -> Exception:
    return StorageError.of("EV408", f"a window came in with {found} rows instead of {rows}", "run again; nothing of it was published")
