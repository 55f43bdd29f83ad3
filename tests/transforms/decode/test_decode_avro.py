"""Single Avro datums become columns; no length in a message is trusted."""

from __future__ import annotations

import datetime as dt
import io
import json
import random
import time
import tracemalloc
from decimal import Decimal
from typing import Any

import fastavro
import fastavro.schema
import pyarrow as pa
import pytest

from eventveil.schemas.errors import StorageError
from eventveil.schemas.events.avro import parse_avro
from eventveil.transforms.decode.avro_events import AvroDecoder
from eventveil.transforms.decode.decoded import Decoded, decoded_type

LINE = {
    "type": "record",
    "name": "Line",
    "fields": [{"name": "sku", "type": "string"}, {"name": "tags", "type": ["null", {"type": "array", "items": ["null", "string"]}]}],
}
EVERYTHING = {
    "type": "record",
    "name": "shop.Event",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "flag", "type": "boolean"},
        {"name": "small", "type": ["int", "null"]},
        {"name": "large", "type": "long"},
        {"name": "half", "type": "float"},
        {"name": "full", "type": ["null", "double"]},
        {"name": "raw", "type": "bytes"},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["new", "old"]}},
        {"name": "code", "type": {"type": "fixed", "name": "Code", "size": 3}},
        {"name": "uuid", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "total", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "rate", "type": {"type": "fixed", "name": "Rate", "size": 4, "logicalType": "decimal", "precision": 5, "scale": 4}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "at_ms", "type": {"type": "int", "logicalType": "time-millis"}},
        {"name": "at_us", "type": {"type": "long", "logicalType": "time-micros"}},
        {"name": "when", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "local", "type": ["null", {"type": "long", "logicalType": "local-timestamp-millis"}]},
        {"name": "lines", "type": {"type": "array", "items": LINE}},
        {"name": "best", "type": ["null", "Line"]},
        {"name": "props", "type": {"type": "map", "values": ["null", "long"]}},
    ],
}


def record(*fields: tuple[str, Any], name: str = "E") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": name, "type": kind} for name, kind in fields]}


def datum(schema: Any, event: Any) -> bytes:
    file = io.BytesIO()
    fastavro.schemaless_writer(file, fastavro.parse_schema(schema), event)
    return file.getvalue()


def decode(schema: Any, *values: bytes | None, writer: Any = None, used: set[str] | None = None, **options: Any) -> Decoded:
    event_schema = parse_avro(schema, "e.avsc")
    decoder = AvroDecoder(event_schema, used, None if writer is None else json.dumps(writer), **options)
    decoded = decoder.decode(pa.array(values, pa.binary()))
    decoded.events.validate(full=True)
    assert decoded.events.type == decoded_type(event_schema, used)
    return decoded


def verdicts(decoded: Decoded) -> list[tuple[int, str, str]]:
    return list(zip(decoded.refused_rows.tolist(), decoded.refused_codes, decoded.refused_paths, strict=True))


