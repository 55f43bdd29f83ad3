"""Batches of a stream on their way through the DoFns: marks, what is read beside the value, and messages without one."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from eventveil.pipeline.dead_letters.open import open_letter
from eventveil.pipeline.dead_letters.store import list_letters
from eventveil.schemas.errors import SchemaError
from eventveil.transforms import Anonymize
from eventveil.transforms.batch import Clock, Part, clock_of, part_of, with_clock, with_kind, with_part
from eventveil.transforms.beam.anonymize import ApplyPolicy, DecodeEvents, decode, veil
from eventveil.transforms.beam.split import SplitByType, split_by_type
from eventveil.transforms.compile import load_plan
from eventveil.transforms.decode.reading import Reading
from eventveil.transforms.keys.custodian import load_private, load_public, new_custodian
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.providers.keyring_file import new_keyring
from eventveil.transforms.plan import Plan
from eventveil.transforms.seal import Sealing

NOON = dt.datetime(2024, 5, 6, 12, 0, tzinfo=dt.timezone.utc)
CLOCK = Clock(watermark=None, now=int(NOON.timestamp() * 1_000_000))
PART = Part("orders/3", 100, 4, False)
HEADERS = pa.list_(pa.struct([pa.field("name", pa.string()), pa.field("value", pa.binary())]))
FIELDS = [{"name": "n", "type": "int"}, {"name": "kind", "type": ["null", "string"]}]
POLICY = """policy: NAME
version: 1
schema: event.avsc
domain: tests
event: {time: $time, id: [$topic, $key]TYPE}
window: 1d
fields:
  n: keep
  kind: drop
  $key: [{pseudonymize: {class: order}}, {rename: ref}]
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "event.avsc").write_text(json.dumps({"type": "record", "name": "E", "fields": FIELDS}))
    new_keyring(tmp_path / "keyring.json")
    new_custodian(tmp_path / "custodian")
    return tmp_path


def plan_of(home: Path, name: str = "orders", kind: str = "") -> Plan:
    (home / f"{name}.yaml").write_text(POLICY.replace("NAME", name).replace("TYPE", f", type: {kind}" if kind else ""))
    return load_plan(home / f"{name}.yaml")


def sealing(home: Path) -> Sealing:
    return Sealing(str(home / "keyring.json"), load_public(home / "custodian.pub"))


def message(
    value: bytes | None, key: bytes | None = b"k", *headers: tuple[str, bytes], topic: str = "orders", ahead: int = 0
) -> dict[str, Any]:
    time = NOON + dt.timedelta(hours=ahead)
    named = [{"name": name, "value": text} for name, text in headers]
    return {"value": value, "key": key, "headers": named, "topic": topic, "time": time, "appended": None if ahead else time}


def raw(*messages: dict[str, Any]) -> pa.RecordBatch:
    instant = pa.timestamp("us", "UTC")
    kinds: dict[str, Any] = {"value": pa.binary(), "key": pa.binary(), "headers": HEADERS, "topic": pa.string()}
    kinds.update(dict.fromkeys(("time", "appended"), instant))
    columns: dict[str, Any] = {name: pa.array([one[name] for one in messages], kind) for name, kind in kinds.items()}
    columns["position"] = pa.array(range(100, 100 + len(messages)), pa.int64())
    batch = pa.RecordBatch.from_arrays(list(columns.values()), list(columns))
    return with_clock(with_part(with_kind(batch, "messages"), PART), CLOCK)


def through(fn: Any, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, pa.RecordBatch]]:
    """The main output of a DoFn, and the tagged ones."""
    fn.setup()
    outputs: Iterator[Any] = fn.process(batch)
    tagged: dict[str, pa.RecordBatch] = {}
    main = []
    for output in outputs:
        if isinstance(output, beam.pvalue.TaggedOutput):
            tagged[output.tag] = output.value
        else:
            main.append(output)
    return (main[0] if main else batch), tagged


def reading(plan: Plan, **more: Any) -> Reading:
    return Reading(plan.schema, plan.used, stream=plan.stream, **{"tombstones": True, **more})


def codes(home: Path, letters: pa.RecordBatch) -> list[tuple[str, str, str, bytes]]:
    """Code, path, rule and the message of each letter."""
    file = home / "letters.jsonl"
    file.write_bytes(b"".join(letters.column("letter").to_pylist()))
    private, key = load_private(home / "custodian.key"), load_keys(str(home / "keyring.json")).letters_key()
    return [(one.header["code"], one.header["path"], one.header["rule"], open_letter(one, private, key)) for one in list_letters(file)]


