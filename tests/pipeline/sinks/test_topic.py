"""Messages of a topic: what they hold, in which order, and that nothing else is in them. The broker is the one inside the client."""

from __future__ import annotations

import gc
import io
import json
import pickle
import weakref
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import fastavro
import numpy as np
import pyarrow as pa
import pytest

from eventveil.pipeline.sinks import _producers
from eventveil.pipeline.sinks.kinds import publish_messages
from eventveil.pipeline.sinks.topic import RECORD_ID, TopicSink, topic_sink
from eventveil.pipeline.sinks.write import WriteMessages
from eventveil.pipeline.sources.kafka import Cluster
from eventveil.pipeline.sources.stream import Unreachable
from eventveil.schemas.durations import Duration
from eventveil.schemas.errors import EventveilError, PolicyError, SchemaError, StorageError
from eventveil.schemas.job import OutputDoc, RegistryDoc
from eventveil.schemas.streams import StreamAddress
from eventveil.transforms.batch import ORDER, ROLL, WINDOW, Clock, Part, with_clock, with_part
from eventveil.transforms.compile import load_plan
from eventveil.transforms.encode.avro_events import output_avro_schema
from eventveil.transforms.keys.derive import HeldKeys
from eventveil.transforms.keys.prf import base32
from eventveil.transforms.plan import Plan
from eventveil.transforms.windows import WindowRule

ck = pytest.importorskip("confluent_kafka")

KEYS = HeldKeys(bytes(range(32)))
DAY = 86_400_000_000
PROVENANCE = {"policy": "orders", "version": "3", "digest": "d1", "domain": "analytics", "keys": "k1", "eventveil": "1"}
SCHEMA = pa.schema([("name", pa.string()), ("n", pa.int64()), ("at", pa.timestamp("us"))])
STARTED = 1_700_000_000_000_000


class Seen(NamedTuple):
    key: bytes
    value: bytes | None
    headers: dict[str, str]
    timestamp: int
    partition: int


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    inside = ck.Producer({"test.mock.num.brokers": 1, "log_level": 0})
    known = inside.list_topics(timeout=10).brokers
    yield Cluster(",".join(f"{one.host}:{one.port}" for one in known.values()))
    del inside


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[:200]


def read(cluster: Cluster, topic: str, count: int) -> list[Seen]:
    """The messages of a topic, partition by partition, each in its order."""
    consumer = ck.Consumer({"bootstrap.servers": cluster.bootstrap, "group.id": "test", "enable.partition.eof": True, "log_level": 0})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([ck.TopicPartition(topic, number, 0) for number in partitions])
    found: list[Seen] = []
    ended: set[int] = set()
    while len(ended) < len(partitions):
        for message in consumer.consume(1000, 0.05):
            if message.error() is not None:
                ended.add(message.partition())
                continue
            headers = message.headers() or []
            assert len(headers) == len(dict(headers))
            found.append(
                Seen(
                    message.key(),
                    message.value(),
                    {name: value.decode() for name, value in headers},
                    message.timestamp()[1],
                    message.partition(),
                )
            )
    consumer.close()

    assert len(found) == count
    return found


