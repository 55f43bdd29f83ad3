"""Kafka as a source: says how far its topics go, and reads ranges of offsets as raw batches.

Where a job stands is decided by its checkpoint alone; what is committed to the consumer group is for whoever watches from outside.
Nothing is skipped: an offset that is gone, or a topic that was made anew, stops the job.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import confluent_kafka as ck
import pyarrow as pa

from eventveil.pipeline.sources._kafka_client import AT_ONCE, UNKNOWN, Cluster, Connection, explain
from eventveil.pipeline.sources._kafka_group import GroupTeller
from eventveil.pipeline.sources._kafka_reader import Lane, close_parked, gone, lane_named, name_of, park, take
from eventveil.pipeline.sources._parts import mark_parts
from eventveil.pipeline.sources.files import BATCH_BYTES
from eventveil.pipeline.sources.stream import State
from eventveil.schemas.errors import StorageError

if TYPE_CHECKING:
    from eventveil.pipeline.sources.kafka_stream import Groups

__all__ = ["Cluster", "KafkaStream", "TopicRange", "read_topic"]

_LOOK_S = 10.0
"""How long a call waits for the brokers before it says that they cannot be reached."""
_ANSWER_S = 5.0
_SURE_S = 2.0
"""How long a topic must be unknown: a broker that has just started may not know it yet."""
_EARLIEST, _LATEST = -2, -1  # asked for in place of a time

# Until something was read nobody knows how large messages are.
_FIRST_MESSAGES = 4096
_MOST_MESSAGES = 1 << 19
_LEAST_SIZE = 32.0
_GUESSED_SIZE = 1024.0

_Answer = TypeVar("_Answer")

_sizes: dict[tuple[str, str], float] = {}
"""Bytes per offset of what was read last, by cluster and topic."""
_lock = threading.Lock()


@dataclass(frozen=True)
class TopicRange:
    """What one worker reads of a slice.

    Attributes:
        group: the number of the group of partitions, whose consumer is kept from one slice to the next.
        pieces: topic, partition, start and end (exclusive), all of them offsets.
    """

    cluster: Cluster
    group: int
    pieces: tuple[tuple[str, int, int, int], ...]

    def read(self, wants: frozenset[str], batch_bytes: int) -> Iterator[pa.RecordBatch]:
        return read_topic(self, wants, batch_bytes)


def read_topic(
    piece: TopicRange,
    wants: frozenset[str] = frozenset(),
    batch_bytes: int = BATCH_BYTES,
) -> Iterator[pa.RecordBatch]:
    """The raw batches of a range, partition after partition, each marked with its part; a range without messages has none.

    Args:
        wants: columns beside `value` (null for a message without a value) and `position`: of key, headers, topic, time, appended.
            Headers are null where the name of one is not text.
        batch_bytes: bytes of a batch at most, unless a single message has more.

    Raises:
        Unreachable: EV413, for now. StorageError: EV412 messages are gone, EV413 for good.
    """
    lanes = {(topic, partition): (start, end) for topic, partition, start, end in piece.pieces}
    reader = take(piece.cluster, piece.group, wants)
    finished = False
    try:
        reader.go_to({lane: start for lane, (start, _) in lanes.items()}, {lane: end for lane, (_, end) in lanes.items()})
        for (topic, partition), (start, _) in lanes.items():
            batches = reader.read((topic, partition), batch_bytes)
            yield from mark_parts(f"{topic}/{partition}", ((start, batch) for batch in batches))
        finished = True
    finally:
        if finished:
            _learn(piece, reader.bytes_of)
            park(reader, piece.cluster, piece.group, wants)
        else:
            reader.close()


def _learn(piece: TopicRange, bytes_of: dict[str, int]) -> None:
    for topic in {topic for topic, *_ in piece.pieces}:
        offsets = sum(end - start for name, _, start, end in piece.pieces if name == topic)
        found = max(bytes_of.pop(topic, 0) / max(offsets, 1), _LEAST_SIZE)
        with _lock:
            known = _sizes.get((piece.cluster.bootstrap, topic), found)
            _sizes[piece.cluster.bootstrap, topic] = (known + found) / 2


class KafkaStream:
    """Topics of one cluster as a `Stream`.

    A lane is a partition, written ``topic/partition``. A partition that is added while the job runs is read from its beginning.

    Args:
        group: the consumer group to which positions are told.
        groups: how many elements a slice is cut into; the same for as long as the job lives.
    """

    def __init__(self, cluster: Cluster, topics: tuple[str, ...], group: str, groups: int = 1) -> None:
        self._cluster = cluster.with_group(group)
        self._group = group
        self._topics = tuple(sorted(set(topics)))
        self._groups = groups
        self._place = f"kafka://{cluster.bootstrap}/{','.join(self._topics)}"
        self._connection = Connection(self._cluster)
        self._teller = GroupTeller(self._connection)
        self._consumer = self._teller.consumer
        self._admin = self._connection.admin()
        self._seen: dict[str, int] = {}

    def identity(self) -> dict[str, Any]:
        # Not the brokers' addresses: they move. That a topic is the same one is told by the ids in the state.
        return {"kind": "kafka", "topics": list(self._topics)}

    def begin(self, from_now: bool) -> State:
        bounds = self.bounds()
        self._seen = {lane: high for lane, (_, high) in bounds.items()}
        return {"positions": {lane: high if from_now else low for lane, (low, high) in bounds.items()}, "ids": self.ids()}

    def next(self, state: State, most_bytes: int) -> State | None:
        bounds = self.bounds()
        self.check(state, bounds)
        self._seen = {lane: high for lane, (_, high) in bounds.items()}
        positions = {lane: state["positions"].get(lane, 0) for lane in bounds}
        taken = self._share({lane: high - positions[lane] for lane, (_, high) in bounds.items() if high > positions[lane]}, most_bytes)
        if not taken:
            return None
        ids = self.ids(state)
        return {"positions": {lane: at + taken.get(lane, 0) for lane, at in positions.items()}, "ids": ids}

    def ranges(self, before: State, after: State) -> tuple[TopicRange, ...]:
        groups: dict[int, list[tuple[str, int, int, int]]] = {}
        for lane, end in after["positions"].items():
            topic, partition = lane_named(lane)
            start = before["positions"].get(lane, 0)
            if end > start:
                groups.setdefault(partition % self._groups, []).append((topic, partition, start, end))
        return tuple(TopicRange(self._cluster, group, tuple(sorted(pieces))) for group, pieces in sorted(groups.items()))

    def lanes(self, state: State) -> tuple[str, ...]:
        return tuple(state["positions"])

    def lane_of(self, origin: str) -> str:
        return origin

    def is_caught_up(self, state: State) -> frozenset[str]:
        return frozenset(lane for lane, at in state["positions"].items() if at >= self._seen.get(lane, at + 1))

    def lag(self, state: State) -> int:
        return sum(max(0, end - state["positions"].get(lane, 0)) for lane, end in self._seen.items())

    def committed(self, state: State) -> None:
        self._teller.tell({lane_named(lane): at for lane, at in state["positions"].items()})

    def on_engine(self, engine: str, wants: frozenset[str], batch_bytes: int, idle_after_us: int) -> Groups:
        from eventveil.pipeline.sources.kafka_stream import Groups

        return Groups(self._cluster, self._topics, self._group, self._groups, idle_after_us / 1e6, wants, batch_bytes)

    def close(self) -> None:
        self._teller.close()
        close_parked(self._cluster)

    def _share(self, waiting: Mapping[str, int], most_bytes: int) -> dict[str, int]:
        """How many offsets of each lane the slice takes: all of the short ones, and the same number of bytes of the others."""
        with _lock:
            known = {topic: _sizes.get((self._cluster.bootstrap, topic)) for topic in self._topics}
        sizes = {lane: known[lane_named(lane)[0]] for lane in waiting}
        most = _FIRST_MESSAGES if None in sizes.values() else _MOST_MESSAGES
        costs = {lane: size or _GUESSED_SIZE for lane, size in sizes.items()}
        budget = min(float(most_bytes), most * min(costs.values(), default=1.0))
        taken: dict[str, int] = {}
        open_ = sorted(waiting, key=lambda lane: (waiting[lane] * costs[lane], lane))
        for number, lane in enumerate(open_):
            fair = budget / (len(open_) - number)
            # A slice that takes nothing would never end.
            taken[lane] = min(waiting[lane], max(1, int(fair / costs[lane])))
            budget -= taken[lane] * costs[lane]
        return taken

    def bounds(self) -> dict[str, tuple[int, int]]:
        """The lowest and the next offset of each lane, as the brokers tell them now."""
        lows, highs = self._patiently(self._ends)
        return {name_of(lane): (lows[lane], high) for lane, high in sorted(highs.items())}

    def check(self, state: State, bounds: Mapping[str, tuple[int, int]]) -> None:
        """Raises StorageError: EV412, what `state` has still to read is not there; EV413, nor is the partition."""
        for lane, (low, high) in bounds.items():
            at = state["positions"].get(lane, 0)
            if not low <= at <= high:
                raise gone(lane_named(lane), at, low)
        missing = sorted(set(state["positions"]) - set(bounds))
        if missing:
            raise explain("UNKNOWN_TOPIC_OR_PART", f"{self._place}: {missing[0]}")

    def ids(self, state: State | None = None) -> dict[str, str]:
        """The ids of the topics now. Raises StorageError: EV412, `state` was of others, which had the same names."""
        ids = self._patiently(self._ids)
        for topic, told in (state or {"ids": {}})["ids"].items():
            if told and ids[topic] != told:
                remedy = "its events are others: say --from-now, or give the job a checkpoint of its own"
                raise StorageError.of("EV412", "the topic was deleted and made anew", remedy, file=f"{self._place}: {topic}")
        return ids

    def _patiently(self, ask: Callable[[], _Answer]) -> _Answer:
        """The brokers' answer, however long it takes them, within bounds."""
        began = time.monotonic()
        while True:
            try:
                answer = ask()
            except ck.KafkaException as error:
                name = error.args[0].name()
            except TimeoutError:
                name = "_TIMED_OUT"
            else:
                self._connection.succeeded()
                return answer
            self._connection.note(name)
            self._consumer.poll(0)  # what it says beside its answers is heard here
            waited = time.monotonic() - began
            if name in AT_ONCE or (name in UNKNOWN and waited > _SURE_S):
                raise explain(name, self._place)
            if waited > _LOOK_S:
                raise self._connection.failure(self._place)
            time.sleep(0.2)

    def _ends(self) -> tuple[dict[Lane, int], dict[Lane, int]]:
        """Lowest and next offset of each partition, the latter without what is still open in a transaction."""
        lanes = []
        for name in self._topics:
            topic = self._consumer.list_topics(name, timeout=_ANSWER_S).topics[name]
            if topic.error is not None:
                raise ck.KafkaException(topic.error)
            lanes += [(name, partition) for partition in sorted(topic.partitions)]
        return self._offsets(lanes, _EARLIEST), self._offsets(lanes, _LATEST)

    def _ids(self) -> dict[str, str]:
        """The ids of the topics; empty where the brokers give none. A topic that is made anew has another one.

        All that the client for administrators is asked: of its other requests some end the process when a broker goes away.
        """
        asked = self._admin.describe_topics(ck.TopicCollection(list(self._topics)), request_timeout=_ANSWER_S)
        return {name: str(answer.result(2 * _ANSWER_S).topic_id or "") for name, answer in asked.items()}

    def _offsets(self, lanes: list[Lane], which: int) -> dict[Lane, int]:
        found = {}
        for one in self._consumer.offsets_for_times([ck.TopicPartition(*lane, which) for lane in lanes], timeout=_ANSWER_S):
            if one.error is not None:
                raise ck.KafkaException(one.error)
            found[one.topic, one.partition] = one.offset
        return found
