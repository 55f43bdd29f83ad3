"""Whatever is killed, frozen, full or gone, and whenever: no event is lost, none is published twice, and nothing that was published changes.

Each test lets numbered events arrive while a job runs and something happens to it; then the job is started again, works everything off,
and every number is looked for. What varies comes from the seed; `make faults` goes through several.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer

from eventveil.pipeline.checkpoint._document import read_document
from eventveil.pipeline.checkpoint.seal import StateSeal
from eventveil.transforms.keys.keyring import load_keys

pytestmark = pytest.mark.faults

CHILD = Path(__file__).with_name("killed_at.py")
RECORD_ID = "eventveil-record-id"
PEOPLE = 40
FIELDS = [{"name": "n", "type": "long"}, *({"name": name, "type": "string"} for name in ("time", "who", "kind", "pad"))]
POLICY = """\
policy: {name}
version: 1
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
  pad: {{keep: {{because: test}}}}
"""


def who_of(n: int) -> str:
    return f"person-{n * 7 % PEOPLE}"


class Load(threading.Thread):
    """Produces numbered events, now; some are out of order, late, malformed, or of a kind that the policies filter out.

    Attributes:
        good, malformed, filtered: the numbers sent so far. closing: of events that come later than all others, so that their windows close.
    """

    def __init__(self, kafka: str, topic: str, seed: int, *, rate: int = 1200, partitions: int = 4, pad: int = 0) -> None:
        super().__init__(daemon=True)
        self.topic = topic
        self.rate = rate
        self.partitions = partitions
        self.pad = pad
        self.good: set[int] = set()
        self.malformed: set[int] = set()
        self.filtered: set[int] = set()
        self.closing: set[int] = set()
        self._random = random.Random(seed)
        self._producer = Producer({"bootstrap.servers": kafka, "linger.ms": 5, "enable.idempotence": True})
        self._over = threading.Event()
        self._next = 0

    @property
    def sent(self) -> int:
        return self._next

    def run(self) -> None:
        began = time.monotonic()
        while not self._over.is_set():
            while self._next < self.rate * (time.monotonic() - began):
                self._send_next()
            self._producer.poll(0)
            time.sleep(0.01)

    def _send_next(self) -> None:
        n, dice = self._next, self._random.random()
        behind = 60.0 if dice < 0.02 else self._random.uniform(0, 2) if dice < 0.2 else 0.0
        kind = self._random.choices(("good", "malformed", "filtered"), (94, 2, 4))[0]
        getattr(self, kind).add(n)
        self._send(n, -behind, kind)

    def _send(self, n: int, ahead: float, kind: str = "good") -> None:
        at = (datetime.now(timezone.utc) + timedelta(seconds=ahead)).isoformat()
        event = {"n": n, "time": at, "who": who_of(n), "kind": "other" if kind == "filtered" else "seen", "pad": "x" * self.pad}
        value = json.dumps(event).encode()
        value = value[:-1] if kind == "malformed" else value
        while True:
            try:
                self._producer.produce(self.topic, value, partition=n % self.partitions)
                break
            except BufferError:
                self._producer.poll(0.1)
        self._next = n + 1

    def end(self) -> None:
        """No more; waits until all of it is in the topic."""
        self._over.set()
        if self.is_alive():
            self.join(30)
        assert self._producer.flush(90) == 0

    def close_windows(self) -> None:
        """Ends, and lets event time go on, so that the windows of all that was sent close."""
        self.end()
        for n in range(self._next, self._next + self.partitions):
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
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            self.look()
            time.sleep(0.05)

    def look(self) -> None:
        for path in self.place.published():
            if path not in self.seen:
                self.seen[path] = _print_of(path)
        held = self.place.checkpoint()
        if held is not None and held["watermark"]["value"] is not None:
            self.watermarks.append((held["slice"], held["watermark"]["value"]))

    def end(self) -> None:
        self._over.set()
        self.join(30)
        self.look()
        assert {path: _print_of(path) for path in self.seen if path.exists()} == self.seen
        assert self.watermarks == sorted(self.watermarks)


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
    variants: tuple[str, ...] = ("rolled", "numbered", "sent")
    client: dict[str, str] = field(default_factory=dict)
    name: str = "faults"

    def __post_init__(self) -> None:
        self.folder = self.desk.folder
        self.random = random.Random(self.seed)
        (self.folder / "event.avsc").write_text(json.dumps({"type": "record", "name": "event", "fields": FIELDS}))
        for name in self.variants:
            who = "{renumber: {scope: window, class: person}}" if name == "numbered" else "drop"
            (self.folder / f"{name}.yaml").write_text(POLICY.format(name=name, who=who))
        self.job = self.write_job()
        self.load = Load(self.kafka, self.source, self.seed)
        self.watcher = Watcher(self)

    def write_job(self, name: str = "", **entries: Any) -> Path:
        outputs = {one: {"uri": str(self.out(one)), "format": "jsonl"} for one in self.variants}
        if "sent" in outputs:
            outputs["sent"] = {"uri": f"kafka://{self.kafka}/{self.target}", "format": "json", "client": self.client}
        path: Path = self.desk.write_job(
            name or self.name,
            f"kafka://{self.kafka}/{self.source}",
            [{"name": one, "policy": str(self.folder / f"{one}.yaml"), "output": output} for one, output in outputs.items()],
            **{"roll": "2s", "slice": "1s", **self.entries, **entries},
        )
        return path

    def out(self, variant: str) -> Path:
        found: Path = self.folder / f"out-{variant}"
        return found

    @property
    def state(self) -> Path:
        found: Path = self.folder / self.name / "state"
        return found

    def begin(self) -> None:
        self.load.start()
        self.watcher.start()

    def start(self, *flags: str, **happens: Any) -> Any:
        """The job in a process of its own, to which something happens."""
        command = [sys.executable, str(CHILD), json.dumps(happens)]
        return self.desk.start(self.job, *flags, command=command) if happens else self.desk.start(self.job, *flags)

    def finish(self, **happens: Any) -> None:
        """The job as it should be: works off everything, and ends well."""
        run = self.start("--until-caught-up", **happens)
        code = run.wait(90)
        assert code == 0, run.log.read_text("utf-8")[-2000:]

    # -- what is there ------------------------------------------------------------------------------------------------------------

    def published(self) -> list[Path]:
        return [path for one in self.variants if one != "sent" for path in self.out(one).rglob("part-*")]

    def checkpoint(self) -> dict[str, Any] | None:
        found = read_document(str(self.state / "checkpoint.json"), "checkpoint", self.name, StateSeal.of(load_keys(str(self.desk.keyring))))
        return None if found is None else found[1]["document"]

    def rows(self, variant: str) -> list[tuple[str, int, Any]]:
        """Window, number and what became of `who`, of each row."""
        found = []
        for path in sorted(self.out(variant).rglob("part-*")):
            for line in path.read_text().splitlines():
                row = json.loads(line)
                found.append((path.name[5:25], row["n"], row.get("who")))
        return found

    def check(self, *, duplicates: bool = True) -> None:
        """Everything that was sent is there, once; the windows of all of it are closed."""
        self.watcher.end()
        load = self.load
        letters = self.desk.letters(self.name)
        refused = {(head["code"], head["policy"]): Counter[int]() for head, _ in letters}
        for head, event in letters:
            refused[head["code"], head["policy"]][int(event.split(b",")[0].split(b":")[1])] += 1
        assert all(count == 1 for numbers in refused.values() for count in numbers.values()), "a letter stands twice"
        held = self.checkpoint()
        assert held is not None
        for variant in self.variants:
            late = refused.get(("EV518", variant), Counter())
            expected = load.good - set(late) - (set() if variant == "sent" else load.closing)
            if variant == "sent":
                self.check_messages(expected)
            else:
                found = Counter(n for _, n, _ in self.rows(variant))
                assert set(found) == expected, (len(expected - set(found)), len(set(found) - expected))
                assert max(found.values()) == 1, "an event was published twice"
            self.check_totals(variant, held["totals"], len(late))
        assert not refused.get(("EV518", "rolled"), ())
        if "numbered" in self.variants:
            self.check_numbers()
        assert [] == [path for path in self.folder.rglob(".eventveil-*")]
        assert not (self.state / "intent.json").exists()

    def check_totals(self, variant: str, totals: dict[str, int], late: int) -> None:
        load = self.load
        refused = {key.split("|")[2]: count for key, count in totals.items() if key.startswith(f"{variant}|refused|")}
        assert len(load.good) + len(load.malformed) + len(load.filtered) == totals[f"{variant}|in"]
        assert len(load.filtered) == totals[f"{variant}|filtered"]
        assert len(load.good) - late == totals[f"{variant}|out"]
        assert {"EV501": len(load.malformed), **({"EV518": late} if late else {})} == refused
        if variant != "sent":
            assert len(load.good) - late - len(load.closing) == totals[f"{variant}|published"]

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
def place(desk: Any, kafka: str, new_topic: Callable[..., str], seed: int) -> Iterator[Place]:
    made = Place(desk, kafka, new_topic(4), new_topic(2), seed)
    yield made
    made.load._over.set()
    made.watcher._over.set()


def killed(place: Place, run: Any) -> None:
    assert run.wait(60) == -9, run.log.read_text("utf-8")[-2000:]


class TestKilledAt:
    PHASES = {
        "before the intent": {"place": "pipeline.checkpoint.folder:CheckpointFolder.write_intent"},
    }

    @pytest.mark.parametrize("phase", PHASES)
    def test(self, place: Place, phase: str) -> None:
        place.begin()
        kill = {"call": place.random.randint(2, 5), **self.PHASES[phase]}
        killed(place, place.start(kill=kill))
        place.load.close_windows()
        place.finish()
        place.check()
