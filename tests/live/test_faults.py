"""Whatever is killed, frozen, full or gone, and whenever: nothing is lost, nothing is published twice or changes once it is published.

Each test lets numbered events arrive while a job runs and something happens to it; then the job is started again, works everything off,
and every number is looked for. What varies comes from the seed; `make faults` goes through several.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from eventveil.pipeline.checkpoint._document import read_document
from eventveil.pipeline.checkpoint.seal import StateSeal
from eventveil.pipeline.dead_letters.open import open_letter
from eventveil.pipeline.dead_letters.store import list_letters
from eventveil.transforms.keys.custodian import load_private
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring

pytestmark = pytest.mark.faults

HERE = Path(__file__).parent
CHILD = HERE / "killed_at.py"
_DESK = runpy.run_path(str(HERE / "live_desk.py"))
LiveDesk, eventually = _DESK["LiveDesk"], _DESK["eventually"]
RECORD_ID = "eventveil-record-id"
PEOPLE = 40
RATE = 500  # events a second
FIELDS = [{"name": "n", "type": "long"}, *({"name": name, "type": "string"} for name in ("time", "who", "kind"))]
POLICY = """\
policy: {name}
version: {version}
schema: event.avsc
domain: faults
event: {{time: time, id: n, only_if: {{kind: [seen]}}}}
window: {{keys: 1d, release: 2s}}
allowed_lateness: 1s
fields:
  n: {{keep: {{because: test}}}}
  time: drop
  who: {who}
  kind: drop
