"""Hostile messages in a topic: each is refused, and kept to its last byte; all others are published as if it had never been there.

Beside what JSON readers stumble over there are messages without a value, keys and headers that are no text, and events that are dated
far away from now, which must not move event time: one of them would close every window.
"""

from __future__ import annotations

import json
import runpy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from eventveil.pipeline.checkpoint._document import read_document
from eventveil.pipeline.checkpoint.seal import StateSeal
from eventveil.transforms.keys.keyring import load_keys

eventually = runpy.run_path(str(Path(__file__).with_name("live_desk.py")))["eventually"]

PARTITIONS = 2
# Messages of 2014 would be gone in five minutes.
FOR_EVER = {"retention_ms": "-1"}
LIMIT = 500_000
FIELDS: list[Any] = [
    {"name": "n", "type": "long"},
    {"name": "time", "type": "string"},
    {"name": "who", "type": "string"},
    {"name": "amount", "type": ["null", "double"], "default": None},
    {"name": "note", "type": ["null", "string"], "default": None},
]
POLICY = """\
policy: {name}
version: 1
schema: event.avsc
domain: poison
event: {{time: time, id: n}}
window: {{keys: 1d, release: 1d, zone: Europe/Berlin}}
allowed_lateness: 1h
fields:
  n: {{keep: {{because: test}}}}
  time: {{floor: 1h}}
  who: {{{who}: {{class: person{more}}}}}
  amount: drop
  note: drop
{rest}"""
POLICIES = {"rolled": ("pseudonymize", ""), "numbered": ("renumber", ", scope: window"), "sent": ("pseudonymize", "")}