class TestMarks:
    def test_part_clock_and_arrival_come_through(self, home: Path) -> None:
        plan = plan_of(home)
        batch = raw(message(b'{"n": 0}'), message(b"{"), message(b'{"n": 2}', ahead=3))
        decoded, refused = through(DecodeEvents(reading(plan), [("orders", "")], sealing(home)), batch)
        veiled, late = through(ApplyPolicy(plan, "orders", sealing(home)), decoded)

        assert (PART, CLOCK) == (part_of(decoded), clock_of(decoded)) == (part_of(veiled), clock_of(veiled))
        assert ([NOON, None], [100, 102]) == (decoded.column("appended").to_pylist(), decoded.column("position").to_pylist())
        assert [("EV501", "", "", b"{")] == codes(home, refused["refused"])
        assert [("EV514", "$time", "event.max_ahead", b'{"n": 2}')] == codes(home, late["refused"])
        assert ["n", "ref", "$order", "$window"] == veiled.schema.names

    def test_a_batch_without_a_clock_gets_none(self, home: Path) -> None:
        plan = plan_of(home)
        batch = raw(message(b'{"n": 0}'))
        marks = {key: text for key, text in (batch.schema.metadata or {}).items() if key != b"eventveil.clock"}
        decoded, _ = through(DecodeEvents(reading(plan), [("orders", "")], sealing(home)), batch.replace_schema_metadata(marks))

        assert b"eventveil.clock" not in (decoded.schema.metadata or {})

    def test_types_keep_them_too(self, home: Path) -> None:
        splitter = SplitByType("$headers.kind", ["a", "b"], [("orders", "")], sealing(home), 1000)
        _, tagged = through(splitter, raw(message(b'{"n": 0}', b"k", ("kind", b"a")), message(b'{"n": 1}')))

        assert [PART] * 3 == [part_of(batch) for batch in tagged.values()]
        assert [CLOCK] * 2 == [clock_of(tagged[f"type {name}"]) for name in "ab"]
        assert [1, 0] == [tagged[f"type {name}"].num_rows for name in "ab"]
        assert [("EV503", "$headers.kind", "event.type", b'{"n": 1}')] == codes(home, tagged["refused"])


class TestWithoutValue:
    def test_a_tombstone_leaves_no_trace(self, home: Path) -> None:
        plan = plan_of(home)
        batch = raw(message(None), message(b'{"n": 1}'), message(None, b"\xff"), message(None, None))
        decoded, refused = through(DecodeEvents(reading(plan), [("orders", "")], sealing(home)), batch)

        assert [{"n": 1, "$key": "k", "$time": NOON, "$topic": "orders"}] == decoded.column("event").to_pylist()
        assert [101] == decoded.column("position").to_pylist()
        assert 0 == refused["refused"].num_rows

    def test_nothing_but_tombstones_is_an_empty_batch_of_its_part(self, home: Path) -> None:
        plan = plan_of(home)
        decoded, _ = through(DecodeEvents(reading(plan), [("orders", "")], sealing(home)), raw(message(None), message(None)))
        veiled, _ = through(ApplyPolicy(plan, "orders", sealing(home)), decoded)

        assert (0, PART) == (veiled.num_rows, part_of(veiled))

    def test_where_keys_mean_nothing_it_is_refused(self, home: Path) -> None:
        plan = plan_of(home)
        events = DecodeEvents(reading(plan, tombstones=False), [("orders", "")], sealing(home))
        _, refused = through(events, raw(message(None), message(b'{"n": 1}')))

        assert [("EV517", "", "", b"")] == codes(home, refused["refused"])


class TestCounted:
    """In a pipeline, as jobs do it."""

    MESSAGES = (
        message(b'{"n": 0, "kind": "a"}', b"k", ("kind", b"a")),
        message(None, b"k", ("kind", b"a")),
        message(b'{"n": 2, "kind": "b"}', b"k", ("kind", b"b")),
        message(b'{"n": 3, "kind": "c"}', b"k", ("kind", b"c")),
        message(b'{"n": 4, "kind": "a"}', b"\xff", ("kind", b"a")),
    )

    def counted(self, home: Path, kind: str, field: str) -> Counter[str]:
        plans = {name: plan_of(home, name, kind.format(name)) for name in ("a", "b")}
        root = beam.Pipeline("FnApiRunner", options=PipelineOptions(flags=[]))
        events = root | beam.Create([raw(*self.MESSAGES)]).with_output_types(pa.RecordBatch)
        policies = [(name, "") for name in plans]
        kinds, _ = split_by_type(events, field, list(plans), policies, sealing(home), 1000, tombstones=True)
        for name, plan in plans.items():
            decoded, _ = decode(kinds[name], reading(plan), [(name, "")], sealing(home), f"Decode/{name}")
            veil(decoded, plan, name, sealing(home), f"Veil/{name}")
        result: Any = root.run()
        result.wait_until_finish()
        found: Counter[str] = Counter()
        for one in result.metrics().query()["counters"]:
            if one.key.metric.namespace == "eventveil" and "|rule|" not in one.key.metric.name:
                found[one.key.metric.name] += one.committed
        return found

    def test_by_header_a_tombstone_is_its_types(self, home: Path) -> None:
        found = self.counted(home, "{{header: kind, is: {}}}", "$headers.kind")

        assert {"a|in": 4, "a|filtered": 1, "a|out": 1, "a|refused|EV509": 1, "a|refused|EV519": 1} == {
            name: number for name, number in found.items() if name[0] == "a"
        }
        assert {"b|in": 2, "b|out": 1, "b|refused|EV509": 1} == {name: number for name, number in found.items() if name[0] == "b"}

    def test_by_field_it_has_none_and_is_everybodys(self, home: Path) -> None:
        found = self.counted(home, "{{field: kind, is: {}}}", "kind")

        assert {"b|in": 3, "b|filtered": 1, "b|out": 1, "b|refused|EV509": 1} == {
            name: number for name, number in found.items() if name[0] == "b"
        }


def test_elements_of_a_pcollection_say_nothing_beside_an_event(home: Path) -> None:
    plan_of(home)
    with pytest.raises(SchemaError, match=r"EV204 orders reads \$key, \$time, \$topic, and elements of a PCollection"):
        Anonymize(home / "orders.yaml", keys=str(home / "keyring.json"), allow_loss=True)
