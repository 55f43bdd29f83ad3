"""Datums from columns, held against fastavro: it writes the same bytes, and reads back the same values."""

from __future__ import annotations

import io
from datetime import date, datetime, time, timezone
from decimal import Decimal
from random import Random
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest

from eventveil.transforms.encode.avro_datums import encode_avro
from eventveil.transforms.encode.avro_events import output_avro_schema, write_avro

LINE = pa.struct([pa.field("n", pa.int32(), nullable=False), pa.field("b", pa.string()), pa.field("d", pa.list_(pa.float32()))])
WIDE = pa.struct([("t", pa.large_string()), ("b", pa.binary(2)), ("l", pa.large_list(pa.int8()))])
COLUMNS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "text": (pa.string(), ["", "x", "é" * 31, "é" * 32, "z" * 9000]),
    "large_text": (pa.large_string(), ["", "x" * 70]),
    "text_view": (pa.string_view(), ["", "x" * 70]),
    "codes": (pa.dictionary(pa.int8(), pa.string()), ["a", "b", "a"]),
    "bytes": (pa.binary(), [b"", b"\0\xff", b"x" * 64]),
    "fixed": (pa.binary(3), [b"abc", b"\0\0\0"]),
    "long": (pa.int64(), [0, -1, 1, 63, 64, -64, -65, 8191, 8192, 2**62, 2**63 - 1, -(2**63)]),
    "int": (pa.int32(), [0, 2**31 - 1, -(2**31)]),
    "small": (pa.int8(), [0, 127, -128]),
    "unsigned": (pa.uint32(), [0, 2**32 - 1]),
    "double": (pa.float64(), [0.0, -0.0, 1.5, 1e300, float("inf")]),
    "float": (pa.float32(), [0.0, 1.5, -2.25]),
    "flag": (pa.bool_(), [True, False, True]),
    "date": (pa.date32(), [date(1, 1, 1), date(1970, 1, 1), date(9999, 12, 31)]),
    "seconds": (pa.timestamp("s"), [datetime(1969, 12, 31, 23, 59, 59), datetime(2000, 1, 1)]),
    "instant": (pa.timestamp("us", "UTC"), [datetime(2000, 1, 1, microsecond=7, tzinfo=timezone.utc)]),
    "nanos": (pa.timestamp("ns"), [datetime(2000, 1, 1)]),
    "time": (pa.time32("s"), [time(1, 2, 3)]),
    "micros": (pa.time64("us"), [time(1, 2, 3, 4)]),
    "record": (LINE, [{"n": 1, "b": None, "d": None}, {"n": -2, "b": "x", "d": [1.5, None]}]),
    "wide_record": (WIDE, [{"t": "x", "b": b"ab", "l": [1, None]}, {"t": None, "b": None, "l": None}]),
    "list": (pa.list_(pa.int64()), [[], [1], [None, 2, 3] * 50]),
    "large_list": (pa.large_list(pa.string()), [[], ["a", None]]),
    "pairs": (pa.list_(pa.int16(), 2), [[1, 2], [3, None]]),
    "lines": (pa.list_(LINE), [[], [None], [{"n": 1, "b": "x", "d": []}, None, {"n": 2, "b": None, "d": [0.5]}]]),
    "lists": (pa.list_(pa.list_(pa.dictionary(pa.int32(), pa.string()))), [[], [[], None, ["a", None, "b"]]]),
}


def batch_of(columns: dict[str, tuple[pa.DataType, list[Any]]], rows: int, nulls: float) -> pa.RecordBatch:
    draw = Random(7)
    arrays = [
        pa.array([None if draw.random() < nulls else draw.choice(values) for _ in range(rows)], kind) for kind, values in columns.values()
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([pa.field(name, kind, nulls > 0) for name, (kind, _) in columns.items()]))


