"""The topic sink at a real broker and a real registry: what is in the log, and what happens when one of them is gone."""

from __future__ import annotations

import io
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import fastavro
import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka.admin import AdminClient

from eventveil.pipeline.sinks.topic import RECORD_ID, TopicSink, topic_sink
from eventveil.pipeline.sources.kafka import Cluster, KafkaStream, read_topic
from eventveil.pipeline.sources.stream import Unreachable
from eventveil.schemas.errors import StorageError
from eventveil.schemas.job import OutputDoc, RegistryDoc
from eventveil.schemas.streams import StreamAddress
from eventveil.transforms.batch import ORDER, Clock, part_of, with_clock
from eventveil.transforms.compile import load_plan
from eventveil.transforms.decode.reading import Decoders, Reading
from eventveil.transforms.keys.derive import HeldKeys
from eventveil.transforms.plan import Plan

KEYS = HeldKeys(bytes(range(32)))
SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string())])
PROVENANCE = {"policy": "orders", "version": "1", "digest": "d1", "domain": "analytics", "keys": "k1", "eventveil": "1"}
POLICY = """\
policy: orders
version: 1
schema: order.avsc
domain: analytics
event: {time: time, id: id}
window: 1d
fields:
  id: drop
  time: [{floor: 1h}, {rename: hour}]
  customer: {pseudonymize: {class: customer}}
  note: drop
"""
FIELDS = [{"name": name, "type": "string"} for name in ("id", "time", "customer", "note")]
CANARIES = [f"canary-{place}" for place in ("key", "header-name", "header-value", "note", "customer", "id")]
APPENDED_MS = 1_600_000_000_123


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "order.avsc").write_text(json.dumps({"type": "record", "name": "order", "fields": FIELDS}))
    (tmp_path / "policy.yaml").write_text(POLICY)
    return load_plan(tmp_path / "policy.yaml")


def sink_of(address: str, topic: str, *settings: tuple[str, str], **options: Any) -> TopicSink:
    options = {"schema": SCHEMA, "domain": "analytics", "provenance": PROVENANCE, **options}
    return TopicSink(Cluster(address, settings), topic, **options)


def sink_for(plan: Plan, address: str, topic: str, format: str = "json", **options: Any) -> TopicSink:
    uri = f"kafka://{address}/{topic}"
    return topic_sink(OutputDoc(uri, stream=StreamAddress.parse(uri), **options), plan, format, PROVENANCE)


def batch_of(count: int, text: str = "x") -> pa.RecordBatch:
    order = pa.array([number.to_bytes(16, "big") for number in range(count)], pa.binary(16))
    columns: list[Any] = [pa.array(range(count), pa.int64()), pa.array([text] * count), order]
    return with_clock(pa.RecordBatch.from_arrays(columns, [*SCHEMA.names, ORDER]), Clock(None, 5_000_000_000))


def write(sink: TopicSink, *batches: pa.RecordBatch) -> None:
    writer = sink.writer(KEYS)
    try:
        for batch in batches:
            writer.write(batch)
        writer.flush()
    finally:
        writer.abandon()


def read(address: str, topic: str) -> list[Any]:
    """All messages of a topic as the client gives them, partition by partition."""
    settings = {"group.id": "test", "enable.partition.eof": True, "check.crcs": True, "log_level": 0}
    consumer = ck.Consumer({"bootstrap.servers": address, **settings})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([ck.TopicPartition(topic, number, 0) for number in partitions])
    found: dict[int, list[Any]] = {number: [] for number in partitions}
    ended: set[int] = set()
    latest = time.monotonic() + 60
    while len(ended) < len(partitions):
        assert time.monotonic() < latest, "the broker does not give them"
        for message in consumer.consume(1000, 0.05):
            if message.error() is None:
                found[message.partition()].append(message)
            else:
                assert "_PARTITION_EOF" == message.error().name()
                ended.add(message.partition())
    consumer.close()
    return [message for number in sorted(found) for message in found[number]]


