"""The examples on a stream: orders arrive while the job runs, and what it publishes is what a run over files gives for the same orders.

The orders are of 2014 and 2010: how far a stream has come is told by their times, not by ours.
"""

from __future__ import annotations

import csv
import json
import os
import random
import runpy
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka import Producer

from eventveil.pipeline.prepare import prepare
from eventveil.pipeline.runners.local import run
from eventveil.schemas.job import load_job

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHIPPING, RETAIL = EXAMPLES / "shipping_order", EXAMPLES / "online_retail"
PARTITIONS = 4
# Messages of 2014 would be gone in five minutes.
FOR_EVER = {"retention_ms": "-1"}

_live = runpy.run_path(str(Path(__file__).with_name("live_desk.py")))
eventually, files_of = _live["eventually"], _live["files_of"]
_make = runpy.run_path(str(RETAIL / "make_orders.py"))

Event = dict[str, Any]


class Arrivals(threading.Thread):
    """Writes messages at a steady rate, partition after partition; the last third waits until it is let go."""

    def __init__(self, kafka: str, topic: str, values: Sequence[bytes], rate: float) -> None:
        super().__init__(daemon=True)
        self._topic, self._values, self._rate = topic, values, rate
        self._producer = Producer({"bootstrap.servers": kafka, "linger.ms": 5, "enable.idempotence": True})
        self._free = threading.Event()
        self._over = threading.Event()

    def run(self) -> None:
        began = time.monotonic()
        for number, value in enumerate(self._values):
            if number == len(self._values) * 2 // 3:
                self._free.wait()
                began = time.monotonic() - number / self._rate
            while (ahead := began + number / self._rate - time.monotonic()) > 0 and not self._over.is_set():
                self._producer.poll(min(ahead, 0.1))
            if self._over.is_set():
                return
            self.send(value, number % PARTITIONS)

    def send(self, value: bytes, partition: int) -> None:
        while True:
            try:
                self._producer.produce(self._topic, value, partition=partition)
                return
            except BufferError:
                self._producer.poll(0.1)

    def let_go(self) -> None:
        self._free.set()

    def finish(self, *closing: bytes) -> None:
        """Wait until all are there, then write one more to each partition."""
        self.join(60)
        assert not self.is_alive()
        for partition, value in enumerate(closing):
            self.send(value, partition)
        assert 0 == self._producer.flush(60)

    def stop(self) -> None:
        self._over.set()
        self._free.set()


@pytest.fixture
def arrivals(kafka: str) -> Iterator[Callable[..., Arrivals]]:
    made: list[Arrivals] = []

    def start(topic: str, values: Sequence[bytes], rate: float = 60) -> Arrivals:
        made.append(Arrivals(kafka, topic, values, rate))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.stop()


def line(event: Event) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode()


def row(found: Event) -> str:
    return json.dumps(found, sort_keys=True, default=str)


def rows_of(desk: Any, folder: Path) -> Counter[str]:
    return Counter(map(row, desk.rows(folder)))


def shuffled(events: Sequence[Event], block: int = 12) -> list[Event]:
    """Nearly in order, as events of a stream are."""
    rng = random.Random(7)
    blocks = [list(events[at : at + block]) for at in range(0, len(events), block)]
    for one in blocks:
        rng.shuffle(one)
    return [event for one in blocks for event in one]


class Batch:
    """The same policies over files, under the same keyring.

    Args:
        formats: of variants whose output is not JSON lines.
    """

    def __init__(self, desk: Any, variants: Sequence[Event], **formats: str) -> None:
        self._desk = desk
        self._variants = variants
        self._formats = formats
        self._runs = 0

    def __call__(self, values: Sequence[bytes]) -> dict[str, Path]:
        """Run over these events; the folder of each variant."""
        self._runs += 1
        home = self._desk.folder / f"batch{self._runs}"
        home.mkdir()
        source = home / "events.jsonl"
        source.write_bytes(b"".join(value + b"\n" for value in values))
        out = {one["name"]: home / one["name"] for one in self._variants}
        document = {
            "job": "batch",
            "input": {"uri": str(source)},
            "variants": [
                {**one, "output": {"uri": str(out[one["name"]]), "format": self._formats.get(one["name"], "jsonl")}}
                for one in self._variants
            ],
            "keys": str(self._desk.keyring),
            "dead_letters": {"uri": str(home / "refused"), "custodian": str(self._desk.folder / "custodian.pub")},
        }
        path = home / "job.yaml"
        path.write_text(json.dumps(document))
        job = load_job(path)
        run(prepare(job), job.workers)
        return out


