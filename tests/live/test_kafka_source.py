"""The Kafka source against a real broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import confluent_kafka as ck
import pyarrow as pa
import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from eventveil.pipeline.sources import _kafka_reader
from eventveil.pipeline.sources import kafka as source
from eventveil.pipeline.sources.kafka import Cluster, KafkaStream, TopicRange, read_topic
from eventveil.pipeline.sources.stream import State, Unreachable
from eventveil.schemas.errors import StorageError
from eventveil.transforms.batch import part_of

MANY = 1 << 30
Rows = dict[str, list[tuple[int, Any]]]


@pytest.fixture
def stream_of(kafka: str) -> Iterator[Callable[..., KafkaStream]]:
    made: list[KafkaStream] = []

    def make(*topics: str, address: str = kafka, groups: int = 1, **settings: str) -> KafkaStream:
        made.append(KafkaStream(Cluster(address, tuple(settings.items())), topics, f"group-of-{topics[0]}", groups))
        return made[-1]

    yield make
    for stream in made:
        stream.close()


@pytest.fixture(autouse=True)
def unlearned() -> None:
    source._sizes.clear()


def produce(address: str, topic: str, values: Sequence[bytes | None], partition: int = 0, **settings: Any) -> None:
    producer = ck.Producer({"bootstrap.servers": address, "linger.ms": 5})
    for value in values:
        producer.produce(topic, value, partition=partition, **settings)
    assert producer.flush(30) == 0


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b'{"n":%d}' % number for number in range(start, start + count)]


def rows_of(batches: Sequence[pa.RecordBatch]) -> Rows:
    found: Rows = {}
    for batch in batches:
        part = part_of(batch)
        assert part is not None
        found.setdefault(part.origin, []).extend(zip(batch["position"].to_pylist(), batch["value"].to_pylist(), strict=True))
    return found


def read(stream: KafkaStream, before: State, after: State, wants: frozenset[str] = frozenset()) -> list[pa.RecordBatch]:
    return [batch for piece in stream.ranges(before, after) for batch in read_topic(piece, wants)]


def drain(stream: KafkaStream, state: State, most_bytes: int = MANY) -> tuple[list[pa.RecordBatch], State, int]:
    """All that there is, slice by slice."""
    batches: list[pa.RecordBatch] = []
    slices = 0
    while (after := stream.next(state, most_bytes)) is not None:
        batches += read(stream, state, after)
        state, slices = after, slices + 1
    return batches, state, slices


class TestReading:
    def test_gives_every_message_once_in_the_order_of_its_partition(self, kafka: str, topic: str, stream_of: Any) -> None:
        for partition in range(4):
            produce(kafka, topic, numbered(1000 * partition), partition)
        stream = stream_of(topic)

        batches, state, _ = drain(stream, stream.begin(False))

        expected = {f"{topic}/{number}": list(enumerate(numbered(1000 * number))) for number in (1, 2, 3)}
        assert expected == rows_of(batches)
        assert {f"{topic}/{number}": 1000 * number for number in range(4)} == state["positions"]
        assert 0 == stream.lag(state)
        assert set(stream.lanes(state)) == stream.is_caught_up(state)

    def test_parts_are_whole_and_partition_follows_partition(self, kafka: str, topic: str, stream_of: Any) -> None:
        for partition in range(4):
            produce(kafka, topic, numbered(700), partition)
        stream = stream_of(topic)
        before = stream.begin(False)
        [piece] = stream.ranges(before, stream.next(before, MANY))

        parts = [part_of(batch) for batch in read_topic(piece, batch_bytes=2000)]

        expected: dict[str, int] = {}
        for part in parts:
            assert part is not None
            assert (part.number, part.start) == (expected.get(part.origin, 0), 0)
            expected[part.origin] = part.number + 1
        assert [f"{topic}/{number}" for number in range(4)] == [part.origin for part in parts if part is not None and part.last]
        assert all(count > 2 for count in expected.values())

    def test_the_same_slice_gives_the_same_rows_again(self, kafka: str, topic: str, stream_of: Any) -> None:
        produce(kafka, topic, numbered(3000))
        stream = stream_of(topic)
        before = stream.begin(False)
        after = stream.next(before, MANY)
        first = read(stream, before, after)
        produce(kafka, topic, numbered(10))
        drain(stream, after)

        again = read(stream, before, after)

        assert rows_of(first) == rows_of(again)

    def test_goes_on_where_the_last_slice_ended_without_a_new_consumer(self, kafka: str, topic: str, stream_of: Any) -> None:
        produce(kafka, topic, numbered(100))
        stream = stream_of(topic)
        _, state, _ = drain(stream, stream.begin(False))
        [reader] = [reader for (cluster, *_), reader in _kafka_reader._parked.items() if cluster == stream._cluster]
        for number in range(1, 5):
            produce(kafka, topic, numbered(100, 100 * number))
            batches, state, _ = drain(stream, state)

            assert {f"{topic}/0": [(100 * number + at, value) for at, value in enumerate(numbered(100, 100 * number))]} == rows_of(batches)
        assert [reader] == [reader for (cluster, *_), reader in _kafka_reader._parked.items() if cluster == stream._cluster]

    @pytest.mark.parametrize("held", [1, 20_000, 200_000])
    def test_what_is_held_back_is_bounded_and_nothing_is_lost(
        self, held: int, kafka: str, topic: str, stream_of: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_kafka_reader, "_HELD_BYTES", held)
        monkeypatch.setattr(_kafka_reader, "_MESSAGES_AT_ONCE", 50)
        for partition in range(4):
            produce(kafka, topic, numbered(3000), partition)
        stream = stream_of(topic)
        before = stream.begin(False)

        most = 0
        batches = []
        for piece in stream.ranges(before, before | {"positions": dict.fromkeys(before["positions"], 2500)}):
            for batch in read_topic(piece, batch_bytes=5000):
                batches.append(batch)
                most = max(most, *(reader._bytes for reader in live_readers()))

        assert {f"{topic}/{number}": list(enumerate(numbered(2500))) for number in range(4)} == rows_of(batches)
        assert most < held + 200 * 150 + 50_000

    def test_several_topics_share_a_consumer(self, kafka: str, new_topic: Any, stream_of: Any) -> None:
        names = sorted([new_topic(2), new_topic(2)])
        for number, name in enumerate(names):
            produce(kafka, name, numbered(500, number), 1)
        stream = stream_of(*names)

        batches, _, _ = drain(stream, stream.begin(False))

        assert {f"{name}/1": list(enumerate(numbered(500, number))) for number, name in enumerate(names)} == rows_of(batches)

    def test_groups_split_the_partitions(self, kafka: str, topic: str, stream_of: Any) -> None:
        for partition in range(4):
            produce(kafka, topic, numbered(10), partition)
        stream = stream_of(topic, groups=3)
        before = stream.begin(False)
        after = stream.next(before, MANY)

        ranges = stream.ranges(before, after)

        assert [(0, [0, 3]), (1, [1]), (2, [2])] == [(one.group, [piece[1] for piece in one.pieces]) for one in ranges]
        assert 40 == sum(batch.num_rows for batch in read(stream, before, after))

    def test_null_and_empty_values_differ(self, kafka: str, topic: str, stream_of: Any) -> None:
        produce(kafka, topic, [None, b"", b"{}"], key=b"k")
        stream = stream_of(topic)

        batches, _, _ = drain(stream, stream.begin(False))

        assert [(0, None), (1, b""), (2, b"{}")] == rows_of(batches)[f"{topic}/0"]

    def test_a_large_message_arrives_whole_and_alone(self, kafka: str, new_topic: Any, stream_of: Any) -> None:
        topic = new_topic(1, max_message_bytes="20000000")
        large = b"x" * 9_000_000
        producer = ck.Producer({"bootstrap.servers": kafka, "message.max.bytes": 20_000_000})
        for value in (b"{}", large, b"{}"):
            producer.produce(topic, value)
        producer.flush(30)
        stream = stream_of(topic)

        batches, _, _ = drain(stream, stream.begin(False))

        assert [(0, b"{}"), (1, large), (2, b"{}")] == rows_of(batches)[f"{topic}/0"]
        assert [1, 1, 1] == [batch.num_rows for batch in batches]


def live_readers() -> list[Any]:
    import gc

    return [one for one in gc.get_objects() if type(one) is _kafka_reader.Reader]


class TestColumns:
    def test_all_that_can_be_asked_for(self, kafka: str, topic: str, stream_of: Any) -> None:
        headers = [("a", b"1"), ("b", None), ("a", b"\xff")]
        produce(kafka, topic, [b"{}"], key=b"\x00key", headers=headers, timestamp=1_700_000_000_123)
        produce(kafka, topic, [b"{}"])
        stream = stream_of(topic)
        before = stream.begin(False)
        wants = frozenset({"key", "headers", "topic", "time", "appended"})

        [batch] = read(stream, before, stream.next(before, MANY), wants)

        told = [{"name": name, "value": value} for name, value in headers]
        assert ["value", "position", *sorted(wants)] == batch.schema.names
        assert [b"\x00key", None] == batch["key"].to_pylist()
        assert [told, []] == batch["headers"].to_pylist()
        assert [topic, topic] == batch["topic"].to_pylist()
        assert 1_700_000_000_123_000 == batch["time"].cast(pa.int64())[0].as_py()
        assert [None, None] == batch["appended"].to_pylist()

    def test_only_the_brokers_clock_says_when_a_message_came(self, kafka: str, new_topic: Any, stream_of: Any) -> None:
        topic = new_topic(1, message_timestamp_type="LogAppendTime")
        produce(kafka, topic, [b"{}"], timestamp=1_700_000_000_123)
        stream = stream_of(topic)
        before = stream.begin(False)

        [batch] = read(stream, before, stream.next(before, MANY), frozenset({"appended", "time"}))

        assert abs(time.time() - batch["appended"].cast(pa.int64())[0].as_py() / 1e6) < 600
        assert batch["time"] == batch["appended"]


class TestWhatIsNotThere:
    def producer(self, address: str, topic: str) -> ck.Producer:
        producer = ck.Producer({"bootstrap.servers": address, "transactional.id": topic})
        producer.init_transactions(30)
        return producer

    def end(self, producer: ck.Producer, keep: bool) -> None:
        producer.flush(30)  # what an aborted transaction did not send before is never sent
        if keep:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)

    def settle(self, stream: KafkaStream, end: int) -> None:
        """Markers of transactions are written behind the producer's back."""
        until(lambda: sum(stream.begin(True)["positions"].values()) == end)

    def test_an_aborted_transaction_is_never_seen(self, kafka: str, topic: str, stream_of: Any) -> None:
        producer = self.producer(kafka, topic)
        for number, keep in enumerate([True, False, True, False, False]):
            producer.begin_transaction()
            for value in numbered(10, 10 * number):
                producer.produce(topic, value, partition=0)
            self.end(producer, keep)
        stream = stream_of(topic)
        self.settle(stream, 55)

        batches, state, _ = drain(stream, stream.begin(False))

        assert [*numbered(10), *numbered(10, 20)] == [value for _, value in rows_of(batches)[f"{topic}/0"]]
        assert 55 == state["positions"][f"{topic}/0"]

    def test_slices_end_in_gaps_and_go_on_behind_them(self, kafka: str, topic: str, stream_of: Any) -> None:
        producer = self.producer(kafka, topic)
        stream = stream_of(topic)
        state = stream.begin(False)
        seen = []
        for number, keep in enumerate([True, False, False, True, True]):
            producer.begin_transaction()
            producer.produce(topic, b"%d" % number, partition=0)
            self.end(producer, keep)
            self.settle(stream, 2 * number + 2)
            batches, state, slices = drain(stream, state)
            seen += rows_of(batches).get(f"{topic}/0", [])
            assert 1 == slices

        assert [(0, b"0"), (6, b"3"), (8, b"4")] == seen

    def test_an_open_transaction_is_waited_for(self, kafka: str, topic: str, stream_of: Any) -> None:
        producer = self.producer(kafka, topic)
        producer.begin_transaction()
        producer.produce(topic, b"open", partition=0)
        producer.flush(30)
        produce(kafka, topic, [b"behind"])
        stream = stream_of(topic)

        before = stream.begin(False)
        assert stream.next(before, MANY) is None
        assert stream.begin(True) == before
        producer.commit_transaction(30)
        batches, _, _ = drain(stream, before)

        assert [b"open", b"behind"] == [value for _, value in rows_of(batches)[f"{topic}/0"]]

    @pytest.mark.slow
    def test_a_compacted_topic_has_gaps(self, kafka: str, new_topic: Any, stream_of: Any) -> None:
        quick = {"segment_ms": "100", "min_cleanable_dirty_ratio": "0.01", "max_compaction_lag_ms": "200", "delete_retention_ms": "1"}
        topic = new_topic(1, cleanup_policy="compact", **quick)
        for number in range(5):
            produce(kafka, topic, numbered(100, number), key=b"same")
            time.sleep(0.2)
        stream = stream_of(topic)
        before = stream.begin(False)
        deadline = time.monotonic() + 90
        while len(positions := [at for at, _ in rows_of(drain(stream, before)[0])[f"{topic}/0"]]) > 400:
            assert time.monotonic() < deadline
            time.sleep(2)
            produce(kafka, topic, numbered(1), key=b"same")  # only what is behind the newest segment is compacted

        batches, state, _ = drain(stream, before)

        assert positions[-1] < state["positions"][f"{topic}/0"]
        assert len(positions) < state["positions"][f"{topic}/0"]
        assert rows_of(batches)


