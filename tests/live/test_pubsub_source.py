"""A subscription read by slices, at a Pub/Sub in memory: nothing is lost wherever the job is killed, and what comes again is the same."""

from __future__ import annotations

import hashlib
import runpy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

pytest.importorskip("google.pubsub_v1")

from eventveil.pipeline.prepare import prepare
from eventveil.pipeline.report.reporter import Reporter
from eventveil.pipeline.runners.slices import Drain, run
from eventveil.pipeline.sources._spool import SpoolFolder
from eventveil.pipeline.sources.pubsub import Project, PubsubStream, read_spool
from eventveil.schemas.errors import StorageError, Unreachable
from eventveil.schemas.job import load_job
from eventveil.schemas.streams import PubsubAddress
from eventveil.transforms.batch import part_of

made = runpy.run_path(str(Path(__file__).with_name("pubsub_desk.py")))
LAST, PROJECT, event = made["LAST"], made["PROJECT"], made["event"]
EVENTS = 3_000
ALL = frozenset({"appended", "headers", "key", "time", "topic"})
# The emulator gives a message again ten seconds after it was pulled, and not acknowledged.
AGAIN_S = 11.5
SPOOLED = "pipeline.sources._spool:SpoolFolder.write"
DONE = "pipeline.sources._pubsub_leases:Leases.done"


@pytest.fixture
def desk(tmp_path: Path, pubsub: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub)
    one = made["PubsubDesk"](tmp_path)
    one.write_job()
    yield one
    one.close()


def stream_of(desk: Any, name: str | None = None) -> PubsubStream:
    return PubsubStream(PubsubAddress(PROJECT, name or desk.name), (), str(desk.home / "state" / "spool"), str(desk.keyring))


def pulled(stream: PubsubStream, state: dict[str, Any]) -> tuple[dict[str, Any], list[pa.RecordBatch]]:
    """The next slice, which must come."""
    for _ in range(20):
        after = stream.next(state, 64 << 20)
        if after is not None:
            return after, [batch for piece in stream.ranges(state, after) for batch in read_spool(piece, ALL)]
    pytest.fail("nothing came")


def columns(batches: list[pa.RecordBatch], *names: str) -> list[tuple[Any, ...]]:
    return sorted(row for batch in batches for row in zip(*(batch.column(name).to_pylist() for name in names)))


