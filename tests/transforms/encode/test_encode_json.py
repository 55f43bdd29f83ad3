"""Columns become lines of JSON; what Python's own decoder reads from them is the measure."""

from __future__ import annotations

import base64
import datetime as dt
import json
import random
import time
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from eventveil.transforms.encode import json_events
from eventveil.transforms.encode.json_events import encode_json, output_json_schema

UTC = dt.timezone.utc


def lines(batch: pa.RecordBatch) -> list[str]:
    encoded = encode_json(batch)
    encoded.validate(full=True)
    assert len(encoded) == batch.num_rows
    return [line.decode() for line in encoded.to_pylist()]


def texts(column: pa.Array) -> list[str]:
    """What is written for each value of a column."""
    written = lines(pa.RecordBatch.from_arrays([column], ["v"]))
    assert all(line.startswith('{"v":') and line.endswith("}\n") for line in written)
    return [line[5:-2] for line in written]


class TestScalars:
    @pytest.mark.parametrize(
        ("column", "expected"),
        [
            (pa.array([True, False, None]), ["true", "false", "null"]),
            (pa.array([0, -(2**63), None]), ["0", "-9223372036854775808", "null"]),
            (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
            (pa.array([1, None], pa.int8()), ["1", "null"]),
            (pa.array([10.0, 0.1, 1e22, 5e-324, -0.0, None]), ["10", "0.1", "1e+22", "5e-324", "-0", "null"]),
            (pa.array([np.nan, np.inf, -np.inf, 1.5, None]), ["null", "null", "null", "1.5", "null"]),
            (pa.array([0.1, None], pa.float32()), ["0.1", "null"]),
            (pa.array([Decimal("1.50"), Decimal("-0.01"), None], pa.decimal128(5, 2)), ["1.5", "-0.01", "null"]),
            (pa.array([Decimal("9" * 38)], pa.decimal128(38, 0)), ["9" * 38]),
            (pa.array(["", "é😀", None]), ['""', '"é😀"', "null"]),
            (pa.array(["a", None, "a"]).dictionary_encode(), ['"a"', "null", '"a"']),
            (pa.array(["x"], pa.large_string()), ['"x"']),
            (pa.array(["x", None], pa.string_view()), ['"x"', "null"]),
            (pa.array([b"\xff", None], pa.binary(1)), ['"/w=="', "null"]),
            (pa.nulls(2), ["null", "null"]),
            (pa.array([dt.date(2014, 9, 4), dt.date(1, 1, 1), None]), ['"2014-09-04"', '"0001-01-01"', "null"]),
            (pa.array([dt.time(1, 2, 3), None], pa.time32("s")), ['"01:02:03"', "null"]),
            (pa.array([dt.time(1, 2, 3), dt.time(1, 2, 3, 5)]), ['"01:02:03"', '"01:02:03.000005"']),
            (pa.array([5], pa.duration("s")), ["5"]),
        ],
        ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
    )
    def test_are_written(self, column: pa.Array, expected: list[str]) -> None:
        assert expected == texts(column)

    @pytest.mark.parametrize(
        ("kind", "count", "expected"),
        [
            (pa.timestamp("s"), 1409871475, "2014-09-04T22:57:55"),
            (pa.timestamp("ms"), 1409871475000, "2014-09-04T22:57:55"),
            (pa.timestamp("us"), 1409871475000000, "2014-09-04T22:57:55"),
            (pa.timestamp("us"), 1409871475000120, "2014-09-04T22:57:55.000120"),
            (pa.timestamp("ms", "UTC"), 1409871475120, "2014-09-04T22:57:55.120Z"),
            (pa.timestamp("us", "UTC"), -1, "1969-12-31T23:59:59.999999Z"),
            (pa.timestamp("us", "Europe/London"), 1409871475000000, "2014-09-04T22:57:55Z"),
            (pa.timestamp("ns", "UTC"), 1409871475000000001, "2014-09-04T22:57:55.000000001Z"),
            (pa.timestamp("us"), -62135596800000000, "0001-01-01T00:00:00"),
        ],
    )
    def test_timestamps_have_a_fraction_only_if_it_is_not_zero(self, kind: pa.DataType, count: int, expected: str) -> None:
        column = pa.array([count, None], pa.int64()).cast(kind)

        assert [f'"{expected}"', "null"] == texts(column)
        fraction = pa.array([count, 10 ** {"s": 0, "ms": 3, "us": 6, "ns": 9}[kind.unit] * 3 // 2], pa.int64()).cast(kind)
        assert f'"{expected}"' == texts(fraction)[0]

    @pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("s"), pa.timestamp("us", "UTC"), pa.time64("us")], ids=str)
    def test_times_out_of_every_range_crash_nothing(self, kind: pa.DataType) -> None:
        width, storage = (31, pa.int32()) if kind.bit_width == 32 else (63, pa.int64())
        column = pa.array([2**width - 1, -(2**width), 0], storage).cast(kind)

        assert all(isinstance(json.loads(text), str) for text in texts(column))

    def test_base64_is_that_of_the_standard(self) -> None:
        chance = random.Random(1)
        values = [None if size == 5 else chance.randbytes(size) for size in range(70)] + [b""]
        column = pa.array(values).slice(1)

        expected = ["null" if value is None else f'"{base64.b64encode(value).decode()}"' for value in values[1:]]
        assert expected == texts(column)


class TestEscapes:
    @pytest.mark.parametrize(
        "text", [*map(chr, range(0x20)), '"', "\\", "\\u0041", '\\"', "\x7f", "\u2028", "/", "a\nb\rc\td\be\f"], ids=repr
    )
    def test_every_text_is_read_back(self, text: str) -> None:
        values = [text, f"a{text}", "plain", f"{text}{text}z", None]

        assert values == [json.loads(found) for found in texts(pa.array(values))]

    def test_what_needs_none_is_not_escaped(self) -> None:
        assert ['"é/\x7f\u2028"'] == texts(pa.array(["é/\x7f\u2028"]))

    def test_names_are_escaped_too(self) -> None:
        batch = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([{'"': 1}])], ['a"\n', "é"])

        assert ['{"a\\"\\n":1,"é":{"\\"":1}}\n'] == lines(batch)


