"""Pub/Sub as Dataflow reads it: messages become batches by bundle and size, with their times, and say the same when delivered again."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

pubsub = pytest.importorskip("apache_beam.io.gcp.pubsub", reason="needs eventveil[gcp]")
native = pytest.importorskip("eventveil.pipeline.sources._pubsub_native")

from eventveil.transforms.batch import clock_of, kind_of, part_of  # noqa: E402 - behind what may be missing

SUBSCRIPTION = "projects/shop/subscriptions/orders"
AT = datetime(2024, 5, 6, 7, 8, 9, 123457, tzinfo=timezone.utc)
EVERYTHING = frozenset({"key", "headers", "topic", "time", "appended"})


def message(number: int, **given: Any) -> Any:
    shown = {"data": b'{"n":%d}' % number, "attributes": {}, "message_id": str(number), "publish_time": AT + timedelta(seconds=number)}
    return pubsub.PubsubMessage(**{**shown, **given})


def batched(messages: list[Any], wants: frozenset[str] = frozenset({"appended"}), batch_bytes: int = 1 << 20) -> list[Any]:
    """What a single bundle gives out: (batch, timestamp)."""
    found: list[Any] = []
    step = native.BatchMessages(SUBSCRIPTION, wants, batch_bytes)
    step.start_bundle()
    for one in messages:
        found += step.process(one, Timestamp.from_utc_datetime(one.publish_time))
    found += step.finish_bundle()
    return [(one.value, one.timestamp) for one in found]


class TestColumns:
    def test_all_that_is_wanted(self) -> None:
        ((batch, _),) = batched([message(5, attributes={"b": "2", "a": "1"}, ordering_key="k"), message(6)], EVERYTHING)

        expected = {
            "value": [b'{"n":5}', b'{"n":6}'],
            "position": [5, 6],
            "key": [b"k", None],
            "headers": [[{"name": "a", "value": b"1"}, {"name": "b", "value": b"2"}], []],
            "topic": ["orders", "orders"],
            "time": [AT + timedelta(seconds=5), AT + timedelta(seconds=6)],
            "appended": [AT + timedelta(seconds=5), AT + timedelta(seconds=6)],
        }
        assert expected == batch.to_pydict()

    def test_no_column_that_nobody_wants(self) -> None:
        ((batch, _),) = batched([message(1, attributes={"a": "1"}, ordering_key="k")], frozenset())

        assert ["value", "position"] == batch.schema.names

    def test_marks(self) -> None:
        ((batch, _),) = batched([message(7), message(3)])
        part = part_of(batch)

        assert "messages" == kind_of(batch)
        assert part is not None
        assert (SUBSCRIPTION, 7) == (part.origin, part.start)

    def test_a_message_of_attributes_alone_has_no_value(self) -> None:
        ((batch, _),) = batched([message(1, data=b"", attributes={"a": "1"})])

        assert [None] == batch.column("value").to_pylist()

    @pytest.mark.parametrize(("told", "expected"), [("7", 7), ("a", 2340832890917691671), (None, None)], ids=["decimal", "text", "none"])
    def test_a_position_is_the_same_whenever_the_message_comes(self, told: str | None, expected: int | None) -> None:
        (first, _), (again, _) = (batched([message(1, message_id=told)])[0] for _ in range(2))

        assert first.column("position") == again.column("position")
        assert expected in (None, first.column("position")[0].as_py())

    def test_what_lies_ahead_is_told_by_the_service_and_not_by_a_clock(self) -> None:
        ((batch, _),) = batched([message(9), message(3)])

        assert int((AT + timedelta(seconds=9)).timestamp()) * 1_000_000 + 123457 == clock_of(batch).now


class TestBatches:
    def test_one_per_bundle(self) -> None:
        batches = batched([message(number) for number in range(100)])

        assert [100] == [batch.num_rows for batch, _ in batches]

    def test_or_when_they_are_large_enough(self) -> None:
        batches = batched([message(10, data=b"x" * 400) for _ in range(10)], batch_bytes=1000)

        assert [3, 3, 3, 1] == [batch.num_rows for batch, _ in batches]

    def test_attributes_count(self) -> None:
        batches = batched([message(10, attributes={"a": "x" * 400}) for _ in range(6)], batch_bytes=1200)

        assert [3, 3] == [batch.num_rows for batch, _ in batches]

    def test_an_empty_bundle_gives_nothing(self) -> None:
        assert [] == batched([])

    def test_has_the_earliest_time_of_its_own_messages(self) -> None:
        messages = [message(number, data=b"x" * 400) for number in (9, 5, 7, 8, 6)]
        stamps = [stamp for _, stamp in batched(messages, batch_bytes=1000)]

        assert [Timestamp.from_utc_datetime(AT + timedelta(seconds=at)) for at in (5, 6)] == stamps


def stamped(batch: pa.RecordBatch, stamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam) -> Any:
    yield batch.column("position").to_pylist(), float(stamp), str(type(window).__name__)


def test_in_a_pipeline_the_times_arrive() -> None:
    def check(found: list[Any]) -> None:
        positions = sorted(position for batch, _, _ in found for position in batch)
        assert positions == [0, 1, 2], found
        assert all(stamp == min(batch) and window == "GlobalWindow" for batch, stamp, window in found), found

    with beam.Pipeline(runner="FnApiRunner") as root:
        messages = root | beam.Create([message(number) for number in (2, 0, 1)])
        timed = messages | beam.Map(lambda one: TimestampedValue(one, int(one.message_id)))
        batches = timed | beam.ParDo(native.BatchMessages(SUBSCRIPTION, frozenset(), 1 << 20)).with_output_types(pa.RecordBatch)
        assert_that(batches | beam.FlatMap(stamped), check)