def accounted(desk: Any, name: str) -> dict[str, Event]:
    """By policy what became of the events, over the two runs of a job; nothing may be missing."""
    found: dict[str, Event] = {}
    for number in (1, 2):
        for one in json.loads((desk.folder / f"summary{number}.json").read_text())["policies"]:
            sums = found.setdefault(one["policy"], {"in": 0, "out": 0, "filtered": 0, "refused": Counter(), "drift": Counter()})
            for what in ("in", "out", "filtered"):
                sums[what] += one[what]
            sums["refused"].update(one["refused"])
            sums["drift"].update(one["drift"])
    for sums in found.values():
        assert sums["in"] == sums["out"] + sums["refused"].total() + sums["filtered"]
    return found


class Live:
    """A job that is started, looked at while events arrive, drained in the middle, and finished in a second run."""

    def __init__(self, desk: Any, uri: str, variants: Sequence[Event], **entries: Any) -> None:
        def write(number: int) -> Path:
            path: Path = desk.write_job("live", uri, variants, slice="1s", summary=str(desk.folder / f"summary{number}.json"), **entries)
            return path

        self.desk = desk
        self.write = write

    def go(self, arriving: Arrivals, holds: Callable[[], bool], closing: Sequence[bytes]) -> None:
        """`holds`: whether all sinks show something. It is asked while events are still to come."""
        published = self.desk.start(self.write(1))
        eventually(lambda: published.process.poll() is not None or holds(), 90)
        assert published.process.poll() is None, published.log.read_text("utf-8")[-2000:]
        assert arriving.is_alive()
        before = {path: path.read_bytes() for path in files_of(self.desk.folder / "out")}
        arriving.let_go()
        time.sleep(0.5)
        # Drained while events arrive.
        assert 0 == published.drain(), published.log.read_text("utf-8")[-2000:]
        assert "stopped" == published.logs()[-1]["event"]
        arriving.finish(*closing)
        self.desk.finish(self.write(2))
        # What a recipient has read is not taken back.
        assert before.items() <= {path: path.read_bytes() for path in files_of(self.desk.folder / "out")}.items()
        assert not list(self.desk.folder.rglob(".eventveil-*"))


def copied(example: Path, desk: Any) -> Path:
    home: Path = desk.folder / example.name
    shutil.copytree(example, home, ignore=shutil.ignore_patterns("out", "keyring.json", "custodian*", "*.jsonl"))
    return home


def shipping_orders() -> list[Event]:
    return [json.loads(text) for text in (SHIPPING / "orders.jsonl").read_text("utf-8").splitlines()]


def of_customer(policy: Path, name: str) -> None:
    """The policy for the orders of one shop only."""
    text = policy.read_text()
    assert 1 == text.count("event:\n")
    policy.with_name(name).write_text(text.replace("event:\n", "event:\n  only_if: {tenant: [contsco-ebay]}\n"))


class TestShippingOrders:
    def test_live_is_batch(self, desk: Any, new_topic: Callable[..., str], kafka: str, arrivals: Callable[..., Arrivals]) -> None:
        source, target = new_topic(PARTITIONS), new_topic(2, **FOR_EVER)
        home, out = copied(SHIPPING, desk), desk.folder / "out"
        of_customer(home / "policy.yaml", "ebay.yaml")
        policies = [
            {"name": "research", "policy": str(home / "policy.yaml")},
            {"name": "trusted", "policy": str(home / "trusted.yaml")},
            {"name": "ebay", "policy": str(home / "ebay.yaml")},
        ]
        outputs: list[Event] = [
            {"uri": str(out / "research"), "format": "parquet"},
            {"uri": f"kafka://{kafka}/{target}", "format": "json"},
            {"uri": str(out / "ebay"), "format": "jsonl", "partition_by": "window"},
        ]
        orders = shipping_orders()
        lost = [{**order, "id": f"lost-{number}", "status": "lost"} for number, order in enumerate(orders[:5])]
        values = [line(order) for order in shuffled(sorted(orders + lost, key=lambda one: str(one["time"])))]
        broken = [value[:-7] for value in values[10:60:10]]
        for number, value in enumerate(broken):
            values.insert(20 * number, value)
        closing = [line({**orders[0], "id": f"closing-{number}", "time": "2014-09-20T00:00:00"}) for number in range(PARTITIONS)]
        live = Live(desk, f"kafka://{kafka}/{source}", [{**one, "output": to} for one, to in zip(policies, outputs)], roll="4h")
        arriving = arrivals(source, values)

        live.go(arriving, lambda: all(map(files_of, (out / "research", out / "ebay"))) and bool(desk.messages(target)), closing)

        batch = Batch(desk, policies, research="parquet")
        expected, whole = batch(values), batch([*values, *closing])
        assert rows_of(desk, expected["research"]) == rows_of(desk, out / "research")
        assert rows_of(desk, expected["ebay"]) == rows_of(desk, out / "ebay")
        # The very bytes.
        lines = Counter(text for path in files_of(whole["trusted"]) for text in path.read_bytes().splitlines())
        assert lines == Counter(message.value() for message in desk.messages(target))
        assert 205 == rows_of(desk, out / "research").total() and 204 == lines.total()
        assert 78 <= rows_of(desk, out / "ebay").total() < 90
        counts = accounted(desk, "live")
        assert {"in": 214, "out": 209, "filtered": 0, "refused": {"EV501": 5}, "drift": {}} == counts["research"]
        assert {"in": 214, "out": 204, "filtered": 0, "refused": {"EV501": 5, "EV520": 5}, "drift": {}} == counts["trusted"]
        assert counts["ebay"]["filtered"] > 100
        # What cannot be decoded is refused once, for all who would have had it.
        refused = [("EV501", value) for value in broken] + [("EV520", line(one)) for one in lost]
        assert Counter(refused) == Counter((header["code"], event) for header, event in desk.letters("live"))