class TestHowFarASliceGoes:
    def test_of_nothing_new_there_is_no_slice(self, topic: str, stream_of: Any) -> None:
        stream = stream_of(topic)

        assert stream.next(stream.begin(False), MANY) is None

    def test_bytes_bound_it_once_sizes_are_known(self, kafka: str, topic: str, stream_of: Any) -> None:
        for partition in range(4):
            produce(kafka, topic, [b"x" * 1000] * 5000, partition)
        stream = stream_of(topic)
        state = stream.begin(False)
        state, first = stream.next(state, 1_000_000), state
        read(stream, first, state)
        sizes = []
        while (after := stream.next(state, 1_000_000)) is not None:
            sizes.append(sum(batch["value"].nbytes for batch in read(stream, state, after)))
            state = after

        assert len(sizes) > 10
        assert all(900_000 < size < 1_100_000 for size in sizes[2:-1])
        assert 20_000 == sum(state["positions"].values())

    def test_a_slice_is_never_empty(self, kafka: str, topic: str, stream_of: Any) -> None:
        for partition in range(4):
            produce(kafka, topic, [b"x" * 1000] * 3, partition)
        stream = stream_of(topic)

        _, state, slices = drain(stream, stream.begin(False), most_bytes=1)

        assert [3] * 4 == list(state["positions"].values())
        assert 3 == slices

    def test_from_now_leaves_what_is_there(self, kafka: str, topic: str, stream_of: Any) -> None:
        produce(kafka, topic, numbered(10))
        stream = stream_of(topic)
        state = stream.begin(True)
        produce(kafka, topic, numbered(5, 10))

        batches, _, _ = drain(stream, state)

        assert numbered(5, 10) == [value for _, value in rows_of(batches)[f"{topic}/0"]]

    def test_a_new_partition_is_read_from_its_beginning(self, kafka: str, new_topic: Any, stream_of: Any) -> None:
        topic = new_topic(1)
        produce(kafka, topic, numbered(10))
        stream = stream_of(topic)
        _, state, _ = drain(stream, stream.begin(False))
        admin = new_topic.admin()
        [made] = admin.create_partitions([NewPartitions(topic, 3)]).values()
        made.result(30)
        until(lambda: len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == 3)
        produce(kafka, topic, numbered(7), 2)

        batches, state, _ = drain(stream, state)

        assert {f"{topic}/2": list(enumerate(numbered(7)))} == rows_of(batches)
        assert (f"{topic}/0", f"{topic}/1", f"{topic}/2") == stream.lanes(state)

    def test_lag_counts_what_the_last_look_saw(self, kafka: str, topic: str, stream_of: Any) -> None:
        produce(kafka, topic, numbered(10), 0)
        produce(kafka, topic, numbered(5), 1)
        stream = stream_of(topic)
        before = stream.begin(False)

        after = stream.next(before, MANY)

        assert (15, 0) == (stream.lag(before), stream.lag(after))
        assert {f"{topic}/2", f"{topic}/3"} == stream.is_caught_up(before)

    def test_the_group_is_told(self, kafka: str, topic: str, stream_of: Any) -> None:
        produce(kafka, topic, numbered(10))
        stream = stream_of(topic)
        _, state, _ = drain(stream, stream.begin(False))

        stream.committed(state)
        stream.close()

        asked = [ck.ConsumerGroupTopicPartitions(f"group-of-{topic}")]
        admin = AdminClient({"bootstrap.servers": kafka})
        [told] = admin.list_consumer_group_offsets(asked).values()
        assert {0: 10, 1: 0, 2: 0, 3: 0} == {one.partition: one.offset for one in told.result(10).topic_partitions}


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def code_of(error: pytest.ExceptionInfo[StorageError]) -> str:
    return error.value.problems[0].code


