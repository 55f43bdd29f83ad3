"""Carry: the rows of windows that are still open, kept sealed from slice to slice.

One append-only file for each window of a variant, `carry/<variant>/<window>-<slice it was begun in>.carry`; `_frames` has its form. A
slice costs what it appends, however long the window is and however much has been gathered before. The checkpoint says how much of each
file counts; whatever stands behind that is of a slice that was not finished, and is cut off before it is done again.

Rows are read back by slice, part and number of their batch, so that the threads that appended them leave no trace in their order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import pyarrow as pa

from eventveil.pipeline.checkpoint._disk import cut_file, damaged, make_private_folder, open_regular
from eventveil.pipeline.checkpoint._frames import (
    Batches,
    CarryFile,
    Frame,
    read_body,
    read_frame,
    read_schema,
    sealed_frame,
    sealed_schema,
)
from eventveil.pipeline.checkpoint.seal import StateSeal, WindowSeals
from eventveil.pipeline.sinks.atomic import remove_file, sync_folder, unwritable
from eventveil.schemas.errors import EventveilError, StorageError
from eventveil.transforms.batch import Part, part_of
from eventveil.transforms.encode.compact import compact_batch
from eventveil.transforms.keys.derive import KeyProvider

__all__ = ["CARRY", "CarryFile", "CarryWriter", "SliceCarry", "Window", "carry_name", "read_carry"]

CARRY = "carry"

_pa: Any = pa  # the stubs do not know concat_batches

Window = tuple[str, int]
"""A variant and the start of a window, microseconds since 1970."""

_VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
# A frame is written when this much has come together; one batch may make it larger, up to the second figure.
_FRAME_BYTES = 1 << 20
_MOST_FRAME_BYTES = 4 << 20
# What waits for its frame, over all windows.
_MOST_WAITING = 64 << 20
# A slice of a batch keeps the whole of it alive: more than this beside its own bytes, and it is copied out.
_MOST_HIDDEN = 64 << 10
# A disk takes many files in the time of one, if they come together.
_SYNC_THREADS = 16
_NO_PART = Part("", 0)

_writers: dict[str, CarryWriter] = {}


@dataclass(frozen=True)
class SliceCarry:
    """What a DoFn holds to append within one slice. May be pickled; is of use in the process that holds the checkpoint.

    Attributes:
        folder: of the checkpoint. slice: its number. attempt: a thread that outlives a failed attempt must not append to the next one.
    """

    folder: str
    slice: int
    attempt: int

    def append(self, variant: str, window_us: int, batch: pa.RecordBatch) -> None:
        """Gather rows for a window. They are on the disk after `CarryWriter.sync`; nothing needs to be done at the end of a bundle.

        Args:
            window_us: start of the window that they are gathered in.
            batch: its part and number decide about the order; other metadata is not kept.

        Raises:
            StorageError: EV404.
        """
        writer = _writers.get(self.folder)
        if writer is None:
            raise ValueError("carry is appended in the process that holds the checkpoint")
        writer.append(variant, window_us, batch, self.attempt)


@dataclass
class _Waiting:
    """What waits for its frame: the numbered batches of each part, and their bytes."""

    batches: dict[tuple[str, int], list[tuple[int, pa.RecordBatch]]] = field(default_factory=dict)
    sizes: dict[tuple[str, int], int] = field(default_factory=dict)

    def add(self, part: Part, batch: pa.RecordBatch, size: int) -> bool:
        """Whether the part now has enough for a frame of its own."""
        key = part.origin, part.start
        self.batches.setdefault(key, []).append((part.number, batch))
        self.sizes[key] = self.sizes.get(key, 0) + size
        return self.sizes[key] >= _FRAME_BYTES

    def take(self, part: Part) -> _Waiting:
        key = part.origin, part.start
        return _Waiting({key: self.batches.pop(key)}, {key: self.sizes.pop(key)})

    def frames(self) -> Iterator[list[tuple[str, int, int, pa.RecordBatch]]]:
        """The batches of part after part, as many together as make a frame."""
        frame: list[tuple[str, int, int, pa.RecordBatch]] = []
        size = 0
        for key in sorted(self.batches):
            if frame and size + self.sizes[key] > _FRAME_BYTES:
                yield frame
                frame, size = [], 0
            frame += [(*key, number, batch) for number, batch in self.batches[key]]
            size += self.sizes[key]
        if frame:
            yield frame


class CarryWriter(KeyProvider):
    """Appends to carry, from several threads. One for each checkpoint folder: `CheckpointFolder.writer` makes it. Refuses to be pickled.

    Args:
        folder: of the checkpoint. series: of the checkpoint.
        seals: of each variant that is gathered.
        held: the files that the checkpoint lists; the folder keeps them up to date.
        intended: the slice whose intent stands; None: none does.
    """

    def __init__(
        self,
        folder: str,
        series: str,
        seals: Mapping[str, WindowSeals],
        held: Mapping[Window, CarryFile],
        intended: Callable[[], int | None],
    ) -> None:
        if not all(_VARIANT.match(name) for name in seals):
            raise ValueError("the name of a variant is made of letters, digits, . - and _")
        self._folder = folder
        self._series = series
        self._seals = dict(seals)
        self._held = held
        self._intended = intended
        self._number = -1
        self._attempt = 0
        self._files: dict[Window, CarryFile] = dict(held)
        self._schemas: dict[str, bytes] = {}
        self._waiting: dict[Window, _Waiting] = {}
        self._size = 0
        self._touched: set[str] = set()
        self._unsynced: set[str] = set()
        self._new_in: set[str] = set()
        self._failed: EventveilError | None = None
        # The second is taken within the first, never the other way round.
        self._gathering = Lock()
        self._writing = Lock()
        _writers[folder] = self

    def begin_slice(self, number: int, due: Collection[Window] = ()) -> SliceCarry:
        """Begin a slice, or begin it again: what an unfinished attempt has appended is cut off.

        Args:
            number: of the slice; its intent must stand.
            due: windows that are published out of what was gathered before. Rows that come for them now begin a second file.

        Raises:
            StorageError: EV404, EV411.
        """
        if self._intended() != number:
            raise ValueError("before anything is appended, the intent of the slice must stand")
        with self._gathering, self._writing:
            self._attempt += 1
            self._number = number
            self._waiting, self._size = {}, 0
            self._cut()
            self._failed = None
            self._files = {window: file for window, file in self._held.items() if window not in due}
            return SliceCarry(self._folder, number, self._attempt)

    def append(self, variant: str, window_us: int, batch: pa.RecordBatch, attempt: int) -> None:
        """See `SliceCarry.append`."""
        if variant not in self._seals:
            raise ValueError(f"nothing is gathered for variant '{variant}'")
        part = part_of(batch) or _NO_PART
        batch = batch.replace_schema_metadata(None)
        size = batch.nbytes
        step = max(1, batch.num_rows * _MOST_FRAME_BYTES // max(size, _MOST_FRAME_BYTES))
        for first in range(0, batch.num_rows, step):
            piece = batch.slice(first, step)
            bytes_of_piece = size if step >= batch.num_rows else piece.nbytes
            if piece.get_total_buffer_size() > bytes_of_piece + _MOST_HIDDEN:
                piece = compact_batch(piece)
            self._gather((variant, window_us), part, piece, bytes_of_piece, attempt)

    def flush(self) -> None:
        """Write what waits for its frame. Raises StorageError EV404."""
        with self._gathering:
            ripe, self._waiting, self._size = self._waiting, {}, 0
            attempt = self._attempt
        for window in sorted(ripe):
            self._write(window, ripe[window], attempt)
        if self._failed is not None:
            raise self._failed

    def flush_all(self) -> dict[str, dict[str, list[int]]]:
        """Write what waits; returns what the checkpoint must list: {variant: {window: [length of the file, rows, slice it was begun in]}}.

        A window that was due at the beginning of the slice is not in it, or with what was appended to it since.

        Raises:
            StorageError: EV404.
        """
        self.flush()
        listed: dict[str, dict[str, list[int]]] = {}
        for (variant, window_us), file in sorted(self._files.items()):
            listed.setdefault(variant, {})[str(window_us)] = [file.length, file.rows, file.begun]
        return listed

    def sync(self) -> None:
        """Wait until all that was appended is on the disk. Raises StorageError EV404."""
        with self._writing:
            paths, folders = sorted(self._unsynced), sorted(self._new_in)
            try:
                if len(paths) > 1:
                    with ThreadPoolExecutor(min(_SYNC_THREADS, len(paths))) as threads:
                        list(threads.map(_sync_file, paths))
                else:
                    list(map(_sync_file, paths))
                for folder in folders:
                    sync_folder(folder)
            except EventveilError as error:
                # What the disk did not take once, it may say to have taken when it is asked again.
                self._failed = error
                raise
            except OSError as error:
                self._failed = unwritable(self._folder, error)
                raise self._failed from None
            self._unsynced.clear()
            self._new_in.clear()

    def finished(self, listed: Mapping[Window, CarryFile]) -> Callable[[], None]:
        """For the folder's commit: check that exactly what was appended is listed, and is on the disk; returns what to call when it stands.

        Raises ValueError if rows would be lost, or are listed that nobody wrote.
        """
        if self._failed is not None:
            raise self._failed
        if self._waiting:
            raise ValueError("rows wait for their frame: flush_all() stands before commit")
        if any(self._files.get(window) != file for window, file in listed.items()):
            raise ValueError("the checkpoint lists another carry than was written: take it from flush_all()")
        if any(file.path in self._touched for window, file in self._files.items() if window not in listed):
            raise ValueError("rows of this slice would be lost: name windows that are published in begin_slice()")
        self.sync()

        def settle() -> None:
            with self._gathering, self._writing:
                self._attempt += 1
                self._touched.clear()
                self._files = dict(listed)
                kept = {file.path for file in listed.values()}
                self._schemas = {path: schema for path, schema in self._schemas.items() if path in kept}

        return settle

    def files(self) -> Collection[CarryFile]:
        """All files as they stand, with what this slice has appended."""
        return self._files.values()

    def close(self) -> None:
        """Forget the writer; what was not committed is cut off when the folder is opened again."""
        if _writers.get(self._folder) is self:
            del _writers[self._folder]
        self._attempt += 1

    def _gather(self, window: Window, part: Part, batch: pa.RecordBatch, size: int, attempt: int) -> None:
        with self._gathering:
            self._check(attempt)
            waiting = self._waiting.setdefault(window, _Waiting())
            self._size += size
            ripe: dict[Window, _Waiting] = {}
            if waiting.add(part, batch, size):
                ripe[window] = waiting.take(part)
                self._size -= sum(ripe[window].sizes.values())
                if not waiting.batches:
                    del self._waiting[window]
            if self._size > _MOST_WAITING:
                # With so many windows open, each is small; all of them at once make the largest frames.
                for each, others in self._waiting.items():
                    known = ripe.get(each, _Waiting())
                    ripe[each] = _Waiting({**known.batches, **others.batches}, {**known.sizes, **others.sizes})
                self._waiting, self._size = {}, 0
        for each in sorted(ripe):
            self._write(each, ripe[each], attempt)

    def _check(self, attempt: int) -> None:
        if attempt != self._attempt:
            raise ValueError("this attempt at the slice is over")
        if self._failed is not None:
            raise self._failed

    def _write(self, window: Window, waiting: _Waiting, attempt: int) -> None:
        for frame in waiting.frames():
            rows = compact_batch(_together([batch for *_, batch in frame]))
            # Serialized before the lock, for that takes the longest.
            body = memoryview(rows.serialize()).cast("B")
            with self._writing:
                self._check(attempt)
                try:
                    self._append_frame(window, rows, _listing(frame), body)
                except OSError as error:
                    self._failed = unwritable(os.path.join(self._folder, CARRY, window[0]), error)
                    raise self._failed from None
                except EventveilError as error:
                    self._failed = error
                    raise

    def _append_frame(self, window: Window, rows: pa.RecordBatch, parts: list[Batches], body: memoryview) -> None:
        variant, window_us = window
        seal = self._seals[variant].of(window_us)
        file = self._files.get(window)
        schema = rows.schema.serialize().to_pybytes()
        pieces: list[bytes] = []
        if file is None:
            path = os.path.join(self._folder, CARRY, variant, carry_name(window_us, self._number))
            for folder in (os.path.dirname(os.path.dirname(path)), os.path.dirname(path)):
                make_private_folder(folder)
            file = CarryFile(path, variant, window_us, self._number, series=self._series)
            pieces.append(sealed_schema(file, seal, schema))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            self._new_in.add(os.path.dirname(path))
            descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        else:
            self._check_schema(file, seal, schema)
            descriptor = open_regular(file.path, os.O_WRONLY)
        try:
            self._touched.add(file.path)
            self._unsynced.add(file.path)
            if os.fstat(descriptor).st_size != file.length:
                raise damaged(file.path, "was changed while this job used it")
            offset = file.length + sum(map(len, pieces))
            data = b"".join([*pieces, *sealed_frame(file, seal, offset, self._number, parts, body)])
            _write_at(descriptor, data, file.length)
        finally:
            os.close(descriptor)
        self._schemas[file.path] = schema
        self._files[window] = replace(file, length=file.length + len(data), rows=file.rows + rows.num_rows)

    def _check_schema(self, file: CarryFile, seal: StateSeal, schema: bytes) -> None:
        """A file has one schema: rows of another would be misread."""
        known = self._schemas.get(file.path)
        if known is None:
            descriptor = open_regular(file.path)
            try:
                known, _ = read_schema(descriptor, file, seal)
            finally:
                os.close(descriptor)
        if known != schema:
            fact = f"the columns of '{file.variant}' are no longer those of the checkpoint"
            raise StorageError.of("EV409", fact, "finish the open windows with the version of eventveil that began them", file=file.path)

    def _cut(self) -> None:
        """Back to what the checkpoint lists."""
        held = {file.path: file for file in self._held.values()}
        for path in sorted(self._touched):
            if path in held:
                cut_file(path, held[path].length)
            else:
                remove_file(path)
                self._schemas.pop(path, None)
        self._touched.clear()
        self._unsynced.clear()


def carry_name(window_us: int, begun: int) -> str:
    """The file's name in the folder of its variant."""
    return f"{window_us}-{begun}.carry"


