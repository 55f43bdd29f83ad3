"""The form of a carry file: a sealed schema, then sealed frames, one behind the other. Numbers are big-endian.

    file  = "EVCARRY1", schema
    schema = size of what is sealed (4), sealed Arrow schema
    frame = size of the sealed head (4), size of the sealed body (4), slice (8), sealed head, sealed body
    head  = JSON: [[origin, start, [number of each batch, ...], [its rows, ...]], ...], one entry for each part that has rows in the body
    body  = an Arrow record batch message: all rows of those batches, in this order

What is sealed has a nonce (12) before and a tag (16) behind. It is bound to checkpoint, variant, window, the slice the file was begun in
and, in frames, to offset, sizes and slice: a frame opens at its own place only. The schema stands once in a file, and the heads apart
from the bodies: frames of a few rows stay small, and rows can be put in order without opening all of them at once.

Discloses, to whoever can read the folder: variant and window by the file's name, how much each slice has added, and how often.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import pyarrow as pa

from eventveil.pipeline.checkpoint._disk import cause, damaged
from eventveil.pipeline.checkpoint.seal import SEAL_BYTES, StateSeal
from eventveil.transforms.keys.derive import lengths

__all__ = [
    "Batches",
    "CarryFile",
    "Frame",
    "newest_slice",
    "read_body",
    "read_frame",
    "read_schema",
    "sealed_frame",
    "sealed_schema",
]

_MAGIC = b"EVCARRY1"
_SCHEMA = struct.Struct(">I")
_FRAME = struct.Struct(">IIQ")

_Kind = Literal["schema", "head", "body"]

Batches = tuple[str, int, list[int], list[int]]
"""Origin and start of a part, the numbers of its batches, and the rows of each."""


@dataclass(frozen=True)
class CarryFile:
    """What was gathered for one window of one variant. May be pickled: it holds no key.

    Attributes:
        path: where it stands.
        variant, window_us: whose it is; the window by its start.
        begun: the slice that began it. A window has a second file where rows came late, while its first was being published.
        length, rows: how much of the file counts. What stands behind is of a slice that is not finished. No rows, no file.
        series: of the checkpoint it belongs to.
    """

    path: str
    variant: str
    window_us: int
    begun: int
    length: int = 0
    rows: int = 0
    series: str = ""

    def info(self, kind: _Kind, *where: int) -> bytes:
        """What everything sealed in this file is bound to.

        Args:
            where: of a frame: its offset, its slice and the sizes of its head and body.
        """
        whose = _whose(self.series, self.variant, self.window_us, self.begun)
        return whose + lengths(kind) + struct.pack(f">{len(where)}Q", *where)


@dataclass(frozen=True)
class Frame:
    """A frame that was found: its head is open, its body is not."""

    offset: int
    slice: int
    head_size: int
    body_size: int
    parts: list[Batches]

    @property
    def end(self) -> int:
        return self.offset + _FRAME.size + self.head_size + self.body_size


def sealed_schema(file: CarryFile, seal: StateSeal, schema: bytes) -> bytes:
    """The beginning of a file."""
    return _MAGIC + _SCHEMA.pack(len(schema) + SEAL_BYTES) + seal.seal(schema, file.info("schema"))


def sealed_frame(file: CarryFile, seal: StateSeal, offset: int, number: int, parts: list[Batches], body: memoryview) -> list[bytes]:
    """A frame to stand at `offset`, in pieces."""
    head = json.dumps(parts, separators=(",", ":")).encode()
    sizes = len(head) + SEAL_BYTES, len(body) + SEAL_BYTES
    where = (offset, number, *sizes)
    return [_FRAME.pack(*sizes, number), seal.seal(head, file.info("head", *where)), seal.seal(body, file.info("body", *where))]


def read_schema(descriptor: int, file: CarryFile, seal: StateSeal) -> tuple[bytes, int]:
    """The schema, as Arrow writes it, and where the first frame begins. Raises StorageError EV411."""
    begin = _at(descriptor, 0, len(_MAGIC) + _SCHEMA.size, file)
    (size,) = _SCHEMA.unpack(begin[len(_MAGIC) :])
    if begin[: len(_MAGIC)] != _MAGIC or size > file.length:
        raise damaged(file.path, "is no carry file")
    return _opened(seal, _at(descriptor, len(begin), size, file), file, "schema"), len(begin) + size


def read_frame(descriptor: int, file: CarryFile, seal: StateSeal, offset: int) -> Frame:
    """The frame at `offset`. Raises StorageError EV411."""
    head_size, body_size, number = _FRAME.unpack(_at(descriptor, offset, _FRAME.size, file))
    if offset + _FRAME.size + head_size + body_size > file.length:
        raise damaged(file.path, "is cut short, or was changed")
    head = _opened(seal, _at(descriptor, offset + _FRAME.size, head_size, file), file, "head", offset, number, head_size, body_size)
    return Frame(offset, number, head_size, body_size, json.loads(head))


def read_body(descriptor: int, file: CarryFile, seal: StateSeal, frame: Frame, schema: pa.Schema) -> pa.RecordBatch:
    """The rows of a frame. Raises StorageError EV411."""
    where = (frame.offset, frame.slice, frame.head_size, frame.body_size)
    sealed = _at(descriptor, frame.offset + _FRAME.size + frame.head_size, frame.body_size, file)
    return pa.ipc.read_record_batch(pa.py_buffer(_opened(seal, sealed, file, "body", *where)), schema)


def newest_slice(descriptor: int, offset: int) -> int | None:
    """The highest slice of the frames from `offset` on, up to one that is not whole; None where there is none. Needs no key.

    Args:
        offset: 0: of all frames. Raises ValueError if the file does not begin as one of ours.
    """
    size = os.fstat(descriptor).st_size
    newest: int | None = None
    if not offset:
        begin = os.pread(descriptor, len(_MAGIC) + _SCHEMA.size, 0)
        # After a loss of power a file may be cut anywhere, or hold zeros in place of what was never synced.
        if begin.strip(b"\0") and not begin.startswith(_MAGIC[: len(begin)]):
            raise ValueError("no carry file")
        if len(begin) < len(_MAGIC) + _SCHEMA.size:
            return None
        offset = len(begin) + int(_SCHEMA.unpack(begin[len(_MAGIC) :])[0])
    while len(begin := os.pread(descriptor, _FRAME.size, offset)) == _FRAME.size:
        head_size, body_size, number = _FRAME.unpack(begin)
        offset += _FRAME.size + head_size + body_size
        if min(head_size, body_size) < SEAL_BYTES or offset > size:
            break
        newest = max(newest or 0, number)
    return newest


@lru_cache(64)
def _whose(series: str, variant: str, window_us: int, begun: int) -> bytes:
    """The same for all frames of a file, of which there may be many thousand."""
    return lengths("eventveil carry", series, variant, window_us, begun)


def _at(descriptor: int, offset: int, size: int, file: CarryFile) -> bytes:
    """Exactly these bytes."""
    try:
        found = os.pread(descriptor, size, offset)
        while len(found) < size and (more := os.pread(descriptor, size - len(found), offset + len(found))):
            found += more
    except OSError as error:
        raise damaged(file.path, f"cannot be read: {cause(error)}") from None
    if len(found) < size or offset + size > file.length:
        raise damaged(file.path, "is cut short, or was changed")
    return found


def _opened(seal: StateSeal, sealed: bytes, file: CarryFile, kind: _Kind, *where: int) -> bytes:
    try:
        return seal.open(sealed, file.info(kind, *where))
    except ValueError:
        raise damaged(file.path, "cannot be opened: it was changed, or is not of this window and checkpoint") from None
