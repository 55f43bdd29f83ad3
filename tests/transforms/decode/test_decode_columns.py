"""Columns that are Arrow already: fitted by name, widened without loss, judged as every format is."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from eventveil.schemas.errors import StorageError
from eventveil.schemas.events.tree import EventSchema, Field, Leaf, ListOf, MapOf, Node, Record
from eventveil.transforms.decode.decoded import Decoded, decoded_type
from eventveil.transforms.decode.parquet_rows import ColumnsDecoder

TEXT, LONG = Leaf(pa.string()), Leaf(pa.int64())
UTC = dt.timezone.utc


def one(node: Node, nullable: bool = True) -> EventSchema:
    return EventSchema("e", Record((Field("v", node, nullable),)), "")


def decode(of: EventSchema, used: set[str] | None = None, **columns: pa.Array) -> Decoded:
    decoded = ColumnsDecoder(of, used).decode(pa.RecordBatch.from_pydict(columns))
    decoded.events.validate(full=True)
    assert decoded.events.type == decoded_type(of, used)
    return decoded


def values(of: Node, column: pa.Array) -> list[Any]:
    decoded = decode(one(of), v=column)
    assert [] == decoded.refused_codes
    return decoded.events.field("v").to_pylist()


def verdicts(decoded: Decoded) -> list[tuple[int, str, str]]:
    return list(zip(decoded.refused_rows.tolist(), decoded.refused_codes, decoded.refused_paths, strict=True))


NOON = dt.datetime(2014, 9, 4, 12)


class TestTypes:
    @pytest.mark.parametrize(
        ("node", "column", "expected"),
        [
            (LONG, pa.array([1, None], pa.int8()), [1, None]),
            (LONG, pa.array([2**32 - 1], pa.uint32()), [2**32 - 1]),
            (Leaf(pa.int32()), pa.array([65535], pa.uint16()), [65535]),
            (Leaf(pa.float64()), pa.array([2**31 - 1], pa.int32()), [2.0**31 - 1]),
            (Leaf(pa.float64()), pa.array([0.5], pa.float32()), [0.5]),
            (Leaf(pa.float32()), pa.array([0.5], pa.float16()), [0.5]),
            (TEXT, pa.array(["a", None, "é"], pa.large_string()), ["a", None, "é"]),
            (TEXT, pa.array(["a", None], pa.string_view()), ["a", None]),
            (TEXT, pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
            (TEXT, pa.nulls(2), [None, None]),
            (Leaf(pa.binary()), pa.array([b"ab"], pa.binary(2)), [b"ab"]),
            (Leaf(pa.binary(), "fixed", size=2), pa.array([b"ab"], pa.large_binary()), [b"ab"]),
            (Leaf(pa.string(), "uuid", size=16), pa.array([None, uuid.UUID(int=15).bytes], pa.binary(16)), [None, str(uuid.UUID(int=15))]),
            (
                Leaf(pa.string(), "uuid", size=16),
                pa.array([uuid.UUID(int=2**127).bytes] * 2, pa.uuid()).slice(1),
                [str(uuid.UUID(int=2**127))],
            ),
            (Leaf(pa.decimal128(9, 2)), pa.array([Decimal("1.5")], pa.decimal128(5, 1)), [Decimal("1.50")]),
            (Leaf(pa.decimal128(5, 2)), pa.array([Decimal("1.50"), None], pa.decimal128(20, 2)), [Decimal("1.50"), None]),
            (Leaf(pa.timestamp("us")), pa.array([NOON, None], pa.timestamp("s")), [NOON, None]),
            (
                Leaf(pa.timestamp("ms")),
                pa.array([1999, -1], pa.timestamp("us")),
                [dt.datetime(1970, 1, 1, 0, 0, 0, 1000), dt.datetime(1969, 12, 31, 23, 59, 59, 999000)],
            ),
            (Leaf(pa.timestamp("us", "UTC")), pa.array([0], pa.timestamp("ns", "Asia/Tokyo")), [dt.datetime(1970, 1, 1, tzinfo=UTC)]),
            (Leaf(pa.time64("us")), pa.array([dt.time(1, 2, 3)], pa.time32("s")), [dt.time(1, 2, 3)]),
            (ListOf(LONG), pa.array([[1], None, []], pa.large_list(pa.int32())), [[1], None, []]),
            (ListOf(LONG), pa.array([[1, 2], None], pa.list_(pa.int64(), 2)), [[1, 2], None]),
            (ListOf(ListOf(TEXT)), pa.array([[["a"], []], None], pa.list_(pa.large_list(pa.large_string()))), [[["a"], []], None]),
        ],
    )
    def test_may_widen(self, node: Node, column: pa.Array, expected: list[Any]) -> None:
        assert expected == values(node, column)

    @pytest.mark.parametrize(
        ("node", "kind"),
        [
            (LONG, pa.uint64()),
            (LONG, pa.float64()),
            (LONG, pa.string()),
            (Leaf(pa.int32()), pa.int64()),
            (Leaf(pa.float64()), pa.int64()),
            (Leaf(pa.float32()), pa.float64()),
            (TEXT, pa.binary()),
            (TEXT, pa.int64()),
            (Leaf(pa.bool_()), pa.int8()),
            (Leaf(pa.decimal128(9, 2)), pa.decimal128(9, 3)),
            (Leaf(pa.decimal128(9, 2)), pa.float64()),
            (Leaf(pa.timestamp("us")), pa.timestamp("us", "UTC")),
            (Leaf(pa.timestamp("us", "UTC")), pa.timestamp("us")),
            (Leaf(pa.date32()), pa.timestamp("s")),
            (Leaf(pa.time32("ms")), pa.time64("us")),
            (ListOf(LONG), pa.list_(pa.string())),
            (ListOf(LONG), pa.int64()),
            (Record((Field("a", LONG),)), pa.list_(pa.int64())),
            (MapOf(LONG), pa.struct([("canary", pa.int64())])),
            (MapOf(LONG), pa.map_(pa.int64(), pa.int64())),
        ],
        ids=str,
    )
    def test_may_not_change(self, node: Node, kind: pa.DataType) -> None:
        with pytest.raises(StorageError, match="EV407 column v") as caught:
            decode(one(node), v=pa.array([], kind))

        assert "canary" not in str(caught.value)

    def test_all_problems_come_at_once(self) -> None:
        of = EventSchema(
            "e", Record((Field("a", LONG), Field("b", Record((Field("c", LONG), Field("d", TEXT, True)))), Field("e", TEXT))), ""
        )
        with pytest.raises(StorageError) as caught:
            decode(of, a=pa.array(["x"]), b=pa.array([{"d": 1}]))

        assert ["column a is string", "column b.c is missing", "column b.d is int64", "column e is missing"] == [
            problem.fact.partition(",")[0] for problem in caught.value.problems
        ]


INNER = Record((Field("n", LONG), Field("t", TEXT, True)))


class TestShape:
    def test_what_is_missing_is_null_where_it_may_be(self) -> None:
        of = EventSchema(
            "e", Record((Field("a", LONG), Field("b", INNER, True), Field("c", ListOf(INNER), True), Field("d", MapOf(TEXT), True))), ""
        )
        decoded = decode(of, {"a", "b.t", "c[].n", "d{k}"}, a=pa.array([1, 2]), c=pa.array([[{"n": 1}], None]))

        assert [{"a": 1, "b": None, "c": [{"n": 1}], "d": None}, {"a": 2, "b": None, "c": None, "d": None}] == decoded.events.to_pylist()

    def test_columns_that_the_schema_does_not_know_are_drift_of_every_row(self) -> None:
        of = one(ListOf(INNER))
        column = pa.array([[{"n": 1, "x": 1}], [], None])
        decoded = decode(of, v=column, y=pa.array([1, 2, 3]), z=pa.nulls(3))

        assert {"?": 3, "v[].?": 3} == decoded.drift

    def test_named_entries_of_maps_become_fields(self) -> None:
        column = pa.array([[("a", 1), ("b", None)], None, [], [("b", 2)]], pa.map_(pa.large_string(), pa.int32())).slice(1)
        decoded = decode(one(MapOf(LONG, True)), {"v{b}", "v{a}"}, v=column)

        assert [None, {"a": None, "b": None}, {"a": None, "b": 2}] == decoded.events.field("v").to_pylist()

    def test_slices_and_hidden_values_do_not_show(self) -> None:
        whole = pa.array(
            [{"n": 1, "t": "x"}, {"n": 2, "t": None}, {"n": None, "t": "z"}, None], pa.struct([("n", pa.int64()), ("t", pa.string())])
        )
        hidden = pa.StructArray.from_arrays([whole.field(0), whole.field(1)], names=["n", "t"], mask=pa.array([False, False, True, True]))

        assert [{"n": 2, "t": None}, None] == decode(one(INNER), v=hidden.slice(1, 2)).events.field("v").to_pylist()
        assert [(1, "EV503", "v.n")] == verdicts(decode(one(INNER), v=whole.slice(1, 2)))

    def test_nothing_is_copied_where_nothing_changes(self) -> None:
        column = pa.array(["a"] * 1000)
        decoded = decode(one(TEXT), v=column)

        assert column.buffers()[2].address == decoded.events.field("v").buffers()[2].address


class TestJudged:
    @pytest.mark.parametrize(
        ("node", "column", "code"),
        [
            (TEXT, pa.array([b"ok", b"\xff"]).view(pa.string()), "EV504"),
            (TEXT, pa.array([b"ok", b"\xff"]).view(pa.string()).dictionary_encode(), "EV504"),
            (TEXT, pa.array([b"ok", b"\xff"], pa.large_binary()).view(pa.large_string()), "EV504"),
            (Leaf(pa.float64()), pa.array([0.0, np.nan]), "EV505"),
            (Leaf(pa.float32()), pa.array([0.0, -np.inf], pa.float32()), "EV505"),
            (Leaf(pa.string(), "enum", ("a",)), pa.array(["a", "b"]), "EV506"),
            (Leaf(pa.string(), "uuid"), pa.array([str(uuid.UUID(int=1)), "x"]), "EV506"),
            (Leaf(pa.binary(), "fixed", size=2), pa.array([b"ab", b"abc"]), "EV506"),
            (Leaf(pa.decimal128(3, 1)), pa.array([Decimal("99.9"), Decimal("100.0")], pa.decimal128(9, 1)), "EV506"),
            (Leaf(pa.date32()), pa.array([0, 2**31 - 1], pa.int32()).cast(pa.date32()), "EV506"),
            (Leaf(pa.timestamp("us")), pa.array([0, 2**62], pa.timestamp("us")), "EV506"),
            (Leaf(pa.timestamp("us")), pa.array([0, 2**62], pa.timestamp("s")), "EV506"),
            (Leaf(pa.time64("us")), pa.array([0, 86_400_000_000], pa.int64()).cast(pa.time64("us")), "EV506"),
        ],
    )
    def test_a_value_is_refused_and_its_neighbour_is_not(self, node: Node, column: pa.Array, code: str) -> None:
        assert [(1, code, "v")] == verdicts(decode(one(node), set(), v=column))
        assert [(0, code, "v")] == verdicts(decode(one(node), v=column.slice(1)))

    def test_required_fields(self) -> None:
        assert [(1, "EV503", "v")] == verdicts(decode(one(TEXT, nullable=False), v=pa.array(["a", None])))
        assert [(0, "EV503", "v[]")] == verdicts(decode(one(ListOf(TEXT)), v=pa.array([["a", None], ["b"]])))
        assert [(1, "EV503", "v{}")] == verdicts(
            decode(one(MapOf(TEXT)), v=pa.array([[("a", "b")], [("a", None)]], pa.map_(pa.string(), pa.string())))
        )

    def test_a_key_twice(self) -> None:
        column = pa.array([[("a", 1)], [("a", 1), ("b", 1), ("a", 1)], [("b", 1)]], pa.map_(pa.string(), pa.int64()))

        assert [(1, "EV507", "v{}")] == verdicts(decode(one(MapOf(LONG)), v=column))
