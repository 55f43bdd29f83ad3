"""Kafka read by Beam's own source for Java, where an engine runs Java beside Python; for those who need one of its features.

Every message crosses from Java to Python by itself, where our own source takes thousands at once: expect some third of its speed.
Where the job begins, and what it does about messages that are gone, is KafkaIO's: it begins where somebody has committed for its
consumer group, tells that group nothing, and skips what retention has removed. A batch has the time at which it was read.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import grpc  # type: ignore[import-untyped]
import pyarrow as pa
from apache_beam.io.kafka import ReadFromKafka

from eventveil.pipeline.sources._kafka_columns import columns_told
from eventveil.pipeline.sources._singles import BatchSingles, DecodeMessages
from eventveil.pipeline.sources.decode_inside import DecodeInside, Decoding, tagged
from eventveil.pipeline.sources.stream import EngineSource, State
from eventveil.schemas.errors import StorageError
from eventveil.schemas.streams import Settings, StreamAddress
from eventveil.transforms.batch import Clock, Part, with_clock, with_kind, with_part
from eventveil.transforms.beam.split import SplitByType
from eventveil.transforms.seal import Sealing

__all__ = ["BatchRecords", "JavaTopics"]

_TO_KIND = 1  # Kafka's types of timestamps begin at -1 in Java, and at 0 in the client for Python


class JavaTopics:
    """Topics of one cluster, as an `EngineStream`.

    Args:
        settings: of Java's consumer, without a secret: they stand in the graph. expansion_service: ``host:port`` of Beam's; None: Beam
            downloads it, and starts it with Java.
    """

    def __init__(self, address: StreamAddress, settings: Settings, expansion_service: str | None) -> None:
        self._address = address
        self._settings = settings
        self._expansion_service = expansion_service

    def identity(self) -> dict[str, Any]:
        return {"kind": "kafka+java", "topics": sorted(self._address.topics), "group": self._address.group}

    def begin(self, from_now: bool) -> State:
        return {"offsets": "latest" if from_now else "earliest"}

    def close(self) -> None:
        pass

    def on_engine(self, engine: str, wants: frozenset[str], batch_bytes: int, idle_after_us: int) -> EngineSource:
        return JavaSource(self._address, self._settings, self._expansion_service, wants, batch_bytes)


@dataclass(frozen=True)
class JavaSource:
    """What is read, for the graph of an engine.

    Attributes:
        wants: columns beside `value` and `position`: key, headers, topic, time and appended.
    """

    address: StreamAddress
    settings: Settings
    expansion_service: str | None
    wants: frozenset[str] = frozenset({"appended"})
    batch_bytes: int = 4 << 20

    def read(
        self, root: beam.Pipeline, state: State, decodings: Sequence[Decoding], split: SplitByType | None, sealing: Sealing
    ) -> tuple[dict[str, beam.PCollection], beam.PCollection]:
        """(Decoded batches by tag, letters). Raises StorageError EV413 where Java's side of it cannot be had."""
        config = {
            **dict(self.settings),
            "bootstrap.servers": self.address.servers,
            "group.id": self.address.group or "",
            "auto.offset.reset": state.get("offsets", self.address.start),
            # As ours: what a producer has taken back is not read.
            "isolation.level": "read_committed",
        }
        read = ReadFromKafka(
            config,
            sorted(self.address.topics),
            with_metadata=True,
            # How long a partition without messages holds up the others.
            consumer_polling_timeout=1,
            # Positions are the engine's. The step that would tell them to the group fails on Flink, at the first checkpoint.
            commit_offset_in_finalize=False,
            expansion_service=self.expansion_service,
        )
        try:
            records = root | "ReadRecords" >> read
        except (OSError, RuntimeError, ValueError, grpc.RpcError) as error:
            place = self.expansion_service or "Beam's own"
            fact = f"the expansion service for Java ({place}) does not give Kafka's source: {type(error).__name__}"
            raise StorageError.of("EV413", fact, "see docs/operations.md on kafka+java://, or read by kafka://") from None
        batch = BatchRecords(self.address.servers, self.wants, self.batch_bytes)
        raw = records | "BatchRecords" >> beam.ParDo(batch).with_output_types(pa.RecordBatch)
        decode = DecodeInside(decodings, split, sealing)
        return tagged(raw | "DecodeRecords" >> beam.ParDo(DecodeMessages(decode)).with_outputs(*decode.tags), decodings)


class BatchRecords(BatchSingles):
    """Records of Beam's source for Java -> raw batches, one for each partition that a bundle has records of."""

    def __init__(self, servers: str, wants: frozenset[str], batch_bytes: int) -> None:
        super().__init__(batch_bytes)
        self._names = ("value", "position", *sorted(wants))
        self._servers = servers

    def size_of(self, message: Any) -> int:
        return len(message.value or b"")

    def batches_of(self, messages: list[Any]) -> Iterable[pa.RecordBatch]:
        lanes: dict[tuple[str, int], list[Any]] = {}
        for message in messages:
            lanes.setdefault((message.topic, int(message.partition)), []).append(message)
        for (topic, partition), records in lanes.items():
            # Row by row: Java gives single records, and this is where they become columns.
            batch = columns_told({name: [_TOLD[name](record) for record in records] for name in self._names})
            batch = with_part(with_kind(batch, "messages"), Part(f"{topic}/{partition}", int(records[0].offset)))
            yield with_clock(batch, Clock(now=time.time_ns() // 1000))


def _instant(record: Any) -> tuple[int, int]:
    return int(record.timestampTypeId) + _TO_KIND, int(record.timestamp)


_TOLD = {
    "value": lambda record: record.value,
    "position": lambda record: int(record.offset),
    "key": lambda record: record.key,
    "headers": lambda record: [(header.key, header.value) for header in record.headers or ()],
    "topic": lambda record: record.topic,
    "time": _instant,
    "appended": _instant,
}
"""What a record says, by column."""
