"""Topics read without slices, by Beam's own runner, which reads without an end: in a process of its own, killed when enough was seen."""

from __future__ import annotations

import io
import json
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import fastavro
import pytest
from confluent_kafka.admin import AdminClient, NewPartitions
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from eventveil.transforms.keys.providers.keyring_file import new_keyring

POLICY = """\
policy: measured
version: 1
schema: event.avsc
domain: live
event: {time: {field: time, unit: ms}}
window: 1h
fields:
  n: {keep: {because: test}}
  time: drop
"""
SCHEMA = {"type": "record", "name": "Event", "fields": [{"name": "n", "type": "long"}, {"name": "time", "type": "long"}]}
BEGIN_MS = 1_700_000_000_000


class Reading:
    def __init__(self, home: Path, kafka: str, topic: str, groups: int, idle_after_s: float, registry: str | None) -> None:
        (home / "event.avsc").write_text(json.dumps(SCHEMA))
        (home / "policy.yaml").write_text(POLICY)
        new_keyring(home / "keys.json")
        self.decoded, self.letters = home / "decoded", home / "letters"
        self.log = home / "log"
        given = {
            "policy": str(home / "policy.yaml"),
            "keys": str(home / "keys.json"),
            "decoded": str(self.decoded),
            "letters": str(self.letters),
            "kafka": kafka,
            "topic": topic,
            "group": f"group-of-{topic}",
            "groups": groups,
            "idle_after_s": idle_after_s,
            "registry": registry,
        }
        child = Path(__file__).with_name("topics_child.py")
        with self.log.open("w") as log:
            self.process = subprocess.Popen([sys.executable, child, json.dumps(given)], stdout=log, stderr=log)

    def notes(self, file: Path | None = None) -> list[dict[str, Any]]:
        file = file or self.decoded
        return [json.loads(line) for line in file.read_text().splitlines(True) if line.endswith("\n")] if file.exists() else []

    def positions(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for note in self.notes():
            if note["positions"]:
                found.setdefault(note["origin"], []).extend(note["positions"])
        return found

    def until(self, holds: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.2)


@pytest.fixture
def reading(tmp_path: Path, kafka: str) -> Iterator[Callable[..., Reading]]:
    made: list[Reading] = []

    def begin(topic: str, groups: int = 1, idle_after_s: float = 60.0, registry: str | None = None) -> Reading:
        made.append(Reading(tmp_path, kafka, topic, groups, idle_after_s, registry))
        return made[-1]

    yield begin
    for one in made:
        one.process.kill()
        one.process.wait()


def produce(kafka: str, topic: str, first: int, count: int, partitions: int = 4, step_ms: int = 10) -> None:
    producer = ck.Producer({"bootstrap.servers": kafka, "linger.ms": 5})
    for number in range(first, first + count):
        value = json.dumps({"n": number, "time": BEGIN_MS + step_ms * number})
        producer.produce(topic, value, partition=number % partitions)
    assert producer.flush(30) == 0


class TestReadTopics:
    @pytest.mark.parametrize("groups", [1, 3])
    def test_gives_every_event_once_in_the_order_of_its_partition(self, groups: int, kafka: str, topic: str, reading: Any) -> None:
        produce(kafka, topic, 0, 20_000)
        job = reading(topic, groups)
        job.until(lambda: sum(map(len, job.positions().values())) >= 20_000)
        produce(kafka, topic, 20_000, 400)

        job.until(lambda: sum(map(len, job.positions().values())) >= 20_400)

        assert {f"{topic}/{number}": list(range(5100)) for number in range(4)} == job.positions()

    def test_the_watermark_is_the_least_of_the_partitions_and_never_falls(self, kafka: str, topic: str, reading: Any) -> None:
        job = reading(topic)
        for number in range(5):
            produce(kafka, topic, 400 * number, 400)
            job.until(lambda: sum(map(len, job.positions().values())) >= 400 * (number + 1))  # noqa: B023

        told = [note["watermark"] for note in job.notes() if note["rows"]]
        known = [one for one in told if one is not None]
        assert told[0] is None
        assert known
        assert known == sorted(known)
        seen = [note for note in job.notes() if note["rows"] and note["watermark"] is not None]
        assert all(note["watermark"] <= (BEGIN_MS + 10 * 2000) * 1000 for note in seen)
        assert all(note["stamp"] >= note["watermark"] for note in seen)

    def test_one_forged_time_does_not_move_it(self, kafka: str, new_topic: Any, reading: Any) -> None:
        topic = new_topic(1)
        job = reading(topic)
        produce(kafka, topic, 0, 10, 1)
        job.until(lambda: len(job.notes()) >= 1)
        produce(kafka, topic, 10**9, 1, 1, step_ms=10**4)
        job.until(lambda: len(job.notes()) >= 2)
        produce(kafka, topic, 10, 10, 1)

        job.until(lambda: len(job.notes()) >= 3)

        assert job.notes()[-1]["watermark"] < (BEGIN_MS + 1000) * 1000

    def test_a_silent_partition_holds_nothing_back(self, kafka: str, topic: str, reading: Any) -> None:
        job = reading(topic, idle_after_s=1.0)
        produce(kafka, topic, 0, 10, 1)
        job.until(lambda: len(job.notes()) >= 1)
        time.sleep(3)
        produce(kafka, topic, 10, 10, 1)

        job.until(lambda: sum(map(len, job.positions().values())) >= 20)

        assert job.notes()[-1]["watermark"] is not None

    def test_what_cannot_be_decoded_becomes_letters(self, kafka: str, topic: str, reading: Any) -> None:
        produce(kafka, topic, 0, 10)
        producer = ck.Producer({"bootstrap.servers": kafka})
        producer.produce(topic, b"no event", partition=2)
        producer.flush(30)
        job = reading(topic)

        job.until(lambda: any(note["rows"] for note in job.notes(job.letters)))

        assert [f"{topic}/2"] == [note["origin"] for note in job.notes(job.letters) if note["rows"]]

    def test_a_new_partition_is_found(self, kafka: str, new_topic: Any, reading: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        topic = new_topic(1)
        produce(kafka, topic, 0, 10, 1)
        job = reading(topic)
        job.until(lambda: len(job.positions()) == 1)
        admin = new_topic.admin()
        [made] = admin.create_partitions([NewPartitions(topic, 2)]).values()
        made.result(30)
        time.sleep(1)
        produce(kafka, topic, 10, 10, 2)

        job.until(lambda: len(job.positions()) == 2)

        assert list(range(5)) == job.positions()[f"{topic}/1"]

    def test_the_group_is_told(self, kafka: str, topic: str, reading: Any) -> None:
        produce(kafka, topic, 0, 400)
        job = reading(topic)
        admin = AdminClient({"bootstrap.servers": kafka})

        def told() -> set[int]:
            [found] = admin.list_consumer_group_offsets([ck.ConsumerGroupTopicPartitions(f"group-of-{topic}")]).values()
            return {one.offset for one in found.result(10).topic_partitions}

        job.until(lambda: told() == {100})

    def test_what_a_registry_that_is_away_keeps_from_being_decoded_is_not_lost(
        self, kafka: str, registry: str, topic: str, reading: Any
    ) -> None:
        number = SchemaRegistryClient({"url": registry}).register_schema(f"{topic}-value", Schema(json.dumps(SCHEMA), "AVRO"))
        producer = ck.Producer({"bootstrap.servers": kafka})
        for n in range(400):
            value = io.BytesIO()
            fastavro.schemaless_writer(value, fastavro.parse_schema(SCHEMA), {"n": n, "time": BEGIN_MS + n})
            producer.produce(topic, b"\0" + number.to_bytes(4, "big") + value.getvalue(), partition=n % 4)
        assert producer.flush(30) == 0
        there = urllib.parse.urlsplit(registry)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            away = listening.getsockname()[1]
        job = reading(topic, registry=there._replace(netloc=f"127.0.0.1:{away}").geturl())
        # The decoder waits for half a minute, and then the source is told: what it had read must not be lost.
        job.until(lambda: any("sources.kafka_stream" in line and "EV414" in line for line in job.log.read_text().splitlines()))

        with Forward(away, (there.hostname, there.port)):
            job.until(lambda: sum(map(len, job.positions().values())) >= 400)

        assert {f"{topic}/{number}": list(range(100)) for number in range(4)} == job.positions()


class Forward:
    """What comes to a port of this machine goes on to another address."""

    def __init__(self, port: int, to: tuple[str | None, int | None]) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(to) as other:
                    back = threading.Thread(target=_copy, args=(other, self.request), daemon=True)
                    back.start()
                    _copy(self.request, other)
                    back.join(10)

        socketserver.ThreadingTCPServer.allow_reuse_address = True
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True

    def __enter__(self) -> None:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass
