"""Kafka Connect's envelope around JSON events: cut off without a second reading, and never a way to be read in two."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventveil.schemas.events.avro import parse_avro
from eventveil.schemas.events.tree import EventSchema
from eventveil.transforms.batch import with_kind
from eventveil.transforms.decode.decoded import Decoded
from eventveil.transforms.decode.envelope import unwrap
from eventveil.transforms.decode.event_type import event_types
from eventveil.transforms.decode.reading import Decoders, Originals, Reading

MAX = 1000
EVENT = {"op": "u", "before": None, "after": {"id": 1}}
WRITTEN = {"type": "struct", "fields": [{"field": "op", "type": "string"}], "optional": False}


def schema(*names: str) -> EventSchema:
    row = {"type": "record", "name": "Row", "fields": [{"name": "id", "type": "int"}]}
    own = [{"name": "op", "type": "string"}, {"name": "before", "type": ["null", row]}, {"name": "after", "type": ["null", "Row"]}]
    return parse_avro({"type": "record", "name": "E", "fields": own + [{"name": one, "type": ["null", "string"]} for one in names]}, "")


def batch(*values: bytes | None) -> pa.RecordBatch:
    columns: list[Any] = [pa.array(values, pa.binary()), pa.array(range(len(values)))]
    return with_kind(pa.RecordBatch.from_arrays(columns, ["value", "position"]), "messages")


def decode(*values: bytes | None, of: EventSchema | None = None) -> Decoded:
    return Decoders(Reading(of or schema(), frozenset({"op", "before.id", "after.id"}), max_event_bytes=MAX, envelope="debezium")).decode(
        batch(*values)
    )


def dumped(value: Any, **form: Any) -> bytes:
    return json.dumps(value, **form).encode()


class TestUnwrapped:
    @pytest.mark.parametrize(
        "message",
        [
            pytest.param(dumped({"schema": WRITTEN, "payload": EVENT}), id="wrapped"),
            pytest.param(dumped({"payload": EVENT, "schema": WRITTEN}), id="the other way round"),
            pytest.param(dumped({"schema": None, "payload": EVENT}), id="without its schema"),
            pytest.param(b' \t{ \t"schema"\t: null ,"payload" :  ' + dumped(EVENT) + b"\t } \n", id="with white space"),
            pytest.param(dumped(EVENT), id="plain"),
            pytest.param(dumped({"schema": {"payload": {"schema": 1}}, "payload": EVENT}), id="with the words inside"),
        ],
    )
    def test_the_event_is_the_same(self, message: bytes) -> None:
        found = decode(message, dumped(EVENT))

        assert [{"op": "u", "before": None, "after": {"id": 1}}] * 2 == found.events.to_pylist()
        assert {} == found.drifting

    def test_what_the_payload_holds_beyond_the_schema_is_drift(self) -> None:
        found = decode(dumped({"schema": WRITTEN, "payload": {**EVENT, "ts_ms": 1}}), dumped({"schema": WRITTEN, "payload": EVENT}))

        assert {"?": [0]} == {label: rows.tolist() for label, rows in found.drifting.items()}

    def test_a_message_without_the_word_is_not_looked_at(self) -> None:
        values = pa.array([dumped(EVENT)])

        assert unwrap(values, None, MAX)[0] is values

    def test_the_message_stays_as_it_came_for_its_letter(self) -> None:
        message = dumped({"schema": WRITTEN, "payload": {"op": 7}})
        given_batch = batch(message)
        found = Decoders(Reading(schema(), frozenset({"op"}), envelope="debezium")).decode(given_batch)

        assert ["EV502"] == found.refused_codes
        assert [message] == Originals(given_batch).take(pa.array(found.refused_rows)).to_pylist()

    def test_without_the_setting_it_is_an_event_like_any(self) -> None:
        found = Decoders(Reading(schema(), frozenset({"op"}))).decode(batch(dumped({"schema": None, "payload": EVENT})))

        assert ["EV503"] == found.refused_codes


class TestEventsWithSuchFields:
    OF = schema("schema", "payload")

    def test_beside_others_they_are_its_own(self) -> None:
        found = decode(dumped({**EVENT, "schema": "a", "payload": "b"}), of=self.OF)

        assert ([], ["u"]) == (found.refused_codes, [event["op"] for event in found.events.to_pylist()])

    def test_alone_they_are_a_wrapper(self) -> None:
        assert ["u"] == [event["op"] for event in decode(dumped({"schema": None, "payload": EVENT}), of=self.OF).events.to_pylist()]

    def test_one_of_them_makes_no_wrapper(self) -> None:
        assert ["u"] == [event["op"] for event in decode(dumped({**EVENT, "payload": "b"}), of=schema("payload")).events.to_pylist()]


HOSTILE = [
    pytest.param(b'{"schema": null, "payload": {"op": "a"}, "payload": {"op": "b"}}', "EV507", id="two payloads"),
    pytest.param(b'{"payload": {"op": "a"}, "schema": null, "payload": {"op": "b"}}', "EV507", id="one before and one behind"),
    pytest.param(b'{"schema": null, "schema": {}, "payload": {"op": "a"}}', "EV507", id="two schemas"),
    pytest.param(b'{"schema": null, "payload": {"op": "a"}, "op": "b"}', "EV507", id="an event beside it"),
    pytest.param(b'{"schema": null, "p\\u0061yload": {"op": "b"}, "payload": {"op": "a"}}', "EV507", id="spelled in two ways"),
    pytest.param(b'{"schema": null, "payload": null}', "EV517", id="no payload"),
    pytest.param(b'{"schema": null, "payload": 5}', "EV501", id="a number"),
    pytest.param(b'{"schema": null, "payload": [{"op": "a"}]}', "EV501", id="a list"),
    pytest.param(b'{"schema": 5, "payload": {"op": "a"}}', "EV501", id="a schema that is none"),
    pytest.param(b'{"schema": NaN, "payload": {"op": "a"}}', "EV501", id="a schema that is not even JSON"),
    pytest.param(b'{"schema": null, "payload": {"op": "a", "x": NaN}}', "EV501", id="a payload that is not JSON"),
    pytest.param(b'{"schema": null, "payload": {"op": "\xff"}}', "EV504", id="not UTF-8"),
    pytest.param(b'{"schema": null, "payload": {"op": "a"}', "EV501", id="cut short"),
    pytest.param(b'{"schema": null, "payload": {"op": "a"}} {"op": "b"}', "EV501", id="two documents"),
    pytest.param(b'{"schema": null, "payload": ' + 200 * b'{"a":' + b"1" + 200 * b"}" + b"}", "EV515", id="large"),
    pytest.param(b'{"schema": ' + 90 * b'{"a":' + b"1" + 90 * b"}" + b', "payload": {"op": "a"}}', None, id="deep in what nobody reads"),
    pytest.param(b'{"schema": null, "payload": {"schema": null, "payload": {"op": "a"}}}', "EV503", id="wrapped twice"),
    pytest.param(None, "EV517", id="no value"),
    pytest.param(b'"payload"', "EV501", id="a text"),
]


class TestHostile:
    @pytest.mark.parametrize(("message", "code"), HOSTILE)
    def test_it_is_refused_and_its_neighbours_are_not(self, message: bytes | None, code: str | None) -> None:
        good = dumped({"schema": WRITTEN, "payload": EVENT})
        found = decode(good, message, good)

        assert ([] if code is None else [code], [] if code is None else [1]) == (found.refused_codes, found.refused_rows.tolist())
        assert ["u", "u"] == [event["op"] for event in found.events.to_pylist() if event["op"] == "u"]

    @given(st.binary(max_size=40), st.integers(0, 60))
    def test_no_bytes_are_a_crash(self, noise: bytes, at: int) -> None:
        message = dumped({"schema": None, "payload": EVENT})
        broken = message[:at] + noise + message[at + len(noise) :]
        found = decode(broken, message)

        assert 2 == len(found.events) + len(found.refused_codes)


class TestTypes:
    def test_are_named_within_the_payload(self) -> None:
        values = [dumped({"schema": WRITTEN, "payload": EVENT}), dumped(EVENT), b'{"schema": 1, "payload": 1, "op": "u"}', None]
        found = event_types(batch(*values), "op", MAX, "debezium")

        assert (["u", "u", None, None], [None, None, "EV507", "EV517"]) == found