class TestWhatIsGone:
    def cut(self, address: str, topic: str, before: int) -> None:
        admin = AdminClient({"bootstrap.servers": address})
        [done] = admin.delete_records([ck.TopicPartition(topic, 0, before)]).values()
        done.result(30)

    def test_expired_messages_stop_the_next_slice(self, kafka: str, topic: str, stream_of: Any) -> None:
        produce(kafka, topic, numbered(10))
        stream = stream_of(topic)
        state = stream.begin(False)
        self.cut(kafka, topic, 4)

        with pytest.raises(StorageError) as error:
            stream.next(state, MANY)

        assert "EV412" == code_of(error)
        assert "offset 0" in str(error.value)

    def test_expired_messages_stop_a_slice_that_was_begun(self, kafka: str, topic: str, stream_of: Any) -> None:
        produce(kafka, topic, numbered(10))
        stream = stream_of(topic)
        before = stream.begin(False)
        after = stream.next(before, MANY)
        self.cut(kafka, topic, 4)

        with pytest.raises(StorageError) as error:
            read(stream, before, after)

        assert "EV412" == code_of(error)
        assert not isinstance(error.value, Unreachable)

    def test_what_was_cut_before_it_began_is_not_missed(self, kafka: str, topic: str, stream_of: Any) -> None:
        produce(kafka, topic, numbered(10))
        self.cut(kafka, topic, 4)
        stream = stream_of(topic)

        batches, _, _ = drain(stream, stream.begin(False))

        assert numbered(6, 4) == [value for _, value in rows_of(batches)[f"{topic}/0"]]

    def test_a_position_beyond_the_end(self, topic: str, stream_of: Any) -> None:
        stream = stream_of(topic)
        state = stream.begin(False)
        state["positions"][f"{topic}/1"] = 5

        with pytest.raises(StorageError) as error:
            stream.next(state, MANY)

        assert "EV412" == code_of(error)

    def test_a_topic_that_was_made_anew(self, kafka: str, new_topic: Any, stream_of: Any) -> None:
        from confluent_kafka.admin import NewTopic

        topic = new_topic(1)
        produce(kafka, topic, numbered(5))
        stream = stream_of(topic)
        _, state, _ = drain(stream, stream.begin(False))
        admin = new_topic.admin()
        admin.delete_topics([topic], operation_timeout=10)[topic].result(30)
        until(lambda: topic not in admin.list_topics(timeout=10).topics)
        admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
        produce(kafka, topic, numbered(9))

        with pytest.raises(StorageError) as error:
            stream.next(state, MANY)

        assert "EV412" == code_of(error)
        assert "made anew" in str(error.value)


