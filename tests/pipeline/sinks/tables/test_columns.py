"""What output columns are stored as in each format: lossless, or refused when the job is built."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventveil.pipeline.sinks.tables._columns import Format, as_stored, columns_of, stored_schema
from eventveil.schemas.errors import SchemaError
from eventveil.transforms.batch import ORDER

from .rows import published
from .test_open_tables import KINDS, Place

UTC = dt.timezone.utc
DAY = dt.date(2014, 9, 4)
TIME = dt.time(22, 57, 55, 1)
INSTANT = dt.datetime(2014, 9, 4, 22, 57, 55, 123456)

# type, value, what Delta gives back, what Iceberg gives back
CASES: list[tuple[Any, Any, Any, Any]] = [
    (pa.bool_(), True, True, True),
    (pa.int8(), -128, -128, -128),
    (pa.int16(), -(2**15), -(2**15), -(2**15)),
    (pa.int32(), -(2**31), -(2**31), -(2**31)),
    (pa.int64(), -(2**63), -(2**63), -(2**63)),
    (pa.uint8(), 2**8 - 1, 2**8 - 1, 2**8 - 1),
    (pa.uint16(), 2**16 - 1, 2**16 - 1, 2**16 - 1),
    (pa.uint32(), 2**32 - 1, 2**32 - 1, 2**32 - 1),
    (pa.uint64(), 2**64 - 1, Decimal(2**64 - 1), Decimal(2**64 - 1)),
    (pa.float16(), 0.5, 0.5, 0.5),
    (pa.float32(), 0.5, 0.5, 0.5),
    (pa.float64(), 0.1, 0.1, 0.1),
    (pa.string(), "a", "a", "a"),
    (pa.large_string(), "a", "a", "a"),
    (pa.dictionary(pa.int32(), pa.string()), "a", "a", "a"),
    (pa.null(), None, None, None),
    (pa.binary(), b"\xff", b"\xff", b"\xff"),
    (pa.large_binary(), b"\xff", b"\xff", b"\xff"),
    (pa.binary(2), b"\xff\x00", b"\xff\x00", b"\xff\x00"),
    (pa.decimal128(38, 2), Decimal("1.25"), Decimal("1.25"), Decimal("1.25")),
    (pa.decimal256(20, 0), Decimal(7), Decimal(7), Decimal(7)),
    (pa.date32(), DAY, DAY, DAY),
    (pa.date64(), DAY, DAY, DAY),
    (pa.time32("s"), TIME.replace(microsecond=0), "22:57:55", TIME.replace(microsecond=0)),
    (pa.time32("ms"), TIME.replace(microsecond=1000), "22:57:55.001", TIME.replace(microsecond=1000)),
    (pa.time64("us"), TIME, "22:57:55.000001", TIME),
    (pa.time64("ns"), TIME, "22:57:55.000001000", "22:57:55.000001000"),
    (pa.timestamp("s", "UTC"), INSTANT.replace(microsecond=0, tzinfo=UTC), *[INSTANT.replace(microsecond=0, tzinfo=UTC)] * 2),
    (pa.timestamp("us", "Europe/Berlin"), INSTANT.replace(tzinfo=UTC), *[INSTANT.replace(tzinfo=UTC)] * 2),
    (pa.timestamp("us"), INSTANT, INSTANT, INSTANT),
    (pa.duration("ms"), dt.timedelta(milliseconds=5), 5, 5),
    (pa.list_(pa.uint64()), [2**64 - 1], [Decimal(2**64 - 1)], [Decimal(2**64 - 1)]),
    (pa.large_list(pa.large_string()), ["a"], ["a"], ["a"]),
    (pa.list_(pa.int8(), 2), [1, 2], [1, 2], [1, 2]),
    (pa.list_(pa.list_(pa.int8())), [[1], []], [[1], []], [[1], []]),
    (pa.struct([("a", pa.struct([("b", pa.duration("s"))]))]), {"a": {"b": dt.timedelta(seconds=3)}}, *[{"a": {"b": 3}}] * 2),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nested", [False, True], ids=["top", "in_a_list"])
def test_every_value_comes_back(tmp_path: Path, kind: str, nested: bool) -> None:
    columns, expected = [], {}
    for number, (of, value, delta, iceberg) in enumerate(CASES):
        given, back = pa.array([None, value], of), delta if kind == "delta" else iceberg
        if nested:
            given, back = pa.StructArray.from_arrays([given], ["x"]), {"x": back}
            given = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), given)
            columns.append(given)
            expected[f"c{number}"] = [[{"x": None}], [back]]
        else:
            columns.append(given)
            expected[f"c{number}"] = [None, back]
    schema = pa.schema([(name, column.type) for name, column in zip(expected, columns, strict=True)])
    order = pa.array([bytes(16), bytes([1] * 16)], pa.binary(16))
    place = Place(kind, tmp_path / "lake")

    published(place.ready(schema=schema), [pa.RecordBatch.from_arrays([*columns, order], [*expected, ORDER])])

    (file,) = place.visible_files()
    assert expected == {name: pq.ParquetFile(file).read().column(name).to_pylist() for name in expected}
    assert set(expected) == set(place.table().schema.names)
    place.ready(schema=schema)


@pytest.mark.parametrize("format", ["delta", "iceberg", "bigquery"])
def test_what_is_hidden_is_not_in_what_is_stored(format: Format) -> None:
    """Rows outside of a slice, bytes behind a null or in a record that is null, values of a dictionary that no row has."""
    secret = "planted-4111111111111111"
    text, seen = pa.array([secret, "seen", secret, secret]), pa.py_buffer(bytes([0b0010]))
    nulls = pa.Array.from_buffers(pa.string(), 4, [seen, *text.buffers()[1:]])
    record = pa.StructArray.from_buffers(pa.struct([("x", pa.string())]), 4, [seen], children=[text])
    kinds = pa.DictionaryArray.from_arrays(pa.array([1, 1, 0, 1], pa.int32()), pa.array([secret, "b"]))
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3, 4], pa.int32()), text, mask=pa.array([True, False, True, False]))
    columns: list[Any] = [text, nulls, record, kinds, lists]
    batch = pa.RecordBatch.from_arrays(columns, ["text", "nulls", "record", "kinds", "lists"]).slice(1, 1)
    fields = [
        field.with_type(pa.list_(pa.field("item", pa.string(), nullable=False))) if field.name == "lists" else field
        for field in batch.schema
    ]

    found = as_stored(batch, stored_schema(pa.schema(fields), format))

    expected = {"text": "seen", "nulls": "seen", "record": {"x": "seen"}, "kinds": "b", "lists": ["seen"]}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, found.schema) as writer:
        writer.write_table(found)
    assert [expected] == found.to_pylist()
    assert secret.encode() not in sink.getvalue().to_pybytes()
    assert all(secret.encode() not in one.to_pybytes() for column in found.columns for one in column.chunk(0).buffers() if one)


@pytest.mark.parametrize("format", ["delta", "iceberg", "bigquery"])
def test_what_is_stored_is_stored_as_itself(format: Format) -> None:
    """Only so can a table that is found be compared with what is to be written."""
    fields = [pa.field(f"c{number}", one[0]) for number, one in enumerate(CASES) if format != "bigquery" or not pa.types.is_nested(one[0])]
    stored = stored_schema(pa.schema([one for one in fields if format != "bigquery" or one.type != pa.decimal128(38, 2)]), format)

    assert {field.name: field.type for field in stored} == columns_of(stored, format)


REFUSED: list[tuple[str, Any, str]] = [
    ("delta", pa.timestamp("ns", "UTC"), "timestamp"),
    ("iceberg", pa.timestamp("ns"), "timestamp"),
    ("bigquery", pa.timestamp("ns"), "timestamp"),
    ("delta", pa.decimal256(60, 2), "decimal"),
    ("iceberg", pa.decimal128(10, -2), "decimal"),
    ("bigquery", pa.decimal128(38, 2), "decimal"),
    ("bigquery", pa.decimal128(20, 10), "decimal"),
    ("delta", pa.map_(pa.string(), pa.int64()), "map"),
    ("iceberg", pa.struct([]), "struct"),
    ("delta", pa.month_day_nano_interval(), "interval"),
    ("bigquery", pa.list_(pa.list_(pa.int64())), "list"),
    ("bigquery", pa.list_(pa.int64()), "list"),
]


@pytest.mark.parametrize(("format", "kind", "says"), REFUSED, ids=lambda one: str(one)[:20])
def test_what_cannot_be_stored_is_refused_by_its_path(format: Format, kind: Any, says: str) -> None:
    schema = pa.schema([("fine", pa.int64()), ("a", pa.struct([("b", kind)]))])

    with pytest.raises(SchemaError, match=rf"EV219 output a\.b.*{says}"):
        stored_schema(schema, format)


@pytest.mark.parametrize(
    ("format", "names"),
    [("delta", ["a b"]), ("delta", ["a", "A"]), ("iceberg", ["a.b"]), ("bigquery", ["a-b"]), ("bigquery", ["1a"]), ("delta", [""])],
    ids=str,
)
def test_names_that_a_format_does_not_know_are_refused(format: Format, names: list[str]) -> None:
    with pytest.raises(SchemaError, match="EV219 output name"):
        stored_schema(pa.schema([(name, pa.int64()) for name in names]), format)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(SchemaError) as caught:
        stored_schema(pa.schema([("a b", pa.int64()), ("c", pa.timestamp("ns")), ("d", pa.map_(pa.string(), pa.string()))]), "delta")

    assert 3 == len(caught.value.problems)