def event(chance: random.Random) -> dict[str, Any]:
    def line() -> dict[str, Any]:
        return {"sku": chance.choice(["", "ksm6573er", "ключ"]), "tags": chance.choice([None, [], ["a", None, "b" * 200]])}

    return {
        "id": str(chance.random()),
        "flag": chance.random() < 0.5,
        "small": chance.choice([None, 0, -1, 63, 64, -(2**31), 2**31 - 1]),
        "large": chance.choice([0, -64, -65, 2**63 - 1, -(2**63)]),
        "half": chance.choice([0.0, -0.0, 1.5, -3.25 * 2.0**80]),
        "full": chance.choice([None, 0.1, 1e300]),
        "raw": chance.choice([b"", b"\x00\xff", b"x" * 1000]),
        "kind": chance.choice(["new", "old"]),
        "code": b"abc",
        "uuid": "00000000-0000-0000-0000-00000000000f",
        "total": chance.choice([Decimal("0.00"), Decimal("-9999999.99"), Decimal("12.50")]),
        "rate": chance.choice([Decimal("1.0000"), Decimal("-0.0001")]),
        "day": chance.choice([dt.date(1, 1, 1), dt.date(9999, 12, 31), dt.date(2024, 2, 29)]),
        "at_ms": dt.time(23, 59, 59, 999000),
        "at_us": dt.time(0, 0, 0, 1),
        "when": chance.choice([dt.datetime(1969, 12, 31, 23, 59, 59, 999999), dt.datetime(9999, 12, 30)]).replace(tzinfo=dt.timezone.utc),
        "local": chance.choice([None, dt.datetime(2014, 9, 4, 22, 57, 55, 123000)]),
        "lines": [line() for _ in range(chance.randrange(4))],
        "best": chance.choice([None, line()]),
        "props": {key: chance.choice([None, 7]) for key in chance.sample(["a", "b", "c d", "é"], chance.randrange(4))},
    }


class TestReading:
    def test_gives_what_fastavro_gives(self) -> None:
        chance = random.Random(5)
        events = [event(chance) for _ in range(300)]
        decoded = decode(EVERYTHING, *(datum(EVERYTHING, each) for each in events))

        expected = [{name: value for name, value in each.items() if name != "props"} for each in events]
        assert expected == decoded.events.to_pylist()
        assert decoded.rows is None

    def test_named_entries_of_maps_become_fields(self) -> None:
        chance = random.Random(6)
        events = [event(chance) for _ in range(100)]
        decoded = decode(EVERYTHING, *(datum(EVERYTHING, each) for each in events), used={"props{a}", "props{c d}", "props{none}"})

        expected = [{"props": {"a": each["props"].get("a"), "c d": each["props"].get("c d"), "none": None}} for each in events]
        assert expected == decoded.events.to_pylist()

    def test_a_sequence_may_come_in_blocks_with_their_sizes(self) -> None:
        schema = record(("v", {"type": "array", "items": "long"}))
        values = [b"\x02\x02\x02\x04\x00", b"\x01\x02\x02\x02\x04\x00", b"\x03\x04\x02\x04\x00"]

        assert [{"v": [1, 2]}] * 3 == decode(schema, *values).events.to_pylist()

    def test_many_batches_do_not_mix(self) -> None:
        schema = record(("v", {"type": "array", "items": "string"}))
        decoder = AvroDecoder(parse_avro(schema, ""))
        good, bad = datum(schema, {"v": ["a", "b"]}), datum(schema, {"v": ["a", "b"]})[:-2]
        for _ in range(3):
            decoded = decoder.decode(pa.array([bad, good, bad]))
            assert [{"v": ["a", "b"]}] == decoded.events.to_pylist()
            assert [(0, "EV516", ""), (2, "EV516", "")] == verdicts(decoded)


LONG, TEXT = record(("v", "long")), record(("v", "string"))


