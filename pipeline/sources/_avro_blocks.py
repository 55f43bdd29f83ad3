"""Datums out of an Avro container file, by blocks: a block belongs to the range that holds the sync marker before it."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventveil.pipeline.sources._avro_datums import DatumError, Walker, datum_ends, read_long, walker_of
from eventveil.pipeline.sources._lines import RAW
from eventveil.pipeline.sources._streams import damaged, duplicate
from eventveil.schemas.errors import StorageError

__all__ = ["WRITER", "read_blocks"]

WRITER = b"eventveil.writer"

_MAGIC = b"Obj\x01"
_SYNC = 16
_CHUNK = 256 << 10
_MOST_HEADER = 16 << 20
# A block is the unit of memory here; writers make blocks of 16 KB to some MB.
_MOST_BLOCK = 256 << 20
_XZ_MEMORY = 128 << 20
# A position is the offset of the block times this, plus the number of the datum in the block. A block of n bytes may hold n << 20
# datums before its positions run into those of the next.
_POSITIONS = 20

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Header:
    schema: str
    codec: str
    sync: bytes
    size: int


@dataclass(frozen=True)
class _Block:
    data: bytes
    ends: Int64s
    positions: Int64s


def read_blocks(path: str, file: io.FileIO, begin: int, end: int | None, batch_bytes: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The datums of the blocks whose preceding sync marker begins in [begin, end), as (begin, raw batch).

    `value` is a datum's exact bytes, `position` the offset of its block times 2^20 plus its number in the block, the same however the
    file is cut. The writer's schema stands in the metadata of the batches' schema under `WRITER`.

    Raises:
        StorageError: EV403 no Avro file, an unknown codec, or damage, with the offset of the block; EV407 a schema without content.
    """
    with io.BufferedReader(duplicate(file), _CHUNK) as reader:
        header = _header(path, reader)
        walker = _walker(path, header)
        schema = RAW.with_metadata({WRITER: header.schema.encode()})
        held: list[_Block] = []
        size = 0
        untold = True
        for block in _blocks(path, reader, header, walker, begin, end):
            held.append(block)
            size += len(block.data)
            if size >= batch_bytes:
                for batch in _batches(held, schema, batch_bytes):
                    yield begin, batch
                held, size, untold = [], 0, False
        if held or untold:
            for batch in _batches(held, schema, batch_bytes):
                yield begin, batch


def _batches(blocks: list[_Block], schema: pa.Schema, batch_bytes: int) -> Iterator[pa.RecordBatch]:
    """The blocks as one batch; as several where they are much more than a batch."""
    sizes = np.cumsum([0, *(len(block.data) for block in blocks)])
    ends = np.concatenate([np.zeros(1, np.int64), *(block.ends + first for block, first in zip(blocks, sizes))])
    positions = np.concatenate([np.empty(0, np.int64), *(block.positions for block in blocks)])
    data = pa.py_buffer(blocks[0].data if len(blocks) == 1 else b"".join(block.data for block in blocks))
    cuts = [0, len(positions)]
    if len(data) >= 2 * batch_bytes:
        cuts = np.unique([0, *np.searchsorted(ends, np.arange(batch_bytes, len(data), batch_bytes)), len(positions)]).tolist()
    for first, last in pairwise(cuts):
        offsets = pa.py_buffer(cast(Any, ends[first : last + 1].astype(np.int32)))
        values = pa.BinaryArray.from_buffers(pa.binary(), last - first, [None, offsets, data])
        yield pa.RecordBatch.from_arrays([values, pa.array(positions[first:last])], schema=schema)


def _header(path: str, reader: BinaryIO) -> _Header:
    data = b""
    while True:
        more = reader.read(_CHUNK)
        data += more
        if data[: len(_MAGIC)] != _MAGIC[: len(data)] or not data:
            raise damaged(path, "not an Avro container file")
        try:
            return _parsed_header(data)
        except IndexError:
            if not more or len(data) > _MOST_HEADER:
                raise damaged(path, "the header is truncated, or has no end") from None
        except (DatumError, KeyError, UnicodeDecodeError):
            raise damaged(path, "the header cannot be read") from None


def _parsed_header(data: bytes) -> _Header:
    entries: dict[str, bytes] = {}
    at = len(_MAGIC)
    while True:
        count, at = read_long(data, at)
        if count < 0:
            _, at = read_long(data, at)
        for _ in range(abs(count)):
            key, at = _sized(data, at)
            entries[key.decode()], at = _sized(data, at)
        if count == 0:
            break
    if len(data) < at + _SYNC:
        raise IndexError
    codec = entries.get("avro.codec", b"null").decode() or "null"
    return _Header(entries["avro.schema"].decode(), codec, data[at : at + _SYNC], at + _SYNC)


