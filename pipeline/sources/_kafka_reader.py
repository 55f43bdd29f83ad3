"""Reads partitions of Kafka side by side, and hands them out one after the other as Arrow columns.

One consumer per group of partitions is parked between slices, with its positions and with what it has fetched beyond the end of the
slice: the next slice goes on without a seek. What is held back, beyond the end or because its partition's turn has not come, is
bounded: above the bound every partition pauses but the one whose turn it is.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, TypeAlias

import confluent_kafka as ck
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.pipeline.sources._kafka_client import AT_ONCE, Cluster, Connection, explain
from eventveil.pipeline.sources._kafka_columns import columns_of
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


_joined: Any = pa.concat_batches  # type: ignore[attr-defined]  # the stubs do not know it


class _Held:
    """What was fetched of a partition and has not been handed out.

    Attributes:
        position: the next offset to hand out. fetched: below it everything was received, or is known not to be there.
        at_end: nothing was there behind `fetched`, when last asked. heard: when a message came last, on this machine's clock.
    """

    __slots__ = ("_chunks", "_rows", "at_end", "bytes", "fetched", "heard", "paused", "position")

    def __init__(self, position: int) -> None:
        self.position = self.fetched = position
        self.bytes = self._rows = 0
        self.paused = self.at_end = False
        self.heard = time.monotonic()
        self._chunks: deque[pa.RecordBatch] = deque()

    def add(self, chunk: pa.RecordBatch) -> None:
        """Take messages in, in the order of their offsets."""
        positions = chunk.column("position")
        if positions[0].as_py() < self.fetched:
            raise EventveilError.of("EV901", "the kafka client went back to what it had given")
        self._chunks.append(chunk)
        self.bytes += chunk.nbytes
        self._rows += chunk.num_rows
        self.fetched = positions[-1].as_py() + 1
        self.at_end, self.heard = False, time.monotonic()

    def next_batch(self, end: int, batch_bytes: int) -> pa.RecordBatch | None:
        """The next batch of what lies before `end`; None while it may still grow, and where nothing is left."""
        if self.fetched < end and self._rows < BATCH_ROWS and self.bytes < batch_bytes:
            return None
        taken: list[pa.RecordBatch] = []
        rows = size = 0
        while self._chunks:
            chunk = self._chunks[0]
            before = _rows_before(chunk, end)
            fitting = min(before, BATCH_ROWS - rows, _rows_within(chunk, batch_bytes - size))
            if not fitting and (taken or not before):
                break
            # One that is larger than a batch is a batch.
            taken.append(self._take(max(fitting, 1)))
            rows, size = rows + taken[-1].num_rows, size + taken[-1].nbytes
            if taken[-1].num_rows < chunk.num_rows:
                break
        return _joined(taken) if taken else None

    @property
    def first(self) -> int:
        """The offset of what is handed out next, as far as it is known."""
        return int(self._chunks[0].column("position")[0].as_py()) if self._chunks else self.fetched

    def _take(self, rows: int) -> pa.RecordBatch:
        chunk = self._chunks.popleft()
        rest = chunk.slice(rows)
        if rest.num_rows:
            self._chunks.appendleft(rest)
        self.bytes += rest.nbytes - chunk.nbytes
        self._rows -= rows
        return chunk.slice(0, rows)


def _rows_before(chunk: pa.RecordBatch, end: int) -> int:
    positions = chunk.column("position")
    if positions[-1].as_py() < end:
        return chunk.num_rows
    return int(np.searchsorted(positions.to_numpy(), end))


def _rows_within(chunk: pa.RecordBatch, room: int) -> int:
    """How many of the first rows have so many bytes; whatever is neither value nor key counts as the same for all of them."""
    if chunk.nbytes <= room:
        return chunk.num_rows
    sizes = np.zeros(chunk.num_rows, np.int64)
    for name in {"value", "key"}.intersection(chunk.schema.names):
        values: Any = chunk.column(name)
        sizes += pc.binary_length(values).fill_null(0).to_numpy()
    other = (chunk.nbytes - int(sizes.sum())) / chunk.num_rows
    return int(np.searchsorted(np.cumsum(sizes + other), room, "right"))


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
        self._size = 1 << 20  # of a message, by those that came last

    def go_to(self, starts: Mapping[Lane, int], ends: Mapping[Lane, int]) -> None:
        """Be ready to read these partitions from start to end; others stay where they are. Without ends: these alone, and for good."""
        self._ends = ends
        others = {lane: held.position for lane, held in self._held.items() if lane not in starts}
        fits = all(lane in self._held and self._held[lane].position == start for lane, start in starts.items())
        if fits and (ends or not others):
            return
        positions = {**(others if ends else {}), **starts}
        self._held = {lane: _Held(position) for lane, position in positions.items()}
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
            if (batch := held.next_batch(end, batch_bytes)) is not None:
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
        while (before := self._bytes) < batch_bytes and time.monotonic() < until:
            self._pull(None)
            if self._bytes == before:
                break
        for lane, held in self._held.items():
            while (batch := held.next_batch(held.fetched, batch_bytes)) is not None:
                held.position = held.first
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

    @property
    def _bytes(self) -> int:
        return sum(held.bytes for held in self._held.values())

    def _pull(self, current: Lane | None) -> None:
        """Take in what the client has: of `current`, and of the others while there is room."""
        if self._bytes > _HELD_BYTES:
            self._pause([lane for lane, held in self._held.items() if lane != current and not held.paused])
        elif self._bytes < _HELD_BYTES // 2:
            self._resume([lane for lane, held in self._held.items() if held.paused])
        missing = sum(max(0, end - self._held[lane].fetched) for lane, end in self._ends.items() if not self._held[lane].paused)
        wanted = missing if self._ends else _MESSAGES_AT_ONCE
        messages = self._consumer.consume(max(1, min(wanted, _MESSAGES_AT_ONCE, _BYTES_AT_ONCE // self._size)), _WAIT_S)
        if any(map(ck.Message.error, messages)):
            errors = list(map(ck.Message.error, messages))  # never compared with None: the client's errors cannot take that
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
        size = 0
        for first, last in pairwise([0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(messages)]):
            # Turned into columns at once: their own memory is still warm, and free again before the next ones come.
            chunk = columns_of(messages[first:last], self._names)
            self._by_key[int(keys[first])].add(chunk)
            size += chunk.nbytes
        self._size = max(1, size // len(messages))

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
