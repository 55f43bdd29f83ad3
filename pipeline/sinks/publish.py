"""A window as a unit: its rows in shards of bounded size, its files named by a manifest, and all of them or none.

Shards are written under temporary names. Then a manifest that lists them with their digests is created, if there is none, and
only then they get their names. So whatever is killed, and wherever, publishing again gives the same files; and where a window
stands already, nothing that comes later changes it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from tempfile import gettempdir
from types import TracebackType
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.pipeline.sinks._scratch import Scratch
from eventveil.pipeline.sinks.atomic import create_file, remove_file, sync_folder, unwritable, write_temporary
from eventveil.schemas.errors import StorageError
from eventveil.transforms.batch import ORDER, ROLL, WINDOW
from eventveil.transforms.columns import Column, numbers_of
from eventveil.transforms.encode.compact import plain

__all__ = ["INTERNAL", "Attempt", "Batches", "Published", "Unit", "in_shards"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar

Batches = Callable[[], Iterator[pa.RecordBatch]]

# Columns of veiled batches that never leave.
INTERNAL = (ORDER, WINDOW, ROLL)

# A shard is as large as a part of bounded input.
_SHARD_BYTES = 32 << 20
_SHARD_ROWS = 1 << 17
# What is in memory at a time; of a window that is larger the rest is put aside.
_HELD_BYTES = 64 << 20
_MOST_BITS = 16


@dataclass(frozen=True)
class Published:
    """One file that was written."""

    path: str
    rows: int
    size: int


@dataclass(frozen=True)
class Unit:
    """A window, or a pane of one, that was published.

    Attributes:
        manifest: its path.
        files: those of the unit, whether they were written now or before; none where another content stands.
        conflict: the unit stands already, with another content: nothing was changed, and what came now must be kept sealed.
    """

    manifest: str
    files: tuple[Published, ...] = ()
    conflict: bool = False


class Attempt:
    """The files of one unit on their way to their names. As a context: what has none at the end is removed.

    Args:
        folder: in which the manifest stands; names of files are relative to it.
        manifest: its name.
        head: what it says beside the files.
    """

    def __init__(self, folder: str, manifest: str, head: Mapping[str, Any]) -> None:
        self._folder = folder
        self._manifest = os.path.join(folder, manifest)
        self._head = head
        self._files: list[dict[str, Any]] = []
        self._temporary: dict[str, str] = {}

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for temporary in self._temporary.values():
            remove_file(temporary)

    def write(self, name: str, rows: int, content: memoryview) -> None:
        """Write one file, under a temporary name. Its folder exists.

        Raises:
            StorageError: EV404.
        """
        self._temporary[name] = write_temporary(os.path.join(self._folder, name), [content])
        digest = hashlib.sha256(content).hexdigest()
        self._files.append({"name": name, "rows": rows, "bytes": content.nbytes, "sha256": digest})

    def finish(self) -> Unit:
        """Create the manifest, and give the files their names; or find that another content stands.

        Raises:
            StorageError: EV404; EV405 where something else has the manifest's name.
        """
        document = {**self._head, "files": self._files}
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
        if not create_file(self._manifest, [text]) and self._standing() != document:
            return Unit(self._manifest, conflict=True)
        for file in self._files:
            self._place(file)
        try:
            for folder in sorted({os.path.dirname(os.path.join(self._folder, file["name"])) for file in self._files}):
                sync_folder(folder)
        except OSError as error:
            raise unwritable(self._folder, error) from None
        found = (Published(os.path.join(self._folder, file["name"]), file["rows"], file["bytes"]) for file in self._files)
        return Unit(self._manifest, tuple(found))

    def _standing(self) -> Any:
        try:
            with open(self._manifest, "rb") as file:
                return json.load(file)
        except OSError as error:
            raise unwritable(self._manifest, error) from None
        except ValueError:
            fact, remedy = "is not as this job writes it", "restore it from a copy, or choose an empty folder"
            raise StorageError.of("EV405", fact, remedy, file=self._manifest) from None

    def _place(self, file: Mapping[str, Any]) -> None:
        path = os.path.join(self._folder, file["name"])
        # A file that is there and whole is left as it is: readers that look at times of change would take it for a new one.
        if _digest_of(path, file["bytes"]) == file["sha256"]:
            return
        try:
            os.replace(self._temporary[file["name"]], path)
        except OSError as error:
            raise unwritable(path, error) from None
        del self._temporary[file["name"]]


def in_shards(batches: Batches, rows: int, size: int, *, keep: bool, folder: str | None = None) -> Iterator[tuple[int, pa.Table]]:
    """The rows of a window, shard by shard; shards without rows are left out.

    How many shards there are, and which row is in which, depends on the rows alone, however they are cut into batches: by the
    leading bits of `$order`, or, with `keep`, by the rows' numbers. Some 64 MB are held at a time, and the rows of one shard; what
    is more is put aside.

    Args:
        batches: gives the window's batches from the beginning each time it is called; once, or twice where there is more than
            can be held.
        rows: how many there are.
        size: what they take, roughly: a large window is not held in vain.
        keep: leave the rows in their order.
        folder: on whose disk rows are put aside; None: where temporary files stand.

    Raises:
        StorageError: EV408 where there are more or fewer rows; EV404 where they cannot be put aside.
    """
    held: list[pa.RecordBatch] | None = [] if size <= _HELD_BYTES else None
    found = weight = 0
    for batch in _bare(batches):
        found += batch.num_rows
        weight += sum(_weight(column) for name, column in zip(batch.schema.names, batch.columns) if name not in INTERNAL)
        if held is not None:
            held.append(batch)
            held = held if weight <= _HELD_BYTES else None
    if found != rows:
        raise _incomplete(found, rows)
    if not found:
        return
    count = 1 << _bits_for(found, weight)
    again = _bare(batches) if held is None else iter(held)
    at_once = -(-found * _HELD_BYTES // max(weight, 1))
    with Scratch(folder or gettempdir()) as scratch:
        for shard, pieces in _in_turn(again, -(-found // count)) if keep else _by_order(again, count, at_once, scratch):
            # One copy of the shard: its pieces may be many, and each a slice of something large.
            table = pa.Table.from_batches(pieces).combine_chunks()
            found -= len(table)
            yield shard, table
    if found:
        raise _incomplete(rows - found, rows)


def _incomplete(found: int, rows: int) -> Exception:
    return StorageError.of("EV408", f"a window came in with {found} rows instead of {rows}", "run again; nothing of it was published")


def _bits_for(rows: int, weight: int) -> int:
    """How many bits number the shards."""
    shards = max(1, -(-rows // _SHARD_ROWS), -(-weight // _SHARD_BYTES))
    return min((shards - 1).bit_length(), _MOST_BITS)


def _bare(batches: Batches) -> Iterator[pa.RecordBatch]:
    """The batches without their marks: these differ, and do not belong to the output."""
    return (batch.replace_schema_metadata(None) for batch in batches() if batch.num_rows)


def _by_order(batches: Iterable[pa.RecordBatch], count: int, at_once: int, scratch: Scratch) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
    """`count` shards by leading bits; when there are more rows than are held `at_once`, these are put aside."""
    pieces: list[list[pa.RecordBatch]] = [[] for _ in range(count)]
    held = 0
    for batch in batches:
        held += batch.num_rows
        if held > at_once:
            for number, piece in enumerate(pieces):
                if piece:
                    scratch.add(number, piece)
                    piece.clear()
            held = batch.num_rows
        shards = _shards_of(batch.column(ORDER), count)
        rows = np.argsort(shards, kind="stable")
        cuts = np.searchsorted(shards[rows], np.arange(count + 1)).tolist()
        batch = batch if count == 1 else batch.take(cast(Any, pa.array(rows)))
        for piece, (start, end) in zip(pieces, pairwise(cuts)):
            if start < end:
                piece.append(batch.slice(start, end - start))
    for number in range(count):
        found, pieces[number] = scratch.take(number) + pieces[number], []
        if found:
            yield number, found


def _shards_of(order: Column, count: int) -> npt.NDArray[np.int64]:
    """The leading bits of each key."""
    heads = numbers_of(order.buffers()[1], ">u2")[8 * order.offset : 8 * (order.offset + len(order)) : 8].astype(np.int64)
    return heads >> (_MOST_BITS + 1 - count.bit_length())


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


def _weight(column: Column) -> int:
    """Bytes that the values take: the sum over rows, whichever batches these are in."""
    column = plain(column)
    kind = column.type
    if pa.types.is_struct(kind):
        return sum(_weight(child) for child in column.flatten())
    if pa.types.is_list(kind):
        return 4 * len(column) + _weight(column.flatten())
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return 4 * len(column) + (_pc.sum(_pc.binary_length(column)).as_py() or 0)
    return len(column) if pa.types.is_boolean(kind) else len(column) * kind.bit_width // 8


def _digest_of(path: str, size: int) -> str | None:
    """SHA-256 of a file of this size; None if there is none."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unwritable(path, error) from None
    return digest.hexdigest()
