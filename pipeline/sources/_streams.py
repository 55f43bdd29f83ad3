"""One input file as a stream of bytes: plain, gzip or zstd; watched for change, and never silently cut short."""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from eventveil.schemas.errors import EventveilError, StorageError

__all__ = ["ByteStream", "Stamp", "damaged", "duplicate", "open_bytes", "open_watched", "stamp_of", "unreadable"]

_CHUNK = 256 << 10


@dataclass(frozen=True)
class Stamp:
    """How a file looked when it was listed; when it looks otherwise while it is read, two versions would be mixed."""

    inode: int
    size: int
    modified_ns: int


class ByteStream(Protocol):
    """Fills `view` from its beginning and returns the number of bytes; 0 only at the end."""

    def readinto(self, view: memoryview, /) -> int | None: ...


def unreadable(path: str, error: OSError) -> EventveilError:
    """EV402 with the system's word for the cause; never the library's text, which may quote data."""
    cause = os.strerror(error.errno).lower() if error.errno else "cannot be read"
    return StorageError.of("EV402", cause, "check that the file exists and may be read", file=path)


def damaged(path: str, fact: str, remedy: str = "restore the file; nothing behind the damage was read") -> EventveilError:
    return StorageError.of("EV403", fact, remedy, file=path)


def stamp_of(path: str, status: os.stat_result | None = None) -> Stamp:
    """Raises StorageError EV402 if the file is missing, unreadable or no regular file."""
    try:
        found = status or os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        raise StorageError.of("EV402", "not a regular file", "name a file, a folder or a pattern", file=path)
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns)


@contextmanager
def open_watched(path: str, listed: Stamp | None) -> Iterator[io.FileIO]:
    """Open a file and hold it to its stamp, at the beginning and at the end of the block.

    Raises StorageError EV402 if it cannot be opened or read, or is no longer the file that was listed.
    """
    try:
        file = io.FileIO(path, "rb")
    except OSError as error:
        raise unreadable(path, error) from None
    with file:
        try:
            opened = stamp_of(path, os.fstat(file.fileno()))
            _check_unchanged(path, listed, opened)
            yield file
            _check_unchanged(path, opened, stamp_of(path, os.fstat(file.fileno())))
        except OSError as error:
            raise unreadable(path, error) from None


def _check_unchanged(path: str, before: Stamp | None, now: Stamp) -> None:
    if before is not None and before != now:
        raise StorageError.of("EV402", "the file was changed or replaced during the run", "run again on files that are complete", file=path)


def duplicate(file: io.FileIO) -> io.FileIO:
    """The same open file for a reader that will close it, as Arrow's do when they are dropped."""
    return io.FileIO(os.dup(file.fileno()), "rb")


def open_bytes(path: str, file: io.FileIO, compression: str | None) -> ByteStream:
    """The bytes of an open file, decompressed as `compression` (None, gzip, zstd) says."""
    if compression == "gzip":
        return _Gzip(path, file)
    if compression == "zstd":
        return _Zstd(path, file)
    return file


class _Gzip:
    """One gzip member after the other. zlib checks each member's checksum and length; zero padding may stand between members."""

    def __init__(self, path: str, file: io.FileIO) -> None:
        self._path, self._file = path, file
        self._pending = b""
        self._members = 0
        # zlib's own type is private; None stands between two members.
        self._inflate: zlib._Decompress | None = None

    def readinto(self, view: memoryview, /) -> int:
        while True:
            if self._inflate is None:
                if not self._find_member():
                    return 0
                self._inflate = zlib.decompressobj(31)
            if not self._pending:
                self._pending = self._file.read(_CHUNK) or b""
                if not self._pending:
                    raise damaged(self._path, "the gzip data ends in the middle: the file is truncated")
            try:
                out = self._inflate.decompress(self._pending, len(view))
            except zlib.error:
                # Changed bits may pass as other data until the code breaks, or to the checksum: some may have been read as events.
                remedy = "restore the file and run again: parts written shortly before the damage showed may hold some of it"
                raise damaged(self._path, f"the gzip data is damaged before byte {self._file.tell()}", remedy) from None
            self._pending = self._inflate.unconsumed_tail
            if self._inflate.eof:
                self._pending = self._inflate.unused_data
                self._inflate = None
            if out:
                view[: len(out)] = out
                return len(out)

    def _find_member(self) -> bool:
        """Whether another member follows; an empty file has not even one, and is damaged."""
        while True:
            if self._members:
                self._pending = self._pending.lstrip(b"\0")
            if self._pending:
                self._members += 1
                return True
            self._pending = self._file.read(_CHUNK) or b""
            if not self._pending:
                if not self._members:
                    raise damaged(self._path, "the file is empty: it has no gzip header")
                return False


class _Zstd:
    """zstd frames, one after the other; Arrow's decoder refuses a frame that is cut short."""

    def __init__(self, path: str, file: io.FileIO) -> None:
        self._path = path
        if os.fstat(file.fileno()).st_size == 0:
            raise damaged(path, "the file is empty: it has no zstd header")
        self._stream = pa.CompressedInputStream(pa.PythonFile(duplicate(file), mode="r"), "zstd")

    def readinto(self, view: memoryview, /) -> int:
        try:
            return int(self._stream.readinto(view))
        except OSError as error:
            # An error of the disk has a number; one of the decoder has a text only.
            if error.errno:
                raise
            raise damaged(self._path, "the zstd data is damaged or truncated") from None