class TestNested:
    NESTED = pa.schema(
        [
            ("id", pa.int64()),
            ("s", pa.struct([("a", pa.string()), ("b", pa.struct([("c", pa.bool_())])), ("e", pa.struct([]))])),
            ("l", pa.list_(pa.struct([("x", pa.string()), ("y", pa.list_(pa.list_(pa.float64())))]))),
            ("d", pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        ]
    )

    def rows(self, number: int) -> list[dict[str, Any]]:
        chance = random.Random(2)

        def maybe(value: Any) -> Any:
            return None if chance.random() < 0.25 else value

        def item() -> Any:
            inner = [maybe([maybe(chance.choice([0.5, 1.25])) for _ in range(chance.randrange(3))]) for _ in range(chance.randrange(3))]
            return maybe({"x": maybe(chance.choice(["", 'q"', "z"])), "y": maybe(inner)})

        return [
            {
                "id": row,
                "s": maybe({"a": maybe("t"), "b": maybe({"c": maybe(True)}), "e": maybe({})}),
                "l": maybe([item() for _ in range(chance.randrange(4))]),
                "d": maybe([maybe("k")] * chance.randrange(3)),
            }
            for row in range(number)
        ]

    def test_nulls_and_empty_ones_at_every_depth(self) -> None:
        rows = self.rows(400)
        batch = pa.RecordBatch.from_pylist(rows, self.NESTED)

        assert rows == [json.loads(line) for line in lines(batch)]
        assert rows[13:200] == [json.loads(line) for line in lines(batch.slice(13, 187))]
        assert [] == lines(batch.slice(400))

    def test_what_is_hidden_by_a_null_is_not_written(self) -> None:
        inner = pa.array(["canary", "b"])
        struct = pa.StructArray.from_arrays([inner], names=["x"], mask=pa.array([True, False]))
        listed = pa.ListArray.from_arrays(pa.array([0, 1, 2]), inner, mask=pa.array([True, False]))

        assert ["null", '{"x":"b"}'] == texts(struct)
        assert ["null", '["b"]'] == texts(listed)

    @pytest.mark.parametrize("kind", [pa.large_list(pa.int64()), pa.list_(pa.int64(), 2)], ids=str)
    def test_lists_of_other_kinds(self, kind: pa.DataType) -> None:
        assert ["[1,2]", "null"] == texts(pa.array([[1, 2], None], kind))

    def test_rows_without_columns_are_empty_objects(self) -> None:
        batch = pa.RecordBatch.from_struct_array(pa.StructArray.from_buffers(pa.struct([]), 3, [None]))

        assert ["{}\n"] * 3 == lines(batch)


class TestSize:
    def test_what_could_pass_the_limit_of_a_column_is_written_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        batch = pa.RecordBatch.from_pylist(TestNested().rows(100), TestNested.NESTED)
        whole = encode_json(batch)
        monkeypatch.setattr(json_events, "_MOST_BYTES", 5000)
        pieces = encode_json(batch)

        assert (pa.binary(), pa.large_binary()) == (whole.type, pieces.type)
        assert whole.to_pylist() == pieces.to_pylist()

    def test_the_bound_holds(self) -> None:
        column = pa.array(["\x01" * 1000, "", None])
        batch = pa.RecordBatch.from_arrays([column, pa.array([b"x" * 999] * 3), pa.array([-1e-300] * 3)], ["t", "b", "f"])
        bound = json_events._bound(batch.columns, batch.schema.names)

        assert pc.sum(pc.binary_length(encode_json(batch))).as_py() <= bound + 3 * 3

    def test_no_row_is_touched_in_python(self) -> None:
        row = {"date": "2014-09-04T22:57:55", "who": "x" * 26, "n": 1, "group": [{"ref": 1, "delta": 2.5}, {"ref": 2, "delta": 1.0}]}
        batch = pa.RecordBatch.from_pylist([row] * 50_000)
        took = []
        for _ in range(3):
            begun = time.process_time()
            encode_json(batch)
            took.append(time.process_time() - begun)

        # 0.4 us a row on the machine of writing; a row through Python objects costs ten times that.
        assert min(took) < 0.15


class TestSchema:
    def test_says_what_is_written(self) -> None:
        schema = pa.schema(
            [
                pa.field("id", pa.int64(), nullable=False),
                pa.field("at", pa.timestamp("us", "UTC")),
                pa.field("raw", pa.binary(), nullable=False),
                pa.field("l", pa.list_(pa.field("item", pa.struct([pa.field("x", pa.float64())]), nullable=False)), nullable=False),
            ]
        )
        found = output_json_schema(schema, "orders")

        assert "https://json-schema.org/draft/2020-12/schema" == found["$schema"]
        assert ("orders", "object", False, ["id", "at", "raw", "l"]) == (
            found["title"],
            found["type"],
            found["additionalProperties"],
            found["required"],
        )
        assert {"type": "integer"} == found["properties"]["id"]
        assert (["string", "null"], "date-time") == (found["properties"]["at"]["type"], found["properties"]["at"]["format"])
        assert {"type": "string", "contentEncoding": "base64"} == found["properties"]["raw"]
        items = found["properties"]["l"]["items"]
        assert ("object", {"x": {"type": ["number", "null"]}}) == (items["type"], items["properties"])
        json.dumps(found)
