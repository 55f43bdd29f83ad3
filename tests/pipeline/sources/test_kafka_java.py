"""Records as Beam's source for Java gives them become the raw batches that our own source would make."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.utils.timestamp import Timestamp

pytest.importorskip("confluent_kafka", reason="needs eventveil[kafka]")

from eventveil.pipeline.sources.kafka_java import BatchRecords, JavaTopics
from eventveil.schemas.errors import StorageError
from eventveil.schemas.streams import StreamAddress
from eventveil.transforms.batch import clock_of, kind_of, part_of

EVERYTHING = frozenset({"key", "headers", "topic", "time", "appended"})
AT = datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone.utc)
MILLIS = int(AT.timestamp()) * 1000


def record(offset: int, **given: Any) -> Any:
    shown = {
        "topic": "orders",
        "partition": 0,
        "offset": offset,
        "key": b"k",
        "value": b'{"n":%d}' % offset,
        "headers": [SimpleNamespace(key="a", value=b"1"), SimpleNamespace(key="a", value=None)],
        "timestamp": MILLIS + offset,
        "timestampTypeId": 0,
    }
    return SimpleNamespace(**{**shown, **given})


def batched(records: list[Any], wants: frozenset[str] = frozenset(), batch_bytes: int = 1 << 20) -> list[Any]:
    step = BatchRecords("localhost:9092", wants, batch_bytes)
    step.start_bundle()
    found = [each.value for one in records for each in step.process(one, Timestamp(one.offset))]
    return [*found, *(each.value for each in step.finish_bundle())]


def test_all_that_is_wanted() -> None:
    (batch,) = batched([record(5), record(6, key=None, value=None, headers=None, timestampTypeId=1)], EVERYTHING)

    assert {
        "value": [b'{"n":5}', None],
        "position": [5, 6],
        "key": [b"k", None],
        "headers": [[{"name": "a", "value": b"1"}, {"name": "a", "value": None}], []],
        "topic": ["orders", "orders"],
        "time": [AT + timedelta(milliseconds=5), AT + timedelta(milliseconds=6)],
        # Only the broker's own clock counts.
        "appended": [None, AT + timedelta(milliseconds=6)],
    } == batch.to_pydict()


def test_a_record_without_a_time() -> None:
    (batch,) = batched([record(5, timestampTypeId=-1, timestamp=-1)], EVERYTHING)

    assert ([None], [None]) == (batch.column("time").to_pylist(), batch.column("appended").to_pylist())


def test_each_partition_is_a_part_of_its_own() -> None:
    places = [("orders", 0, 7), ("orders", 1, 3), ("orders", 0, 8), ("returns", 0, 1)]
    found = batched([record(offset, topic=topic, partition=partition) for topic, partition, offset in places])

    assert [("messages", "orders/0", 7), ("messages", "orders/1", 3), ("messages", "returns/0", 1)] == [
        (kind_of(batch), part_of(batch).origin, part_of(batch).start) for batch in found
    ]
    assert [[7, 8], [3], [1]] == [batch.column("position").to_pylist() for batch in found]


def test_what_lies_ahead_is_told_by_the_clock_and_not_by_producers() -> None:
    (batch,) = batched([record(1, timestamp=10**15)])

    assert 10**17 > (clock_of(batch).now or 0)


def test_a_batch_ends_when_it_is_large_enough() -> None:
    assert [3, 3, 1] == [batch.num_rows for batch in batched([record(n, value=b"x" * 400) for n in range(7)], batch_bytes=1000)]


def test_no_expansion_service() -> None:
    stream = JavaTopics(StreamAddress.parse("kafka+java://localhost:9/orders?group=g"), (), "127.0.0.1:9")

    with pytest.raises(StorageError, match=r"EV413 the expansion service for Java \(127.0.0.1:9\) does not give Kafka's source"):
        stream.on_engine("flink", frozenset(), 1, 1).read(beam.Pipeline(), stream.begin(False), [], None, None)  # type: ignore[arg-type]
