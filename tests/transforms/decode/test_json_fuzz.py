"""Seeded mutations of good events: each has the same verdict and values alone, beside a neighbour, and in any batch."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from eventveil.schemas.events.tree import EventSchema, Field, Leaf, ListOf, MapOf, Record
from eventveil.transforms.decode.decoded import Decoded
from eventveil.transforms.decode.json_events import JsonDecoder
from eventveil.transforms.decode.json_scan import Scanner

TEXT = Leaf(pa.string())


def order(*more: Field) -> EventSchema:
    line = Record((Field("id", TEXT), Field("quantity", Leaf(pa.int32())), Field("price", Leaf(pa.float64()), True)))
    address = Record((Field("zip", TEXT), Field("to", TEXT, True), Field("tags", ListOf(TEXT, True), True)))
    return EventSchema(
        "order",
        Record(
            (
                Field("id", TEXT),
                Field("at", Leaf(pa.timestamp("us", "UTC")), True),
                Field("paid", Leaf(pa.bool_()), True),
                Field("ratio", Leaf(pa.float32()), True),
                Field("total", Leaf(pa.decimal128(9, 2)), True),
                Field("kind", Leaf(pa.string(), "enum", ("new", "old")), True),
                Field("raw", Leaf(pa.binary()), True),
                Field("shipping", address, True),
                Field("lines", ListOf(line)),
                *more,
            )
        ),
        "",
    )


PLAIN = order()
MAPS = order(
    Field("props", MapOf(Leaf(pa.int64()), True), True),
    Field("groups", ListOf(MapOf(Record((Field("name", TEXT, True), Field("sum", Leaf(pa.decimal128(5, 2)), True))))), True),
)
SCHEMAS = pytest.mark.parametrize("schema", [PLAIN, MAPS], ids=["plain", "maps"])


def event(chance: random.Random, schema: EventSchema) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": f"o-{chance.randrange(1000)}",
        "at": chance.choice(["2014-09-04T22:57:55Z", "2014-09-04T22:57:55.123456+02:00", None]),
        "paid": chance.choice([True, False, None]),
        "ratio": chance.choice([0, 0.25, -1e10]),
        "total": chance.choice([1, 1.25, "17.5", "1e2", None]),
        "kind": chance.choice(["new", "old", None]),
        "raw": chance.choice(["", "a\u00ff", "\u0000"]),
        "shipping": chance.choice([None, {"zip": "1234é", "to": None}, {"zip": "450075", "tags": ["a", None, 'q"\\']}]),
        "lines": [{"id": f"p{number}", "quantity": number, "price": 1.5 * number} for number in range(chance.randrange(3))],
    }
    if schema is MAPS:
        made["props"] = chance.choice([None, {}, {"a": 1, "b": None}, {"a b": 2, "é": -3}])
        made["groups"] = chance.choice([None, [], [{"x": {"name": "n", "sum": 1.5}}, {}], [{"y": {}, "x": {"sum": "12.25"}}]])
    if chance.random() < 0.3:
        made[chance.choice(["new", "nøt"])] = chance.choice([1, {"deep": [1, {"id": "x"}]}, "text", [[]], None])
    if chance.random() < 0.2 and made["shipping"]:
        made["shipping"]["more"] = {"zip": 1}
    if chance.random() < 0.2 and made["lines"]:
        made["lines"][0]["weight"] = 1e3
    return {name: value for name, value in made.items() if value is not None or chance.random() < 0.5}


PIECES = [
    *(bytes([byte]) for byte in b'{}[],:"\\\n\r\t \x00\x01\xff\xc3e'),
    *(b"\xef\xbb\xbf", b"null", b"true", b"NaN", b"-Infinity", b"Inf", b"1e999", b"-0", b"01", b"1.", b"1.0", b"1e-400", b"3e38", b"4e38"),
    *(b"2147483648", b"99999999999999999999", b"12345678.90", b"1.234", b"1e-9999999", b'"1e-9999999"', b'"1\\u0065-9999999"'),
    *(b'"\\ud800"', b'"\\udc00"', b'"\\ud83d\\ude00"', b'"\\u0000"', b"\\u00e9", b'"2014-13-01"'),
    *(b'"id":1,', b'"id":"x",', b'"zip":"z",', b'{"a":1,"a":2}', b'"new"', b"{}", b"[]", b"[" * 50 + b"]" * 50),
]


def mutated(chance: random.Random, text: bytes) -> bytes:
    for _ in range(chance.choice([0, 1, 1, 1, 2, 3])):
        kind, at = chance.randrange(6), chance.randrange(len(text) + 1)
        if kind == 0:
            text = text[:at] + chance.choice(PIECES) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + chance.choice([1, 1, 2, 5, 40]) :]
        elif kind == 2:
            text = text[:at] + bytes([chance.randrange(256)]) + text[at + 1 :]
        elif kind == 3:  # a value for a value
            starts = [number for number, byte in enumerate(text) if byte == 0x3A]
            if starts:
                start = chance.choice(starts) + 1
                end = min([found for found in (text.find(b",", start), text.find(b"}", start)) if found > 0], default=len(text))
                text = text[:start] + chance.choice(PIECES) + text[end:]
        elif kind == 4:
            text = chance.choice([b" ", b"\t", b"\r\n", b"\n\n", b"  " * 9]) + text + chance.choice([b"", b" ", b"\r", b"\n", b"\n \n" * 9])
        else:
            text = text[:at] + text[chance.randrange(len(text) + 1) :]
    return text


def events(seed: int, number: int, schema: EventSchema) -> list[bytes]:
    chance = random.Random(seed)
    texts = (json.dumps(event(chance, schema), ensure_ascii=chance.random() < 0.5).encode() for _ in range(number))
    return [mutated(chance, text) + (b"\n" if chance.random() < 0.7 else b"") for text in texts]


def told(decoded: Decoded, rows: int) -> list[Any]:
    """For each row its values, or code and path."""
    decoded.events.validate(full=True)
    found: list[Any] = [None] * rows
    kept = range(rows) if decoded.rows is None else decoded.rows.tolist()
    for row, value in zip(kept, decoded.events.to_pylist(), strict=True):
        found[row] = value
    for row, code, path in zip(decoded.refused_rows.tolist(), decoded.refused_codes, decoded.refused_paths, strict=True):
        assert found[row] is None
        found[row] = (code, path)
    assert None not in found
    assert len(decoded.events) + len(decoded.refused_rows) == rows
    return found


@SCHEMAS
class TestEveryMutation:
    def test_has_one_verdict_alone_and_in_any_batch(self, schema: EventSchema) -> None:
        texts = events(1, 1800 if schema is PLAIN else 800, schema)
        decoder = JsonDecoder(schema)
        alone, drift = [], dict[str, int]()
        for text in texts:
            decoded = decoder.decode(pa.array([text], pa.binary()))
            alone += told(decoded, 1)
            for label, count in decoded.drift.items():
                drift[label] = drift.get(label, 0) + count

        together = decoder.decode(pa.array(texts, pa.binary()))
        assert alone == told(together, len(texts))
        assert drift == together.drift
        for size in (13, 250):
            split = [
                told(decoder.decode(pa.array(texts[at : at + size], pa.large_binary())), len(texts[at : at + size]))
                for at in range(0, len(texts), size)
            ]
            assert alone == [value for part in split for value in part]
        accepted = [text for text, value in zip(texts, alone, strict=True) if not isinstance(value, tuple)]
        assert 0.2 < len(accepted) / len(texts) < 0.8
        again = decoder.decode(pa.array(accepted, pa.binary()))
        assert again.rows is None and [value for value in alone if not isinstance(value, tuple)] == again.events.to_pylist()

    def test_of_one_kind_in_every_event_has_the_same_verdict_too(self, schema: EventSchema) -> None:
        decoder = JsonDecoder(schema)
        for fault in (
            b'"id":"x","id":"y"',
            b'"id":"x","total":1.001',
            b'"id":"x","new":1e999',
            b'"id":"x","ratio":1' + b"0" * 320,
            b'"id":1',
        ):
            texts = [b'{%b,"lines":[]}' % (fault if row % 7 else b'"id":"%d"' % row) for row in range(200)]
            alone = [told(decoder.decode(pa.array([text])), 1)[0] for text in (texts[0], texts[1])]
            together = told(decoder.decode(pa.array(texts)), 200)

            assert [{**alone[0], "id": str(row)} if row % 7 == 0 else alone[1] for row in range(200)] == together
            assert isinstance(alone[1], tuple)

    def test_has_one_verdict_whatever_is_used(self, schema: EventSchema) -> None:
        texts = events(2, 400, schema)
        values = pa.array(texts, pa.binary())
        everything = JsonDecoder(schema).decode(values)
        for used in ({"id"}, {"lines[].price", "shipping.tags[]"}, {"props{a}", "groups[]{x}.sum", "at"}, set[str]()):
            some = JsonDecoder(schema, used).decode(values)
            assert everything.refused_codes == some.refused_codes
            assert everything.refused_paths == some.refused_paths
            assert everything.refused_rows.tolist() == some.refused_rows.tolist()
            assert everything.drift == some.drift

    def test_what_the_scan_is_certain_of_is_refused(self, schema: EventSchema) -> None:
        decoder, scanner = JsonDecoder(schema), Scanner(schema.root)
        bulk = decoder.decode(pa.array(events(4, 1500, schema), pa.binary()))
        refused = set(bulk.refused_rows.tolist())
        for row, text in enumerate(events(4, 1500, schema)):
            stripped = text.strip(b" \t\r\n")
            if scanner.scan(stripped).problem is not None:
                assert row in refused, row


GOOD = b'{"id":"a","lines":[]}'
HOSTILE = [
    GOOD,
    *(
        b"null",
        b"",
        b"{}",
        b"{",
        b"}",
        b"[]",
        b'"{}"',
        GOOD[:-1],
        GOOD + b"}",
        GOOD + GOOD,
        GOOD + b" {}",
        GOOD + b"\x00}",
        b"\xef\xbb\xbf" + GOOD,
    ),
    *(
        b',"id":"b","lines":[]}',
        b'{"id":"}',
        b'{","id":"x","lines":[]}',
        b'{"id":{}',
        b'{"lines":[{}',
        b'{"id":"a\\',
        b'{"id":"a\nb","lines":[]}',
    ),
    *(
        b'{"id":"a","lines":[{"id":"x","quantity":1}',
        b'{"id":"a",\n"lines":[]}',
        b'{"id":"a","id":"b","lines":[]}',
        b'{"id":"\xff","lines":[]}',
    ),
    *(
        GOOD[:-1] + more + b"}"
        for more in (b',"new":1', b',"ratio":NaN', b',"new":NaN', b',"new":"\xff"', b',"total":1e-60', b',"total":"1e-99999999"')
    ),
    GOOD[:-1] + b',"new":' + b"[" * 9999 + b"]" * 9999 + b"}",
]


class TestNeighbours:
    @pytest.mark.parametrize(("schema", "ends"), [(PLAIN, b"\n"), (PLAIN, b""), (MAPS, b"\r\n")], ids=["lf", "bare", "maps-crlf"])
    def test_every_ordered_pair_keeps_both_verdicts_and_values(self, schema: EventSchema, ends: bytes) -> None:
        decoder = JsonDecoder(schema)
        alone = [told(decoder.decode(pa.array([text + ends], pa.binary())), 1)[0] for text in HOSTILE]
        for first, one in zip(HOSTILE, alone, strict=True):
            for second, other in zip(HOSTILE, alone, strict=True):
                assert [one, other] == told(decoder.decode(pa.array([first + ends, second + ends], pa.binary())), 2), (
                    first[:60],
                    second[:60],
                )

    @pytest.mark.parametrize(
        ("ends", "values"),
        [
            (b"\n", [b'{"shipping":', b'{"zip":"1"},"id":"a","lines":[]}', GOOD + GOOD]),
            (b"", [b'{"id":"}', b'{","lines":[]}', GOOD + GOOD]),
            (b"\n", [GOOD[:-1], b',"new":1}', GOOD + b" " + GOOD]),
            (b"\n", [GOOD + GOOD, b"{}", b""]),
        ],
        ids=["open-object", "open-text", "comma-first", "blank"],
    )
    def test_a_second_document_does_not_make_up_for_one_that_joined_its_neighbour(self, ends: bytes, values: list[bytes]) -> None:
        decoder = JsonDecoder(PLAIN)
        alone = [told(decoder.decode(pa.array([value + ends], pa.binary())), 1)[0] for value in values]

        assert all(isinstance(verdict, tuple) for verdict in alone)
        assert alone == told(decoder.decode(pa.array([value + ends for value in values], pa.binary())), len(values))

    def test_values_that_are_slices_of_one_buffer_are_read_as_they_lie(self) -> None:
        whole = pa.array([b"xx", *(text + b"\n" for text in HOSTILE), b"{}"], pa.binary())
        decoder = JsonDecoder(PLAIN)

        assert told(decoder.decode(pa.array([text + b"\n" for text in HOSTILE])), len(HOSTILE)) == told(
            decoder.decode(whole.slice(1, len(HOSTILE))), len(HOSTILE)
        )

    def test_a_null_value_is_no_event_and_its_hidden_bytes_are_not_read(self) -> None:
        values = pa.array([b'{"id":"a","lines":[]}\n'] * 3, pa.binary())
        hidden = pa.Array.from_buffers(pa.binary(), 3, [pa.py_buffer(np.array([0b101], np.uint8)), *values.buffers()[1:]])
        decoded = JsonDecoder(PLAIN, {"id"}).decode(hidden)

        assert [0, 2] == decoded.rows.tolist()
        assert [("EV501", "")] == list(zip(decoded.refused_codes, decoded.refused_paths, strict=True))
