"""Rows as messages of Pub/Sub, at one in memory: what a message says, in which order they come, and what happens when nobody takes them."""

from __future__ import annotations

import io
import json
import pickle
import runpy
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("google.pubsub_v1")

from eventveil.pipeline.sinks import pubsub as module
from eventveil.pipeline.sinks.kinds import MessageSink, publish_messages
from eventveil.pipeline.sinks.pubsub import PubsubSink
from eventveil.pipeline.sources._pubsub_client import Connection, Project
from eventveil.pipeline.sources.stream import Unreachable
from eventveil.schemas.errors import StorageError
from eventveil.transforms.batch import ORDER, WINDOW
from eventveil.transforms.encode.avro_events import output_avro_schema
from eventveil.transforms.keys.derive import HeldKeys
from eventveil.transforms.keys.prf import base32

made = runpy.run_path(str(Path(__file__).with_name("pubsub_desk.py")))
PROJECT, LAST, event = made["PROJECT"], made["LAST"], made["event"]
KEYS = HeldKeys(bytes(range(32)))
SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string())])
PROVENANCE = {"policy": "orders", "version": "1", "digest": "d1", "domain": "analytics", "keys": "k1", "eventveil": "1"}
MADE_BY = {f"eventveil-{name}": PROVENANCE[name] for name in ("policy", "version", "digest", "domain", "keys")} | {"eventveil-format": "1"}
PLANTED = "planted-93be"


@pytest.fixture
def desk(tmp_path: Path, pubsub: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub)
    one = made["PubsubDesk"](tmp_path)
    yield one
    one.close()


def sink_of(desk: Any, **options: Any) -> PubsubSink:
    return PubsubSink(Project(PROJECT), desk.name, **{"schema": SCHEMA, "domain": "analytics", "provenance": PROVENANCE, **options})


def batch_of(orders: list[int], text: str | None = "x", window: int | None = None) -> pa.RecordBatch:
    columns: list[Any] = [pa.array(orders, pa.int64()), pa.array([text] * len(orders), pa.string())]
    columns.append(pa.array([number.to_bytes(16, "big") for number in orders], pa.binary(16)))
    if window is None:
        return pa.RecordBatch.from_arrays(columns, [*SCHEMA.names, ORDER])
    return pa.RecordBatch.from_arrays([*columns, pa.array([window] * len(orders))], [*SCHEMA.names, ORDER, WINDOW])


def write(sink: PubsubSink, *batches: pa.RecordBatch) -> None:
    writer = sink.writer(KEYS)
    try:
        for batch in batches:
            writer.write(batch)
        writer.flush()
    finally:
        writer.abandon()


def taken(desk: Any, count: int) -> list[Any]:
    """The messages of the topic, by their ids, which the emulator counts."""
    found: dict[int, Any] = {}
    until = time.monotonic() + 20
    while len(found) < count and time.monotonic() < until:
        request = {"subscription": desk.subscription, "max_messages": 1000}
        pulled = desk.subscriber.pull(request=request, timeout=5).received_messages
        found |= {int(one.message.message_id): one.message for one in pulled}
        if pulled:
            request = {"subscription": desk.subscription, "ack_ids": [one.ack_id for one in pulled]}
            desk.subscriber.acknowledge(request=request)

    assert len(found) == count
    return [found[number] for number in sorted(found)]


class TestAMessage:
    def test_is_the_row_as_json_with_what_made_it(self, desk: Any) -> None:
        write(sink_of(desk), batch_of([5], window=1_700_000_400_000_000))

        [message] = taken(desk, 1)
        key = KEYS.domain("analytics").for_domain("record")
        mac = blake2b((5).to_bytes(16, "big"), key=key, digest_size=16).digest()
        [record_id] = base32(np.frombuffer(mac, np.uint8).reshape(1, 16)).to_pylist()
        assert message.data == b'{"n":5,"text":"x"}'
        assert message.ordering_key == ""
        assert dict(message.attributes) == {**MADE_BY, "eventveil-record-id": record_id, "eventveil-window": "2023-11-14T22:20:00Z"}

    def test_is_an_avro_datum_where_it_is_asked_for(self, desk: Any) -> None:
        write(sink_of(desk, format="avro"), batch_of([5]))

        [message] = taken(desk, 1)
        schema = fastavro.parse_schema(output_avro_schema(SCHEMA, "event"))
        assert fastavro.schemaless_reader(io.BytesIO(message.data), schema, None) == {"n": 5, "text": "x"}

    def test_of_a_key_field_is_ordered_by_it(self, desk: Any) -> None:
        write(sink_of(desk, key=("text",)), batch_of([1], "north"), batch_of([2], None), batch_of([3], ""))

        assert [message.ordering_key for message in taken(desk, 3)] == ["north", "", ""]

    def test_that_is_written_again_is_the_same(self, desk: Any) -> None:
        sink, batch = sink_of(desk), batch_of([3, 1, 2], window=1_700_000_400_000_000)
        write(sink, batch)
        write(sink, batch)

        found = [(message.data, dict(message.attributes)) for message in taken(desk, 6)]
        assert found[:3] == found[3:]


