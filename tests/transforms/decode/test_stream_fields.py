"""Key, headers, topic and time of a message beside the event that it holds: text or refused, and null where a source has none."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pyarrow as pa
import pytest

from eventveil.schemas.events.avro import parse_avro
from eventveil.transforms.batch import Part, kind_of, part_of, with_kind, with_part
from eventveil.transforms.decode.decoded import Decoded
from eventveil.transforms.decode.event_type import event_types
from eventveil.transforms.decode.reading import Decoders, Reading

FIELDS = [{"name": "n", "type": "int"}, {"name": "t", "type": ["null", "string"]}]
SCHEMA = parse_avro({"type": "record", "name": "E", "fields": FIELDS}, "")
USED = frozenset({"n"})
HEADERS = pa.list_(pa.struct([pa.field("name", pa.string()), pa.field("value", pa.binary())]))
NOON = dt.datetime(2024, 5, 6, 12, 0, tzinfo=dt.timezone.utc)
MAX = 1 << 20


def raw(*messages: tuple[Any, Any, list[tuple[str, bytes | None]] | None], values: list[bytes | None] | None = None) -> pa.RecordBatch:
    """Messages with a key and headers; their value counts them."""
    count = len(messages)
    given = values or [b'{"n": %d}' % number for number in range(count)]
    columns: dict[str, Any] = {
        "value": pa.array(given, pa.binary()),
        "position": pa.array(range(100, 100 + count)),
        "key": pa.array([key for key, _, _ in messages], pa.binary()),
        "headers": pa.array([headers and [{"name": n, "value": v} for n, v in headers] for _, _, headers in messages], HEADERS),
        "topic": pa.array([topic for _, topic, _ in messages], pa.string()),
        "time": pa.array([NOON] * count, pa.timestamp("us", "UTC")),
    }
    return with_kind(pa.RecordBatch.from_arrays(list(columns.values()), list(columns)), "messages")


def decode(batch: pa.RecordBatch, *stream: str, **more: Any) -> Decoded:
    return Decoders(Reading(SCHEMA, USED, stream=stream, **more)).decode(batch)


def refusals(decoded: Decoded) -> list[tuple[int, str, str]]:
    return list(zip(decoded.refused_rows.tolist(), decoded.refused_codes, decoded.refused_paths))


class TestFields:
    ALL = ("$headers.a", "$headers.b.c", "$key", "$time", "$topic")

    def test_they_stand_beside_the_events_own(self) -> None:
        batch = raw((b"k", "t", [("a", "ä".encode()), ("b.c", b"1"), ("A", b"x")]), (None, "u", None), (b"", "t", [("a", None)]))
        found = decode(batch, *self.ALL)

        assert [
            {"n": 0, "$headers": {"a": "ä", "b.c": "1"}, "$key": "k", "$time": NOON, "$topic": "t"},
            {"n": 1, "$headers": {"a": None, "b.c": None}, "$key": None, "$time": NOON, "$topic": "u"},
            {"n": 2, "$headers": {"a": None, "b.c": None}, "$key": "", "$time": NOON, "$topic": "t"},
        ] == found.events.to_pylist()
        found.events.validate(full=True)

    def test_only_those_that_are_named(self) -> None:
        assert [{"n": 0, "$key": "k"}] == decode(raw((b"k", "t", [("a", b"\xff")])), "$key").events.to_pylist()
        assert [{"n": 0}] == decode(raw((b"\xff", "t", None))).events.to_pylist()

    def test_without_any_field_of_the_event(self) -> None:
        batch = raw((b"k", "t", None), (b"l", "t", None))
        found = Decoders(Reading(SCHEMA, frozenset(), stream=("$key",))).decode(batch)

        assert [{"$key": "k"}, {"$key": "l"}] == found.events.to_pylist()

    def test_a_source_without_them_has_nulls(self) -> None:
        batch = with_kind(raw((b"k", "t", None)).select(["value", "position"]), "messages")
        found = decode(batch, *self.ALL)

        assert [{"n": 0, "$headers": {"a": None, "b.c": None}, "$key": None, "$time": None, "$topic": None}] == found.events.to_pylist()
        assert [pa.string(), pa.timestamp("us", "UTC")] == [found.events.type.field(name).type for name in ("$key", "$time")]

    def test_columns_of_others_are_never_taken_for_them(self) -> None:
        batch = pa.RecordBatch.from_pydict({"n": pa.array([1], pa.int32()), "key": ["k"], "value": [b"x"], "topic": ["t"]})

        assert [{"n": 1, "$key": None, "$topic": None}] == decode(batch, "$key", "$topic").events.to_pylist()

    @pytest.mark.parametrize("cut", [slice(0, 2), slice(1, 3), slice(2, 2)], ids=str)
    def test_a_slice_gives_the_slice(self, cut: slice) -> None:
        batch = raw((b"a", "t", [("a", b"1")]), (b"b", "u", [("x", b"2"), ("a", b"3")]), (b"c", "t", None))
        sliced = batch.slice(cut.start, cut.stop - cut.start)

        assert decode(batch, *self.ALL).events.to_pylist()[cut] == decode(sliced, *self.ALL).events.to_pylist()

    def test_kafkas_large_columns_do_as_well(self) -> None:
        batch = raw((b"k", "t", None), (b"\xff", "t", None))
        large = batch.set_column(2, "key", batch.column("key").cast(pa.large_binary()))

        assert refusals(decode(batch, "$key")) == refusals(decode(with_kind(large, "messages"), "$key")) == [(1, "EV519", "$key")]


class TestRefused:
    def test_what_is_no_text(self) -> None:
        batch = raw((b"\xff", "t", None), (b"k", "t", [("a", b"\xfe")]), (b"l", "t", [("a", b"1")]), (b"m", "t", [("b", b"\xfe")]))
        found = decode(batch, "$headers.a", "$key")

        assert [(0, "EV519", "$key"), (1, "EV519", "$headers.a")] == refusals(found)
        assert [2, 3] == [event["n"] for event in found.events.to_pylist()]
        assert found.rows is not None
        assert [2, 3] == found.rows.tolist()

    @pytest.mark.parametrize("second", [b"1", b"2", None], ids=["same", "other", "null"])
    def test_a_header_that_stands_twice(self, second: bytes | None) -> None:
        batch = raw((b"k", "t", [("a", b"1"), ("b", b"1"), ("a", second)]), (b"k", "t", [("b", b"1"), ("b", b"2"), ("a", b"1")]))

        assert [(0, "EV519", "$headers.a")] == refusals(decode(batch, "$headers.a"))

    def test_what_the_decoder_refuses_is_told_first(self) -> None:
        batch = raw((b"\xff", "t", None), (b"\xff", "t", None), (b"k", "t", None), values=[b"{", b'{"n": 1}', b'{"n": "x"}'])

        assert [(0, "EV501", ""), (1, "EV519", "$key"), (2, "EV502", "n")] == refusals(decode(batch, "$key"))

    def test_drift_stays_with_its_event(self) -> None:
        values: list[bytes | None] = [b"{", b'{"n": 1, "x": 1}', b'{"n": 2}', b'{"n": 3, "x": 1}']
        found = decode(raw(*[(b"k", "t", None), (b"\xff", "t", None), (b"k", "t", None), (b"k", "t", None)], values=values), "$key")

        assert [2, 3] == [event["n"] for event in found.events.to_pylist()]
        assert {"?": [1]} == {label: rows.tolist() for label, rows in found.drifting.items()}


class TestWithoutValue:
    @pytest.mark.parametrize("format", ["json", "avro"])
    def test_it_is_refused_by_name(self, format: str) -> None:
        values: list[bytes | None] = [None, b'{"n": 1}' if format == "json" else b"\x02\x00", None]
        found = decode(raw(*[(b"k", "t", None)] * 3, values=values), "$key", format=format)

        assert [(0, "EV517", ""), (2, "EV517", "")] == refusals(found)
        assert [{"n": 1, "$key": "k"}] == found.events.to_pylist()

    def test_an_empty_or_null_text_is_no_event_and_no_tombstone(self) -> None:
        assert ["EV501", "EV501"] == decode(raw(*[(b"k", "t", None)] * 2, values=[b"", b"null"])).refused_codes


class TestTypes:
    def test_by_header(self) -> None:
        batch = raw(
            (b"k", "t", [("ce.type", b"a")]), (b"k", "t", [("ce.type", b"\xff")]), (b"k", "t", None), (b"k", "t", [("ce.type", b"b")] * 2)
        )

        assert (["a", None, None, None], [None, "EV519", "EV503", "EV519"]) == event_types(batch, "$headers.ce.type", MAX)

    def test_by_topic(self) -> None:
        assert (["t", "u"], [None, None]) == event_types(raw((b"k", "t", None), (b"k", "u", None)), "$topic", MAX)

    def test_by_what_a_source_does_not_have(self) -> None:
        batch = with_kind(raw((b"k", "t", None)).select(["value", "position"]), "messages")

        assert ([None], ["EV503"]) == event_types(batch, "$topic", MAX)

    def test_an_empty_batch_has_none(self) -> None:
        assert ([], []) == event_types(raw(), "$headers.a", MAX)


def test_filtering_and_taking_keep_the_marks() -> None:
    batch = with_part(raw((b"k", "t", None), (b"l", "t", None)), Part("t/0", 100))
    some: Any = pa.array([True, False])

    for kept in (batch.filter(some), batch.take(pa.array([0])), batch.slice(0, 1)):
        assert ("messages", Part("t/0", 100)) == (kind_of(kept), part_of(kept))
