"""Canonical values: golden vectors, equality over types, and columns of every build."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timezone
from decimal import Decimal
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventveil.transforms.keys.canonical import CANONICAL_VERSION, canonical, canonical_tag

TYPES: dict[str, pa.DataType] = {
    str(kind): kind
    for kind in (
        *(pa.string(), pa.binary(), pa.bool_(), pa.int64(), pa.int32(), pa.uint8(), pa.uint64(), pa.decimal128(38, 2)),
        *(pa.decimal128(38, 3), pa.timestamp("us", "UTC"), pa.timestamp("us"), pa.timestamp("ns", "UTC"), pa.timestamp("ns")),
        *(pa.time64("us"), pa.time32("ms")),
    )
} | {"float64": pa.float64(), "date32": pa.date32()}


def from_text(kind: pa.DataType, value: Any) -> Any:
    if pa.types.is_binary(kind):
        return bytes.fromhex(value)
    if pa.types.is_decimal(kind):
        return Decimal(value)
    if pa.types.is_floating(kind):
        return float(value)
    if not isinstance(value, str) or pa.types.is_string(kind):
        return value
    if pa.types.is_timestamp(kind):
        return datetime.fromisoformat(value).replace(tzinfo=timezone.utc if kind.tz else None)
    return date.fromisoformat(value) if pa.types.is_date(kind) else time.fromisoformat(value)


def forms(values: list[Any], kind: pa.DataType) -> list[bytes | None]:
    column = canonical(pa.array(values, kind))
    column.validate(full=True)
    assert column.type == pa.binary()
    return column.to_pylist()


class TestGolden:
    def test_vectors(self, vectors: Callable[[str], Any], plain: ModuleType) -> None:
        found = vectors("canonical")

        assert found["canonical_version"] == CANONICAL_VERSION
        for case in found["cases"]:
            kind, expected = TYPES[case["type"]], bytes.fromhex(case["bytes"])
            value = from_text(kind, case["value"])

            assert case["tag"] == canonical_tag(kind)
            assert [expected, None] == forms([value, None], kind), case
            if value == value:
                assert expected == plain.canonical(case["tag"], value)


class TestEqualValues:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (pa.array([5, -5], pa.int8()), pa.array([5, -5], pa.int64())),
            (pa.array([5], pa.uint32()), pa.array([5], pa.int64())),
            (pa.array(["a", "Zoë"], pa.large_string()), pa.array(["a", "Zoe\u0308"])),
            (pa.array(["a"], pa.string_view()), pa.array(["a"])),
            (pa.array([b"ab"], pa.binary(2)), pa.array([b"ab"], pa.large_binary())),
            (pa.array([1.5], pa.float32()), pa.array([1.5], pa.float64())),
            (pa.array([0.0, float("nan")]), pa.array([-0.0, -float("nan")])),
            (pa.array([Decimal("1.50")], pa.decimal128(9, 2)), pa.array([Decimal("1.5")], pa.decimal256(50, 1))),
            (pa.array([Decimal("1.50")], pa.decimal64(9, 2)), pa.array([Decimal("1.5")], pa.decimal32(5, 1))),
            (pa.array([Decimal(1200)], pa.decimal128(5, -2)), pa.array([Decimal(1200)], pa.decimal128(5, 0))),
            (pa.array([1, -1], pa.timestamp("s", "UTC")), pa.array([10**6, -(10**6)], pa.timestamp("us", "Europe/London"))),
            (pa.array([1], pa.timestamp("ms")), pa.array([1000], pa.timestamp("us"))),
            (pa.array([1], pa.time32("s")), pa.array([10**6], pa.time64("us"))),
            (pa.array([-1], pa.date32()), pa.array([-86_400_000], pa.date64())),
        ],
        ids=[
            *("int8", "uint32", "nfc", "view", "fixed", "float32", "zero-and-nan"),
            *("decimal256", "decimal32", "negative-scale", "zone", "ms", "time", "date64"),
        ],
    )
    def test_over_types(self, one: pa.Array[Any], other: pa.Array[Any]) -> None:
        assert canonical_tag(one.type) == canonical_tag(other.type)
        assert canonical(one).equals(canonical(other))

    def test_tags_that_are_never_compared(self) -> None:
        kinds: list[pa.DataType] = [
            pa.string(),
            pa.binary(),
            pa.int64(),
            pa.uint64(),
            pa.float64(),
            pa.decimal128(9, 2),
            pa.bool_(),
            pa.date32(),
        ]
        kinds += [pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.timestamp("ns", "UTC")]
        kinds += [pa.time64("us"), pa.time64("ns")]

        assert len(kinds) == len({canonical_tag(kind) for kind in kinds})

    @pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.struct([]), pa.duration("s"), pa.null()], ids=str)
    def test_types_without_a_form(self, kind: pa.DataType) -> None:
        with pytest.raises(TypeError, match="no canonical form"):
            canonical_tag(kind)


SAMPLES: list[pa.Array[Any]] = [
    pa.array(["a", None, "", "Zoe\u0308", "b"] * 3),
    pa.array([b"a", None, b""] * 5),
    pa.array([1, None, -3] * 5, pa.int32()),
    pa.array([0.5, None, -0.0] * 5),
    pa.array([Decimal("1.10"), None, Decimal("-0.05")] * 5, pa.decimal128(7, 2)),
    pa.array([True, None, False] * 5),
    pa.array([datetime(2024, 2, 29), None] * 8, pa.timestamp("ms")),
    pa.array([time(1, 2), None] * 8, pa.time32("ms")),
    pa.array([date(1960, 2, 29), None] * 8),
    pa.array(["a", None, "Zoe\u0308"] * 5).dictionary_encode(),
]


@pytest.mark.parametrize("column", SAMPLES, ids=[str(column.type) for column in SAMPLES])
class TestColumns:
    def test_null_stays_null(self, column: pa.Array[Any]) -> None:
        assert column.is_valid().equals(canonical(column).is_valid())

    def test_a_slice_gives_the_slice(self, column: pa.Array[Any]) -> None:
        for start, length in ((1, 9), (3, 4), (8, 0), (9, 100)):
            assert canonical(column).slice(start, length).equals(canonical(column.slice(start, length)))

    def test_one_value_alone(self, column: pa.Array[Any]) -> None:
        assert canonical(column).to_pylist() == [canonical(column.slice(row, 1))[0].as_py() for row in range(len(column))]

    def test_empty_and_null_only(self, column: pa.Array[Any]) -> None:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type

        assert [] == forms([], kind)
        assert [None, None] == forms([None, None], kind)


class TestNothingIsRaisedOnAValue:
    def test_text_that_is_not_utf8(self) -> None:
        values = [b"\xff\xfe", b"a", "e\u0301".encode(), b"\xed\xa0\x80e\xcc\x81"]
        broken = pa.Array.from_buffers(pa.string(), len(values), pa.array(values).buffers())

        assert [b"\xff\xfe", b"a", "é".encode(), b"\xed\xa0\x80\xc3\xa9"] == canonical(broken).to_pylist()

    @pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
    def test_times_at_the_ends_of_their_range(self, unit: Any) -> None:
        ends = np.array([-(2**63), 2**63 - 1])

        assert 2 == len(set(canonical(pa.array(ends, pa.timestamp(unit, "UTC"))).to_pylist()))

    def test_what_lies_under_a_null_does_not_show(self) -> None:
        hidden = pa.Array.from_buffers(pa.int64(), 2, [pa.py_buffer(b"\2"), pa.py_buffer(b"canary!!12345678")], 1)

        assert b"canary" not in b"".join(buffer.to_pybytes() for buffer in canonical(hidden).buffers() if buffer)


class TestAgainstPlainPython:
    @settings(max_examples=100, deadline=None)
    @given(
        scale=st.integers(0, 38),
        unscaled=st.lists(st.none() | st.integers(-(10**38) + 1, 10**38 - 1) | st.integers(-1200, 1200), min_size=1, max_size=8),
    )
    def test_decimals(self, plain: ModuleType, scale: int, unscaled: list[int | None]) -> None:
        values = [None if number is None else Decimal((int(number < 0), tuple(map(int, str(abs(number)))), -scale)) for number in unscaled]
        data = b"".join((number or 0).to_bytes(16, "little", signed=True) for number in unscaled)
        valid = np.packbits([number is not None for number in unscaled], bitorder="little").tobytes()
        column = pa.Array.from_buffers(pa.decimal128(38, scale), len(values), [pa.py_buffer(valid), pa.py_buffer(data)])

        assert [None if value is None else plain.canonical("d", value) for value in values] == canonical(column).to_pylist()

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.none() | st.text(st.characters(max_codepoint=0x2FFF, exclude_categories=["Cs", "Cn"]))))
    def test_text(self, plain: ModuleType, values: list[str | None]) -> None:
        assert [None if value is None else plain.canonical("s", value) for value in values] == forms(values, pa.string())