@contextmanager
def soon(action: Callable[[], None]) -> Iterator[None]:
    """Does it in two seconds, while the test goes on; done when the block is over."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(lambda: (time.sleep(2), action()))
        yield
        done.result()


def all_of(message: Any) -> tuple[Any, ...]:
    return (message.key(), message.value(), tuple(message.headers()), message.timestamp(), message.partition())


def fill(address: str, topic: str, partition: int) -> None:
    """Orders whose key, headers, timestamp and partition tell something that no policy lets out."""
    producer = ck.Producer({"bootstrap.servers": address})
    for number in range(20):
        event = {
            "id": f"canary-id-{number}",
            "time": f"2014-09-04T22:{number:02d}:00",
            "customer": "canary-customer",
            "note": "canary-note",
        }
        producer.produce(
            topic,
            json.dumps(event),
            b"canary-key",
            partition,
            timestamp=APPENDED_MS,
            headers=[("canary-header-name", b"canary-header-value")],
        )
    assert 0 == producer.flush(30)


def veiled(address: str, topic: str, plan: Plan) -> Iterator[pa.RecordBatch]:
    stream = KafkaStream(Cluster(address), (topic,), f"{topic}-readers")
    before = stream.begin(False)
    after = stream.next(before, 1 << 30)
    assert after is not None
    decoders, veil = Decoders(Reading(plan.schema, plan.used)), plan.bind(KEYS)
    for piece in stream.ranges(before, after):
        for raw in read_topic(piece, frozenset({"key", "headers", "topic", "time", "appended"})):
            decoded, part = decoders.decode(raw), part_of(raw)
            assert part is not None
            yield veil.apply(decoded.events, origin=part.origin, positions=raw.column("position")).veiled
    stream.close()


class TestOfTheSource:
    @pytest.fixture
    def messages(self, kafka: str, plan: Plan, new_topic: Callable[[], str]) -> list[Any]:
        source, target = new_topic(), new_topic()
        fill(kafka, source, partition=3)
        sink = sink_for(plan, kafka, target)
        sink.prepare()
        write(sink, *veiled(kafka, source, plan))
        found = read(kafka, target)

        assert 20 == len(found)
        return found

    def test_nothing_is_in_key_headers_or_value(self, messages: list[Any]) -> None:
        text = "".join(str(all_of(message)) for message in messages)

        assert not [canary for canary in CANARIES if canary in text]

    def test_the_timestamp_is_not_kept_but_that_of_the_output(self, messages: list[Any]) -> None:
        at_ten = int(np.datetime64("2014-09-04T22:00:00", "ms").astype(np.int64))

        assert {(1, at_ten)} == {message.timestamp() for message in messages}

    def test_the_partition_is_not_kept_but_that_of_the_key(self, messages: list[Any]) -> None:
        assert len({message.partition() for message in messages}) > 1
        assert all(message.key() == dict(message.headers())[RECORD_ID] for message in messages)
        assert 20 == len({message.key() for message in messages})


class TestAReplay:
    def test_is_the_same_in_every_byte(self, kafka: str, plan: Plan, new_topic: Callable[[], str]) -> None:
        source, target = new_topic(), new_topic()
        fill(kafka, source, partition=1)
        for _ in range(2):
            write(sink_for(plan, kafka, target), *veiled(kafka, source, plan))
        found = [all_of(message) for message in read(kafka, target)]

        assert 20 == len(set(found))
        assert all(found.count(one) == 2 for one in found)


class TestTheTopic:
    def test_comes_into_being_where_the_broker_makes_topics(self, kafka: str, request: pytest.FixtureRequest) -> None:
        topic = f"test-made-by-asking-{time.time_ns()}"
        sink_of(kafka, topic).prepare()
        try:
            write(sink_of(kafka, topic), batch_of(3))

            assert 3 == len(read(kafka, topic))
        finally:
            admin = AdminClient({"bootstrap.servers": kafka})
            for removed in admin.delete_topics([topic]).values():
                removed.result(30)

    def test_that_cannot_be_is_refused(self, kafka: str) -> None:
        with pytest.raises(StorageError, match="EV415") as told:
            sink_of(kafka, "..").find_topic(3.0)

        assert not isinstance(told.value, Unreachable)

    def test_takes_many_small_messages_where_it_takes_no_large_batch(self, kafka: str, new_topic: Callable[..., str]) -> None:
        topic = new_topic(1, max_message_bytes="200000")
        write(sink_of(kafka, topic, ("compression.type", "none")), batch_of(3000, "x" * 1000))

        assert 3000 == len(read(kafka, topic))

    def test_that_does_not_take_a_message_stops_the_job(self, kafka: str, new_topic: Callable[..., str]) -> None:
        topic = new_topic(1, max_message_bytes="200000")
        sink = sink_of(kafka, topic, ("compression.type", "none"))
        with pytest.raises(StorageError) as told:
            write(sink, batch_of(1, "canary" * 100_000))

        assert f"kafka://{kafka}/{topic}: EV415 a message of 600" in str(told.value)
        assert "canary" not in str(told.value)
        assert not isinstance(told.value, Unreachable)
        # and the next writer has a producer that works
        write(sink, batch_of(1))

        assert 1 == len(read(kafka, topic))


class TestTheBroker:
    def test_may_be_away_for_a_while(self, broker: Any, new_topic_at: Callable[[Any], Callable[[int], str]]) -> None:
        topic = new_topic_at(broker)(2)
        writer = sink_of(broker.address, topic).writer(KEYS)
        writer.write(batch_of(10))
        writer.flush()
        broker.kill()
        with soon(broker.start):
            writer.write(batch_of(2000))
            writer.flush()
        found = [json.loads(message.value())["n"] for message in read(broker.address, topic)]

        assert sorted([*range(10), *range(2000)]) == sorted(found)

    def test_that_stays_away_is_told_as_something_that_may_pass(
        self, broker: Any, new_topic_at: Callable[[Any], Callable[[int], str]]
    ) -> None:
        topic = new_topic_at(broker)(2)
        sink, impatient = sink_of(broker.address, topic), sink_of(broker.address, topic, ("message.timeout.ms", "1500"))
        write(sink, batch_of(10))
        broker.stop()
        began = time.monotonic()
        with pytest.raises(Unreachable, match="EV415 the broker cannot be reached, or does not acknowledge"):
            write(impatient, batch_of(10))

        assert time.monotonic() - began < 10
        with pytest.raises(Unreachable, match="EV415"):
            impatient.find_topic(1.0)
        broker.start()
        write(sink, batch_of(10))

        assert 20 == len(read(broker.address, topic))

    def test_that_freezes_is_waited_for(self, broker: Any, new_topic_at: Callable[[Any], Callable[[int], str]]) -> None:
        topic = new_topic_at(broker)(1)
        sink = sink_of(broker.address, topic)
        write(sink, batch_of(10))
        broker.freeze()
        with soon(broker.thaw):
            write(sink, batch_of(10))

        assert 20 == len(read(broker.address, topic))


class TestTheRegistry:
    def test_has_the_schema_that_a_reader_finds_by_the_messages_number(
        self, kafka: str, registry: str, topic: str, plan: Plan, new_topic: Callable[[], str]
    ) -> None:
        source = new_topic()
        fill(kafka, source, partition=0)
        sink = sink_for(plan, kafka, topic, "avro", registry=RegistryDoc(registry), key="customer")
        sink.prepare()
        write(sink, *veiled(kafka, source, plan))
        found = []
        for message in read(kafka, topic):
            value = message.value()
            number = int.from_bytes(value[1:5], "big")
            with urllib.request.urlopen(f"{registry}/schemas/ids/{number}", timeout=10) as answer:
                schema = json.loads(json.load(answer)["schema"])
            data = io.BytesIO(value[5:])
            found.append(fastavro.schemaless_reader(data, fastavro.parse_schema(schema), None))

            assert (0, b"") == (value[0], data.read())
            assert found[-1]["customer"].encode() == message.key()
        assert 20 == len(found)
        assert {"customer", "hour"} == set(found[0])
        with urllib.request.urlopen(f"{registry}/subjects/{topic}-value/versions", timeout=10) as answer:
            assert [1] == json.load(answer)

    def test_that_does_not_take_the_schema_is_told(self, kafka: str, registry: str, topic: str) -> None:
        sink_of(kafka, topic, format="avro", registry=RegistryDoc(registry)).prepare()
        rule = urllib.request.Request(
            f"{registry}/config/{topic}-value",
            b'{"compatibility": "FULL"}',
            {"Content-Type": "application/vnd.schemaregistry.v1+json"},
            method="PUT",
        )
        urllib.request.urlopen(rule, timeout=10).close()
        other = pa.schema([pa.field("n", pa.string(), nullable=False)])
        with pytest.raises(StorageError, match=f"EV414 the output's schema is not compatible with what {topic}-value holds") as told:
            sink_of(kafka, topic, format="avro", registry=RegistryDoc(registry), schema=other).prepare()

        assert not isinstance(told.value, Unreachable)