def read_carry(file: CarryFile, seal: StateSeal) -> Iterator[pa.RecordBatch]:
    """All rows of a file, in an order that depends on what was read alone, some 1 MB at a time.

    Rows stand by the slice that appended them, then by the origin and start of their part and the number of their batch. Of the file,
    one frame is in memory at a time, and the heads of one slice.

    Args:
        file: as `CheckpointFolder.carry` gives it. seal: of its variant and window.

    Raises:
        StorageError: EV411 anything is missing, was changed, or stands at another place than it was written. What was given out before
            is sound, but is not all.
    """
    if not file.rows:
        return
    descriptor = open_regular(file.path)
    try:
        encoded, offset = read_schema(descriptor, file, seal)
        schema = pa.ipc.read_schema(pa.py_buffer(encoded))
        rows = 0
        ready: list[pa.RecordBatch] = []
        size = 0
        for frames in _by_slice(descriptor, file, seal, offset):
            opened: tuple[int, pa.RecordBatch] | None = None
            for frame, first, count in _in_order(frames):
                if opened is None or opened[0] != frame.offset:
                    opened = frame.offset, read_body(descriptor, file, seal, frame, schema)
                    # A piece keeps its frame alive, so the whole of it counts.
                    size += frame.body_size
                    if opened[1].num_rows != sum(sum(part[3]) for part in frame.parts):
                        raise damaged(file.path, "holds other rows than its frames say")
                piece = opened[1].slice(first, count)
                rows += count
                ready.append(piece)
                if size >= _FRAME_BYTES:
                    yield _together(ready)
                    ready, size = [], 0
        if rows != file.rows:
            raise damaged(file.path, f"holds {rows} rows, and the checkpoint says {file.rows}")
        if ready:
            yield _together(ready)
    finally:
        os.close(descriptor)


