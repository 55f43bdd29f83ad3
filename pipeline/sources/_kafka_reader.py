"""Reads partitions of Kafka side by side, and hands them out one after the other as Arrow columns.

One consumer per group of partitions is parked between slices, with its positions and with what it has fetched beyond the end of the
slice: the next slice goes on without a seek. What is held back, beyond the end or because its partition's turn has not come, is
bounded: above the bound every partition pauses but the one whose turn it is.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, TypeAlias

import confluent_kafka as ck
import numpy as np
import pyarrow as pa

from eventveil.pipeline.sources._kafka_client import AT_ONCE, Cluster, Connection, explain
from eventveil.pipeline.sources._kafka_columns import COLUMNS, header_bytes
from eventveil.pipeline.sources._parts import BATCH_ROWS
from eventveil.schemas.errors import EventveilError, Problem, StorageError

__all__ = ["Lane", "Reader", "close_parked", "gone", "lane_named", "name_of", "park", "take"]

Lane: TypeAlias = tuple[str, int]
"""Topic and partition."""

# A call of the client builds all its messages before we see the first; more at once is no faster.
_MESSAGES_AT_ONCE = 2000
_BYTES_AT_ONCE = 16 << 20
_HELD_BYTES = 64 << 20
_WAIT_S = 0.1
_PATIENCE_S = 60.0
_MESSAGE_COST = 100
"""Bytes that a message takes while it is held, beside its own."""


_offset: Any = ck.Message.offset  # null of no message that was received


class _Held:
    """What was fetched of a partition and has not been handed out.

    Attributes:
        position: the next offset to hand out. fetched: below it everything was received, or is known not to be there.
        bytes: what the lists hold, in bytes.
        at_end: nothing was there behind `fetched`, when last asked. heard: when a message came last, on this machine's clock.
    """

    __slots__ = ("at_end", "bytes", "fetched", "heard", "lists", "paused", "position", "sizes")

    def __init__(self, position: int, names: tuple[str, ...]) -> None:
        self.position = self.fetched = position
        self.lists: dict[str, list[Any]] = {name: [] for name in names}
        self.sizes: list[int] = []
        self.bytes = 0
        self.paused = self.at_end = False
        self.heard = time.monotonic()

    def add(self, messages: list[Any]) -> int:
        """Take messages in, in the order of their offsets; returns the bytes they hold."""
        offsets = list(map(_offset, messages))
        if offsets[0] < self.fetched:
            raise EventveilError.of("EV901", "the kafka client went back to what it had given")
        before = self.bytes
        sizes = list(map(len, messages))  # of the value
        for name, column in self.lists.items():
            found = offsets if name == "position" else list(map(COLUMNS[name].of, messages))
            column += found
            if name == "key":
                sizes = [size + len(key or b"") for size, key in zip(sizes, found, strict=True)]
            elif name == "headers":
                sizes = [size + header_bytes(headers) for size, headers in zip(sizes, found, strict=True)]
        self.sizes += sizes
        self.bytes += sum(sizes) + _MESSAGE_COST * len(sizes)
        self.fetched = offsets[-1] + 1
        self.at_end, self.heard = False, time.monotonic()
        return self.bytes - before

    def rows_for(self, end: int, batch_bytes: int) -> int:
        """How many rows make the next batch; 0 while one may still grow."""
        rows = bisect_left(self.lists["position"], end)
        within = np.cumsum(self.sizes[: min(rows, BATCH_ROWS)])
        fitting = int(np.searchsorted(within, batch_bytes, "right"))
        if fitting < len(within):
            return max(fitting, 1)
        return fitting if fitting == BATCH_ROWS or self.fetched >= end else 0

    def take(self, rows: int) -> tuple[pa.RecordBatch, int]:
        """The first rows as a batch, and the bytes that are no longer held."""
        arrays = [COLUMNS[name].column(column[:rows]) for name, column in self.lists.items()]
        released = sum(self.sizes[:rows]) + _MESSAGE_COST * rows
        for column in (*self.lists.values(), self.sizes):
            del column[:rows]
        self.bytes -= released
        return pa.RecordBatch.from_arrays(arrays, list(self.lists)), released


class Reader:
    """A consumer and what it holds. Of one thread at a time; whoever meets an error in it closes it.

    Args:
        wants: columns beside `value` and `position`.

    Attributes:
        bytes_of: bytes of values that were handed out, by topic.
    """

    def __init__(self, cluster: Cluster, wants: frozenset[str]) -> None:
        self.bytes_of: dict[str, int] = {}
        self._names = ("value", "position", *sorted(wants))
        self._connection = Connection(cluster)
        self._consumer = self._connection.consumer()
        self._held: dict[Lane, _Held] = {}
        self._ends: Mapping[Lane, int] = {}
        self._topics: dict[str, int] = {}
        self._by_key: dict[int, _Held] = {}
        self._bytes = 0
        self._size = 1 << 20  # of a message, by those that came last

    def go_to(self, starts: Mapping[Lane, int], ends: Mapping[Lane, int]) -> None:
        """Be ready to read these partitions from start to end; others stay where they are. Without ends: these alone, and for good."""
        self._ends = ends
        others = {lane: held.position for lane, held in self._held.items() if lane not in starts}
        fits = all(lane in self._held and self._held[lane].position == start for lane, start in starts.items())
        if fits and (ends or not others):
            return
        positions = {**(others if ends else {}), **starts}
        self._held = {lane: _Held(position, self._names) for lane, position in positions.items()}
        self._bytes = 0
        self._topics = {topic: number for number, topic in enumerate(sorted({topic for topic, _ in positions}))}
        self._by_key = {self._topics[topic] << 32 | partition: held for (topic, partition), held in self._held.items()}
        # All of them anew: what the client had fetched goes with the old assignment, and nothing of it can come through.
        self._consumer.assign([ck.TopicPartition(topic, partition, at) for (topic, partition), at in positions.items()])

    def read(self, lane: Lane, batch_bytes: int) -> Iterator[pa.RecordBatch]:
        """The batches of one partition, up to its end.

        Raises:
            Unreachable: EV413, nothing came for a minute. StorageError: EV412 events are gone, EV413 for good.
        """
        held, end = self._held[lane], self._ends[lane]
        if held.paused:
            self._resume([lane])
        before, since = held.fetched, time.monotonic()
        while True:
            if rows := held.rows_for(end, batch_bytes):
                batch, released = held.take(rows)
                self._bytes -= released
                self.bytes_of[lane[0]] = self.bytes_of.get(lane[0], 0) + batch.column("value").nbytes
                yield batch
                before, since = held.fetched, time.monotonic()
            elif held.fetched >= end:
                held.position = end
                return
            else:
                self._pull(lane)
                if held.fetched != before:
                    before, since = held.fetched, time.monotonic()
                elif time.monotonic() - since > _PATIENCE_S:
                    raise self._connection.failure(place=name_of(lane))

    def gather(self, batch_bytes: int, seconds: float) -> Iterator[tuple[Lane, int, pa.RecordBatch | None]]:
        """What comes within this time, of any partition: its lane, the offset behind it, and a batch, or none where nothing is left.

        For a stream without slices: `go_to` was told no ends.
        """
        until = time.monotonic() + seconds
        while self._bytes < batch_bytes and time.monotonic() < until:
            before = self._bytes
            self._pull(None)
            if self._bytes == before:
                break
        for lane, held in self._held.items():
            while rows := held.rows_for(held.fetched, batch_bytes):
                batch, released = held.take(rows)
                self._bytes -= released
                held.position = held.lists["position"][0] if held.sizes else held.fetched
                yield lane, held.position, batch
            if held.position < held.fetched:
                held.position = held.fetched
                yield lane, held.position, None

    def idle_lanes(self, seconds: float) -> frozenset[Lane]:
        """The partitions that were read to their end, and from which nothing came for so long."""
        since = time.monotonic() - seconds
        return frozenset(lane for lane, held in self._held.items() if held.at_end and held.heard <= since)

    def close(self) -> None:
        self._consumer.close()

    def _pull(self, current: Lane | None) -> None:
        """Take in what the client has: of `current`, and of the others while there is room."""
        if self._bytes > _HELD_BYTES:
            self._pause([lane for lane, held in self._held.items() if lane != current and not held.paused])
        elif self._bytes < _HELD_BYTES // 2:
            self._resume([lane for lane, held in self._held.items() if held.paused])
        missing = sum(max(0, end - self._held[lane].fetched) for lane, end in self._ends.items() if not self._held[lane].paused)
        wanted = missing if self._ends else _MESSAGES_AT_ONCE
        messages = self._consumer.consume(max(1, min(wanted, _MESSAGES_AT_ONCE, _BYTES_AT_ONCE // self._size)), _WAIT_S)
        errors = list(map(ck.Message.error, messages))
        if any(errors):  # never compared with None: the client's errors cannot take that
            self._receive([message for message, error in zip(messages, errors, strict=True) if error is None])
            # Behind the messages: the end of a partition is told after what comes before it.
            for message, error in zip(messages, errors, strict=True):
                if error is not None:
                    self._hear(message, error)
        else:
            self._receive(messages)

    def _receive(self, messages: list[ck.Message]) -> None:
        if not messages:
            return
        self._connection.succeeded()
        keys = np.fromiter(map(ck.Message.partition, messages), np.int64, len(messages))
        if len(self._topics) > 1:
            keys |= np.fromiter((self._topics[str(message.topic())] for message in messages), np.int64, len(messages)) << 32
        before = self._bytes
        for first, last in pairwise([0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(messages)]):
            self._bytes += self._by_key[int(keys[first])].add(messages[first:last])
        self._size = max(1, (self._bytes - before) // len(messages))

    def _hear(self, message: ck.Message, error: ck.KafkaError) -> None:
        """An error in the place of a message: the end of a partition among them."""
        name = error.name()
        lane = (str(message.topic()), int(message.partition() or 0))
        if name == "_PARTITION_EOF":
            held = self._held[lane]
            held.fetched = max(held.fetched, int(message.offset() or 0))
            held.at_end = True
        elif name in ("_AUTO_OFFSET_RESET", "OFFSET_OUT_OF_RANGE"):
            raise gone(lane, self._held[lane].fetched if lane in self._held else None)
        elif name in AT_ONCE:
            raise explain(name, name_of(lane))
        else:
            self._connection.note(name)

    def _pause(self, lanes: list[Lane]) -> None:
        if lanes:
            self._consumer.pause([ck.TopicPartition(*lane) for lane in lanes])
            for lane in lanes:
                self._held[lane].paused = True

    def _resume(self, lanes: list[Lane]) -> None:
        if lanes:
            self._consumer.resume([ck.TopicPartition(*lane) for lane in lanes])
            for lane in lanes:
                self._held[lane].paused = False


def gone(lane: Lane, position: int | None, low: int | None = None) -> StorageError:
    """The error for a position that the broker does not have any more, or never had."""
    begins = "" if low is None else f"; it begins at {low}"
    fact = f"offset {position} is not there any more{begins}" if position is not None else "a position is not there any more"
    remedy = "lengthen the retention of the topic, or see whether it was made anew; to go on behind the gap, say --from-now"
    return StorageError(Problem(name_of(lane), 0, "EV412", fact, remedy))


def name_of(lane: Lane) -> str:
    """A lane in a state, and the origin of its parts."""
    return f"{lane[0]}/{lane[1]}"


def lane_named(name: str) -> Lane:
    topic, _, partition = name.partition("/")
    return topic, int(partition)


_Key: TypeAlias = tuple[Cluster, int, frozenset[str]]
_parked: dict[_Key, Reader] = {}
_lock = threading.Lock()


def take(cluster: Cluster, group: int, wants: frozenset[str]) -> Reader:
    """The reader that was parked for this group, or a new one: the caller's alone until it is parked again, or closed."""
    with _lock:
        reader = _parked.pop((cluster, group, wants), None)
    return reader or Reader(cluster, wants)


def park(reader: Reader, cluster: Cluster, group: int, wants: frozenset[str]) -> None:
    with _lock:
        if _parked.setdefault((cluster, group, wants), reader) is reader:
            return
    reader.close()


def close_parked(cluster: Cluster) -> None:
    """Close what is parked for a cluster."""
    with _lock:
        readers = [_parked.pop(key) for key in list(_parked) if key[0] == cluster]
    for reader in readers:
        reader.close()