def sample() -> list[Event]:
    return [json.loads(text) for text in (RETAIL / "sample.jsonl").read_text("utf-8").splitlines()[:120]]


def real_orders() -> list[Event]:
    if "EVENTVEIL_DATA" not in os.environ:
        pytest.skip("EVENTVEIL_DATA does not name a folder of real records")
    with _make["open_text"](Path(os.environ["EVENTVEIL_DATA"], "online_retail", "2010-12_to_2011-06.csv.gz")) as file:
        return list(_make["invoices"](csv.DictReader(file)))


class TestOnlineRetail:
    """One recipient reads files and the other a topic; and the other way round."""

    @pytest.mark.parametrize(
        ("read", "files", "roll", "rate"),
        [
            pytest.param(sample, "marketing", "15min", 40, id="sample"),
            pytest.param(real_orders, "logistics", "1d", 2500, id="all", marks=pytest.mark.data),
        ],
    )
    def test_live_is_batch(
        self,
        read: Callable[[], list[Event]],
        files: str,
        roll: str,
        rate: float,
        desk: Any,
        new_topic: Callable[..., str],
        kafka: str,
        arrivals: Callable[..., Arrivals],
    ) -> None:
        orders = read()
        source, target = new_topic(PARTITIONS), new_topic(3, **FOR_EVER)
        home, out = copied(RETAIL, desk), desk.folder / "out"
        policies = [{"name": name, "policy": str(home / f"{name}.yaml")} for name in ("marketing", "logistics")]
        to_files = {"uri": str(out / files), "format": "parquet", "partition_by": "window"}
        to_topic = {"uri": f"kafka://{kafka}/{target}", "format": "json"}
        variants = [{**one, "output": to_files if one["name"] == files else to_topic} for one in policies]
        (topical,) = (one["name"] for one in policies if one["name"] != files)
        values = [line(order) for order in shuffled(orders, 5)]
        closing = [line({**orders[0], "invoice": f"closing-{number}", "time": "2011-07-20T12:00:00"}) for number in range(PARTITIONS)]
        live = Live(desk, f"kafka://{kafka}/{source}", variants, roll=roll)
        arriving = arrivals(source, values, rate)

        live.go(arriving, lambda: bool(files_of(out / files)) and bool(desk.messages(target)), closing)

        batch = Batch(desk, policies, **{files: "parquet"})
        expected, whole = batch(values), batch([*values, *closing])
        assert rows_of(desk, expected[files]) == rows_of(desk, out / files)
        lines = Counter(text for path in files_of(whole[topical]) for text in path.read_bytes().splitlines())
        assert lines == Counter(message.value() for message in desk.messages(target))
        assert len(orders) + PARTITIONS == lines.total()
        count = len(orders) + PARTITIONS
        expected_counts = {"in": count, "out": count, "filtered": 0, "refused": {}, "drift": {}}
        assert {"marketing": expected_counts, "logistics": expected_counts} == accounted(desk, "live")
        assert [] == desk.letters("live")


