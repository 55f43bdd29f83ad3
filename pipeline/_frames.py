"""What crosses a GroupByKey: batches as sealed bytes, under keys that say nothing.

    frame = version (1), size of the head (4, big-endian), head, sealed Arrow stream
    head  = JSON: [kind, variant, start of the window, shard, mark]

The head stands in clear and is bound to what is sealed. The mark of a frame is the end of its seal; frames that are made for another
one, as decision columns for rows, name it by that.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass

import pyarrow as pa

from eventveil.pipeline.checkpoint.seal import WindowSeals
from eventveil.pipeline.gathering import Gathering
from eventveil.schemas.errors import EventveilError
from eventveil.transforms.keys.derive import KeyProvider, lengths
from eventveil.transforms.keys.keyring import load_keys

__all__ = ["Address", "Frames", "Opened", "SealedFrames", "mark_of", "misplaced"]

_HEAD = struct.Struct(">BI")
_VERSION = 1
_MARK = 16
_SECOND = 1_000_000


@dataclass(frozen=True)
class Address:
    """A shard of a window of a variant."""

    variant: str
    start_us: int
    shard: int


@dataclass(frozen=True)
class Opened:
    """A frame that was opened.

    Attributes:
        kind: rows; columns, to decide on; numbers, or too large: what was decided.
        mark: of the rows that it was made for; empty for rows.
    """

    kind: str
    address: Address
    mark: bytes
    batch: pa.RecordBatch


@dataclass(frozen=True)
class Frames:
    """How the frames of variants that are gathered alike are sealed. May be pickled: it names the keyring, and holds no key."""

    domain: str
    gathering: Gathering
    keys: str

    def open(self) -> SealedFrames:
        """Load the keys, where they are used."""
        return SealedFrames(self)


class SealedFrames(KeyProvider):
    """Seals and opens frames. Refuses to be pickled."""

    def __init__(self, frames: Frames) -> None:
        keys = load_keys(frames.keys).domain(frames.domain)
        self._seals = WindowSeals(keys, frames.gathering.rule)
        self._group_key = keys.for_domain("group")
        self.ledger_key = keys.for_domain("ledger")
        self._gathering = frames.gathering
        self._closing: dict[int, int] = {}

    def shard_key(self, address: Address) -> bytes:
        """On which the rows of a shard meet what was decided for them."""
        return self._key("rows", address.variant, address.start_us, address.shard)

    def window_key(self, start_us: int) -> bytes:
        """On which all that is decided together meets."""
        return self._key("decide", start_us)

    def closing_s(self, start_us: int) -> int:
        """When a window closes, lateness included, in whole seconds."""
        if start_us not in self._closing:
            if len(self._closing) > 4096:
                self._closing.clear()
            self._closing[start_us] = -(-(self._gathering.end_us(start_us) + self._gathering.lateness_us) // _SECOND)
        return self._closing[start_us]

    def seal(self, kind: str, address: Address, batch: pa.RecordBatch, mark: bytes = b"") -> bytes:
        head = json.dumps([kind, address.variant, address.start_us, address.shard, mark.hex()], separators=(",", ":")).encode()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        begin = _HEAD.pack(_VERSION, len(head)) + head
        return begin + self._seals.of(address.start_us).seal(memoryview(sink.getvalue()).cast("B"), begin)

    def unseal(self, frame: bytes) -> Opened:
        """Raises EV901 if the frame was changed, or belongs to another job."""
        try:
            version, size = _HEAD.unpack_from(frame)
            kind, variant, start_us, shard, mark = json.loads(frame[_HEAD.size : _HEAD.size + size])
            content = self._seals.of(start_us).open(frame[_HEAD.size + size :], frame[: _HEAD.size + size])
        except (ValueError, TypeError, struct.error):
            version, content = 0, b""
        if version != _VERSION:
            raise misplaced()
        with pa.ipc.open_stream(pa.py_buffer(content)) as reader:
            return Opened(kind, Address(variant, start_us, shard), bytes.fromhex(mark), reader.read_next_batch())

    def _key(self, *parts: str | int) -> bytes:
        return hashlib.blake2b(lengths(*parts), key=self._group_key, digest_size=16).digest()


def mark_of(frame: bytes) -> bytes:
    """What tells a frame from any other."""
    return frame[-_MARK:]


def misplaced() -> EventveilError:
    return EventveilError.of("EV901", "sealed rows came back from the engine changed, or under another key than they were given to it")