class TestRefused:
    @pytest.mark.parametrize(
        ("schema", "value"),
        [
            (LONG, b""),
            (LONG, None),
            (LONG, b"\x80"),
            (LONG, b"\x02\x02"),
            (LONG, b"\xff" * 10 + b"\x01"),
            (LONG, b"\xff" * 9 + b"\x02"),
            (record(("v", "int")), b"\x80\x80\x80\x80\x10"),
            (record(("v", "boolean")), b"\x02"),
            (record(("v", "float")), b"\x00\x00\x00"),
            (record(("v", "double")), b"\x00" * 7),
            (TEXT, b"\x04a"),
            (TEXT, b"\x01"),
            (TEXT, b"\x80\x80\x80\x80\x80\x40a"),
            (record(("v", "bytes")), b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
            (record(("v", {"type": "fixed", "name": "F", "size": 3})), b"ab"),
            (record(("v", {"type": "enum", "name": "K", "symbols": ["a"]})), b"\x02"),
            (record(("v", {"type": "enum", "name": "K", "symbols": ["a"]})), b"\x01"),
            (record(("v", ["null", "long"])), b"\x04\x00"),
            (record(("v", ["null", "long"])), b"\x01\x00"),
            (record(("v", {"type": "array", "items": "boolean"})), b"\x80\x80\x80\x80\x20\x00"),
            (record(("v", {"type": "array", "items": "long"})), b"\x01\x01\x00"),
            (record(("v", {"type": "map", "values": "long"})), b"\x02\x03a\x02\x00"),
        ],
    )
    def test_what_is_no_datum_of_the_schema(self, schema: Any, value: bytes | None) -> None:
        assert [(0, "EV516", "")] == verdicts(decode(schema, value))

    @pytest.mark.parametrize(
        ("kind", "value", "code"),
        [
            ("string", b"\x02\xff", "EV504"),
            ("float", b"\x00\x00\xc0\x7f", "EV505"),
            ("double", b"\x00\x00\x00\x00\x00\x00\xf0\xff", "EV505"),
            ({"type": "string", "logicalType": "uuid"}, b"\x02x", "EV506"),
            ({"type": "bytes", "logicalType": "decimal", "precision": 3, "scale": 1}, b"\x04\x03\xe8", "EV506"),
            ({"type": "bytes", "logicalType": "decimal", "precision": 3, "scale": 1}, b"\x80\x02" + b"\x7f" * 128, "EV506"),
            ({"type": "int", "logicalType": "time-millis"}, b"\x01", "EV506"),
            ({"type": "int", "logicalType": "date"}, b"\xff\xff\xff\xff\x0f", "EV506"),
            ({"type": "long", "logicalType": "timestamp-micros"}, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01", "EV506"),
            ({"type": "map", "values": "long"}, b"\x04\x02a\x02\x02a\x02\x00", "EV507"),
            ({"type": "map", "values": "long"}, b"\x02\x02\xff\x02\x00", "EV504"),
        ],
    )
    def test_what_the_event_schema_does_not_allow(self, kind: Any, value: bytes, code: str) -> None:
        path = "v{}" if isinstance(kind, dict) and kind["type"] == "map" else "v"

        assert [(0, code, path)] == verdicts(decode(record(("v", kind)), value))

    def test_what_is_too_large(self) -> None:
        assert [(1, "EV515", "")] == verdicts(decode(TEXT, b"\x02a", b"\x04ab", max_event_bytes=2))


class TestHostile:
    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            ("string", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"),
            ({"type": "array", "items": "boolean"}, b"\xfe\xff\xff\xff\x0f"),
            ({"type": "array", "items": ["null", "long"]}, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
            ({"type": "array", "items": {"type": "array", "items": "long"}}, b"\xfe\xff\xff\xff\x0f" * 100),
            ({"type": "map", "values": "long"}, b"\xff\xff\xff\xff\x0f\x00"),
        ],
        ids=["text", "booleans", "nulls", "nested", "map"],
    )
    def test_lengths_cost_nothing(self, kind: Any, value: bytes) -> None:
        decoder = AvroDecoder(parse_avro(record(("v", kind)), ""))
        tracemalloc.start()
        begun = time.process_time()
        decoded = decoder.decode(pa.array([value] * 10))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert ["EV516"] * 10 == decoded.refused_codes
        assert time.process_time() - begun < 1 and peak < 1 << 20

    @pytest.mark.parametrize(
        "unknown",
        [
            {"type": "array", "items": "null"},
            {"type": "array", "items": {"type": "record", "name": "Empty", "fields": []}},
            {"type": "array", "items": {"type": "record", "name": "Nulls", "fields": [{"name": "x", "type": "null"}]}},
        ],
        ids=["nulls", "empty", "records-of-nulls"],
    )
    def test_elements_of_no_bytes_are_refused_with_their_schema(self, unknown: Any) -> None:
        with pytest.raises(StorageError, match=r"EV407 .* elements that take no bytes"):
            decode(LONG, writer=record(("v", "long"), ("more", unknown)))

    def test_a_type_without_end_is_refused_with_its_schema(self) -> None:
        endless = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}
        with pytest.raises(StorageError, match=r"EV407 .* contains itself"):
            decode(LONG, writer=record(("v", "long"), ("more", endless)))

    def test_mutations_have_one_verdict_alone_and_in_any_batch(self) -> None:
        chance = random.Random(7)
        values = []
        for _ in range(1500):
            value = bytearray(datum(EVERYTHING, event(chance)))
            for _ in range(chance.randrange(4)):
                at = chance.randrange(len(value))
                kind = chance.randrange(3)
                if kind == 0:
                    value[at] = chance.randrange(256)
                elif kind == 1:
                    del value[at : at + chance.randrange(1, 5)]
                else:
                    value[at:at] = bytes(chance.choices(b"\x00\x01\x02\x7f\x80\xff", k=chance.randrange(1, 6)))
                if not value:
                    break
            values.append(bytes(value))
        decoder = AvroDecoder(parse_avro(EVERYTHING, ""), {"id", "lines[].tags[]", "props{a}"})

        def told(batch: list[bytes]) -> list[Any]:
            decoded = decoder.decode(pa.array(batch, pa.binary()))
            decoded.events.validate(full=True)
            found: list[Any] = [None] * len(batch)
            for row, value in zip(
                range(len(batch)) if decoded.rows is None else decoded.rows.tolist(), decoded.events.to_pylist(), strict=True
            ):
                found[row] = value
            for row, code, path in verdicts(decoded):
                assert found[row] is None
                found[row] = (code, path)
            assert None not in found
            return found

        alone = [told([value])[0] for value in values]
        assert alone == told(values)
        assert alone == [each for at in range(0, len(values), 13) for each in told(values[at : at + 13])]
        assert 300 < sum(isinstance(each, tuple) for each in alone) < 1200


class TestWriters:
    def test_what_it_has_more_is_drift_of_every_event(self) -> None:
        schema = record(("v", "long"), ("in", record(("a", "long"), name="I")))
        more = [("x", {"type": "map", "values": ["null", {"type": "array", "items": "double"}]}), ("y", "bytes"), ("z", "float")]
        writer = record(*more, ("in", record(("b", "boolean"), ("a", "int"), name="I")), ("v", "int"))
        event = {"v": 5, "in": {"a": 6, "b": True}, "x": {"k": [1.5, 2.5], "l": None}, "y": b"yy", "z": 1.5}
        value = datum(writer, event)
        decoded = decode(schema, value, value[:-1], value, writer=writer)

        assert [{"v": 5, "in": {"a": 6}}] * 2 == decoded.events.to_pylist()
        assert {"?": 2, "in.?": 2} == decoded.drift

    def test_what_it_lacks_is_null_or_missing(self) -> None:
        schema = record(("v", "long"), ("w", ["null", "string"]), ("l", ["null", {"type": "array", "items": "long"}]))
        writer = record(("v", "long"))

        assert [{"v": 1, "w": None, "l": None}] == decode(schema, b"\x02", writer=writer).events.to_pylist()
        assert [(0, "EV503", "v")] == verdicts(decode(schema, b"\x00", writer=record(("w", ["null", "string"]))))

    @pytest.mark.parametrize(
        ("given", "wanted", "value", "read"),
        [
            ("int", "long", 5, 5),
            ("int", "float", 5, 5.0),
            ("long", "double", 2**53 + 1, float(2**53)),
            ("float", "double", 0.5, 0.5),
            ("bytes", "string", b"ab", "ab"),
            ("string", "bytes", "ab", b"ab"),
            (["null", "long"], "long", 5, 5),
            (["int", "long"], "long", 5, 5),
            (["long", "string"], "long", 5, 5),
            (
                {"type": "long", "logicalType": "timestamp-millis"},
                {"type": "long", "logicalType": "timestamp-micros"},
                1500,
                dt.datetime(1970, 1, 1, 0, 0, 1, 500000, dt.timezone.utc),
            ),
        ],
    )
    def test_its_types_may_widen(self, given: Any, wanted: Any, value: Any, read: Any) -> None:
        writer = record(("v", given))

        assert [{"v": read}] == decode(record(("v", wanted)), datum(writer, {"v": value}), writer=writer).events.to_pylist()

    @pytest.mark.parametrize(
        ("given", "wanted"),
        [
            ("long", "int"),
            ("double", "float"),
            ("string", "long"),
            ("long", "string"),
            ("long", {"type": "long", "logicalType": "timestamp-millis"}),
            ({"type": "long", "logicalType": "timestamp-micros"}, {"type": "long", "logicalType": "timestamp-millis"}),
            (
                {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 1},
                {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
            ),
            ({"type": "array", "items": "long"}, "long"),
            ({"type": "array", "items": "string"}, {"type": "array", "items": "long"}),
            ({"type": "map", "values": "long"}, {"type": "array", "items": "long"}),
            ({"type": "fixed", "name": "F", "size": 3}, {"type": "fixed", "name": "F", "size": 4}),
        ],
    )
    def test_but_not_change(self, given: Any, wanted: Any) -> None:
        with pytest.raises(StorageError, match="EV407 the writer's schema does not fit the event schema: v"):
            decode(record(("v", wanted)), writer=record(("v", given)))

    def test_a_case_that_does_not_fit_refuses_its_events(self) -> None:
        writer = record(("v", ["long", "string"]))
        values = [datum(writer, {"v": value}) for value in (1, "canary", 2)]

        assert [(1, "EV502", "v")] == verdicts(decode(LONG, *values, writer=writer))

    @pytest.mark.parametrize("writer", ["", "{", '"canary"', "[]", '["null"]', '"null"', '{"type":"record"}', '"long"'])
    def test_a_schema_that_is_none_is_told_without_its_text(self, writer: str) -> None:
        with pytest.raises(StorageError, match="EV407") as caught:
            AvroDecoder(parse_avro(LONG, ""), None, writer)

        assert "canary" not in str(caught.value)


class TestSingleObjects:
    def mark(self, schema: Any) -> bytes:
        return b"\xc3\x01" + bytes.fromhex(fastavro.schema.fingerprint(fastavro.schema.to_parsing_canonical_form(schema), "CRC-64-AVRO"))

    def test_the_specification_has_this_fingerprint(self) -> None:
        # Avro's own test data: the fingerprint of "int" is 0x7275d51a3f395c8f, written in little endian.
        assert bytes.fromhex("8f5c393f1ad57572") == bytes.fromhex(fastavro.schema.fingerprint('"int"', "CRC-64-AVRO"))

    def test_are_known_by_their_mark_and_fingerprint(self) -> None:
        value = datum(EVERYTHING, event(random.Random(1)))
        wrong = self.mark(LONG) + value
        decoded = decode(
            EVERYTHING, value, self.mark(EVERYTHING) + value, wrong, self.mark(EVERYTHING)[:5], self.mark(EVERYTHING), used={"id"}
        )

        assert [0, 1] == decoded.rows.tolist()
        assert decoded.events[0] == decoded.events[1]
        assert [(row, "EV516", "") for row in (2, 3, 4)] == verdicts(decoded)

    def test_are_not_looked_for_in_datums_of_a_file(self) -> None:
        value = datum(LONG, {"v": -98})

        assert b"\xc3\x01" == value
        assert [{"v": -98}] == decode(LONG, value, writer=LONG).events.to_pylist()
        assert [(0, "EV516", "")] == verdicts(decode(LONG, value))
        assert [{"v": -98}] == decode(LONG, value, single_object=False).events.to_pylist()
