"""Columns become an Avro container file that any reader understands."""

from __future__ import annotations

import datetime as dt
import io
from decimal import Decimal
from typing import Any

import fastavro
import pyarrow as pa
import pytest

from eventveil.schemas.errors import SchemaError
from eventveil.transforms.encode.avro_events import output_avro_schema, write_avro

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("b", pa.bool_()),
        pa.field("i", pa.int32()),
        pa.field("n", pa.int64()),
        pa.field("f", pa.float32()),
        pa.field("g", pa.float64()),
        pa.field("raw", pa.binary()),
        pa.field("dec", pa.decimal128(9, 2)),
        pa.field("day", pa.date32()),
        pa.field("tm", pa.time32("ms")),
        pa.field("tu", pa.time64("us")),
        pa.field("at", pa.timestamp("us", "UTC")),
        pa.field("local", pa.timestamp("ms")),
        pa.field("kind", pa.dictionary(pa.int8(), pa.string())),
        pa.field("s", pa.struct([pa.field("x", pa.string()), pa.field("t", pa.timestamp("s", "UTC"), nullable=False)])),
        pa.field(
            "l", pa.list_(pa.field("item", pa.struct([pa.field("x", pa.int64()), pa.field("days", pa.list_(pa.date32()))]), nullable=False))
        ),
    ]
)
AT = dt.datetime(2014, 9, 4, 22, 57, 55, tzinfo=dt.timezone.utc)
FULL = {
    "id": "1",
    "b": True,
    "i": -1,
    "n": 2**40,
    "f": 0.5,
    "g": 0.1,
    "raw": b"\x00",
    "dec": Decimal("-1.50"),
    "day": dt.date(2014, 9, 4),
    "tm": dt.time(1, 2, 3),
    "tu": dt.time(1, 2, 3, 4),
    "at": AT.replace(microsecond=7),
    "local": dt.datetime(9999, 12, 31, 23, 59),
    "kind": "k",
    "s": {"x": "y", "t": AT},
    "l": [{"x": 1, "days": [dt.date(1, 1, 1), None]}, {"x": None, "days": None}],
}
ROWS: list[dict[str, Any]] = [FULL, {**dict.fromkeys(FULL), "id": "2"}, {**FULL, "l": [], "s": {"x": None, "t": AT}}]


def written(table: pa.Table, **metadata: str) -> bytes:
    file = io.BytesIO()
    write_avro(file, table, "shop.order-event", metadata)
    assert not file.closed
    return file.getvalue()


class TestFile:
    def test_holds_the_rows(self) -> None:
        content = written(pa.Table.from_pylist(ROWS * 300, SCHEMA))
        reader = fastavro.reader(io.BytesIO(content))

        assert ROWS * 300 == list(reader)
        assert "deflate" == reader.codec

    def test_holds_provenance(self) -> None:
        reader = fastavro.reader(
            io.BytesIO(written(pa.Table.from_pylist(ROWS, SCHEMA), **{"eventveil.policy": "orders", "eventveil.note": "é"}))
        )

        assert ("orders", "é") == (reader.metadata["eventveil.policy"], reader.metadata["eventveil.note"])

    def test_is_the_same_for_the_same_rows(self) -> None:
        table = pa.Table.from_pylist(ROWS * 50, SCHEMA)

        assert written(table, a="b") == written(
            pa.Table.from_batches([table.slice(0, 7).to_batches()[0], *table.slice(7).to_batches()]), a="b"
        )

    def test_may_hold_no_rows(self) -> None:
        assert [] == list(fastavro.reader(io.BytesIO(written(SCHEMA.empty_table()))))

    def test_does_not_hold_what_the_rows_do_not_show(self) -> None:
        table = pa.Table.from_pylist([{"id": "canary"}, {"id": "shown"}])

        assert b"canary" not in written(table.slice(1))


class TestSchema:
    def test_nullability_and_logical_types(self) -> None:
        found = output_avro_schema(SCHEMA, "shop.order-event", doc="an order")
        types = {field["name"]: field["type"] for field in found["fields"]}

        assert ("record", "shop.order_event", "an order") == (found["type"], found["name"], found["doc"])
        assert "string" == types["id"]
        assert ["null", {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}] == types["dec"]
        assert ["null", {"type": "long", "logicalType": "timestamp-micros"}] == types["at"]
        assert ["null", {"type": "long", "logicalType": "local-timestamp-millis"}] == types["local"]
        assert "shop.order_event_s" == types["s"][1]["name"]
        assert {"name": "t", "type": {"type": "long", "logicalType": "timestamp-millis"}} == types["s"][1]["fields"][1]
        assert ["null", {"type": "array", "items": ["null", {"type": "int", "logicalType": "date"}]}] == types["l"][1]["items"]["fields"][
            1
        ]["type"]
        fastavro.parse_schema(found)

    def test_records_have_names_of_their_own(self) -> None:
        inner = pa.struct([("x", pa.int64())])
        schema = pa.schema([("a", pa.struct([("b_c", inner)])), ("a_b", pa.struct([("c", inner)])), ("a_b_c", inner)])

        fastavro.parse_schema(output_avro_schema(schema, "1 e"))

    def test_what_cannot_be_written_is_told_at_once(self) -> None:
        schema = pa.schema(
            [("a-b", pa.int64()), ("ok", pa.struct([("1", pa.int64()), ("m", pa.map_(pa.string(), pa.int64()))])), ("u", pa.uint64())]
        )
        with pytest.raises(SchemaError) as caught:
            output_avro_schema(schema, "e")

        assert ["EV219"] * 4 == [problem.code for problem in caught.value.problems]
        assert all(path in str(caught.value) for path in ("a-b", "ok.1", "ok.m", "output u"))