class TestRegisteredAvro:
    """As Confluent's own serializer writes it, and read by their own deserializer."""

    def test_a_writer_that_knows_more_is_drift(
        self, desk: Any, registry: str, new_topic: Callable[..., str], kafka: str, arrivals: Callable[..., Arrivals]
    ) -> None:
        pytest.importorskip("confluent_kafka.schema_registry")
        from confluent_kafka.schema_registry import SchemaRegistryClient
        from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
        from confluent_kafka.serialization import MessageField, SerializationContext

        source, target = new_topic(PARTITIONS), new_topic(2, **FOR_EVER)
        home, out = copied(SHIPPING, desk), desk.folder / "out"
        client = SchemaRegistryClient({"url": registry})
        place = SerializationContext(source, MessageField.VALUE)
        known = json.loads((SHIPPING / "shipping_order.avsc").read_text())
        more = json.loads(json.dumps(known))
        more["fields"].insert(3, {"name": "coupon", "type": ["null", "string"], "default": None})
        more["fields"][5]["type"]["fields"].append({"name": "floor", "type": "int", "default": 0})
        less = {**known, "name": "Less", "fields": [one for one in known["fields"] if one["name"] != "shipping"]}
        other = {**known, "name": "Other", "fields": [{**one, "type": "int"} if one["name"] == "id" else one for one in known["fields"]]}
        first, second = (AvroSerializer(client, json.dumps(schema)) for schema in (known, more))
        without, strange = (
            AvroSerializer(client, json.dumps(schema), conf={"subject.name.strategy": lambda _, name: f"{source}-{name}"})
            for schema in (less, other)
        )
        orders = shuffled(shipping_orders())
        values: list[bytes] = []
        for number, order in enumerate(orders):
            newer = {**order, "coupon": "canary", "shipping": {**order["shipping"], "floor": 3}}
            values.append(second(newer, place) if number % 3 == 2 and number > 40 else first(order, place))
        drifting = sum(number % 3 == 2 and number > 40 for number in range(len(orders)))
        refused = {
            "EV516": [b"\0\x7f\xff\xff\xff\0", values[0][:-3], line(orders[0]), b"\0\0", values[1] + b"\0"],
            "EV502": [strange({**orders[0], "id": 7}, place)],
            "EV503": [without({name: value for name, value in orders[0].items() if name != "shipping"}, place)],
        }
        for number, value in enumerate(one for some in refused.values() for one in some):
            values.insert(15 * number, value)
        last = [{**orders[0], "id": f"closing-{number}", "time": "2014-09-20T00:00:00"} for number in range(PARTITIONS)]
        policies = [{"name": "research", "policy": str(home / "policy.yaml")}, {"name": "trusted", "policy": str(home / "trusted.yaml")}]
        outputs: list[Event] = [
            {"uri": str(out / "research"), "format": "parquet"},
            {"uri": f"kafka://{kafka}/{target}", "format": "avro", "registry": {"url": registry}},
        ]
        variants = [{**one, "output": to} for one, to in zip(policies, outputs)]
        live = Live(desk, f"kafka://{kafka}/{source}", variants, roll="4h", input={"registry": {"url": registry}})
        arriving = arrivals(source, values)

        live.go(arriving, lambda: bool(files_of(out / "research")) and bool(desk.messages(target)), [first(one, place) for one in last])

        # The same orders as JSON, over files.
        batch = Batch(desk, policies, research="parquet", trusted="avro")
        expected, whole = batch([line(order) for order in orders]), batch([line(order) for order in [*orders, *last]])
        assert rows_of(desk, expected["research"]) == rows_of(desk, out / "research")
        read = AvroDeserializer(client)
        context = SerializationContext(target, MessageField.VALUE)
        theirs = Counter(row(read(message.value(), context)) for message in desk.messages(target))
        assert Counter(map(row, avro_rows(whole["trusted"]))) == theirs
        assert len(orders) + PARTITIONS == theirs.total()
        assert "canary" not in str(theirs)
        counts = accounted(desk, "live")
        for one in counts.values():
            assert {"EV516": 5, "EV502": 1, "EV503": 1} == one["refused"]
            assert {"?": drifting, "shipping.?": drifting} == one["drift"]
        opened = Counter((header["code"], event) for header, event in desk.letters("live"))
        assert Counter((code, event) for code, events in refused.items() for event in events) == opened


def avro_rows(folder: Path) -> Iterator[Any]:
    for path in files_of(folder):
        with path.open("rb") as file:
            yield from fastavro.reader(file)