def batch_of(rows: list[tuple[int, dict[str, Any]]], windows: list[int] | None = None, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    columns = pa.RecordBatch.from_pylist([row for _, row in rows], schema=schema)
    arrays = [*columns.columns, pa.array([order.to_bytes(16, "big") for order, _ in rows], pa.binary(16))]
    names = [*schema.names, ORDER]
    if windows is not None:
        arrays += [pa.array(windows, pa.int64()), pa.array(windows, pa.int64())]
        names += [WINDOW, ROLL]
    return with_part(pa.RecordBatch.from_arrays(arrays, names), Part("kafka-secret-origin/0", 17))


def row(n: int, at: int | None = None) -> dict[str, Any]:
    return {"name": f"name {n}", "n": n, "at": at}


def sink_of(cluster: Cluster, topic: str, **options: Any) -> TopicSink:
    options = {"schema": SCHEMA, "domain": "analytics", "provenance": PROVENANCE, "started_us": STARTED, **options}
    return TopicSink(cluster, topic, **options)


def write(sink: TopicSink, *batches: pa.RecordBatch, keys: Any = KEYS) -> None:
    writer = sink.writer(keys)
    try:
        for batch in batches:
            writer.write(batch)
        writer.flush()
    finally:
        writer.abandon()


class TestAMessage:
    def test_is_the_row_as_json_without_a_line_feed(self, cluster: Cluster, topic: str) -> None:
        write(sink_of(cluster, topic), batch_of([(5, row(1))]))

        assert b'{"name":"name 1","n":1,"at":null}' == read(cluster, topic, 1)[0].value

    def test_has_a_record_id_that_is_its_key_and_a_header(self, cluster: Cluster, topic: str) -> None:
        write(sink_of(cluster, topic), batch_of([(5, row(1))]))
        seen = read(cluster, topic, 1)[0]

        assert seen.key.decode() == seen.headers[RECORD_ID]
        assert len(seen.key) == 26
        assert set(seen.key.decode()) <= set("abcdefghijklmnopqrstuvwxyz234567")

    def test_says_who_made_it_and_nothing_of_its_source(self, cluster: Cluster, topic: str) -> None:
        write(sink_of(cluster, topic), batch_of([(5, row(1))], [DAY]))
        seen = read(cluster, topic, 1)[0]

        assert b'{"name":"name 1","n":1,"at":null}' == seen.value
        assert {
            "eventveil-policy": "orders",
            "eventveil-version": "3",
            "eventveil-digest": "d1",
            "eventveil-domain": "analytics",
            "eventveil-keys": "k1",
            "eventveil-format": "1",
            "eventveil-window": "1970-01-02T00:00:00Z",
            RECORD_ID: seen.key.decode(),
        } == seen.headers

    def test_of_a_key_field_has_that_fields_text_as_its_key(self, cluster: Cluster, topic: str) -> None:
        sink = sink_of(cluster, topic, key=("name",))
        write(sink, batch_of([(5, row(1)), (6, {"name": None, "n": 2}), (7, {"name": "", "n": 3})]))
        by_number = {json.loads(one.value or b"")["n"]: one for one in read(cluster, topic, 3)}

        assert b"name 1" == by_number[1].key
        assert all(by_number[n].key.decode() == by_number[n].headers[RECORD_ID] for n in (2, 3))

    @pytest.mark.parametrize(
        ("column", "expected"),
        [
            pytest.param(pa.array([-7]), b"-7", id="number"),
            pytest.param(pa.array([True]), b"true", id="boolean"),
            pytest.param(pa.array([b"\0\xff"]), b"\0\xff", id="bytes"),
            pytest.param(pa.array(['say "hi"']), b'say "hi"', id="quoted"),
            pytest.param(pa.array(["Zoë"]).dictionary_encode(), "Zoë".encode(), id="dictionary"),
            pytest.param(pa.array([0], pa.timestamp("us", "UTC")), b"1970-01-01T00:00:00Z", id="time"),
        ],
    )
    def test_key_may_be_of_any_type(self, cluster: Cluster, topic: str, column: pa.Array[Any], expected: bytes) -> None:
        inner = pa.StructArray.from_arrays([column], ["id"])
        order = pa.array([bytes(16)], pa.binary(16))
        batch = pa.RecordBatch.from_arrays([inner, order], ["who", ORDER])
        write(sink_of(cluster, topic, key=("who", "id"), schema=batch.select(["who"]).schema), batch)

        assert expected == read(cluster, topic, 1)[0].key

    def test_in_avro_is_a_datum_of_the_outputs_schema(self, cluster: Cluster, topic: str) -> None:
        write(sink_of(cluster, topic, format="avro"), batch_of([(5, row(1, 1_000_000))]))
        value = io.BytesIO(read(cluster, topic, 1)[0].value or b"")
        found: Any = fastavro.schemaless_reader(value, output_avro_schema(SCHEMA, "event"), None)

        assert (1, "name 1") == (found["n"], found["name"])
        assert b"" == value.read()


class TestTheTimestamp:
    def test_is_the_outputs_time_where_it_has_one(self, cluster: Cluster, topic: str) -> None:
        write(sink_of(cluster, topic, timestamp=("at",), zone="Europe/Paris"), batch_of([(5, row(1, 3 * DAY + 3_600_000_000))], [2 * DAY]))

        assert 3 * DAY // 1000 == read(cluster, topic, 1)[0].timestamp

    @pytest.mark.parametrize(
        ("window", "clock", "expected"),
        [
            pytest.param(2 * DAY, 9 * DAY, 2 * DAY // 1000, id="window"),
            pytest.param(None, 9 * DAY, 9 * DAY // 1000, id="clock_of_the_slice"),
            pytest.param(None, None, STARTED // 1000, id="start_of_the_job"),
            pytest.param(0, None, 1, id="never_zero_which_the_client_takes_for_now"),
            pytest.param(-DAY, None, 1, id="never_less"),
        ],
    )
    def test_is_else_that_of(self, cluster: Cluster, topic: str, window: int | None, clock: int | None, expected: int) -> None:
        batch = batch_of([(5, row(1))], None if window is None else [window])
        write(sink_of(cluster, topic, timestamp=("at",)), with_clock(batch, Clock(None, clock)))

        assert expected == read(cluster, topic, 1)[0].timestamp


class TestRecordIds:
    def ids(self, cluster: Cluster, topic: str, batch: pa.RecordBatch, keys: Any = KEYS, **options: Any) -> list[str]:
        write(sink_of(cluster, topic, **options), batch, keys=keys)
        return [one.headers[RECORD_ID] for one in sorted(read(cluster, topic, batch.num_rows), key=lambda one: one.value or b"")]

    @pytest.mark.parametrize("windows", [None, [0, 0, 0]])
    def test_of_two_domains_have_nothing_in_common(self, cluster: Cluster, topic: str, windows: list[int] | None) -> None:
        batch = batch_of([(n, row(n)) for n in range(3)], windows)
        rule = WindowRule(Duration.parse("1d"))
        first = self.ids(cluster, f"{topic}-1", batch, key_window=rule)
        second = self.ids(cluster, f"{topic}-2", batch, key_window=rule, domain="billing")

        assert 6 == len({*first, *second})

    def test_hold_for_a_key_window_and_no_longer(self, cluster: Cluster, topic: str) -> None:
        # the release windows are hours, the keys live for days
        hours = [0, 3_600_000_000, DAY]
        batch = batch_of([(5, row(n)) for n in range(3)], hours)
        first, second, third = self.ids(cluster, topic, batch, key_window=WindowRule(Duration.parse("1d")))

        assert first == second != third

    def test_are_under_a_sub_key_of_their_own(self, cluster: Cluster, topic: str) -> None:
        found = self.ids(cluster, topic, batch_of([(5, row(1))], [DAY]), key_window=WindowRule(Duration.parse("1d")))
        key = KEYS.domain("analytics").for_window(DAY, "1d", "UTC", "record")
        mac = blake2b((5).to_bytes(16, "big"), key=key, digest_size=16).digest()

        assert base32(np.frombuffer(mac, np.uint8).reshape(1, 16)).to_pylist() == found


class TestTheOrder:
    def test_is_keyed_so_that_the_way_rows_came_does_not_show(self, cluster: Cluster, topic: str) -> None:
        rows = [(n * 7 % 50, row(n)) for n in range(50)]
        for number, given in enumerate((rows, rows[::-1])):
            write(sink_of(cluster, f"{topic}-{number}"), batch_of(given))
        first, second = (read(cluster, f"{topic}-{number}", 50) for number in range(2))

        def by_partition(seen: list[Seen]) -> dict[int, list[bytes | None]]:
            return {number: [one.value for one in seen if one.partition == number] for number in range(4)}

        assert by_partition(first) == by_partition(second)

    def test_of_equal_ids_is_that_of_rows_and_windows(self, cluster: Cluster, topic: str) -> None:
        same = [(5, row(1)), (5, row(0)), (5, row(0))]
        write(sink_of(cluster, topic, key=("at",)), batch_of(same, [2 * DAY, 2 * DAY, DAY]))
        found = read(cluster, topic, 3)

        assert [(0, DAY // 1000), (0, 2 * DAY // 1000), (1, 2 * DAY // 1000)] == [
            (json.loads(one.value or b"")["n"], one.timestamp) for one in found
        ]

    def test_may_be_kept(self, cluster: Cluster, topic: str) -> None:
        rows = [(n * 7 % 50, {"name": "same", "n": n}) for n in range(50)]
        write(sink_of(cluster, topic, key=("name",), order="keep"), batch_of(rows))

        assert list(range(50)) == [json.loads(one.value or b"")["n"] for one in read(cluster, topic, 50)]

    def test_of_a_window_does_not_show_its_batches(self, cluster: Cluster, topic: str) -> None:
        rows = [(n * 7 % 50, {"name": "same", "n": n}) for n in range(50)]
        batches = [batch_of(rows[first : first + 10], [DAY] * 10) for first in range(0, 50, 10)]
        publish_messages(sink_of(cluster, topic, key=("name",)), KEYS, lambda: iter(batches), 50, 1 << 20)

        assert sorted(rows, key=lambda one: one[0]) == [
            (n * 7 % 50, rows[n][1]) for n in (json.loads(one.value or b"")["n"] for one in read(cluster, topic, 50))
        ]


class TestAReplay:
    @pytest.mark.parametrize("format", ["jsonl", "avro"])
    def test_is_the_same_in_every_byte(self, cluster: Cluster, topic: str, format: str) -> None:
        batch = batch_of([(n, row(n, DAY + n)) for n in range(200)], [DAY] * 200)
        for _ in range(2):
            # what a restarted process makes of the same plan
            write(pickle.loads(pickle.dumps(sink_of(cluster, topic, format=format, timestamp=("at",), started_us=None))), batch)
        found = [(one.key, one.value, tuple(one.headers.items()), one.timestamp, one.partition) for one in read(cluster, topic, 400)]

        assert 200 == len(set(found))
        assert all(found.count(one) == 2 for one in set(found))


class TestPickling:
    def test_keeps_references_to_secrets_as_they_are(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KAFKA_PASSWORD", "canary-of-the-password")
        safe = Cluster(cluster.bootstrap, (("sasl.password", "${KAFKA_PASSWORD}"),))
        sink = sink_of(
            safe, "pickled", registry=RegistryDoc("http://127.0.0.1:1", (("basic.auth.user.info", "${KAFKA_PASSWORD}"),)), format="avro"
        )
        found = pickle.dumps(WriteMessages(sink, "keyring.json"))

        assert b"${KAFKA_PASSWORD}" in found
        assert b"canary" not in found

    def test_of_a_writer_is_refused(self, cluster: Cluster) -> None:
        with pytest.raises(TypeError, match="holds keys"):
            pickle.dumps(sink_of(cluster, "pickled").writer(KEYS))


class TestErrors:
    def test_of_a_broker_that_is_not_there_say_that_it_may_come_back(self) -> None:
        with pytest.raises(Unreachable, match=r"kafka://127.0.0.1:1/t: EV415 the broker cannot be reached") as told:
            sink_of(Cluster("127.0.0.1:1"), "t").find_topic(1.0)

        assert pickle.loads(pickle.dumps(told.value)).problems == told.value.problems

    def test_of_settings_hide_their_values(self, cluster: Cluster) -> None:
        broken = Cluster(cluster.bootstrap, (("linger.ms", "canary"),))
        with pytest.raises(StorageError, match=r"EV415 the client does not take its settings: linger\.ms") as told:
            sink_of(broken, "t").prepare()

        assert "canary" not in str(told.value)
        assert not isinstance(told.value, Unreachable)

    def test_of_references_name_the_variable(self, cluster: Cluster) -> None:
        with pytest.raises(PolicyError, match="EV117 the environment variable NOT_SET_HERE"):
            sink_of(Cluster(cluster.bootstrap, (("sasl.password", "${NOT_SET_HERE}"),)), "t").prepare()

    def test_of_a_message_that_is_too_large_tell_its_size_and_nothing_else(self, cluster: Cluster, topic: str) -> None:
        small = Cluster(cluster.bootstrap, (("message.max.bytes", "2000"), ("batch.size", "1000")))
        with pytest.raises(StorageError) as told:
            write(sink_of(small, topic), batch_of([(5, {"name": "canary" * 1000, "n": 1})]))

        assert f"kafka://{cluster.bootstrap}/{topic}: EV415 a message of 6053 bytes is larger than the topic takes" in str(told.value)
        assert "canary" not in str(told.value)
        assert not isinstance(told.value, Unreachable)

    def test_of_a_registry_that_is_not_there_say_that_it_may_come_back(self, cluster: Cluster) -> None:
        gone = RegistryDoc("http://127.0.0.1:1", (("max.retries", "0"),))
        with pytest.raises(Unreachable, match=r"http://127.0.0.1:1: EV414 the registry cannot be reached"):
            sink_of(cluster, "t", format="avro", registry=gone).header()

    @pytest.mark.parametrize(
        "options", [{"format": "parquet"}, {"registry": RegistryDoc("http://127.0.0.1:1")}], ids=["no_messages", "registry_of_json"]
    )
    def test_of_formats(self, cluster: Cluster, options: dict[str, Any]) -> None:
        with pytest.raises(StorageError, match="EV406"):
            sink_of(cluster, "t", **options)


class TestSameAs:
    def test_is_told_by_any_broker_that_both_name(self) -> None:
        sink = sink_of(Cluster("a.invalid:9092,b.invalid:9092"), "orders")

        assert sink.same_as(Cluster("b.invalid:9092,c.invalid:9092"), "orders")
        assert not sink.same_as(Cluster("b.invalid:9092"), "orders-2")

    def test_is_told_by_the_cluster_itself(self, cluster: Cluster) -> None:
        port = cluster.bootstrap.rpartition(":")[2]

        assert sink_of(cluster, "orders").same_as(Cluster(f"localhost:{port}"), "orders")


POLICY = """\
policy: orders
version: 3
schema: order.avsc
domain: analytics
event: {time: time, id: id}
window: {keys: 1d, release: 1h}
fields:
  id: drop
  time: [{floor: 1min}, {move: meta.when}]
  customer: {pseudonymize: {class: customer}}
  lines[].n: keep
"""
EVENT = {
    "type": "record",
    "name": "order",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "time", "type": "string"},
        {"name": "customer", "type": "string"},
        {
            "name": "lines",
            "type": {"type": "array", "items": {"type": "record", "name": "line", "fields": [{"name": "n", "type": "int"}]}},
        },
    ],
}


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[[str], Plan]:
    (tmp_path / "order.avsc").write_text(json.dumps(EVENT))

    def made(policy: str) -> Plan:
        (tmp_path / "policy.yaml").write_text(policy)
        return load_plan(tmp_path / "policy.yaml")

    return made


class TestTheSinkOfAJob:
    OUTPUT = OutputDoc("kafka://a.invalid:9092/orders", stream=StreamAddress.parse("kafka://a.invalid:9092/orders"), key="customer")

    def test_finds_time_key_and_windows_in_the_plan(self, plan_of: Callable[[str], Plan]) -> None:
        plan = plan_of(POLICY)
        sink = topic_sink(self.OUTPUT, plan, "json", PROVENANCE)

        assert (("meta", "when"), ("customer",), "jsonl", "analytics") == (sink.timestamp, sink.key, sink.format, sink.domain)
        assert (plan.key_window, plan.output_schema, "keyed") == (sink.key_window, sink.schema, sink.order)
        assert ("a.invalid:9092", "orders") == (sink.cluster.bootstrap, sink.topic)

    @pytest.mark.parametrize("rule", ["drop", "[{floor: 1mo}, {cast: string}]"], ids=["dropped", "as_text"])
    def test_has_no_time_where_the_policy_lets_none_out(self, plan_of: Callable[[str], Plan], rule: str) -> None:
        plan = plan_of(POLICY.replace("[{floor: 1min}, {move: meta.when}]", rule))

        assert topic_sink(self.OUTPUT, plan, "json", PROVENANCE).timestamp is None

    @pytest.mark.parametrize("key", ["custmer", "lines[].n", "lines", "id", "a..b"])
    def test_refuses_a_key_that_is_no_single_field(self, plan_of: Callable[[str], Plan], key: str) -> None:
        output = OutputDoc(self.OUTPUT.uri, stream=self.OUTPUT.stream, key=key)
        with pytest.raises(PolicyError, match=r"EV103 .* is no field of the output of orders\n.*known: customer, meta.when"):
            topic_sink(output, plan_of(POLICY), "json", PROVENANCE)

    def test_in_avro_refuses_names_that_avro_does_not_have(self, plan_of: Callable[[str], Plan]) -> None:
        policy = POLICY.replace("{class: customer}}", "{class: customer}}, {rename: a-b}]").replace("customer: {pseu", "customer: [{pseu")
        output = OutputDoc(self.OUTPUT.uri, stream=self.OUTPUT.stream)
        with pytest.raises(SchemaError, match="EV219"):
            topic_sink(output, plan_of(policy), "avro", PROVENANCE)


class TestTheDoFn:
    def test_ends_a_bundle_when_all_is_delivered(
        self, cluster: Cluster, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("eventveil.pipeline.sinks.write.load_keys", lambda _: KEYS)
        written = WriteMessages(sink_of(cluster, topic), "keyring.json")
        written.setup()
        for bundle in range(3):
            written.start_bundle()
            assert [] == list(written.process(batch_of([(bundle, row(bundle))])))
            assert [] == list(written.finish_bundle())
        written.teardown()

        assert 3 == len(read(cluster, topic, 3))

    def test_forgets_what_a_failed_bundle_left(self, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("eventveil.pipeline.sinks.write.load_keys", lambda _: KEYS)
        written = WriteMessages(sink_of(Cluster("127.0.0.1:1", (("message.timeout.ms", "300"),)), topic), "keyring.json")
        written.setup()
        for _ in range(2):
            written.start_bundle()
            list(written.process(batch_of([(1, row(1))])))
            with pytest.raises(EventveilError, match="EV415 the broker cannot be reached"):
                list(written.finish_bundle())


def test_a_producer_that_was_abandoned_is_gone_with_its_threads_and_connections(cluster: Cluster, topic: str) -> None:
    producer = _producers.take(cluster)
    kept = weakref.ref(producer)
    producer.send(topic, [(b"value", b"key", 1_700_000_000_000, [])] * 1000)

    producer.abandon()
    del producer
    gc.collect()

    assert kept() is None