@dataclass(frozen=True)
class Message:
    """`at_ms`: what the producer says of the time."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    at_ms: int = 0


def event(n: int, time: str = "", **more: Any) -> bytes:
    time = time or f"2014-09-{4 + n // 40 % 6:02d}T{10 + n % 2}:{n % 15:02d}:00"
    return json.dumps({"n": n, "time": time, "who": f"person-{n % 7}", **more}).encode()


def whole(value: bytes, note: bytes) -> bytes:
    """The event with this note, as it is written."""
    return value[:-1] + b', "note": ' + note + b"}"


ONE = event(1)
DEEP = 300_000
HOSTILE: dict[str, tuple[str, bytes]] = {
    # A block with nothing else in it ends the reader's process.
    "null": ("EV501", b"null"),
    "first half": ("EV501", ONE[:20]),
    # Behind the one before it, it would be one event.
    "second half": ("EV501", ONE[20:]),
    "opens": ("EV501", b'{"n": 1'),
    "goes on": ("EV501", b', "time": "2014-09-04T10:00:00", "who": "x"}'),
    "two": ("EV501", ONE + ONE),
    "two lines": ("EV501", ONE + b"\n" + ONE),
    "empty": ("EV501", b""),
    "blank": ("EV501", b"  \t "),
    "line end": ("EV501", b"\n"),
    "mark": ("EV501", b"\xef\xbb\xbf" + ONE),
    "array": ("EV501", b"[" + ONE + b"]"),
    "text": ("EV501", json.dumps(ONE.decode()).encode()),
    "number": ("EV501", b"17"),
    "utf-16": ("EV501", ONE.decode().encode("utf-16")),
    "zeros": ("EV501", bytes(64)),
    "every byte": ("EV501", bytes(range(256))),
    "avro": ("EV501", b"\0\0\0\0\1\2abc"),
    "not utf-8": ("EV504", whole(ONE, b'"\xff\xfe"')),
    "surrogate": ("EV504", whole(ONE, b'"\\ud800"')),
    "raw zero": ("EV501", whole(ONE, b'"\0"')),
    "raw line end": ("EV501", whole(ONE, b'"\n"')),
    "nan": ("EV505", ONE[:-1] + b', "amount": NaN}'),
    "infinity": ("EV505", ONE[:-1] + b', "amount": -Infinity}'),
    "huge": ("EV505", ONE[:-1] + b', "amount": 1e999}'),
    "too large": ("EV507", ONE.replace(b'"n": 1', b'"n": 9223372036854775808')),
    "no whole number": ("EV502", ONE.replace(b'"n": 1', b'"n": 1.5')),
    "text for a number": ("EV502", ONE.replace(b'"n": 1', b'"n": "1"')),
    "number for a text": ("EV502", whole(ONE, b"1")),
    "object for a text": ("EV502", whole(ONE, b'{"a": 1}')),
    "twice": ("EV507", ONE[:-1] + b', "who": "somebody-else"}'),
    "missing": ("EV503", b'{"n": 1, "who": "x"}'),
    "void": ("EV503", b"{}"),
    "null for a text": ("EV503", ONE.replace(b'"person-1"', b"null")),
    "no time": ("EV510", event(1, "yesterday")),
    "negative year": ("EV510", event(1, "-0044-03-15T12:00:00")),
    "year 0": ("EV510", event(1, "0000-01-01T00:00:00")),
    # Not so on the clock of every zone.
    "first instant": ("EV510", event(1, "0001-01-01T00:00:00")),
    "last instant": ("EV510", event(1, "9999-12-31T23:59:59")),
    "month 13": ("EV510", event(1, "2014-13-01T00:00:00")),
    "no day": ("EV510", event(1, "2014-02-30T00:00:00")),
    "megabyte": ("EV515", whole(ONE, b'"' + b"x" * 1_000_000 + b'"')),
    "deep and open": ("EV501", ONE[:-1] + b', "deep": ' + b"[" * DEEP),
    "deep in a text": ("EV502", whole(ONE, b"[" * (DEEP // 2) + b"]" * (DEEP // 2))),
}
FORGED = {
    "year 2500": event(1, "2500-01-01T00:00:00"),
    "end of time": event(1, "9999-12-30T12:00:00"),
    "zone": event(1, "2500-01-01T00:00:00+14:00"),
}
# Odd, and sound: published like any other.
ODD = [
    event(1000, unknown="x"),
    whole(event(1001), b'"\\u0000\\u0007"'),
    b" \t" + event(1002) + b"\r\n",
    event(1003)[:-1] + b', "deep": ' + b"[" * 2_000 + b"]" * 2_000 + b"}",
    event(1004)[:-1] + b', "deep": ' + b'{"a":' * 2_000 + b"1" + b"}" * 2_000 + b"}",
    whole(event(1005), b'"' + b"x" * (LIMIT - 1_000) + b'"'),
    event(1006, "2014-09-04T12:03:14.123456789+02:00"),
]


def hostile() -> list[Message]:
    return [Message(value) for _, value in HOSTILE.values()]


def codes() -> Counter[tuple[str, bytes]]:
    return Counter(HOSTILE.values())


def mixed(good: Sequence[Message], bad: Sequence[Message]) -> list[Message]:
    """The bad ones at the beginning, at the end and between the good ones."""
    found = list(good)
    step = max(1, len(good) // max(1, len(bad) - 2))
    for number, one in enumerate(bad):
        found.insert(min(number * (step + 1), len(found)), one)
    return [*found, *bad[:2]]


@dataclass
class Place:
    """A job over a topic."""

    desk: Any
    kafka: str
    name: str
    source: str
    target: str
    rest: str = ""
    entries: dict[str, Any] = field(default_factory=dict)
    policies: Sequence[str] = tuple(POLICIES)

    def __post_init__(self) -> None:
        self.home = self.desk.folder / self.name
        self.home.mkdir()
        (self.home / "event.avsc").write_text(json.dumps({"type": "record", "name": "event", "fields": FIELDS}))
        variants = []
        for policy in self.policies:
            who, more = POLICIES[policy]
            (self.home / f"{policy}.yaml").write_text(POLICY.format(name=policy, who=who, more=more, rest=self.rest))
            uri = f"kafka://{self.kafka}/{self.target}" if policy == "sent" else str(self.out(policy))
            output = {"uri": uri, "format": "json" if policy == "sent" else "jsonl"}
            variants.append({"policy": str(self.home / f"{policy}.yaml"), "output": output})
        # Nothing comes of its own accord: windows are closed by events alone.
        entries = {"slice": "1s", "roll": "15min", "idle_after": "1d", "max_event_bytes": LIMIT, **self.entries}
        self.job = self.desk.write_job(self.name, f"kafka://{self.kafka}/{self.source}", variants, **entries)

    def out(self, policy: str) -> Path:
        found: Path = self.desk.folder / f"{self.name}-{policy}"
        return found

    def write(self, messages: Sequence[Message], partition: int = 0) -> None:
        producer = Producer({"bootstrap.servers": self.kafka, "linger.ms": 5, "message.max.bytes": 2_000_000})
        failed: list[Any] = []
        for one in messages:
            options = {"headers": list(one.headers), "timestamp": one.at_ms} if one.at_ms else {"headers": list(one.headers)}
            producer.produce(
                self.source, one.value, one.key, partition, on_delivery=lambda error, _: failed.append(error) if error else None, **options
            )
        assert 0 == producer.flush(60) and [] == failed

    # -- what is there ----------------------------------------------------------------------------------------------

    def held(self) -> dict[str, Any]:
        path = str(self.home / "state" / "checkpoint.json")
        found = read_document(path, "checkpoint", self.name, StateSeal.of(load_keys(str(self.desk.keyring))))
        assert found is not None
        document: dict[str, Any] = found[1]["document"]
        return document

    def event_time(self) -> tuple[Any, dict[str, int]]:
        """How far it is, and how far each partition is."""
        watermark = self.held()["watermark"]
        return watermark["value"], {lane.rpartition("/")[2]: micros for lane, micros in watermark["highest"].items()}

    def files(self, policy: str) -> dict[str, bytes]:
        """All that is published, manifests too, by name; without what says which job made it."""
        found = (path for path in self.out(policy).rglob("*") if path.is_file() and path.name != "_eventveil.json")
        return {str(path.relative_to(self.out(policy))): path.read_bytes() for path in found}

    def sent(self) -> Counter[Any]:
        """What a recipient of the topic sees of each message, but for when and where it was written."""
        ours = [(one.partition(), one.key(), one.value(), tuple(one.headers())) for one in self.desk.messages(self.target)]
        return Counter(ours)

    def numbers(self) -> Counter[int]:
        return Counter(json.loads(one.value())["n"] for one in self.desk.messages(self.target))

    def letters(self) -> Counter[tuple[str, bytes]]:
        return Counter((header["code"], text) for header, text in self.desk.letters(self.name))

    def balanced(self) -> dict[str, Counter[str]]:
        """By policy what became of the messages; as many went in as were dealt with."""
        totals = self.held()["totals"]
        found = {name: Counter[str]() for name in self.policies}
        for name, one in found.items():
            for what, number in totals.items():
                policy, _, rest = what.partition("|")
                if policy == name and rest.partition("|")[0] in ("in", "out", "filtered", "refused"):
                    one[rest.removeprefix("refused|")] += number
            assert one["in"] == one.total() - one["in"]
        return found


@pytest.fixture(params=["CreateTime", "LogAppendTime"])
def new_source(request: pytest.FixtureRequest, new_topic: Callable[..., str]) -> Callable[..., str]:
    """Topics where the time of a message is what the producer says, or the broker's own; large messages are taken."""
    settings = {**FOR_EVER, "max_message_bytes": "2000000", "message_timestamp_type": request.param}
    if request.param == "CreateTime":
        # A broker would not take what is dated an hour ahead.
        settings["message_timestamp_after_max_ms"] = str(2**63 - 1)
    return lambda partitions=PARTITIONS: new_topic(partitions, **settings)