class TestAWriter:
    def test_writes_rows_in_keyed_order(self, desk: Any) -> None:
        write(sink_of(desk), batch_of([3, 1, 2]))

        assert [json.loads(message.data)["n"] for message in taken(desk, 3)] == [1, 2, 3]

    def test_writes_all_of_a_window(self, desk: Any) -> None:
        batches = [batch_of(list(range(start, start + 500)), window=0) for start in range(0, 5_000, 500)]

        publish_messages(sink_of(desk), KEYS, lambda: iter(batches), 5_000, sum(batch.nbytes for batch in batches))

        assert sorted(json.loads(message.data)["n"] for message in taken(desk, 5_000)) == list(range(5_000))

    def test_keeps_the_order_of_a_key_over_requests(self, desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_MESSAGES", 50)
        write(sink_of(desk, key=("text",)), *(batch_of(list(range(start, start + 100))) for start in range(0, 1_000, 100)))

        assert [json.loads(message.data)["n"] for message in taken(desk, 1_000)] == list(range(1_000))

    def test_has_a_bounded_number_of_requests_under_way(self, desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_MESSAGES", 10)
        writer = sink_of(desk).writer(KEYS)
        most = 0
        for start in range(0, 2_000, 100):
            writer.write(batch_of(list(range(start, start + 100))))
            most = max(most, len(writer._under_way))
        writer.flush()

        assert most <= 4
        assert not writer._under_way
        taken(desk, 2_000)

    def test_stops_at_a_message_that_is_too_large_without_showing_it(self, desk: Any) -> None:
        with pytest.raises(StorageError) as caught:
            write(sink_of(desk), batch_of([1], PLANTED * 1_000_000))

        [problem] = caught.value.problems
        assert problem.code == "EV421"
        assert "larger than the service takes" in problem.fact
        assert PLANTED not in str(caught.value)

    @pytest.mark.parametrize("text", [PLANTED * 200], ids=["long"])
    def test_stops_at_a_key_that_is_too_long_without_showing_it(self, desk: Any, text: str) -> None:
        with pytest.raises(StorageError, match="EV421") as caught:
            write(sink_of(desk, key=("text",)), batch_of([1], text))

        assert PLANTED not in str(caught.value)

    def test_goes_on_when_the_service_is_back(self, desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        result, failures = Connection.result, iter([True, True, False])

        def failing(self: Connection, future: Any, place: str) -> Any:
            found = result(self, future, place)
            if next(failures, False):
                raise Unreachable.of("EV421", "away")
            return found

        monkeypatch.setattr(Connection, "result", failing)
        write(sink_of(desk), batch_of([1]))

        assert {message.data for message in taken(desk, 3)} == {b'{"n":1,"text":"x"}'}

    def test_is_never_pickled_and_a_sink_is(self, desk: Any) -> None:
        sink = sink_of(desk)

        assert pickle.loads(pickle.dumps(sink)) == sink
        assert isinstance(sink, MessageSink)
        with pytest.raises(TypeError):
            pickle.dumps(sink.writer(KEYS))


class TestPrepare:
    def test_finds_the_topic(self, desk: Any) -> None:
        sink_of(desk).prepare()

    def test_a_topic_that_is_not_there_stops(self, desk: Any) -> None:
        desk.publisher.delete_topic(topic=desk.topic)

        with pytest.raises(StorageError) as caught:
            sink_of(desk).prepare()

        assert not isinstance(caught.value, Unreachable)
        assert "EV421 does not exist" in str(caught.value)

    def test_a_service_that_is_away_may_be_back(self, desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:9")

        with pytest.raises(Unreachable, match="EV421"):
            sink_of(desk).prepare()


def test_a_job_from_subscription_to_topic_leaves_nothing_out(desk: Any, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    to = made["PubsubDesk"](tmp_path / "to")
    desk.write_job(output={"uri": f"pubsub://{PROJECT}/{to.name}", "key": "who"})
    desk.publish([event(number, who=PLANTED) for number in range(1_000)], secret=PLANTED)

    assert desk.run() == 0, desk.log()

    messages = taken(to, 1_000)
    assert sorted(json.loads(message.data)["n"] for message in messages) == list(range(1_000))
    assert len({message.attributes["eventveil-record-id"] for message in messages}) == 1_000
    assert not any(PLANTED in str(message) for message in messages)
    assert all(message.ordering_key == json.loads(message.data)["who"] for message in messages)
    to.close()
