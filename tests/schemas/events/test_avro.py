"""Avro schemas become trees, or say why they cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pytest

from eventveil.schemas.errors import SchemaError
from eventveil.schemas.events.avro import load_avro, parse_avro
from eventveil.schemas.events.tree import EventSchema, Field, Leaf, ListOf, MapOf, Record


def record(*fields: Any, name: str = "Event", **more: Any) -> dict[str, Any]:
    """A record of fields named a, b, c ... with these types."""
    named = [{"name": chr(ord("a") + number), "type": type_} for number, type_ in enumerate(fields)]
    return {"type": "record", "name": name, "fields": named, **more}


def read(*fields: Any) -> EventSchema:
    return parse_avro(record(*fields), "e.avsc")


def refused(document: Any) -> list[str]:
    with pytest.raises(SchemaError) as caught:
        parse_avro(document, "e.avsc")
    return [f"{problem.code} {problem.fact}" for problem in caught.value.problems]


class TestLeaves:
    @pytest.mark.parametrize(
        ("schema", "expected"),
        [
            ("boolean", Leaf(pa.bool_())),
            ("int", Leaf(pa.int32())),
            ("long", Leaf(pa.int64())),
            ("float", Leaf(pa.float32())),
            ("double", Leaf(pa.float64())),
            ("bytes", Leaf(pa.binary())),
            ("string", Leaf(pa.string())),
            ({"type": "string"}, Leaf(pa.string())),
            ({"type": "string", "avro.java.string": "String"}, Leaf(pa.string())),
            ({"type": "enum", "name": "E", "symbols": ["X", "Y"], "default": "X"}, Leaf(pa.string(), "enum", ("X", "Y"))),
            ({"type": "fixed", "name": "F", "size": 4}, Leaf(pa.binary(), "fixed", size=4)),
        ],
        ids=str,
    )
    def test_plain_types(self, schema: Any, expected: Leaf) -> None:
        assert Record((Field("a", expected),)) == read(schema).root

    @pytest.mark.parametrize(
        ("base", "logical", "expected"),
        [
            ("int", "date", Leaf(pa.date32())),
            ("int", "time-millis", Leaf(pa.time32("ms"))),
            ("long", "time-micros", Leaf(pa.time64("us"))),
            ("long", "timestamp-millis", Leaf(pa.timestamp("ms", "UTC"))),
            ("long", "timestamp-micros", Leaf(pa.timestamp("us", "UTC"))),
            ("long", "timestamp-nanos", Leaf(pa.timestamp("ns", "UTC"))),
            ("long", "local-timestamp-millis", Leaf(pa.timestamp("ms"))),
            ("long", "local-timestamp-micros", Leaf(pa.timestamp("us"))),
            ("long", "local-timestamp-nanos", Leaf(pa.timestamp("ns"))),
            ("string", "uuid", Leaf(pa.string(), "uuid")),
            ("string", "date", Leaf(pa.string())),
            ("long", "date", Leaf(pa.int64())),
            ("int", "timestamp-millis", Leaf(pa.int32())),
            ("string", "decimal", Leaf(pa.string())),
            ("string", "my-own", Leaf(pa.string())),
            ("long", 5, Leaf(pa.int64())),
            ("long", ["date"], Leaf(pa.int64())),
        ],
        ids=str,
    )
    def test_logical_types_and_what_falls_back_to_its_base(self, base: str, logical: Any, expected: Leaf) -> None:
        assert Record((Field("a", expected),)) == read({"type": base, "logicalType": logical}).root

    @pytest.mark.parametrize(
        ("schema", "expected"),
        [
            ({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}, Leaf(pa.decimal128(9, 2))),
            ({"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 38}, Leaf(pa.decimal128(38, 38))),
            ({"type": "bytes", "logicalType": "decimal", "precision": 4}, Leaf(pa.decimal128(4, 0))),
            (
                {"type": "fixed", "name": "F", "size": 4, "logicalType": "decimal", "precision": 9, "scale": 1},
                Leaf(pa.decimal128(9, 1), size=4),
            ),
            ({"type": "fixed", "name": "F", "size": 16, "logicalType": "uuid"}, Leaf(pa.string(), "uuid", size=16)),
            ({"type": "fixed", "name": "F", "size": 8, "logicalType": "uuid"}, Leaf(pa.binary(), "fixed", size=8)),
            ({"type": "fixed", "name": "F", "size": 12, "logicalType": "duration"}, Leaf(pa.binary(), "fixed", size=12)),
        ],
        ids=str,
    )
    def test_logical_types_of_bytes(self, schema: Any, expected: Leaf) -> None:
        assert Record((Field("a", expected),)) == read(schema).root


class TestNesting:
    @pytest.mark.parametrize(
        ("schema", "expected"),
        [
            (["null", "string"], Field("a", Leaf(pa.string()), nullable=True)),
            (["string", "null"], Field("a", Leaf(pa.string()), nullable=True)),
            ([{"type": "null"}, "string"], Field("a", Leaf(pa.string()), nullable=True)),
            (["string"], Field("a", Leaf(pa.string()))),
            ({"type": "array", "items": "int"}, Field("a", ListOf(Leaf(pa.int32())))),
            ({"type": "array", "items": ["null", "int"]}, Field("a", ListOf(Leaf(pa.int32()), nullable_items=True))),
            (["null", {"type": "array", "items": "int"}], Field("a", ListOf(Leaf(pa.int32())), nullable=True)),
            ({"type": "map", "values": "int"}, Field("a", MapOf(Leaf(pa.int32())))),
            ({"type": "map", "values": ["int", "null"]}, Field("a", MapOf(Leaf(pa.int32()), nullable_values=True))),
            ({"type": "array", "items": {"type": "array", "items": "int"}}, Field("a", ListOf(ListOf(Leaf(pa.int32()))))),
            (record("int", name="R"), Field("a", Record((Field("a", Leaf(pa.int32())),)))),
            ({"type": "array", "items": record("int", name="R")}, Field("a", ListOf(Record((Field("a", Leaf(pa.int32())),))))),
        ],
        ids=str,
    )
    def test_unions_lists_maps_and_records(self, schema: Any, expected: Field) -> None:
        assert Record((expected,)) == read(schema).root

    def test_leaves_are_written_as_policies_write_them(self) -> None:
        line = record("string", ["null", {"type": "map", "values": "int"}], name="Line")
        found = read("string", {"type": "array", "items": line}, record({"type": "array", "items": "long"}, name="Sub"))

        assert ["a", "b[].a", "b[].b", "c.a[]"] == [path for path, _ in found.leaves()]

    def test_a_missing_doc_alias_default_or_order_does_not_matter(self) -> None:
        rich = record("int", doc="x", aliases=["Old"])
        rich["fields"][0].update({"doc": "y", "default": 5, "aliases": ["z"], "order": "ignore", "own": [1]})

        assert parse_avro(record("int"), "e.avsc") == parse_avro(rich, "e.avsc")


class TestNames:
    ADDRESS = record("string", name="Address")

    @pytest.mark.parametrize(
        ("document", "name"),
        [
            (record("int"), "Event"),
            (record("int", namespace="com.shop"), "com.shop.Event"),
            (record("int", name="com.shop.Event"), "com.shop.Event"),
            (record("int", name="com.shop.Event", namespace="ignored"), "com.shop.Event"),
            (record("int", namespace=""), "Event"),
        ],
        ids=["plain", "namespace", "full", "full wins", "empty"],
    )
    def test_the_full_name_of_an_event(self, document: Any, name: str) -> None:
        assert name == parse_avro(document, "e.avsc").name

    @pytest.mark.parametrize(
        "document",
        [
            pytest.param(record(ADDRESS, "Address"), id="plain"),
            pytest.param(record(ADDRESS, "Address", namespace="n"), id="inherited namespace"),
            pytest.param(record(ADDRESS, "n.Address", namespace="n"), id="full"),
            pytest.param(record({**ADDRESS, "namespace": "m"}, "m.Address", namespace="n"), id="own namespace"),
            pytest.param(record(["null", ADDRESS], "Address"), id="within a union"),
            pytest.param(record(ADDRESS, {"type": "Address"}), id="as an object"),
        ],
    )
    def test_a_type_is_named_again(self, document: Any) -> None:
        root = parse_avro(document, "e.avsc").root

        assert Record((Field("a", Leaf(pa.string())),)) == root.fields[0].node == root.fields[1].node

    def test_a_type_within_another_inherits_its_namespace(self) -> None:
        inner = record({"type": "fixed", "name": "F", "size": 2}, name="m.Inner")

        assert Leaf(pa.binary(), "fixed", size=2) == parse_avro(record(inner, "m.F", namespace="n"), "e.avsc").root.fields[1].node
        assert ["EV201 field b: unknown type 'F'"] == refused(record(inner, "F", namespace="n"))


class TestWhatCannotBeProtected:
    @pytest.mark.parametrize(
        ("document", "expected"),
        [
            (record(["int", "string"]), "field a: a union of 2 types"),
            (record(["null", "int", "string"]), "field a: a union of 2 types"),
            (record(record(["int", "long"], name="R")), "field a.a: a union of 2 types"),
            (record({"type": "array", "items": ["int", "long"]}), "field a[]: a union of 2 types"),
            (record({"type": "map", "values": ["int", "long"]}), "field a{}: a union of 2 types"),
            (record("null"), "field a: is always null"),
            (record(["null"]), "field a: is always null"),
            (record({"type": "null"}), "field a: is always null"),
            (record({"type": "array", "items": "null"}), "field a[]: is always null"),
            (record("int", ["null", "Event"]), "field b: the type Event contains itself"),
            (record({"type": "array", "items": "Event"}), "field a[]: the type Event contains itself"),
            (record(record(["null", "n.Event"], name="R"), namespace="n"), "field a.a: the type n.Event contains itself"),
            (record(record("int", {"type": "map", "values": "R"}, name="R")), "field a.b{}: the type R contains itself"),
            (record({"type": "bytes", "logicalType": "decimal", "precision": 39}), "field a: a decimal of more than 38 digits"),
            (record({"type": "bytes", "logicalType": "decimal", "precision": 10**12}), "field a: a decimal of more than 38 digits"),
        ],
        ids=str,
    )
    def test_it_is_named_by_its_path(self, document: Any, expected: str) -> None:
        assert [f"EV202 {expected}"] == refused(document)

    def test_too_deep(self) -> None:
        schema: Any = "int"
        for _ in range(70):
            schema = {"type": "array", "items": schema}

        (found,) = refused(record(schema))
        assert found.startswith("EV202 field a[]") and found.endswith("nested more than 64 deep")

    def test_too_deep_by_names(self) -> None:
        fields = [record("int", name="R0"), *(record(f"R{number - 1}", name=f"R{number}") for number in range(1, 70))]
        document = record("int")
        document["fields"] = [{"name": f"f{number}", "type": type_} for number, type_ in enumerate(fields)]

        assert any("EV202" in found and "nested more than 64 deep" in found for found in refused(document))

    def test_too_wide_by_names(self) -> None:
        fields = [record("int", name="R0"), *(record(f"R{number - 1}", f"R{number - 1}", name=f"R{number}") for number in range(1, 40))]
        document = record("int")
        document["fields"] = [{"name": f"f{number}", "type": type_} for number, type_ in enumerate(fields)]

        assert any(found.startswith("EV202") and found.endswith("more than 10000 leaves") for found in refused(document))


class TestWhatIsNoSchema:
    @pytest.mark.parametrize(
        ("document", "expected"),
        [
            ("string", "an event must be a record"),
            ([record("int"), "null"], "an event must be a record"),
            ({"type": "array", "items": "int"}, "an event must be a record"),
            ({"type": "record", "name": "E", "fields": []}, "a record needs a list of fields"),
            ({"type": "record", "name": "E"}, "a record needs a list of fields"),
            ({"type": "record", "name": "E", "fields": {"a": "int"}}, "a record needs a list of fields"),
            ({"type": "record", "fields": [{"name": "a", "type": "int"}]}, "the record has no name"),
            (record("int", name="1E"), "'1E' cannot be the name of a type"),
            (record("int", name="a-b"), "'a-b' cannot be the name of a type"),
            (record("int", name="string"), "'string' cannot be the name of a type"),
            (record("int", namespace="a..b"), "'Event' cannot be the name of a type"),
            (record("int", namespace=5), "'Event' cannot be the name of a type"),
            (record(record(name="R")), "field a: a record needs a list of fields"),
            (record("strin"), "field a: unknown type 'strin'"),
            (record("record"), "field a: 'record' needs an object"),
            (record(5), "field a: a type must be a name, an object or a union, not a number"),
            (record(None), "field a: a type must be a name, an object or a union, not nothing"),
            (record({}), "field a: a type is missing"),
            (record({"type": {"type": "string"}}), "field a: the type of an object must be a name, not a mapping"),
            (record({"type": "array"}), "field a: 'items' is missing"),
            (record({"type": "map"}), "field a: 'values' is missing"),
            (record([]), "field a: an empty union"),
            (record(["null", "null", "int"]), "field a: a union that names null twice"),
            (record(["null", ["int"]]), "field a: a union directly in a union"),
            (record({"type": "enum", "name": "E", "symbols": []}), "field a: an enum needs a list of symbols"),
            (record({"type": "enum", "name": "E"}), "field a: an enum needs a list of symbols"),
            (record({"type": "enum", "name": "E", "symbols": ["X", "X"]}), "field a: the symbol 'X' stands twice"),
            (record({"type": "enum", "name": "E", "symbols": ["X", "not a name"]}), "field a: a symbol of an enum must be a name"),
            (record({"type": "enum", "name": "E", "symbols": [1]}), "field a: a symbol of an enum must be a name"),
            (record({"type": "enum", "symbols": ["X"]}), "field a: the enum has no name"),
            (record({"type": "fixed", "name": "F"}), "field a: the size of a fixed must be a whole number from 1 to 1048576"),
            (record({"type": "fixed", "name": "F", "size": 0}), "field a: the size of a fixed must be a whole number from 1 to 1048576"),
            (record({"type": "fixed", "name": "F", "size": True}), "field a: the size of a fixed must be a whole number from 1 to 1048576"),
            (
                record({"type": "fixed", "name": "F", "size": 1 << 40}),
                "field a: the size of a fixed must be a whole number from 1 to 1048576",
            ),
            (record({"type": "bytes", "logicalType": "decimal"}), "field a: a decimal needs a precision of at least 1"),
            (record({"type": "bytes", "logicalType": "decimal", "precision": 0}), "field a: a decimal needs a precision of at least 1"),
            (record({"type": "bytes", "logicalType": "decimal", "precision": "9"}), "field a: a decimal needs a precision of at least 1"),
            (
                record({"type": "bytes", "logicalType": "decimal", "precision": 2, "scale": 3}),
                "field a: the scale of a decimal must lie between 0 and its precision",
            ),
            (
                record({"type": "bytes", "logicalType": "decimal", "precision": 2, "scale": -1}),
                "field a: the scale of a decimal must lie between 0 and its precision",
            ),
            (
                record({"type": "fixed", "name": "F", "size": 4, "logicalType": "decimal", "precision": 10}),
                "field a: 10 digits do not fit into 4 bytes",
            ),
            (
                record({"type": "fixed", "name": "F", "size": 8, "logicalType": "decimal", "precision": 19}),
                "field a: 19 digits do not fit into 8 bytes",
            ),
            (record(record("int", name="R"), record("int", name="R")), "field b: the type R is defined twice"),
            (record(record("int", name="Event")), "field a: the type Event is defined twice"),
            ({"type": "record", "name": "E", "fields": ["a"]}, "a field must be an object, not text"),
            ({"type": "record", "name": "E", "fields": [{"type": "int"}]}, "a field without a name"),
            ({"type": "record", "name": "E", "fields": [{"name": "a b", "type": "int"}]}, "'a b' cannot be the name of a field"),
            ({"type": "record", "name": "E", "fields": [{"name": "a.b", "type": "int"}]}, "'a.b' cannot be the name of a field"),
            ({"type": "record", "name": "E", "fields": [{"name": "ä", "type": "int"}]}, "'ä' cannot be the name of a field"),
            ({"type": "record", "name": "E", "fields": [{"name": "a"}]}, "field a: the type is missing"),
            (
                {"type": "record", "name": "E", "fields": [{"name": "a", "type": "int"}, {"name": "a", "type": "long"}]},
                "the name 'a' stands twice",
            ),
        ],
        ids=lambda value: str(value)[:60],
    )
    def test_it_says_what_is_wrong(self, document: Any, expected: str) -> None:
        assert [f"EV201 {expected}"] == refused(document)

    @pytest.mark.parametrize("document", [None, 5, True, {}, []], ids=str)
    def test_something_else_altogether(self, document: Any) -> None:
        assert {"EV201"} == {found[:5] for found in refused(document)}

    def test_all_problems_come_at_once(self) -> None:
        found = refused(record(["int", "string"], "strin", record("null", name="R"), {"type": "fixed", "name": "F"}, "R"))

        assert ["EV201", "EV201", "EV202", "EV202"] == sorted(problem[:5] for problem in found)


class TestCanonical:
    BASE = record(
        {"type": "enum", "name": "E", "symbols": ["X", "Y"]},
        {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
        namespace="n",
    )

    def test_it_does_not_see_how_it_is_written(self) -> None:
        other = {"doc": "x", "fields": [{"doc": "y", **entry} for entry in self.BASE["fields"]], "name": "n.Event", "type": "record"}

        assert parse_avro(self.BASE, "e.avsc").canonical == parse_avro(other, "f.avsc").canonical

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"Y"', '"Z"'),
            ('"precision": 9', '"precision": 8'),
            ('"scale": 2', '"scale": 1'),
            ('"decimal"', '"other"'),
            ('"Event"', '"Other"'),
            ('"n"', '"m"'),
            ('"name": "a"', '"name": "c"'),
            ('"bytes"', '"string"'),
        ],
    )
    def test_it_sees_every_meaning(self, old: str, new: str) -> None:
        text = json.dumps(self.BASE)

        assert old in text
        assert parse_avro(self.BASE, "e.avsc").canonical != parse_avro(json.loads(text.replace(old, new, 1)), "e.avsc").canonical

    @pytest.mark.parametrize(
        ("one", "other"), [(["null", "int"], ["int", "null"]), ("int", ["null", "int"]), ("int", "long"), ("string", "bytes")], ids=str
    )
    def test_types_differ(self, one: Any, other: Any) -> None:
        assert read(one).canonical != read(other).canonical

    def test_it_is_a_schema_itself(self) -> None:
        schema = record(
            record("int", name="R"),
            {"type": "array", "items": ["null", "R"]},
            {"type": "map", "values": {"type": "long", "logicalType": "timestamp-micros"}},
            {"type": "fixed", "name": "F", "size": 16, "logicalType": "uuid"},
            namespace="n",
        )
        found = parse_avro(schema, "e.avsc")

        assert found == parse_avro(json.loads(found.canonical), "e.avsc")
        assert "n.Event" == fastavro.parse_schema(json.loads(found.canonical))["name"]  # type: ignore[call-overload]


class TestFiles:
    def write(self, folder: Path, text: str | bytes) -> Path:
        path = folder / "e.avsc"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def errors(self, path: Path) -> list[tuple[str, int, str]]:
        with pytest.raises(SchemaError) as caught:
            load_avro(path)
        assert {str(path)} == {found.file for found in caught.value.problems}
        return [(found.code, found.line, found.fact) for found in caught.value.problems]

    def test_a_file_is_read(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, b"\xef\xbb\xbf" + json.dumps(record("int")).encode())

        assert (read("int"), str(path)) == (
            EventSchema("Event", load_avro(path).root, read("int").canonical, "e.avsc"),
            load_avro(path).file,
        )

    def test_problems_have_lines(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, json.dumps(record("int", ["int", "string"], "strin"), indent=1))

        assert [("EV201", 18, "field c: unknown type 'strin'"), ("EV202", 11, "field b: a union of 2 types")] == sorted(self.errors(path))

    @pytest.mark.parametrize(
        ("text", "line", "fact"),
        [
            pytest.param('{"type": "record",\n "name" "E"}', 2, "not JSON: expecting ':' delimiter", id="syntax"),
            pytest.param("", 1, "not JSON: expecting value", id="empty"),
            pytest.param('{"type": "record",\n"type": "enum"}', 2, "key 'type' stands twice", id="twice"),
            pytest.param(b'{"type": "\xff"}', 0, "the event schema is not UTF-8 text", id="not UTF-8"),
            pytest.param("[" * 200_000, 0, "not JSON that can be read: nested too deep, or a number too long", id="bomb"),
            pytest.param("type: record", 1, "not JSON: expecting value", id="YAML"),
            pytest.param('"string"', 0, "an event must be a record", id="no record"),
            pytest.param(b" " * (1 << 21), 0, "the event schema is larger than 1048576 bytes", id="large"),
        ],
    )
    def test_what_is_no_schema_file(self, tmp_path: Path, text: str | bytes, line: int, fact: str) -> None:
        assert [("EV201", line, fact)] == self.errors(self.write(tmp_path, text))

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        assert [("EV201", 0, "the event schema cannot be read: no such file or directory")] == self.errors(tmp_path / "missing.avsc")