@pytest.fixture
def place(desk: Any, kafka: str, new_source: Callable[..., str], new_topic: Callable[..., str]) -> Callable[..., Place]:
    return lambda name, partitions=PARTITIONS, **more: Place(desk, kafka, name, new_source(partitions), new_topic(2, **FOR_EVER), **more)


def test_the_rest_is_published_as_if_it_were_alone(desk: Any, place: Callable[..., Place]) -> None:
    clean, poisoned = place("clean"), place("poisoned")
    year_2500 = 16_725_225_600_000
    far = [Message(value, at_ms=year_2500) for value in FORGED.values()]
    # The second time, its window is long closed.
    early = [Message(event(number, "0001-01-02T12:00:00")) for number in (2000, 2001)]
    for half in range(2):
        good = [Message(event(n)) for n in range(half * 120, half * 120 + 120)] + [Message(one) for one in ODD if not half]
        for partition in range(PARTITIONS):
            mine = good[partition::PARTITIONS]
            clean.write(mine, partition)
            bad = [*far, Message(None), *hostile(), *([early[half]] if partition else []), Message(None, b"gone")]
            poisoned.write(mixed(mine, bad), partition)
        for one in (clean, poisoned):
            desk.finish(one.job)

    assert clean.event_time() == poisoned.event_time()
    assert clean.held()["slice"] == poisoned.held()["slice"]
    assert clean.sent() == Counter({message: count for message, count in poisoned.sent().items() if json.loads(message[2])["n"] < 2000})
    assert {**dict.fromkeys(range(240), 1), **dict.fromkeys(range(1000, 1000 + len(ODD)), 1), 2000: 1, 2001: 1} == poisoned.numbers()
    for policy in ("rolled", "numbered"):
        ours, theirs = clean.files(policy), poisoned.files(policy)
        # A window of its own, and nothing else.
        more = {name for name in theirs if name not in ours}
        assert {name: theirs[name] for name in ours} == ours
        assert len([name for name in ours if name.startswith("part-")]) >= 5
        found = sorted(json.loads(text)["n"] for name in more if name.startswith("part-") for text in theirs[name].splitlines())
        assert [2000, 2001] if policy == "rolled" else [2000] == found
        assert all("-0001-01-0" in name for name in more), more
    assert clean.letters() == Counter()
    expected = Counter({**codes(), **{("EV514", value): 1 for value in FORGED.values()}})
    # In two partitions, twice; the first two of each come again at the end. Times are for each of the three policies to judge.
    refused = poisoned.letters()
    for code, value in HOSTILE.values():
        assert (12 if code == "EV510" else 4) == refused[code, value], (code, value[:60])
    for number, value in enumerate(FORGED.values()):
        assert 3 * (8 if number < 2 else 4) == refused["EV514", value]
    assert 1 == refused["EV518", early[1].value or b""]
    assert set(refused) == {*expected, ("EV518", early[1].value)}
    counts = poisoned.balanced()
    assert {8} == {one["filtered"] for one in counts.values()}
    assert 4 * len(HOSTILE) + 20 == counts["sent"].total() - counts["sent"]["in"] - counts["sent"]["out"] - counts["sent"]["filtered"]