class TestWhatCannotBeReached:
    def test_an_unknown_topic_stops_and_is_not_made(self, kafka: str, stream_of: Any) -> None:
        name = f"no-such-topic-{time.time_ns()}"

        with pytest.raises(StorageError) as error:
            stream_of(name).begin(False)

        assert "EV413" == code_of(error)
        assert not isinstance(error.value, Unreachable)
        assert name not in AdminClient({"bootstrap.servers": kafka}).list_topics(timeout=10).topics

    def test_no_broker_is_said_in_bounded_time_and_quietly(
        self, stream_of: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(source, "_LOOK_S", 2.0)
        began = time.monotonic()

        with pytest.raises(Unreachable) as error:
            stream_of("orders", address="127.0.0.1:1").begin(False)

        assert "EV413" == code_of(error)
        assert time.monotonic() - began < 10
        assert "" == "".join(capfd.readouterr())

    def test_a_read_that_gets_nothing_ends(self, topic: str, kafka: str, stream_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_kafka_reader, "_PATIENCE_S", 1.0)
        cluster = Cluster("127.0.0.1:1")

        with pytest.raises(Unreachable):
            list(read_topic(TopicRange(cluster, 0, ((topic, 0, 0, 5),))))

    def test_credentials_that_the_broker_does_not_take_are_for_good(self, stream_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(source, "_LOOK_S", 3.0)
        monkeypatch.setenv("CANARY", "s3cret-canary")
        settings = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanisms": "PLAIN"}
        stream = stream_of("orders", **settings, **{"sasl.username": "${CANARY}", "sasl.password": "${CANARY}"})

        with pytest.raises(StorageError) as error:
            stream.begin(False)

        assert not isinstance(error.value, Unreachable)
        assert "s3cret-canary" not in str(error.value)

    def test_a_broker_that_restarts_is_waited_for(self, broker: Any, new_topic_at: Any, stream_of: Any) -> None:
        topic = new_topic_at(broker)(2)
        for partition in range(2):
            produce(broker.address, topic, numbered(2000), partition)
        stream = stream_of(topic, address=broker.address)
        before = stream.begin(False)
        after = stream.next(before, MANY)
        broker.kill()
        back = threading.Timer(3, broker.start)
        back.start()

        batches = read(stream, before, after)
        back.join()
        until(lambda: reachable(stream, after))

        assert {f"{topic}/{number}": list(enumerate(numbered(2000))) for number in range(2)} == rows_of(batches)

    def test_a_broker_that_is_away_does_not_end_the_stream(
        self, broker: Any, new_topic_at: Any, stream_of: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(source, "_LOOK_S", 2.0)
        topic = new_topic_at(broker)(1)
        stream = stream_of(topic, address=broker.address)
        state = stream.begin(False)
        broker.stop()
        with pytest.raises(Unreachable):
            stream.next(state, MANY)
        stream.committed(state)
        broker.start()
        produce(broker.address, topic, numbered(3))
        until(lambda: reachable(stream, state))

        assert numbered(3) == [value for _, value in rows_of(drain(stream, state)[0])[f"{topic}/0"]]


def reachable(stream: KafkaStream, state: State) -> bool:
    try:
        stream.next(state, MANY)
    except Unreachable:
        return False
    return True