def _by_slice(descriptor: int, file: CarryFile, seal: StateSeal, offset: int) -> Iterator[list[Frame]]:
    """The heads of the frames, slice by slice: they stand in this order."""
    found: list[Frame] = []
    while offset < file.length:
        frame = read_frame(descriptor, file, seal, offset)
        if found and frame.slice != found[-1].slice:
            yield found
            if frame.slice < found[-1].slice:
                raise damaged(file.path, "its frames are out of order")
            found = []
        found.append(frame)
        offset = frame.end
    if found:
        yield found


def _in_order(frames: list[Frame]) -> Iterator[tuple[Frame, int, int]]:
    """The frame, first row and number of rows of each piece, in order; pieces that lie side by side are one."""
    pieces: list[tuple[str, int, int, int, int, int]] = []
    for place, frame in enumerate(frames):
        first = 0
        for origin, start, numbers, counts in frame.parts:
            for number, count in zip(numbers, counts, strict=True):
                pieces.append((origin, start, number, place, first, count))
                first += count
    pieces.sort()
    at = -1, 0, 0
    for *_, place, first, count in pieces:
        if at[0] == place and at[1] + at[2] == first:
            at = place, at[1], at[2] + count
            continue
        if at[2]:
            yield frames[at[0]], at[1], at[2]
        at = place, first, count
    if at[2]:
        yield frames[at[0]], at[1], at[2]


def _listing(frame: list[tuple[str, int, int, pa.RecordBatch]]) -> list[Batches]:
    """Which batches of which parts a frame holds."""
    parts: list[Batches] = []
    for origin, start, number, batch in frame:
        if not parts or parts[-1][:2] != (origin, start):
            parts.append((origin, start, [], []))
        parts[-1][2].append(number)
        parts[-1][3].append(batch.num_rows)
    return parts


def _together(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    if any(batch.schema != batches[0].schema for batch in batches[1:]):
        # One may have a column as a dictionary, and another plain.
        batches = [compact_batch(batch) for batch in batches]
    found: pa.RecordBatch = _pa.concat_batches(batches)
    return found


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    """One system call may write a part only, as on a disk that is nearly full."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        offset += written
        rest = rest[written:]


def _sync_file(path: str) -> None:
    descriptor = open_regular(path)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        os.close(descriptor)