"""


def who_of(n: int) -> str:
    return f"person-{n * 7 % PEOPLE}"


class Load(threading.Thread):
    """Produces numbered events, now; some are out of order, late, malformed, or of a kind that the policies filter out.

    Attributes:
        good, malformed, filtered: the numbers sent so far. closing: of events that come later than all others, so that their windows close.
        in_time: of events that nothing in their partition is ahead of.
    """

    def __init__(self, kafka: str, topic: str, seed: int, *, first: int = 0, partitions: int = 4) -> None:
        super().__init__(daemon=True)
        self.kafka = kafka
        self.topic = topic
        self.partitions = partitions
        self.encode: Callable[[dict[str, Any]], bytes] = lambda event: json.dumps(event).encode()
        self.all_good = False
        self.good: set[int] = set()
        self.malformed: set[int] = set()
        self.filtered: set[int] = set()
        self.closing: set[int] = set()
        self.in_time: set[int] = set()
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._first = self.next = first
        self._connect()

    def _connect(self) -> None:
        self._producer = Producer(
            {"bootstrap.servers": self.kafka, "linger.ms": 5, "enable.idempotence": True, "log_level": 0, "reconnect.backoff.max.ms": 1000}
        )
        self._connected_to = self.partitions

    def run(self) -> None:
        began = time.monotonic()
        while not self._over.is_set():
            if self.partitions != self._connected_to:
                # A client that is connected learns of new partitions much later.
                assert self._producer.flush(30) == 0
                self._connect()
            while self.next - self._first < RATE * (time.monotonic() - began):
                self._send_next()
            self._producer.poll(0)
            time.sleep(0.01)

    def _send_next(self) -> None:
        n, dice = self.next, self._random.random()
        behind = 0.0 if self.all_good else 60.0 if dice < 0.02 else self._random.uniform(0, 2) if dice < 0.2 else 0.0
        kind = "good" if self.all_good else self._random.choices(("good", "malformed", "filtered"), (94, 2, 4))[0]
        getattr(self, kind).add(n)
        if not behind:
            self.in_time.add(n)
        self._send(n, -behind, kind)

    def _send(self, n: int, ahead: float, kind: str = "good") -> None:
        at = (datetime.now(timezone.utc) + timedelta(seconds=ahead)).isoformat()
        event = {"n": n, "time": at, "who": who_of(n), "kind": "other" if kind == "filtered" else "seen"}
        value = self.encode(event)
        value = value[:-1] if kind == "malformed" else value
        while True:
            try:
                self._producer.produce(self.topic, value, partition=n % self.partitions)
                break
            except BufferError:
                self._producer.poll(0.1)
        self.next = n + 1

    def stop(self) -> None:
        self._over.set()
        if self.is_alive():
            self.join(30)

    def end(self) -> None:
        """No more; waits until all of it is in the topic."""
        self.stop()
        assert self._producer.flush(90) == 0

    def close_windows(self) -> None:
        """Ends, and lets event time go on, so that the windows of all that was sent close."""
        self.end()
        for n in range(self.next, self.next + self.partitions):
            self.good.add(n)
            self.closing.add(n)
            self._send(n, 30.0)
        self.end()


class Watcher(threading.Thread):
    """Looks at what a job publishes and remembers, all the time: published files must not change, the watermark must not fall."""

    def __init__(self, place: Place) -> None:
        super().__init__(daemon=True)
        self.place = place
        self.seen: dict[Path, tuple[str, int]] = {}
        self.watermarks: list[tuple[int, int]] = []
        self.looking = threading.Lock()  # whoever holds it may move what is looked at
        self._failed: BaseException | None = None
        self._over = threading.Event()

    def run(self) -> None:
        try:
            while not self._over.is_set():
                with self.looking:
                    self.look()
                time.sleep(0.05)
        except BaseException as error:
            self._failed = error

    def look(self) -> None:
        for path in self.place.published():
            if path not in self.seen:
                self.seen[path] = _print_of(path)
        held = self.place.checkpoint()
        if held is not None and held["watermark"]["value"] is not None:
            self.watermarks.append((held["slice"], held["watermark"]["value"]))

    def stop(self) -> None:
        self._over.set()
        if self.is_alive():
            self.join(30)

    def end(self) -> None:
        self.stop()
        assert self._failed is None, self._failed
        self.look()
        assert {path: _print_of(path) for path in self.seen if path.exists()} == self.seen, "what was published has changed"
        for values in zip(*self.watermarks):
            assert list(values) == sorted(values), "slices or watermarks went back"


def _print_of(path: Path) -> tuple[str, int]:
    """A file that is there and whole is not written again either."""
    return hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_ino


@dataclass
class Place:
    """A job over a topic: `rolled` and `numbered` windows into files, and `sent` to a topic."""

    desk: Any
    kafka: str
    source: str
    target: str
    seed: int
    entries: dict[str, Any] = field(default_factory=dict)
    source_entries: dict[str, Any] = field(default_factory=dict)
    variants: tuple[str, ...] = ("rolled", "numbered", "sent")
    client: dict[str, str] = field(default_factory=dict)
    outputs: str = "out"
    name: str = "faults"

    def __post_init__(self) -> None:
        self.folder = self.desk.folder
        self.random = random.Random(self.seed)
        (self.folder / "event.avsc").write_text(json.dumps({"type": "record", "name": "event", "fields": FIELDS}))
        self.write_policies()
        self.job = self.write_job()
        self.load = Load(self.kafka, self.source, self.seed)
        self.watcher = Watcher(self)

    def write_policies(self, version: int = 1) -> None:
        for name in self.variants:
            who = "{renumber: {scope: window, class: person}}" if name == "numbered" else "drop"
            (self.folder / f"{name}.yaml").write_text(POLICY.format(name=name, version=version, who=who))

    def write_job(self) -> Path:
        outputs = {one: {"uri": str(self.out(one)), "format": "jsonl"} for one in self.variants}
        if "sent" in outputs:
            outputs["sent"] = {"uri": f"kafka://{self.kafka}/{self.target}", "format": "json", "client": self.client}
        path: Path = self.desk.write_job(
            self.name,
            f"kafka://{self.kafka}/{self.source}",
            [{"name": one, "policy": str(self.folder / f"{one}.yaml"), "output": output} for one, output in outputs.items()],
            **{
                "input": self.source_entries,
                "dead_letters": {"uri": str(self.refused), "custodian": str(self.folder / "custodian.pub")},
                "roll": "2s",
                "slice": "1s",
                **self.entries,
            },
        )
        return path

    def out(self, variant: str) -> Path:
        found: Path = self.folder / f"{self.outputs}-{variant}"
        return found

    @property
    def refused(self) -> Path:
        found: Path = self.folder / f"{self.outputs}-refused"
        return found

    @property
    def state(self) -> Path:
        found: Path = self.folder / self.name / "state"
        return found

    def begin(self) -> None:
        self.load.start()
        self.watcher.start()

    def produce_more(self) -> None:
        """A second of events with numbers that come after those before; only they are looked for."""
        self.load = Load(self.kafka, self.source, self.seed, first=self.load.next, partitions=self.load.partitions)
        self.load.start()
        time.sleep(1)
        self.load.close_windows()

    def begin_anew(self) -> None:
        """Under what has changed: what was written before counts no more."""
        self.job = self.write_job()
        self.watcher = Watcher(self)

    def abandon(self) -> None:
        """What a test that failed has left running."""
        self.load.stop()
        self.watcher.stop()

    def start(self, *flags: str, **happens: Any) -> Any:
        """The job in a process of its own, to which something happens."""
        command = [sys.executable, str(CHILD), json.dumps(happens)]
        return self.desk.start(self.job, *flags, command=command) if happens else self.desk.start(self.job, *flags)

    def finish(self, *flags: str, **happens: Any) -> None:
        """The job as it should be: works off everything, and ends well."""
        run = self.start("--until-caught-up", *flags, **happens)
        code = run.wait(90)
        assert code == 0, run.log.read_text("utf-8")[-2000:]

    # -- what is there ------------------------------------------------------------------------------------------------------------

    def published(self) -> list[Path]:
        return [path for one in self.variants if one != "sent" for path in self.out(one).rglob("part-*")]

    def checkpoint(self) -> dict[str, Any] | None:
        keys = load_keys(self.entries.get("keys") or str(self.desk.keyring))
        found = read_document(str(self.state / "checkpoint.json"), "checkpoint", self.name, StateSeal.of(keys))
        return None if found is None else found[1]["document"]

    def wait_for_slices(self, more: int) -> None:
        """Until so many more slices are finished."""
        number = lambda: (self.checkpoint() or {"slice": 0})["slice"]  # noqa: E731
        enough = number() + more
        eventually(lambda: number() >= enough, 60)

    def wait_until_caught_up(self) -> None:
        """Until the checkpoint has all that is in the topic now."""
        consumer = Consumer({"bootstrap.servers": self.kafka, "group.id": "faults"})
        try:
            partitions = consumer.list_topics(self.source, timeout=10).topics[self.source].partitions
            ends = {at: consumer.get_watermark_offsets(TopicPartition(self.source, at), timeout=10)[1] for at in partitions}
        finally:
            consumer.close()
        eventually(lambda: {int(lane.rpartition("/")[2]): at for lane, at in self.checkpoint()["state"]["positions"].items()} == ends, 60)

    def content(self) -> dict[str, bytes]:
        """The files of the checkpoint."""
        files = [path for path in self.state.rglob("*") if path.is_file() and path.name != "lock"]
        return {str(path.relative_to(self.state)): path.read_bytes() for path in files}

    def letters(self) -> list[tuple[dict[str, Any], bytes]]:
        private = load_private(self.folder / "custodian.key")
        key = load_keys(self.entries.get("keys") or str(self.desk.keyring)).letters_key()
        return [(dict(letter.header), open_letter(letter, private, key)) for letter in list_letters(self.refused)]

    def check_whole(self) -> None:
        """After an end that was none: what has a name is as its manifest says."""
        for one in self.variants:
            listed = [file for path in self.out(one).glob("_eventveil-*") for file in json.loads(path.read_text())["files"]]
            digests = {file["name"]: file["sha256"] for file in listed}
            for path in self.out(one).glob("part-*"):
                assert hashlib.sha256(path.read_bytes()).hexdigest() == digests[path.name]

    def rows(self, variant: str) -> list[tuple[str, int, Any]]:
        """Window, number and what became of `who`, of each row."""
        found = []
        for path in sorted(self.out(variant).rglob("part-*")):
            for line in path.read_text().splitlines():
                row = json.loads(line)
                found.append((path.name[5:25], row["n"], row.get("who")))
        return found

    def check(self, *, after_outage: bool = False) -> None:
        """Everything that was sent is there, once; the windows of all of it are closed.

        Args:
            after_outage: brokers that were away made partitions look idle, so that event time may have gone on without them.
        """
        self.watcher.end()
        load = self.load
        letters = self.letters()
        refused = {(head["code"], head["policy"]): Counter[int]() for head, _ in letters}
        for head, event in letters:
            refused[head["code"], head["policy"]][int(event.split(b",")[0].split(b":")[1])] += 1
        assert all(count == 1 for numbers in refused.values() for count in numbers.values()), "a letter stands twice"
        assert {code for code, _ in refused} <= {"EV501", "EV518"}, "an event was refused that is as it should be"
        held = self.checkpoint()
        assert held is not None
        for variant in self.variants:
            late = refused.get(("EV518", variant), Counter())
            expected = load.good - set(late)
            assert after_outage or not load.in_time & set(late), "what was in time was refused as late"
            if variant == "sent":
                self.check_messages(expected)
            else:
                found = Counter(n for _, n, _ in self.rows(variant))
                # Of the last window it is not said whether it is closed by now.
                expected -= load.closing - set(found)
                assert set(found) == expected, (len(expected - set(found)), len(set(found) - expected))
                assert max(found.values(), default=1) == 1, "an event was published twice"
                assert held["totals"].get(f"{variant}|published", 0) == len(found)
            self.check_totals(variant, held["totals"], len(late))
        assert not refused.get(("EV518", "rolled"), ())
        if "numbered" in self.variants:
            self.check_numbers()
        assert [] == list(self.folder.rglob(".eventveil-*"))
        assert not (self.state / "intent.json").exists()

    def check_totals(self, variant: str, totals: dict[str, int], late: int) -> None:
        load = self.load
        refused = {key.split("|")[2]: count for key, count in totals.items() if key.startswith(f"{variant}|refused|")}
        assert len(load.good) + len(load.malformed) + len(load.filtered) == totals[f"{variant}|in"]
        assert len(load.filtered) == totals.get(f"{variant}|filtered", 0)
        assert len(load.good) - late == totals[f"{variant}|out"]
        assert {code: count for code, count in (("EV501", len(load.malformed)), ("EV518", late)) if count} == refused

    def check_messages(self, expected: set[int]) -> None:
        """Delivered at least once; what came twice is the same in every byte, under the same id."""
        by_id: dict[bytes, set[Any]] = {}
        numbers = set()
        for message in self.desk.messages(self.target):
            headers = message.headers()
            all_of_it = (message.key(), message.value(), tuple(headers), message.timestamp(), message.partition())
            by_id.setdefault(dict(headers)[RECORD_ID], set()).add(all_of_it)
            numbers.add(json.loads(message.value())["n"])
        assert numbers == expected, (len(expected - numbers), len(numbers - expected))
        assert len(by_id) == len(numbers)
        assert all(len(same) == 1 for same in by_id.values())

    def check_numbers(self) -> None:
        """In each window people are numbered 1 to n: it was decided on as a whole, once."""
        windows: dict[str, dict[int, set[str]]] = {}
        for window, n, number in self.rows("numbered"):
            windows.setdefault(window, {}).setdefault(number, set()).add(who_of(n))
        for numbers in windows.values():
            assert sorted(numbers) == list(range(1, len(numbers) + 1))
            assert all(len(people) == 1 for people in numbers.values())
            assert len({one for people in numbers.values() for one in people}) == len(numbers)
        names = [path.name for path in self.out("numbered").glob("_eventveil-*")]
        assert len(names) == len({name[:32] for name in names}), "a window was decided on twice"


@pytest.fixture
def new_place(seed: int) -> Iterator[Callable[..., Place]]:
    made: list[Place] = []

    def make(desk: Any, new_topic: Callable[[int], str], **options: Any) -> Place:
        made.append(Place(desk, desk.kafka, new_topic(4), new_topic(2), seed, **options))
        return made[-1]

    yield make
    for one in made:
        one.abandon()


@pytest.fixture
def place(new_place: Callable[..., Place], desk: Any, new_topic: Callable[[int], str]) -> Place:
    return new_place(desk, new_topic)


@pytest.fixture
def files(new_place: Callable[..., Place], desk: Any, new_topic: Callable[[int], str]) -> Place:
    """Without a topic that is written to."""
    return new_place(desk, new_topic, variants=("rolled", "numbered"))


def told(run: Any, event: str) -> list[dict[str, Any]]:
    return [line for line in run.logs() if line.get("event") == event]


def failed(run: Any, code: str) -> dict[str, Any]:
    """The error that ended a run."""
    assert run.wait(60) == 4, run.log.read_text("utf-8")[-2000:]
    (line,) = told(run, "failed") or [{"code": next((code for one in run.logs() if code in one.get("text", "")), "none")}]
    assert line["code"] == code, run.log.read_text("utf-8")[-2000:]
    return line


# A place in the code, and whether it is killed before or after it has come by there.
INTENT = "pipeline.checkpoint.folder:CheckpointFolder.write_intent"
APPEND = "pipeline.checkpoint.carry:CarryWriter"
WRITER = "pipeline.sinks.topic:MessageWriter"
COMMIT = "pipeline.checkpoint.folder:CheckpointFolder.commit"
ATTEMPT = "pipeline.sinks.publish:Attempt"
PHASES: dict[str, list[dict[str, Any]]] = {
    "around the intent": [
        {"place": INTENT, "when": "before"},
        {"place": "pipeline.sinks.atomic:os.replace", "when": "before", "about": "intent.json"},
        {"place": INTENT, "when": "after"},
    ],
    "in the middle of the slice": [
        {"place": f"{APPEND}.append", "when": "after"},
        {"place": f"{WRITER}.write", "when": "after"},
        {"place": "pipeline.dead_letters.store:publish_file", "when": "after"},
        {"place": f"{APPEND}._append_frame", "when": "after"},
    ],
    "before the checkpoint": [
        {"place": f"{WRITER}.flush", "when": "after"},
        {"place": f"{APPEND}.flush_all", "when": "after"},
        {"place": COMMIT, "when": "before"},
        {"place": "pipeline.sinks.atomic:os.replace", "when": "before", "about": "checkpoint.json"},
    ],
    "publishing a window": [
        {"place": f"{ATTEMPT}.write", "when": "after"},
        {"place": "pipeline.sinks.publish:create_file", "when": "before"},
        {"place": "pipeline.sinks.publish:create_file", "when": "after"},
        {"place": f"{ATTEMPT}._place", "when": "after"},
    ],
    "behind the checkpoint": [
        {"place": "pipeline.checkpoint.folder:write_document", "when": "after", "about": "checkpoint.json"},
        {"place": "pipeline.checkpoint.folder:remove_file", "when": "before", "about": ".carry"},
        {"place": "pipeline.checkpoint.folder:remove_file", "when": "before", "about": "intent.json"},
        {"place": COMMIT, "when": "after"},
    ],
}
# Several files a window, so that there is something between their names.
SMALL_SHARDS = {"pipeline.sinks._shards:_SHARD_ROWS": 200}


class TestKilled:
    @pytest.mark.parametrize("phase", PHASES)
    def test_at_every_step(self, place: Place, phase: str) -> None:
        place.begin()
        steps = place.random.sample(PHASES[phase], len(PHASES[phase]))
        for step in steps:
            run = place.start(constants=SMALL_SHARDS, kill={**step, "call": place.random.randint(1, 4)})
            assert run.wait(60) == -9, (step, run.log.read_text("utf-8")[-2000:])
        place.load.close_windows()
        place.finish(constants=SMALL_SHARDS)
        place.check()

    def test_at_any_moment(self, place: Place) -> None:
        place.begin()
        for _ in range(4):
            run = place.start()
            # Some of it is over before the first slice.
            time.sleep(place.random.uniform(1.5, 7.0))
            run.kill()
        place.load.close_windows()
        place.finish()
        place.check()


class TestTheBroker:
    @pytest.fixture
    def place(
        self, new_place: Callable[..., Place], tmp_path: Path, broker: Any, new_topic_at: Callable[[Any], Callable[[int], str]]
    ) -> Iterator[Place]:
        desk = LiveDesk(tmp_path, broker.address)
        # It gives up soon, so that the job is what waits.
        yield new_place(desk, new_topic_at(broker), client={"message.timeout.ms": "4000"})
        desk.close()

    def test_that_was_killed_is_waited_for(self, place: Place, broker: Any) -> None:
        place.begin()
        run = place.start()
        place.wait_for_slices(2)
        time.sleep(place.random.uniform(0, 2))
        broker.kill()
        eventually(lambda: told(run, "waiting"), 60)
        time.sleep(place.random.uniform(0, 5))
        broker.start()
        self.goes_on(place, run)

    def test_that_is_frozen_for_half_a_minute_is_waited_for(self, place: Place, broker: Any) -> None:
        place.begin()
        run = place.start()
        place.wait_for_slices(2)
        time.sleep(place.random.uniform(0, 2))
        broker.freeze()
        try:
            time.sleep(30)
            assert told(run, "waiting")
        finally:
            broker.thaw()
        self.goes_on(place, run)

    def goes_on(self, place: Place, run: Any) -> None:
        eventually(lambda: told(run, "resumed"), 60)
        assert {line["code"] for line in told(run, "waiting")} <= {"EV413", "EV415"}
        place.wait_for_slices(1)
        place.load.close_windows()
        place.wait_until_caught_up()
        assert run.drain() == 0
        place.finish()
        place.check(after_outage=True)


class TestNoRoom:
    PLACES = {
        "output": ("pipeline.sinks.publish:write_temporary", "out-"),
        "checkpoint": (f"{APPEND}.flush_all", "/state"),
        "dead letters": ("pipeline.dead_letters.store:publish_file", "-refused/"),
    }

    @pytest.mark.parametrize("where", PLACES)
    def test_is_told_and_nothing_is_half(self, files: Place, where: str) -> None:
        place, part = self.PLACES[where]
        files.begin()
        run = files.start(full={"place": place, "call": files.random.randint(2, 4)})
        line = failed(run, "EV404")
        assert "full" in line["fact"] and part in line["file"]
        files.check_whole()
        assert [] == list(files.folder.rglob(".eventveil-*"))
        files.load.close_windows()
        files.finish()
        files.check()

    def test_below_a_file(self, files: Place) -> None:
        (files.folder / "out-rolled").write_text("mine")
        files.load.close_windows()
        run = files.start()
        assert run.wait(60) == 4
        assert "EV404" in run.log.read_text("utf-8")
        assert (files.folder / "out-rolled").read_text() == "mine"
        (files.folder / "out-rolled").unlink()
        files.finish()
        files.check()

    def test_where_a_folder_was(self, files: Place) -> None:
        out, aside = files.out(files.random.choice(files.variants)), files.folder / "aside"
        files.begin()
        run = files.start()
        eventually(lambda: list(out.glob("part-*")))
        with files.watcher.looking:
            out.rename(aside)
            out.write_text("mine")
            failed(run, "EV404")
            assert out.read_text() == "mine"
            out.unlink()
            aside.rename(out)
        files.check_whole()
        files.load.close_windows()
        files.finish()
        files.check()


def test_a_clock_that_is_set_back_takes_nothing_back(place: Place) -> None:
    place.begin()
    run = place.start(clock_back={"slices": place.random.randint(1, 4), "by_s": 3600})
    place.wait_for_slices(6)
    place.load.close_windows()
    assert run.drain() == 0
    place.finish(clock_back={"slices": 0, "by_s": 3600})
    place.check()


class TestAskedToStop:
    def test_it_finishes_its_slice_and_the_next_run_goes_on(self, place: Place) -> None:
        place.begin()
        for _ in range(2):
            run = place.start()
            place.wait_for_slices(2)
            time.sleep(place.random.uniform(0, 2))
            assert run.drain() == 0
            assert told(run, "stopped")
            assert not (place.state / "intent.json").exists()
        place.load.close_windows()
        place.finish()
        place.check()

    def test_asked_twice_it_stops_at_once(self, place: Place) -> None:
        place.begin()
        # In the midst of a slice, and for so long that it does not end between two signals.
        run = place.start(pause={"place": f"{ATTEMPT}.write", "call": place.random.randint(1, 5), "seconds": 60})
        eventually(lambda: "paused" in run.log.read_text("utf-8"), 60)
        run.process.send_signal(signal.SIGTERM)
        # Another one: of two equal signals that come together, one may be lost.
        run.process.send_signal(signal.SIGINT)
        assert run.wait(5) == 130
        place.load.close_windows()
        place.finish()
        place.check()


class TestTheCheckpoint:
    def test_is_for_one_process(self, files: Place) -> None:
        """A second one does no harm to the first, not even while that is publishing."""
        files.begin()
        run = files.start(pause={"place": f"{ATTEMPT}.write", "call": files.random.randint(2, 6), "seconds": 12})
        eventually(lambda: "paused" in run.log.read_text("utf-8"))
        failed(files.start(), "EV410")
        failed(files.start("--from-now"), "EV410")
        assert run.process.poll() is None
        files.wait_for_slices(2)
        files.load.close_windows()
        files.wait_until_caught_up()
        assert run.drain() == 0
        files.finish()
        files.check()

    @pytest.mark.parametrize("changed", ["policy", "keyring"])
    def test_of_another_policy_or_keyring_is_left_alone(self, files: Place, changed: str) -> None:
        files.begin()
        time.sleep(files.random.uniform(1, 3))
        files.load.close_windows()
        files.finish()
        files.check()
        old = files.content()
        if changed == "policy":
            files.write_policies(version=2)
        else:
            new_keyring(files.folder / "other.json")
            files.entries["keys"] = str(files.folder / "other.json")
        files.outputs = "new"
        files.begin_anew()
        failed(files.start(), "EV409")
        assert files.content() == old
        files.finish("--from-now")
        assert (files.state / "set-aside-1" / "checkpoint.json").read_bytes() == old["checkpoint.json"]
        # What was there before is of no concern to it, and what comes now is.
        files.produce_more()
        files.finish()
        files.check()

    def test_whose_events_are_gone_is_not_continued_silently(self, files: Place) -> None:
        files.begin()
        run = files.start()
        files.wait_for_slices(2)
        assert run.drain() == 0
        files.load.end()
        old = files.content()
        held = files.checkpoint()
        files.produce_more()
        gone = files.random.choice(list(held["state"]["positions"]))
        topic, _, partition = gone.partition("/")
        position = TopicPartition(topic, int(partition), held["state"]["positions"][gone] + files.random.randint(1, 50))
        admin = AdminClient({"bootstrap.servers": files.kafka})
        admin.delete_records([position])[position].result(30)
        line = failed(files.start(), "EV412")
        assert topic in line["fact"] + line["file"]
        assert files.content()["checkpoint.json"] == old["checkpoint.json"]
        files.watcher.end()
        files.outputs = "new"
        files.begin_anew()
        files.finish("--from-now")
        assert (files.state / "set-aside-1" / "checkpoint.json").read_bytes() == old["checkpoint.json"]
        files.produce_more()
        files.finish()
        files.check()


def test_partitions_that_are_added_are_read_from_their_beginning(place: Place) -> None:
    place.begin()
    run = place.start()
    place.wait_for_slices(2)
    admin = AdminClient({"bootstrap.servers": place.kafka})
    for count in sorted(place.random.sample(range(5, 10), 2)):
        admin.create_partitions([NewPartitions(place.source, count)])[place.source].result(30)
        eventually(lambda count=count: len(admin.list_topics(place.source, timeout=10).topics[place.source].partitions) == count)
        place.load.partitions = count
        place.wait_for_slices(2)
    place.load.close_windows()
    place.wait_until_caught_up()
    assert run.drain() == 0
    place.finish()
    place.check()


def test_a_registry_that_is_gone_is_waited_for(
    new_place: Callable[..., Place], tmp_path: Path, broker: Any, new_topic_at: Callable[[Any], Callable[[int], str]]
) -> None:
    broker.start("--with", "registry")
    url = (broker.home / "registry.address").read_text().strip()
    process = int((broker.home / "registry.pid").read_text().split()[0])
    desk = LiveDesk(tmp_path, broker.address)
    place = new_place(desk, new_topic_at(broker), variants=("rolled", "sent"), source_entries={"format": "avro", "registry": {"url": url}})
    client = SchemaRegistryClient({"url": url})
    schemas = [
        {"type": "record", "name": "event", "fields": [*FIELDS, *more]} for more in ([], [{"name": "more", "type": ["null", "long"]}])
    ]
    numbers = [client.register_schema(f"{place.source}-{at}", Schema(json.dumps(one), "AVRO")) for at, one in enumerate(schemas)]
    written = 0

    def encode(event: dict[str, Any]) -> bytes:
        data = io.BytesIO(b"\0" + numbers[written].to_bytes(4, "big"))
        data.seek(5)
        fastavro.schemaless_writer(data, schemas[written], event)
        return data.getvalue()

    place.load.all_good, place.load.encode = True, encode
    place.begin()
    run = place.start()
    place.wait_for_slices(2)
    os.kill(process, signal.SIGSTOP)
    try:
        place.wait_for_slices(2)  # what it was told once it knows
        written = 1
        eventually(lambda: "EV414" in run.log.read_text("utf-8"), 60)
        time.sleep(place.random.uniform(0, 5))
    finally:
        os.kill(process, signal.SIGCONT)
    place.wait_for_slices(2)
    place.load.close_windows()
    place.wait_until_caught_up()
    assert run.drain() == 0
    place.finish()
    place.check()
    desk.close()
