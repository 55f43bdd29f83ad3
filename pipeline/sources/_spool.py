"""The spool: messages that were pulled, on the disk before they are acknowledged, so that a slice can be read again.

    <checkpoint>/spool/<number>.spool

    file  = "EVSPOOL1", frames
    frame = size of what is sealed (4, big-endian), sealed Arrow record batch message of `PULLED`

A frame is bound to subscription, spool, the file's number, its own, and to whether it is the last: it opens at its own place only, and a
file that is cut short does not open. A file is written once, under a temporary name first, and removed when the checkpoint is past it.

Discloses, to whoever can read the folder: how many slices were read, and the size of each.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from eventveil.pipeline.checkpoint._disk import cause, damaged, make_private_folder, open_regular
from eventveil.pipeline.checkpoint.seal import SEAL_BYTES, StateSeal
from eventveil.pipeline.sinks.atomic import publish_file, remove_file, remove_leftovers, unwritable
from eventveil.pipeline.sources._parts import BATCH_ROWS, mark_parts
from eventveil.pipeline.sources._pubsub_pulls import PULLED, acks_of, raw_batch
from eventveil.pipeline.sources.files import BATCH_BYTES
from eventveil.transforms.encode.compact import compact_batch
from eventveil.transforms.keys.derive import KeyProvider, lengths
from eventveil.transforms.keys.keyring import load_keys

__all__ = ["SpoolFolder", "SpoolRange", "read_spool"]

_MAGIC = b"EVSPOOL1"
_SIZE = struct.Struct(">I")
_NAME = re.compile(r"([0-9]{8,18})\.spool\Z")

_joined: Any = pa.concat_batches  # type: ignore[attr-defined]  # the stubs do not know it


@dataclass(frozen=True)
class SpoolRange:
    """One file of a spool, as an element that is read. May be pickled: it names the keyring, and holds no key.

    Attributes:
        path: where it stands. number: which one it is.
        subscription: its full name, the origin of the events.
        series: of the spool. keys: the keyring, as `load_keys` takes it.
    """

    path: str
    subscription: str
    series: str
    number: int
    keys: str

    def read(self, wants: frozenset[str], batch_bytes: int) -> Iterator[pa.RecordBatch]:
        return read_spool(self, wants, batch_bytes)


def read_spool(piece: SpoolRange, wants: frozenset[str] = frozenset(), batch_bytes: int = BATCH_BYTES) -> Iterator[pa.RecordBatch]:
    """The raw batches of a file, as one part, which is named by the file's number: a message that comes again may begin two of them.

    Args:
        wants: columns beside `value` (null for a message of attributes alone) and `position`: of key (the ordering key), headers (the
            attributes), topic (the subscription's name), time and appended (both when it was published).
        batch_bytes: bytes of a batch at most, unless a single message has more.

    Raises:
        StorageError: EV411 it is missing, or was changed.
    """
    seal = StateSeal.of(load_keys(piece.keys))
    name = piece.subscription.rsplit("/", 1)[-1]
    batches = (raw_batch(frame, wants, name) for frame in _frames(piece.path, piece.subscription, piece.series, piece.number, seal))
    cut = (one for batch in batches for one in _within(batch, batch_bytes))
    yield from mark_parts(piece.subscription, ((piece.number, one) for one in cut))


class SpoolFolder(KeyProvider):
    """The files of one subscription. Whoever holds the checkpoint's lock holds it. Refuses to be pickled.

    Args:
        path: need not be there yet.
    """

    def __init__(self, path: str, subscription: str, seal: StateSeal) -> None:
        self.path = os.path.realpath(path)
        self._subscription = subscription
        self._seal = seal

    def numbers(self) -> list[int]:
        """The files that are there. Raises StorageError EV404 where the folder cannot be read."""
        try:
            return sorted(int(found[1]) for name in os.listdir(self.path) if (found := _NAME.match(name)))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise unwritable(self.path, error) from None

    def path_of(self, number: int) -> str:
        return os.path.join(self.path, f"{number:08d}.spool")

    def holds(self, number: int) -> bool:
        return os.path.lexists(self.path_of(number))

    def write(self, series: str, number: int, batches: Sequence[pa.RecordBatch]) -> None:
        """Write a file, durably; what a killed run left half written goes. Raises StorageError EV404."""
        make_private_folder(self.path)
        remove_leftovers(self.path)
        publish_file(self.path_of(number), self._sealed(series, number, batches), mode=0o600)

    def acks(self, series: str, number: int) -> list[str]:
        """What the service is told of a file's messages. Raises StorageError EV411."""
        frames = _frames(self.path_of(number), self._subscription, series, number, self._seal)
        return [one for frame in frames for one in acks_of(frame)]

    def remove_before(self, number: int) -> None:
        """Remove the files of lower numbers; what cannot be removed stays for the next time. Never raises."""
        try:
            for path in (os.path.join(self.path, name) for name in os.listdir(self.path) if _below(name, number)):
                remove_file(path)
        except OSError:
            pass

    def _sealed(self, series: str, number: int, batches: Sequence[pa.RecordBatch]) -> Iterator[bytes]:
        yield _MAGIC
        frames = list(_together(batches))
        for index, frame in enumerate(frames):
            info = _info(self._subscription, series, number, index, index == len(frames) - 1)
            body = memoryview(compact_batch(frame).serialize()).cast("B")
            yield _SIZE.pack(len(body) + SEAL_BYTES)
            yield self._seal.seal(body, info)


def _below(name: str, number: int) -> bool:
    found = _NAME.match(name)
    return found is not None and int(found[1]) < number


def _info(subscription: str, series: str, number: int, index: int, last: bool) -> bytes:
    return lengths("eventveil spool", subscription, series, number, index, int(last))


def _frames(path: str, subscription: str, series: str, number: int, seal: StateSeal) -> Iterator[pa.RecordBatch]:
    with os.fdopen(open_regular(path), "rb") as file:
        try:
            rest = os.fstat(file.fileno()).st_size - len(_MAGIC)
            if file.read(len(_MAGIC)) != _MAGIC:
                raise damaged(path, "is no spool file")
            index = 0
            while rest:
                begin = file.read(_SIZE.size)
                size = _SIZE.unpack(begin)[0] if len(begin) == _SIZE.size else rest
                rest -= _SIZE.size + size
                sealed = file.read(size) if rest >= 0 else b""
                if len(sealed) < size or rest < 0:
                    raise damaged(path, "is cut short, or was changed")
                try:
                    body = seal.open(sealed, _info(subscription, series, number, index, rest == 0))
                except ValueError:
                    raise damaged(path, "cannot be opened: it was changed, or is not of this place and checkpoint") from None
                yield pa.ipc.read_record_batch(pa.py_buffer(body), PULLED)
                index += 1
        except OSError as error:
            raise damaged(path, f"cannot be read: {cause(error)}") from None
    if not index:
        raise damaged(path, "is cut short, or was changed")


def _together(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of about the size that is treated best, in their order."""
    held: list[pa.RecordBatch] = []
    size = rows = 0
    for batch in batches:
        if held and (size + batch.nbytes > BATCH_BYTES or rows + batch.num_rows > BATCH_ROWS):
            yield _joined(held)
            held, size, rows = [], 0, 0
        held.append(batch)
        size, rows = size + batch.nbytes, rows + batch.num_rows
    if held:
        yield _joined(held)


def _within(batch: pa.RecordBatch, most_bytes: int) -> Iterator[pa.RecordBatch]:
    """Pieces of at most so many bytes; one message is never cut."""
    if batch.nbytes <= most_bytes:
        yield batch
        return
    values: Any = batch.column("value")
    ends = np.asarray(values.buffers()[1]).view(np.int32)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    other = (batch.nbytes - int(ends[-1] - ends[0])) / batch.num_rows
    ends = ends - ends[0] + (np.arange(len(ends)) * other).astype(np.int64)
    at = 0
    while at < batch.num_rows:
        end = max(at + 1, int(np.searchsorted(ends, ends[at] + most_bytes, "right")) - 1)
        yield batch.slice(at, end - at)
        at = end