def _sized(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = read_long(data, at)
    if size < 0:
        raise DatumError("a length is negative")
    if at + size > len(data):
        raise IndexError
    return data[at : at + size], at + size


def _walker(path: str, header: _Header) -> Walker:
    if header.codec not in _CODECS:
        raise damaged(path, f"the blocks have a codec that is not known here; known: {', '.join(sorted(_CODECS))}")
    try:
        walker = walker_of(header.schema)
    except DatumError:
        raise damaged(path, "the header holds no Avro schema") from None
    if walker == 0:
        raise StorageError.of("EV407", "the schema in the file has no content", "correct the file", file=path)
    return walker


def _blocks(path: str, reader: BinaryIO, header: _Header, walker: Walker, begin: int, end: int | None) -> Iterator[_Block]:
    size = os.fstat(reader.fileno()).st_size
    at = _behind_sync(reader, header, max(begin, header.size - _SYNC))
    while at is not None and at < size and (end is None or at - _SYNC < end):
        reader.seek(at)
        start = reader.read(20)
        try:
            count, here = read_long(start, 0)
            length, here = read_long(start, here)
        except (IndexError, DatumError):
            raise damaged(path, f"the block at byte {at} has no length") from None
        if count < 0 or length < 0 or at + here + length + _SYNC > size:
            raise damaged(path, f"the block at byte {at} goes past the end: the file is truncated or damaged")
        if length > _MOST_BLOCK:
            raise damaged(path, f"the block at byte {at} is larger than {_MOST_BLOCK >> 20} MB")
        reader.seek(at + here)
        packed = reader.read(length)
        following = at + here + length + _SYNC
        if reader.read(_SYNC) != header.sync:
            raise damaged(path, f"the block at byte {at} does not end with the file's sync marker")
        try:
            data = _CODECS[header.codec](packed)
            if count > len(data):
                raise DatumError("more datums than bytes")
            ends = datum_ends(walker, data, count)
        except DatumError:
            raise damaged(path, f"the block at byte {at} is damaged") from None
        if count > (following - at) << _POSITIONS:
            raise damaged(path, f"the block at byte {at} holds too many datums for its size")
        yield _Block(data, ends, (at << _POSITIONS) + np.arange(count, dtype=np.int64))
        at = following


def _behind_sync(reader: BinaryIO, header: _Header, position: int) -> int | None:
    """The offset behind the first sync marker that begins at `position` or later; None: there is none."""
    if position == header.size - _SYNC:
        return header.size
    reader.seek(position)
    window = b""
    while True:
        more = reader.read(_CHUNK)
        window += more
        found = window.find(header.sync)
        if found >= 0:
            return position + found + _SYNC
        if not more:
            return None
        kept = min(len(window), _SYNC - 1)
        position += len(window) - kept
        window = window[len(window) - kept :]


def _inflated(packed: bytes) -> bytes:
    inflate = zlib.decompressobj(-15)
    try:
        return _whole(inflate.decompress(packed, _MOST_BLOCK + 1), inflate.eof)
    except zlib.error:
        raise DatumError("damaged deflate data") from None


def _bunzipped(packed: bytes) -> bytes:
    unpack = bz2.BZ2Decompressor()
    try:
        return _whole(unpack.decompress(packed, _MOST_BLOCK + 1), unpack.eof)
    except (OSError, ValueError):
        raise DatumError("damaged bzip2 data") from None


def _unxzipped(packed: bytes) -> bytes:
    unpack = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
    try:
        return _whole(unpack.decompress(packed, _MOST_BLOCK + 1), unpack.eof)
    except lzma.LZMAError:
        raise DatumError("damaged xz data") from None


def _unzstd(packed: bytes) -> bytes:
    try:
        with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as stream:
            return _whole(stream.read(_MOST_BLOCK + 1), bool(packed))
    except OSError:
        raise DatumError("damaged zstandard data") from None


def _unsnappy(packed: bytes) -> bytes:
    """Raw snappy with its length in front, and the big-endian checksum of the content behind."""
    body, checksum = packed[:-4], packed[-4:]
    length = shift = at = 0
    try:
        while True:
            length |= (body[at] & 127) << shift
            if body[at] < 128:
                break
            at, shift = at + 1, shift + 7
        if length > _MOST_BLOCK or shift > 28:
            raise DatumError("too large")
        data = bytes(pa.decompress(body, decompressed_size=length, codec="snappy", asbytes=True))
    except (IndexError, OSError, pa.ArrowException):
        raise DatumError("damaged snappy data") from None
    if zlib.crc32(data).to_bytes(4, "big") != checksum:
        raise DatumError("damaged snappy data")
    return data


def _whole(data: bytes, ended: bool) -> bytes:
    if not ended or len(data) > _MOST_BLOCK:
        raise DatumError("truncated, or too large")
    return data


_CODECS: dict[str, Callable[[bytes], bytes]] = {
    "null": bytes,
    "deflate": _inflated,
    "bzip2": _bunzipped,
    "xz": _unxzipped,
    "zstandard": _unzstd,
    "snappy": _unsnappy,
}