class TestAJob:
    def test_reads_every_message_once(self, desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(desk.home)
        desk.publish([event(number) for number in range(EVENTS)])
        desk.publish([LAST])
        ready = prepare(load_job(desk.home / "job.yaml"))
        with Reporter(ready.name, log_json=True, quiet=True) as reporter:
            counted = run(ready, 1, Drain(), reporter, until_caught_up=True)

        assert counted["counted|in"] == EVENTS + 1
        assert desk.numbers() == list(range(EVENTS))
        assert not desk.spool

    def test_killed_before_messages_are_spooled_reads_all_of_them_later(self, desk: Any) -> None:
        desk.publish([event(number) for number in range(EVENTS)])
        desk.publish([LAST])

        assert desk.run({"kill": {"place": SPOOLED, "call": 1, "when": "before"}}) == -9
        assert not desk.spool
        time.sleep(AGAIN_S)

        assert desk.run() == 0, desk.log()
        assert desk.numbers() == list(range(EVENTS))

    def test_killed_between_spool_and_acknowledgement_publishes_every_event_once(self, desk: Any) -> None:
        desk.publish([event(number) for number in range(EVENTS)])

        assert desk.run({"kill": {"place": DONE, "call": 1, "when": "before"}}) == -9
        assert len(desk.spool) == 1
        # The service has not heard that they are done, and by now gives them out again.
        time.sleep(AGAIN_S)
        assert desk.run() == 0, desk.log()
        desk.publish([LAST])
        assert desk.run() == 0, desk.log()

        assert desk.numbers() == list(range(EVENTS))

    def test_killed_behind_the_acknowledgement_reads_the_spool(self, desk: Any) -> None:
        desk.publish([event(number) for number in range(EVENTS)])
        desk.publish([LAST])

        assert desk.run({"kill": {"place": DONE, "call": 1, "when": "after"}}) == -9
        before = [path.read_bytes() for path in desk.spool]
        assert desk.run({"kill": {"place": "pipeline.checkpoint.folder:CheckpointFolder.commit", "call": 1, "when": "before"}}) == -9

        assert [path.read_bytes() for path in desk.spool] == before
        assert desk.run() == 0, desk.log()
        assert desk.numbers() == list(range(EVENTS))

    def test_shows_nothing_in_the_clear(self, desk: Any) -> None:
        planted = "planted-4f1a96c2"
        desk.publish([event(number, who=planted) for number in range(100)], secret=planted)

        assert desk.run({"kill": {"place": DONE, "call": 1, "when": "after"}}) == -9

        assert desk.spool
        assert desk.spool[0].stat().st_mode & 0o777 == 0o600
        for path in desk.home.rglob("*"):
            assert planted not in path.name
            assert not path.is_file() or planted.encode() not in path.read_bytes(), path.name

    def test_does_not_go_on_without_its_spool(self, desk: Any) -> None:
        desk.publish([event(number) for number in range(10)])
        assert desk.run({"kill": {"place": "pipeline.checkpoint.folder:CheckpointFolder.write_intent", "call": 1, "when": "after"}}) == -9
        desk.spool[0].unlink()

        assert desk.run() == StorageError.exit_code
        assert "EV411" in desk.log()

    def test_from_now_reads_what_comes_alone(self, desk: Any) -> None:
        desk.publish([event(number) for number in range(100)])
        stream = stream_of(desk)
        time.sleep(1)
        state = stream.begin(True)
        desk.publish([event(number) for number in range(100, 110)])

        _, batches = pulled(stream, state)

        assert columns(batches, "value") == sorted((event(number),) for number in range(100, 110))


class TestAStream:
    def test_gives_columns_as_the_service_tells_them(self, desk: Any) -> None:
        [number] = desk.publish([event(1)], b="2", a="1")
        before = time.time()
        stream = stream_of(desk)

        _, [batch] = pulled(stream, stream.begin(False))

        [row] = batch.to_pylist()
        assert row["value"] == event(1)
        assert row["position"] == int(number)
        assert row["headers"] == [{"name": "a", "value": b"1"}, {"name": "b", "value": b"2"}]
        assert row["key"] is None
        assert row["topic"] == desk.name
        assert row["time"] == row["appended"]
        assert abs(row["appended"].timestamp() - before) < 60
        assert part_of(batch).origin == desk.subscription

    def test_a_spool_that_is_read_again_gives_the_same_bytes(self, desk: Any) -> None:
        desk.publish([event(number) for number in range(500)])
        stream = stream_of(desk)
        state = stream.begin(False)
        after, first = pulled(stream, state)
        again = stream_of(desk)

        found = [batch for piece in again.ranges(state, after) for batch in read_spool(piece, ALL)]

        assert digest(found) == digest(first)
        assert [batch.schema.metadata for batch in found] == [batch.schema.metadata for batch in first]

    def test_a_message_that_comes_again_has_the_same_position_and_value(self, desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        desk.publish([event(number) for number in range(200)])
        stream = stream_of(desk)
        state = stream.begin(False)
        with monkeypatch.context() as patched:
            patched.setattr("eventveil.pipeline.sources._pubsub_client.Connection.acknowledge", lambda *_: 0)
            after, first = pulled(stream, state)
        time.sleep(AGAIN_S)

        _, second = pulled(stream, after)

        assert columns(second, "position", "value") == columns(first, "position", "value")
        assert {part_of(batch).start for batch in first}.isdisjoint(part_of(batch).start for batch in second)

    def test_has_caught_up_when_nothing_comes(self, desk: Any) -> None:
        stream = stream_of(desk)
        state = stream.begin(False)
        assert stream.next(state, 1 << 20) is None
        assert (stream.lag(state), stream.is_caught_up(state)) == (0, {desk.subscription})
        desk.publish([event(1)])

        after, _ = pulled(stream, state)

        assert stream.lag(state) > 0
        stream.committed(after)
        assert not desk.spool

    def test_leases_outlive_a_slow_disk(self, desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        stream, write = stream_of(desk), SpoolFolder.write
        state = stream.begin(False)
        desk.publish([event(number) for number in range(50)])
        seen: list[bytes] = []

        def slow(*arguments: Any) -> None:
            time.sleep(AGAIN_S + 2)
            seen.extend(desk.left())
            write(*arguments)

        monkeypatch.setattr(SpoolFolder, "write", slow)
        pulled(stream, state)

        assert not seen

    def test_its_own_topic_is_no_output(self, desk: Any) -> None:
        desk.write_job(output={"uri": f"pubsub://{PROJECT}/{desk.name}", "format": "json"})

        assert 2 == desk.run()
        assert f"EV120 the output topic {desk.name} is input of this job" in desk.log()

    def test_a_subscription_that_is_gone_stops(self, desk: Any) -> None:
        stream = stream_of(desk)
        state = stream.begin(False)
        desk.subscriber.delete_subscription(request={"subscription": desk.subscription})

        with pytest.raises(StorageError) as caught:
            stream.next(state, 1 << 20)

        assert not isinstance(caught.value, Unreachable)
        assert [problem.code for problem in caught.value.problems] == ["EV420"]

    def test_a_service_that_is_away_is_waited_for(self, desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = stream_of(desk)
        state = stream.begin(False)
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:9")

        with pytest.raises(Unreachable, match="EV420"):
            stream.next(state, 1 << 20)

    def test_a_spool_of_a_lost_checkpoint_is_not_guessed_at(self, desk: Any) -> None:
        desk.publish([event(1)])
        stream = stream_of(desk)
        pulled(stream, stream.begin(False))

        with pytest.raises(StorageError, match="EV411"):
            stream_of(desk).begin(False)

    def test_settings_that_are_unknown_are_named_without_their_values(self, desk: Any) -> None:
        stream = PubsubStream(PubsubAddress(PROJECT, desk.name), (("credentials", "planted"),), None, str(desk.keyring))

        with pytest.raises(StorageError) as caught:
            stream.begin(False)

        assert "credentials" in str(caught.value)
        assert "planted" not in str(caught.value)


def digest(batches: list[pa.RecordBatch]) -> str:
    sha = hashlib.sha256()
    for batch in batches:
        sha.update(batch.serialize())
    return sha.hexdigest()


def test_a_project_names_its_parts() -> None:
    project = Project("shop")

    assert project.subscription("orders") == "projects/shop/subscriptions/orders"
    assert project.topic("orders") == "projects/shop/topics/orders"
