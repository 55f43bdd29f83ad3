"""JSON messages become columns; what is wrong with one is told by a code and a known path, and by nothing else."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.json
import pytest

from eventveil.schemas.events.tree import EventSchema, Field, Leaf, ListOf, MapOf, Node, Record
from eventveil.transforms.decode.decoded import Decoded, decoded_type
from eventveil.transforms.decode.json_events import JsonDecoder

TEXT = Leaf(pa.string())
DEEP = b"[" * 300_000 + b"]" * 300_000


def schema(**nodes: Node) -> EventSchema:
    """A schema of nullable fields."""
    return EventSchema("e", Record(tuple(Field(name, node, True) for name, node in nodes.items())), "")


def decode(of: EventSchema, *values: bytes, used: set[str] | None = None, **options: Any) -> Decoded:
    decoded = JsonDecoder(of, used, **options).decode(pa.array(values, pa.binary()))
    decoded.events.validate(full=True)
    assert decoded.events.type == decoded_type(of, used)
    return decoded


def read(node: Node, text: str | bytes) -> Any:
    """What a value in the field `v` becomes: itself, or code and path."""
    raw = text.encode() if isinstance(text, str) else text
    decoded = decode(schema(v=node), b'{"v":' + raw + b"}")
    return decoded.events.to_pylist()[0]["v"] if len(decoded.events) else (decoded.refused_codes[0], decoded.refused_paths[0])


def verdicts(decoded: Decoded) -> list[tuple[int, str, str]]:
    return list(zip(decoded.refused_rows.tolist(), decoded.refused_codes, decoded.refused_paths, strict=True))


AB = schema(a=Leaf(pa.int64()), s=TEXT)


class TestFraming:
    @pytest.mark.parametrize(
        "value",
        [
            *(
                b"null",
                b"",
                b" ",
                b"\n\n",
                b"1",
                b'"{}"',
                b"[]",
                b"[{}]",
                b"{",
                b"}",
                b"{}{}",
                b"{}\x00}",
                b"\x00{}",
                b"{}\x0b",
                b"{} x",
                b"/**/{}",
            ),
            *(
                b'{"a":1}\n{"a":2}',
                b'{"a":1,\n"s":"x"}',
                b'{"a":1,\r"s":"x"}',
                b"\xef\xbb\xbf{}",
                b'{"a":1',
                b'"a":1}',
                b"{'a':1}",
                b'{"a":1,}',
            ),
            *(b'{"a":01}', b'{"a" 1}', b'{"s":"\x01"}', b'{"s":"\t"}', b'{"s":"\\x"}'),
        ],
    )
    def test_what_is_not_one_object_on_one_line_is_refused(self, value: bytes) -> None:
        assert [(1, "EV501", "")] == verdicts(decode(AB, b"{}", value, b"{}"))

    @pytest.mark.parametrize(
        "value", [b' {"a":1}', b'{"a":1}\n', b'\t{"a":1} \r\n', b"\n" * 50 + b'{"a":1}' + b" " * 5000, b'{ "a" :\t1 }']
    )
    def test_white_space_does_not_matter(self, value: bytes) -> None:
        decoded = decode(AB, value, value)

        assert [{"a": 1, "s": None}] * 2 == decoded.events.to_pylist()
        assert decoded.rows is None

    def test_what_is_too_large_is_refused_without_its_white_space(self) -> None:
        values = b'{"s":"123"}', b'   {"s":"12"}  \n', b'{"s":"1234"}', b"x" * 99

        assert [(2, "EV515", ""), (3, "EV515", "")] == verdicts(decode(AB, *values, max_event_bytes=11))

    def test_nothing_is_decoded_from_nothing(self) -> None:
        decoded = decode(AB)

        assert (0, None, [], {}) == (len(decoded.events), decoded.rows, verdicts(decoded), decoded.drift)

    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.large_binary(), pa.binary_view(), pa.string_view()], ids=str)
    def test_any_column_of_bytes_or_text_will_do(self, kind: pa.DataType) -> None:
        values = pa.array(['{"a":1}', "x", '{"a":2}'], kind)
        decoded = JsonDecoder(AB, {"a"}).decode(values.slice(1))

        assert [{"a": 2}] == decoded.events.to_pylist()
        assert [(0, "EV501", "")] == verdicts(decoded)


class TestWhatKillsTheParser:
    """Each of these ends a process that hands it to pyarrow.json; a subprocess shows it, so that the guard is known to be needed."""

    @pytest.mark.parametrize(
        ("kind", "value", "verdict"),
        [
            ("string", b"null", ("EV501", "")),
            ("decimal128(9, 2)", b'{"v":1e-99999999}', ("EV506", "v")),
            ("decimal128(9, 2)", b'{"v":"1e-99999999"}', ("EV506", "v")),
            ("decimal128(9, 2)", b'{"v":"1\\u0065-99999\\u0039999"}', ("EV506", "v")),
            ("decimal128(9, 2)", b'{"v":"1e\\u002D99999999"}', ("EV506", "v")),
        ],
    )
    def test_is_refused_before_it_gets_there(self, kind: str, value: bytes, verdict: tuple[str, str]) -> None:
        parse = (
            "import sys, pyarrow as pa, pyarrow.json as pj\n"
            f"options = pj.ParseOptions(explicit_schema=pa.schema([('v', pa.{kind if '(' in kind else kind + '()'})]))\n"
            f"pj.read_json(pa.BufferReader({value!r}), parse_options=options)"
        )
        killed = subprocess.run([sys.executable, "-c", parse], capture_output=True, check=False).returncode
        leaf = Leaf(pa.decimal128(9, 2)) if "decimal" in kind else TEXT
        good = b'{"v":"1.5"}' if "decimal" in kind else b'{"v":"x"}'
        decoded = decode(schema(v=leaf), good, value, good)

        assert killed < 0, "pyarrow survives this now: the guard may go"
        assert [(1, *verdict)] == verdicts(decoded)

    @pytest.mark.parametrize("value", ["1e-39", "1e-100", '"1e-60"', "0e-999", "1.5e-41", '"1E-0041"', " 1e-99 "])
    def test_a_decimal_that_would_read_outside_of_a_table_is_refused(self, value: str) -> None:
        assert ("EV506", "v") == read(Leaf(pa.decimal128(9, 2)), value)


class TestValues:
    @pytest.mark.parametrize(
        ("node", "text", "value"),
        [
            (Leaf(pa.bool_()), "true", True),
            (Leaf(pa.int32()), "-2147483648", -(2**31)),
            (Leaf(pa.int64()), "9223372036854775807", 2**63 - 1),
            (Leaf(pa.int64()), "-0", 0),
            (Leaf(pa.float64()), "1", 1.0),
            (Leaf(pa.float64()), "1e-400", 0.0),
            (Leaf(pa.float64()), "12345678901234567890123", 12345678901234567890123.0),
            (Leaf(pa.float32()), "0.1", 0.10000000149011612),
            (TEXT, '"\\u0000\\ud83d\\ude00\\/é\x7f"', "\0😀/é\x7f"),
            (TEXT, '""', ""),
            (Leaf(pa.binary()), '"a\\u0000\\u00ff\u0080"', b"a\x00\xff\x80"),
            (Leaf(pa.binary(), "fixed", size=2), '"\\u00ffa"', b"\xffa"),
            (Leaf(pa.string(), "enum", ("new", "old")), '"old"', "old"),
            (Leaf(pa.string(), "uuid"), '"00000000-0000-0000-0000-00000000000F"', "00000000-0000-0000-0000-00000000000F"),
            (Leaf(pa.decimal128(5, 2)), "1.5", Decimal("1.50")),
            (Leaf(pa.decimal128(5, 2)), '"-999.99"', Decimal("-999.99")),
            (Leaf(pa.decimal128(5, 2)), "1e2", Decimal("100.00")),
            (Leaf(pa.decimal128(5, 2)), '"15e-1"', Decimal("1.50")),
            (Leaf(pa.date32()), '"2024-02-29"', dt.date(2024, 2, 29)),
            (Leaf(pa.time32("ms")), '"23:59:59.9999"', dt.time(23, 59, 59, 999000)),
            (Leaf(pa.time64("us")), '"00:01"', dt.time(0, 1)),
            (Leaf(pa.timestamp("us")), '"2014-09-04T23:03:14.123456789"', dt.datetime(2014, 9, 4, 23, 3, 14, 123456)),
            (Leaf(pa.timestamp("ms")), '"1969-12-31 23:59:59.9999"', dt.datetime(1969, 12, 31, 23, 59, 59, 999000)),
            (ListOf(ListOf(Leaf(pa.int64()), True), True), "[[1,null],[],null]", [[1, None], [], None]),
        ],
    )
    def test_are_read(self, node: Node, text: str, value: Any) -> None:
        assert value == read(node, text)

    @pytest.mark.parametrize(
        "text", ["2014-09-04T23:03:14Z", "2014-09-05T01:03:14+02:00", "2014-09-04 21:03:14-0200", "2014-09-04T23:03:14"]
    )
    def test_instants_are_utc(self, text: str) -> None:
        assert dt.datetime(2014, 9, 4, 23, 3, 14, tzinfo=dt.timezone.utc) == read(Leaf(pa.timestamp("us", "UTC")), f'"{text}"')

    @pytest.mark.parametrize(
        ("digits", "nanos"), [("", 0), (".1", 10**8), (".123456789", 123456789), (".0000001", 100), (".12345678Z", 123456780)]
    )
    def test_nanoseconds_are_kept(self, digits: str, nanos: int) -> None:
        decoded = decode(schema(v=Leaf(pa.timestamp("ns", "UTC"))), b'{"v":"1970-01-01T00:00:01%b"}' % digits.encode())

        assert [10**9 + nanos] == decoded.events.field(0).cast(pa.int64()).to_pylist()

    @pytest.mark.parametrize(
        ("node", "text", "code"),
        [
            (Leaf(pa.bool_()), "1", "EV502"),
            (Leaf(pa.bool_()), '"true"', "EV502"),
            (Leaf(pa.int64()), "1.0", "EV502"),
            (Leaf(pa.int64()), "1e2", "EV502"),
            (Leaf(pa.int64()), '"1"', "EV502"),
            (Leaf(pa.int64()), "true", "EV502"),
            (Leaf(pa.int64()), "NaN", "EV505"),
            (Leaf(pa.int64()), "9223372036854775808", "EV507"),
            (Leaf(pa.int64()), "9" * 5000, "EV507"),
            (Leaf(pa.int32()), "2147483648", "EV505"),
            (Leaf(pa.int32()), "9223372036854775808", "EV507"),
            (Leaf(pa.float64()), '"1"', "EV502"),
            (Leaf(pa.float64()), "NaN", "EV505"),
            (Leaf(pa.float64()), "-Infinity", "EV505"),
            (Leaf(pa.float64()), "1e999", "EV505"),
            (Leaf(pa.float64()), "9" * 400, "EV505"),
            (Leaf(pa.float32()), "3.5e38", "EV505"),
            (TEXT, "1", "EV502"),
            (TEXT, "{}", "EV502"),
            (TEXT, '["x"]', "EV502"),
            (TEXT, b'"\xff"', "EV504"),
            (TEXT, b'"\xed\xa0\x80"', "EV504"),
            (TEXT, '"\\ud800"', "EV504"),
            (TEXT, '"\\udc00x"', "EV504"),
            (Leaf(pa.binary()), '"\u0100"', "EV506"),
            (Leaf(pa.binary(), "fixed", size=2), '"abc"', "EV506"),
            (Leaf(pa.string(), "enum", ("new",)), '"NEW"', "EV506"),
            (Leaf(pa.string(), "uuid"), '"00000000000000000000000000000000"', "EV506"),
            (Leaf(pa.decimal128(5, 2)), "12345", "EV506"),
            (Leaf(pa.decimal128(5, 2)), "1000", "EV506"),
            (Leaf(pa.decimal128(5, 2)), "1.234", "EV506"),
            (Leaf(pa.decimal128(5, 2)), "123456", "EV506"),
            (Leaf(pa.decimal128(38, 2)), "9" * 37, "EV506"),
            (Leaf(pa.decimal128(38, 2)), "9" * 39, "EV506"),
            (Leaf(pa.decimal128(5, 2)), '"1e2147483648"', "EV506"),
            (Leaf(pa.decimal128(5, 2)), '"1e99999999999999999999"', "EV506"),
            (Leaf(pa.decimal128(5, 2)), '"x"', "EV506"),
            (Leaf(pa.decimal128(5, 2)), '""', "EV506"),
            (Leaf(pa.decimal128(5, 2)), "NaN", "EV506"),
            (Leaf(pa.decimal128(5, 2)), "true", "EV502"),
            (Leaf(pa.date32()), '"2023-02-29"', "EV506"),
            (Leaf(pa.date32()), '"2023-02-28T00:00:00"', "EV506"),
            (Leaf(pa.date32()), "19000", "EV502"),
            (Leaf(pa.time32("ms")), '"24:00:00"', "EV506"),
            (Leaf(pa.time32("ms")), '"12:00:00Z"', "EV506"),
            (Leaf(pa.timestamp("us")), '"2014-09-04T23:03:14Z"', "EV506"),
            (Leaf(pa.timestamp("us")), '"2014-09-04T23:03:14+02"', "EV506"),
            (Leaf(pa.timestamp("us", "UTC")), '"04.09.2014"', "EV506"),
            (Leaf(pa.timestamp("us", "UTC")), "1409871794", "EV502"),
            (Leaf(pa.timestamp("us", "UTC")), '"0001-01-01T00:00:00+18:00"', "EV506"),
            (Leaf(pa.timestamp("us", "UTC")), '"9999-12-31T00:00:00Z"', "EV506"),
            (Leaf(pa.timestamp("ms", "UTC")), '"0001-01-01T23:59:59Z"', "EV506"),
            (Leaf(pa.timestamp("ns", "UTC")), '"2300-01-01T00:00:00Z"', "EV506"),
            (ListOf(TEXT), "{}", "EV502"),
            (ListOf(TEXT), '"x"', "EV502"),
            (Record((Field("x", TEXT),)), "[]", "EV502"),
            (Record((Field("x", TEXT),)), "1", "EV502"),
            (MapOf(TEXT), "[]", "EV502"),
        ],
    )
    def test_are_refused_with_the_path_of_the_field(self, node: Node, text: str | bytes, code: str) -> None:
        assert (code, "v") == read(node, text)

    def test_every_message_is_ours(self) -> None:
        decoded = decode(AB, *(b'{"a":%b,"s":"secret"}' % value for value in (b'"canary"', b"1.5", b"99999999999999999999")), b"canary")

        assert "canary" not in repr(verdicts(decoded)) and "secret" not in repr(verdicts(decoded))


SHOP = EventSchema(
    "shop",
    Record(
        (
            Field("id", TEXT),
            Field("who", Record((Field("name", TEXT), Field("zip", TEXT, True))), True),
            Field("lines", ListOf(Record((Field("sku", TEXT), Field("tags", ListOf(TEXT), True))), nullable_items=False)),
            Field("notes", ListOf(TEXT, nullable_items=True), True),
        )
    ),
    "",
)


class TestRequired:
    @pytest.mark.parametrize(
        ("event", "path"),
        [
            ("{}", "id"),
            ('{"id":null,"lines":[]}', "id"),
            ('{"id":"1"}', "lines"),
            ('{"id":"1","lines":null}', "lines"),
            ('{"id":"1","lines":[null]}', "lines[]"),
            ('{"id":"1","lines":[{"sku":"a"},{}]}', "lines[].sku"),
            ('{"id":"1","lines":[{"sku":"a","tags":["x",null]}]}', "lines[].tags[]"),
            ('{"id":"1","lines":[],"who":{}}', "who.name"),
            ('{"id":"1","lines":[],"who":{"name":null}}', "who.name"),
            ('{"who":{},"lines":[null]}', "id"),
        ],
    )
    def test_what_is_missing_or_null_refuses_the_event_by_its_first_path(self, event: str, path: str) -> None:
        good = b'{"id":"1","lines":[{"sku":"a","tags":["x"]}]}'

        assert [(1, "EV503", path)] == verdicts(decode(SHOP, good, event.encode(), good, used={"notes[]"}))

    @pytest.mark.parametrize("more", ["", ',"who":null', ',"who":{"name":"x"}', ',"notes":[null,"x"]', ',"notes":null'])
    def test_only_where_the_parent_is(self, more: str) -> None:
        assert [] == verdicts(decode(SHOP, b'{"id":"1","lines":[]%b}' % more.encode()))

    def test_a_nested_row_finds_its_event(self) -> None:
        values = [
            json.dumps({"id": str(row), "lines": [{"sku": "a", "tags": ["x"] * item} for item in range(row % 4)]}).encode()
            for row in range(40)
        ]
        values[7] = values[7].replace(b'"x"', b"null", 1)
        values[30] = values[30].replace(b'"a"', b"null")
        decoded = decode(SHOP, *values)

        assert [(7, "EV503", "lines[].tags[]"), (30, "EV503", "lines[].sku")] == verdicts(decoded)
        assert [str(row) for row in range(40) if row not in (7, 30)] == decoded.events.field("id").to_pylist()
        assert [row for row in range(40) if row not in (7, 30)] == decoded.rows.tolist()


class TestTwoReadings:
    @pytest.mark.parametrize(
        ("event", "path"),
        [
            ('{"id":"1","id":"1","lines":[]}', "id"),
            ('{"id":"1","\\u0069d":"2","lines":[]}', "id"),
            ('{"id":"1","lines":[],"who":{"name":"a","zip":"1","zip":"2"}}', "who.zip"),
            ('{"id":"1","lines":[{"sku":"a","tags":null,"tags":[]}]}', "lines[].tags"),
        ],
    )
    def test_a_known_key_twice_is_refused(self, event: str, path: str) -> None:
        assert [(0, "EV507", path)] == verdicts(decode(SHOP, event.encode()))

    def test_an_unknown_key_twice_is_drift(self) -> None:
        assert {"?": 1} == decode(SHOP, b'{"id":"1","lines":[],"x":1,"x":2}').drift


class TestDrift:
    def test_is_counted_by_event_at_the_deepest_known_parent(self) -> None:
        events = [
            {"id": "1", "lines": []},
            {"id": "1", "lines": [], "new": {"deep": {"er": 1}}, "newer": 1},
            {"id": "1", "lines": [{"sku": "a", "x": 1}, {"sku": "a", "y": 1}], "who": {"name": "n", "x": None}},
            {"id": "1", "lines": [{"sku": "a", "x": 1}], "z": []},
            {"id": None, "lines": [], "z": 1},
        ]
        decoded = decode(SHOP, *(json.dumps(event).encode() for event in events))

        assert {"?": 2, "who.?": 1, "lines[].?": 2} == decoded.drift
        assert ["?", "who.?", "lines[].?"] == list(decoded.drift)
        assert [(4, "EV503", "id")] == verdicts(decoded)

    @pytest.mark.parametrize(
        "value",
        [b"1", b"null", b'"\\u0000"', b"NaN", b"-Infinity", b'"\xff"', b'{"\xff":1}', b'{"a":1,"a":2}', b"99999999999999999999", DEEP],
        ids=["number", "null", "nul", "nan", "infinity", "not-utf8", "not-utf8-name", "twice", "beyond-64-bits", "deep"],
    )
    def test_what_stands_in_an_unknown_field_does_not_matter(self, value: bytes) -> None:
        for batch in ([value], [value, b"1"], [b"1", value, value]):
            decoded = decode(SHOP, *(b'{"id":"1","new":%b,"lines":[]}' % each for each in batch))
            assert {"?": len(batch)} == decoded.drift

    @pytest.mark.parametrize(
        ("value", "verdict"),
        [(b"1e999", ("EV507", "?")), (b'"\\ud800"', ("EV504", "?")), (b'"\x01"', ("EV501", "")), (b"tru", ("EV501", ""))],
    )
    def test_but_it_must_be_json(self, value: bytes, verdict: tuple[str, str]) -> None:
        assert [(0, *verdict)] == verdicts(decode(SHOP, b'{"id":"1","new":%b,"lines":[]}' % value))

    def test_is_told_by_the_number_of_the_event_that_was_read(self) -> None:
        values = b'{"id":"1","lines":[{"sku":"a","x":1}],"who":{"name":"n","x":1}}', b'{"id":"1","lines":[]}', b'{"lines":[],"x":1}'
        decoded = decode(SHOP, values[2], *values[:2])

        assert [(0, "EV503", "id")] == verdicts(decoded)
        assert {"who.?": [0], "lines[].?": [0]} == {path: rows.tolist() for path, rows in decoded.drifting.items()}

    def test_of_many_events_in_a_row_is_told_from_those_between(self) -> None:
        values = [b'{"id":"1","lines":[]%b}' % (b"" if row % 50 == 49 else b',"x":1') for row in range(200)]

        assert {"?": 196} == decode(SHOP, *values).drift


PROPS = EventSchema(
    "props",
    Record(
        (
            Field("id", TEXT),
            Field("props", MapOf(Leaf(pa.int32()), nullable_values=False), True),
            Field("seen", ListOf(Record((Field("by", MapOf(ListOf(TEXT)), True),))), True),
            Field("types", MapOf(Record((Field("n", Leaf(pa.float64())), Field("m", MapOf(TEXT), True)))), True),
        )
    ),
    "",
)


class TestMaps:
    USED = {"id", "props{a.b}", "props{c d}", "seen[].by{x}[]", "types{t}.n", "types{t}.m{k}"}

    def test_named_entries_become_fields(self) -> None:
        event = {
            "id": "1",
            "props": {"a.b": 1, "q": 2},
            "seen": [{"by": {"x": ["p", "q"], "y": []}}, {"by": None}, {}],
            "types": {"t": {"n": 1, "m": {"k": "v"}}, "u": {"n": 2.5}},
        }
        decoded = decode(PROPS, json.dumps(event).encode(), b'{"id":"2"}', used=self.USED)

        expected = [
            {
                "id": "1",
                "props": {"a.b": 1, "c d": None},
                "seen": [{"by": {"x": ["p", "q"]}}, {"by": None}, {"by": None}],
                "types": {"t": {"n": 1.0, "m": {"k": "v"}}},
            },
            {"id": "2", "props": None, "seen": None, "types": None},
        ]
        assert expected == decoded.events.to_pylist()
        assert {} == decoded.drift

    @pytest.mark.parametrize(
        ("event", "verdict"),
        [
            (b'{"id":"1","props":{"canary":"x"}}', ("EV502", "props{}")),
            (b'{"id":"1","props":{"canary":1.0}}', ("EV502", "props{}")),
            (b'{"id":"1","props":{"canary":null}}', ("EV503", "props{}")),
            (b'{"id":"1","props":{"canary":2147483648}}', ("EV505", "props{}")),
            (b'{"id":"1","props":{"canary":9223372036854775808}}', ("EV507", "props{}")),
            (b'{"id":"1","props":{"a":1,"a":1}}', ("EV507", "props{}")),
            (b'{"id":"1","props":{"a":1,"\\u0061":1}}', ("EV507", "props{}")),
            (b'{"id":"1","props":[]}', ("EV502", "props")),
            (b'{"id":"1","types":{"canary":{}}}', ("EV503", "types{}.n")),
            (b'{"id":"1","types":{"canary":{"n":NaN}}}', ("EV505", "types{}.n")),
            (b'{"id":"1","types":{"canary":{"n":1,"m":{"k":1}}}}', ("EV502", "types{}.m{}")),
            (b'{"id":"1","types":{"canary":{"n":1,"m":{"k":"\xff"}}}}', ("EV504", "types{}.m{}")),
            (b'{"id":"1","seen":[{"by":{"x":["a",null]}}]}', ("EV503", "seen[].by{}[]")),
            (b'{"id":"1","id":"2","props":{}}', ("EV507", "id")),
        ],
    )
    @pytest.mark.parametrize(
        "used", [{"id"}, {"props{a}", "types{t}.n"}, {"types{canary}.n", "props{canary}"}], ids=["none", "others", "itself"]
    )
    def test_every_entry_is_judged_whatever_is_used(self, event: bytes, verdict: tuple[str, str], used: set[str]) -> None:
        assert [(1, *verdict)] == verdicts(decode(PROPS, b'{"id":"0"}', event, b'{"id":"2"}', used=used))

    def test_unknown_fields_within_are_drift(self) -> None:
        events = b'{"id":"1","types":{"t":{"n":1,"new":1}}}', b'{"id":"1","seen":[{"new":1}],"new":1}', b'{"id":"1","props":{"new":1}}'

        assert {"?": 1, "seen[].?": 1, "types{}.?": 1} == decode(PROPS, *events).drift

    def test_decimals_are_exact(self) -> None:
        of = schema(v=MapOf(Leaf(pa.decimal128(5, 2)), True))
        values = [b'{"v":{"a":%b}}' % text for text in (b"0.1", b'"999.99"', b"null", b"1000", b"1.001", b'"1e-999999999"', b'"x"')]
        decoded = decode(of, *values, used={"v{a}"})

        assert [Decimal("0.10"), Decimal("999.99"), None] == [event["v"]["a"] for event in decoded.events.to_pylist()]
        assert [(row, "EV506", "v{}") for row in (3, 4, 5, 6)] == verdicts(decoded)

    def test_a_large_map_is_read(self) -> None:
        event = json.dumps({"id": "1", "props": {f"k{number}": number for number in range(5000)}}).encode()

        assert [4321] == [found["props"]["k4321"] for found in decode(PROPS, event, used={"props{k4321}"}).events.to_pylist()]

    def test_nesting_beyond_the_limit_is_refused_wherever_it_is_called(self) -> None:
        assert [(0, "EV501", "")] == verdicts(decode(PROPS, b'{"id":"1","new":' + DEEP + b"}"))
        assert [(0, "EV501", "")] == verdicts(decode(PROPS, b'{"id":"1","new":' + b"[" * 250 + b"]" * 250 + b"}"))
        assert [] == verdicts(decode(PROPS, b'{"id":"1","new":' + b"[" * 150 + b"]" * 150 + b"}"))


class TestNames:
    def test_may_be_words_of_python(self) -> None:
        of = schema(**{"class": TEXT, "None": TEXT, "f0": Leaf(pa.int64()), "def": MapOf(TEXT)})
        decoded = decode(of, b'{"class":"a","None":"b","f0":1,"def":{"for":"c"},"if":1}', used={"class", "None", "f0", "def{for}"})

        assert [{"class": "a", "None": "b", "f0": 1, "def": {"for": "c"}}] == decoded.events.to_pylist()
        assert {"?": 1} == decoded.drift


class TestUsed:
    def test_what_holds_nothing_used_vanishes(self) -> None:
        decoded = decode(SHOP, b'{"id":"1","lines":[{"sku":"a"}],"who":{"name":"n"}}', used={"who.zip", "lines[].tags[]"})

        assert [{"who": {"zip": None}, "lines": [{"tags": None}]}] == decoded.events.to_pylist()

    def test_nothing_may_be_used(self) -> None:
        decoded = decode(SHOP, b'{"id":"1","lines":[]}', b"{}", used=set())

        assert (pa.struct([]), 1, [(1, "EV503", "id")]) == (decoded.events.type, len(decoded.events), verdicts(decoded))

    def test_the_columns_are_those_that_were_parsed(self) -> None:
        lines = pa.array([b'{"a":1,"s":"x"}\n'] * 100)
        before = pa.total_allocated_bytes()
        decoded = JsonDecoder(AB).decode(lines)
        options = pyarrow.json.ParseOptions(explicit_schema=pa.schema(list(decoded.events.type)))
        table = pyarrow.json.read_json(pa.BufferReader(lines.buffers()[2]), parse_options=options)

        assert table.column("s").to_pylist() == decoded.events.field("s").to_pylist()
        assert pa.total_allocated_bytes() - before < 3 * table.nbytes + 4096