def test_each_alone_in_what_is_read_at_once(desk: Any, place: Callable[..., Place]) -> None:
    """A message with no neighbour is read by other ways than one with many. The job runs all the time."""
    one = place("alone", 1, entries={"max_slice_bytes": 1}, policies=("sent",))
    run = desk.start(one.job)
    bad = [*hostile(), Message(None), *(Message(value) for value in FORGED.values())]
    one.write(bad)
    one.write([Message(event(0)), *(Message(value) for value in ODD)])
    eventually(lambda: run.process.poll() is not None or len(one.numbers()) == 1 + len(ODD), 150)

    assert 0 == run.drain(), run.log.read_text("utf-8")[-2000:]
    assert {0: 1, **dict.fromkeys(range(1000, 1000 + len(ODD)), 1)} == one.numbers()
    assert codes() + Counter({("EV514", value): 1 for value in FORGED.values()}) == one.letters()
    assert {"in": len(bad) + 1 + len(ODD), "filtered": 1, "out": 1 + len(ODD)}.items() <= one.balanced()["sent"].items()
    assert one.held()["slice"] >= len(bad)


NOT_TEXT = b"\xff\xfekey"
STRANGE: dict[str, Message] = {
    "key": Message(event(1), NOT_TEXT),
    "header": Message(event(2), b"k", [("trace", NOT_TEXT)]),
    "header twice": Message(event(3), b"k", [("trace", b"a"), ("trace", b"b")]),
    "header twice the same": Message(event(4), b"k", [("trace", b"a"), ("trace", b"a")]),
}
UNHARMED: dict[str, Message] = {
    "no key": Message(event(11)),
    "empty key": Message(event(12), b""),
    "no value": Message(event(13), b"k", [("trace", None)]),
    "other headers": Message(event(14), b"k", [("x", b"1"), ("x", b"2"), ("\u00e9", NOT_TEXT), ("", b""), ("trace", b"a")]),
    "in another case": Message(event(15), b"k", [("Trace", NOT_TEXT), ("TRACE", NOT_TEXT)]),
    "many": Message(event(16), b"k", [(f"h{number}", b"x" * 100) for number in range(1_000)]),
    "large key": Message(event(17), b"k" * 100_000),
}


@pytest.mark.parametrize("asks", [False, True], ids=["not asked for", "asked for"])
def test_keys_and_headers(asks: bool, desk: Any, kafka: str, new_topic: Callable[..., str]) -> None:
    """They are nothing to a policy that does not ask for them. One that does refuses what it cannot be sure of."""
    rest = "  $key: [{pseudonymize: {class: key}}, {rename: key}]\n  $headers.trace: [{pseudonymize: {class: trace}}, {rename: trace}]\n"
    one = Place(desk, kafka, "strange", new_topic(1), new_topic(1, **FOR_EVER), rest if asks else "", policies=("sent", "rolled"))
    one.write([*STRANGE.values(), *UNHARMED.values(), Message(None, NOT_TEXT), Message(b"null", NOT_TEXT), Message(event(99))])

    desk.finish(one.job)

    refused = Counter({("EV501", b"null"): 1})
    refused.update([("EV519", message.value) for message in STRANGE.values()] if asks else [])
    assert refused == one.letters()
    accepted = [*UNHARMED.values(), *(() if asks else STRANGE.values())]
    assert Counter([99, *(json.loads(message.value or b"")["n"] for message in accepted)]) == one.numbers()
    assert {1} == {counts["filtered"] for counts in one.balanced().values()}
    if asks:
        rows = {row["n"]: row for row in (json.loads(message.value()) for message in desk.messages(one.target))}
        assert rows[13]["trace"] is None and rows[15]["trace"] is None and rows[11]["key"] is None
        assert rows[13]["key"] == rows[14]["key"] == rows[16]["key"] != rows[17]["key"]
        assert rows[14]["trace"] is not None