def by_fastavro(batch: pa.RecordBatch) -> list[bytes]:
    """The datums of a file that fastavro has written, one block each."""
    found = []
    for row in range(batch.num_rows):
        file = io.BytesIO()
        write_avro(file, pa.Table.from_batches([batch.slice(row, 1)]), "event", {})
        file.seek(0)
        (block,) = fastavro.block_reader(file)
        found.append(block.bytes_.getvalue())
    return found


@pytest.mark.parametrize("nulls", [0.0, 0.3], ids=["without_nulls", "with_nulls"])
@pytest.mark.parametrize("name", COLUMNS)
def test_the_bytes_of_a_column_are_those_of_fastavro(name: str, nulls: float) -> None:
    batch = batch_of({name: COLUMNS[name]}, 40, nulls)

    assert by_fastavro(batch) == encode_avro(batch, batch.schema).to_pylist()


@pytest.mark.parametrize("cut", [slice(0, 60), slice(13, 14), slice(20, 50), slice(0, 0)], ids=["whole", "one", "middle", "none"])
def test_so_are_those_of_all_columns_and_of_a_slice(cut: slice) -> None:
    batch = batch_of(COLUMNS, 60, 0.2).slice(cut.start, cut.stop - cut.start)

    assert by_fastavro(batch) == encode_avro(batch, batch.schema).to_pylist()


def test_a_header_stands_before_each_datum() -> None:
    batch = batch_of({"long": COLUMNS["long"]}, 5, 0.0)

    assert [b"head" + one for one in by_fastavro(batch)] == encode_avro(batch, batch.schema, b"head").to_pylist()


@pytest.mark.parametrize("kind", [pa.decimal128(20, 4), pa.decimal256(60, 4)], ids=str)
def test_decimals_take_as_few_bytes_as_hold_them(kind: pa.Decimal128Type) -> None:
    unscaled = [0, 1, -1, 127, 128, -128, -129, 255, 256, 32767, 32768, -32768, -32769, 10**18, -(10**18)]
    values = [Decimal(number).scaleb(-4) for number in unscaled]
    batch = pa.RecordBatch.from_arrays([pa.array([*values, None], kind)], schema=pa.schema([("d", kind)]))
    found = encode_avro(batch, batch.schema).to_pylist()
    schema = fastavro.parse_schema(output_avro_schema(batch.schema, "event"))
    read = [fastavro.schemaless_reader(io.BytesIO(one or b""), schema, None) for one in found]

    assert found[3:5] == encode_avro(batch.slice(3, 2), batch.schema).to_pylist()
    assert [*values, None] == [one["d"] for one in read]  # type: ignore[index,call-overload]
    assert [(number + (number < 0)).bit_length() // 8 + 1 for number in unscaled] == [len(one or b"") - 2 for one in found[:-1]]


def test_what_the_schema_says_decides_what_may_be_null() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array(["x"])], schema=pa.schema([pa.field("a", pa.string(), nullable=False)]))

    assert b"\2\2x" == encode_avro(batch, pa.schema([("a", pa.string())])).to_pylist()[0]
    assert b"\2x" == encode_avro(batch, batch.schema).to_pylist()[0]


def test_a_null_where_the_schema_has_none_is_no_datum() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([None], pa.string())], ["a"])
    with pytest.raises(ValueError, match="a null where the schema has none"):
        encode_avro(batch, pa.schema([pa.field("a", pa.string(), nullable=False)]))


def test_what_a_null_record_hides_is_neither_needed_nor_written() -> None:
    child = pa.array(["hidden", "shown"])
    mask: Any = pa.py_buffer(np.array([0b10], np.uint8).tobytes())
    kind = pa.struct([pa.field("t", pa.string(), nullable=False)])
    batch = pa.RecordBatch.from_arrays([pa.StructArray.from_buffers(kind, 2, [mask], 1, 0, [child])], ["r"])

    assert [b"\0", b"\2\x0ashown"] == encode_avro(batch, batch.schema).to_pylist()
