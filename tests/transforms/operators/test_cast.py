from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date, datetime, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eventveil.transforms.operators._casts import CASTS
from eventveil.transforms.operators.cast import Cast, _kind

Treat = Callable[..., Any]
UTC = timezone.utc
INSTANT = pa.timestamp("us", "UTC")
SOURCES: dict[str, list[pa.DataType]] = {
    "bool": [pa.bool_()],
    "int": [pa.int8(), pa.int32(), pa.int64(), pa.uint64()],
    "float": [pa.float32(), pa.float64()],
    "decimal": [pa.decimal128(9, 2), pa.decimal128(38, 9), pa.decimal128(38, 30), pa.decimal256(76, 5)],
    "text": [pa.string()],
    "binary": [pa.binary(), pa.binary(2)],
    "date": [pa.date32()],
    "timestamp": [pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC")],
}
TARGETS = [
    "bool",
    "int32",
    "int64",
    "float32",
    "float64",
    "string",
    "binary",
    "date32",
    "timestamp[us]",
    "decimal128(9, 2)",
    "decimal128(38, 9)",
    "decimal128(38,38)",
    "decimal128(3,0)",
]


def cast(treat: Treat, to: str, values: Any, of: pa.DataType | None = None, **where: Any) -> list[Any]:
    """The results, "lost" where something would be."""
    done = treat("cast", {"to": to}, values, of, **where)
    assert set(done.refused.values()) <= {"EV524"}
    return ["lost" if row in done.refused else value for row, value in enumerate(done.values)]


class TestText:
    @pytest.mark.parametrize("text", ["0", "-7", "9223372036854775807", "-9223372036854775808"])
    def test_whole_numbers(self, treat: Treat, text: str) -> None:
        assert cast(treat, "int64", [text, None]) == [int(text), None]

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " 1",
            "1 ",
            "+1",
            "007",
            "1.0",
            "1e3",
            "0x1",
            "1_000",
            "٣",
            "nan",
            "9223372036854775808",
            "-9223372036854775809",
            "9" * 30,
            "--1",
            "1\n",
        ],
    )
    def test_what_is_no_whole_number(self, treat: Treat, text: str) -> None:
        assert cast(treat, "int64", [text, "5"]) == ["lost", 5]

    def test_int32_has_its_own_range(self, treat: Treat) -> None:
        assert cast(treat, "int32", ["2147483647", "2147483648", "-2147483649"]) == [2147483647, "lost", "lost"]

    @pytest.mark.parametrize(
        "text",
        [
            "0",
            "-0.5",
            "7.99",
            "1e22",
            "1E-7",
            "123456789012345678",
            "9007199254740992",
            "1.7976931348623157e+308",
            "0.1000000000000000000000",
            "5e-324",
        ],
    )
    def test_floats(self, treat: Treat, text: str) -> None:
        exact = Fraction(Decimal(text)) == Fraction(Decimal(repr(float(text))))

        assert cast(treat, "float64", [text]) == [float(text) if exact else "lost"]
        assert exact is (text != "123456789012345678")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "nan",
            "inf",
            "Infinity",
            ".5",
            "5.",
            "+1",
            "01",
            "1e",
            "1e400",
            "0.1000000000000000055",
            "9007199254740993",
            "1" * 400,
            "1e1000000000",
            " 1",
            "1,5",
        ],
    )
    def test_what_is_no_float(self, treat: Treat, text: str) -> None:
        assert cast(treat, "float64", [text, "0.5"]) == ["lost", 0.5]

    def test_single_floats_hold_fewer_digits(self, treat: Treat) -> None:
        assert cast(treat, "float32", ["0.1", "16777217", "3.5e38", "1234567.89"]) == [float(np.float32(0.1)), "lost", "lost", "lost"]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("7.9", "7.90"),
            ("-0.01", "-0.01"),
            ("0", "0.00"),
            ("9999999.99", "9999999.99"),
            ("1.500000", "1.50"),
            ("10000000", None),
            ("0.001", None),
            ("01", None),
            ("1e2", None),
            ("+1", None),
            ("", None),
            ("1.", None),
        ],
    )
    def test_decimals(self, treat: Treat, text: str, expected: str | None) -> None:
        assert cast(treat, "decimal128(9, 2)", [text]) == ["lost" if expected is None else Decimal(expected)]

    def test_booleans(self, treat: Treat) -> None:
        assert cast(treat, "bool", ["true", "false", "True", "1", "", None]) == [True, False, "lost", "lost", "lost", None]

    def test_instants(self, treat: Treat) -> None:
        texts = ["2014-09-04T22:57:55Z", "2014-07-01", "2014-03-30T01:30", "no", None]

        assert cast(treat, "timestamp[us]", texts, zone="Europe/London") == [
            datetime(2014, 9, 4, 22, 57, 55, tzinfo=UTC),
            datetime(2014, 6, 30, 23, tzinfo=UTC),
            "lost",
            "lost",
            None,
        ]
        assert treat("cast", {"to": "timestamp[us]", "zone": "Asia/Tokyo"}, ["2014-07-01"], zone="Europe/London").values == [
            datetime(2014, 6, 30, 15, tzinfo=UTC)
        ]

    def test_dates(self, treat: Treat) -> None:
        assert cast(treat, "date32", ["2014-09-04", "0001-01-01", "2014-09-04T00:00", "2014-02-29", None]) == [
            date(2014, 9, 4),
            date(1, 1, 1),
            "lost",
            "lost",
            None,
        ]

    def test_bytes(self, treat: Treat) -> None:
        assert cast(treat, "binary", ["é", "", None]) == ["é".encode(), b"", None]


class TestToText:
    @pytest.mark.parametrize(
        ("value", "of", "expected"),
        [
            (True, pa.bool_(), "true"),
            (-7, pa.int64(), "-7"),
            (2**64 - 1, pa.uint64(), "18446744073709551615"),
            (0.1, pa.float64(), "0.1"),
            (10.0, pa.float64(), "10"),
            (-0.0, pa.float64(), "0"),
            (0.1, pa.float32(), "0.1"),
            (1e22, pa.float64(), "1e+22"),
            (float("nan"), pa.float64(), "lost"),
            (float("inf"), pa.float64(), "lost"),
            (Decimal("7.90"), pa.decimal128(9, 2), "7.9"),
            (Decimal("0.000000001"), pa.decimal128(38, 9), "0.000000001"),
            (Decimal(0), pa.decimal128(38, 9), "0"),
            (Decimal("-" + "9" * 38), pa.decimal128(38, 0), "-" + "9" * 38),
            (Decimal(100), pa.decimal256(50, 1), "100"),
            (b"caf\xc3\xa9", pa.binary(), "café"),
            (b"\xff", pa.binary(), "lost"),
            (b"ab", pa.binary(2), "ab"),
            (date(2014, 9, 4), pa.date32(), "2014-09-04"),
            (date(1, 1, 1), pa.date32(), "0001-01-01"),
            (datetime(2014, 9, 4, 22, 57, 55, tzinfo=UTC), INSTANT, "2014-09-04T22:57:55Z"),
            (datetime(2014, 9, 4, 22, 57, 55, 100, tzinfo=UTC), INSTANT, "2014-09-04T22:57:55.000100Z"),
            (datetime(2014, 9, 4), pa.timestamp("ns"), "2014-09-04T00:00:00"),
            (datetime(2014, 9, 4, 1), pa.timestamp("s", "UTC"), "2014-09-04T01:00:00Z"),
            (2**62, pa.timestamp("us", "UTC"), "lost"),
            (2**31 - 1, pa.date32(), "lost"),
        ],
    )
    def test_shortest_exact(self, treat: Treat, value: Any, of: pa.DataType, expected: str) -> None:
        assert cast(treat, "string", pa.array([value, None], of)) == [expected, None]

    @pytest.mark.parametrize("kind", ["float64", "decimal128(38, 9)", "int64", "timestamp[us]"])
    def test_there_and_back(self, treat: Treat, kind: str) -> None:
        texts = {
            "float64": ["0.1", "1e+22", "5e-324"],
            "decimal128(38, 9)": ["0.1", "-7"],
            "int64": ["5", "-5"],
            "timestamp[us]": ["2014-09-04T22:57:55.000001Z", "1969-12-31T23:59:59Z"],
        }[kind]
        values = cast(treat, kind, texts)

        assert cast(treat, "string", pa.array(values, Cast(to=kind).returns(pa.string()))) == texts

    def test_other_stands_for_what_is_lost(self, treat: Treat) -> None:
        assert treat("cast", {"to": "string", "otherwise": "other"}, [b"\xff", b"a", None]).values == ["other", "a", None]


class TestNumbers:
    def test_whole_numbers_in_range(self, treat: Treat) -> None:
        assert cast(treat, "int32", [2**31 - 1, 2**31, -(2**31), -(2**31) - 1, None], pa.int64()) == [
            2**31 - 1,
            "lost",
            -(2**31),
            "lost",
            None,
        ]
        assert cast(treat, "int64", [2**63 - 1, 2**63], pa.uint64()) == [2**63 - 1, "lost"]

    def test_floats_that_are_whole(self, treat: Treat) -> None:
        assert cast(treat, "int64", [5.0, -0.0, 5.5, 2.0**63, -(2.0**63), float("nan"), float("inf"), None]) == [
            5,
            0,
            "lost",
            "lost",
            -(2**63),
            "lost",
            "lost",
            None,
        ]
        assert cast(treat, "int32", [2147483647.0, 2147483648.0]) == [2147483647, "lost"]

    def test_whole_numbers_that_a_float_holds(self, treat: Treat) -> None:
        assert cast(treat, "float64", [2**53, 2**53 + 1, 2**63 - 1, -(2**63), None], pa.int64()) == [
            2.0**53,
            "lost",
            "lost",
            -(2.0**63),
            None,
        ]
        assert cast(treat, "float32", [2**24, 2**24 + 1, 2**63 - 1]) == [2.0**24, "lost", "lost"]
        assert cast(treat, "float64", [2**64 - 1, 2**63], pa.uint64()) == ["lost", 2.0**63]

    def test_floats_of_the_other_width(self, treat: Treat) -> None:
        assert cast(treat, "float32", [0.5, 0.1, 1e300, float("inf"), None]) == [0.5, "lost", "lost", "lost", None]
        assert cast(treat, "float64", [0.5], pa.float32()) == [0.5]

    def test_booleans(self, treat: Treat) -> None:
        assert cast(treat, "bool", [0, 1, 2, -1, None], pa.int32()) == [False, True, "lost", "lost", None]
        assert cast(treat, "int64", [True, False, None]) == [1, 0, None]

    def test_decimals_of_floats_have_the_digits_of_their_shortest_text(self, treat: Treat) -> None:
        assert cast(treat, "decimal128(9, 2)", [7.99, 7.995, 1e7, 9999999.99, float("nan"), -0.0]) == [
            Decimal("7.99"),
            "lost",
            "lost",
            Decimal("9999999.99"),
            "lost",
            0,
        ]
        assert cast(treat, "decimal128(38, 9)", [1e22, 0.1], pa.float64()) == [Decimal(10**22), Decimal("0.1")]
        assert cast(treat, "decimal128(9, 2)", [0.1], pa.float32()) == [Decimal("0.1")]

    def test_more_digits_than_a_float_has(self, treat: Treat) -> None:
        many = [Decimal("-12345678901234567.89"), Decimal("12345678901234567.89"), Decimal("-9007199254740992.00"), Decimal("-0.07")]

        assert cast(treat, "float64", many, pa.decimal128(20, 2)) == ["lost", "lost", -9007199254740992.0, -0.07]

    def test_what_is_already_of_the_type(self, treat: Treat) -> None:
        assert cast(treat, "int64", [1, None]) == [1, None]
        assert treat("cast", {"to": "timestamp[us]"}, [datetime(2014, 9, 4)], pa.timestamp("us")).type == pa.timestamp("us")

    @settings(max_examples=150, deadline=None)
    @given(
        data=st.data(),
        of=st.sampled_from(SOURCES["decimal"]),
        to=st.sampled_from(["decimal128(9, 2)", "decimal128(38, 9)", "decimal128(38,38)", "int64", "int32", "float64", "float32"]),
    )
    def test_from_decimals_exactly_or_not_at_all(self, treat: Treat, data: st.DataObject, of: Any, to: str) -> None:
        top = 10**of.precision - 1
        unscaled = st.one_of(
            st.integers(-top, top),
            st.integers(-(2**64), 2**64),
            st.integers(-999, 999),
            st.integers(-99, 99).map(lambda n: n * 10**of.scale),
            st.integers(0, 70).map(lambda n: 10**n),
        )
        values = [Decimal(f"{max(-top, min(top, value))}E-{of.scale}") for value in data.draw(st.lists(unscaled, min_size=1, max_size=5))]

        assert cast(treat, to, pa.array(values, of)) == [_expected(value, to) for value in values]

    @settings(max_examples=150, deadline=None)
    @given(
        values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
        to=st.sampled_from(["decimal128(9, 2)", "decimal128(38, 30)", "decimal128(19,0)", "float64", "float32", "int32", "string"]),
    )
    @example(values=[70095490], to="float32")
    def test_from_whole_numbers_exactly_or_not_at_all(self, treat: Treat, values: list[int], to: str) -> None:
        def expected(value: int) -> Any:
            if to.startswith("float"):
                # Not as from decimals, where the shortest text of the float may tell the number: 70095490 is no single float.
                made = float(np.dtype(to).type(value))
                return made if made == value else "lost"
            return str(value) if to == "string" else _expected(Decimal(value), to)

        assert cast(treat, to, values, pa.int64()) == [expected(value) for value in values]

    @settings(max_examples=150, deadline=None)
    @given(
        values=st.lists(
            st.one_of(st.floats(), st.integers(-99999, 99999).map(lambda n: n / 100), st.integers(-(2**60), 2**60).map(float)), min_size=1
        ),
        to=st.sampled_from(["decimal128(9, 2)", "decimal128(38, 9)", "decimal128(38, 30)"]),
    )
    def test_from_floats_to_decimals(self, treat: Treat, values: list[float], to: str) -> None:
        assert cast(treat, to, values, pa.float64()) == [
            _expected(Decimal(repr(value)), to) if math.isfinite(value) else "lost" for value in values
        ]


def _expected(value: Decimal, to: str) -> Any:
    """The exact answer, by fractions."""
    exact = Fraction(value)
    if to in ("int32", "int64"):
        bits = int(to[3:]) - 1
        return int(exact) if exact.denominator == 1 and -(2**bits) <= exact < 2**bits else "lost"
    if to == "float64":
        made = float(exact)
        return made if Fraction(Decimal(repr(made))) == exact or Fraction(made) == exact else "lost"
    if to == "float32":
        with np.errstate(over="ignore"):
            single = np.float32(float(exact))
        return (
            float(single)
            if np.isfinite(single) and (Fraction(Decimal(str(single))) == exact or Fraction(float(single)) == exact)
            else "lost"
        )
    precision, scale = map(int, to[11:-1].split(","))
    unscaled = exact * 10**scale
    return Decimal(f"{int(unscaled)}E-{scale}") if unscaled.denominator == 1 and abs(unscaled) < 10**precision else "lost"


class TestTimes:
    def test_days_of_instants(self, treat: Treat) -> None:
        values = [datetime(2014, 6, 30, 23, tzinfo=UTC), datetime(2014, 7, 1, tzinfo=UTC), None]

        assert cast(treat, "date32", values, INSTANT, zone="Europe/London") == [date(2014, 7, 1), "lost", None]
        assert cast(treat, "date32", [datetime(2014, 7, 1), datetime(2014, 7, 1, 1)], pa.timestamp("ns")) == [date(2014, 7, 1), "lost"]

    def test_instants_of_days(self, treat: Treat) -> None:
        assert cast(treat, "timestamp[us]", [date(2014, 7, 1), None], zone="Europe/London") == [datetime(2014, 6, 30, 23, tzinfo=UTC), None]
        assert cast(treat, "timestamp[us]", pa.array([2**31 - 1], pa.int32()).cast(pa.date32())) == ["lost"]

    def test_microseconds_of_other_units(self, treat: Treat) -> None:
        nanoseconds = pa.array([1_000, 1_001, None]).cast(pa.timestamp("ns", "UTC"))

        assert cast(treat, "timestamp[us]", nanoseconds) == [datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC), "lost", None]
        assert cast(treat, "timestamp[us]", pa.array([2**62, 1]).cast(pa.timestamp("s"))) == ["lost", datetime(1970, 1, 1, 0, 0, 1)]


class TestEveryPair:
    @pytest.mark.parametrize("to", TARGETS)
    @pytest.mark.parametrize("of", [of for types in SOURCES.values() for of in types], ids=str)
    def test_empty_null_and_sliced_columns(self, treat: Treat, of: pa.DataType, to: str) -> None:
        if Cast(to=to).returns(of) is None:
            return
        sample = {
            "bool": True,
            "int": 1,
            "float": 1.0,
            "decimal": Decimal(0),
            "text": "1",
            "binary": b"ab",
            "date": date(2014, 9, 4),
            "timestamp": datetime(2014, 9, 4),
        }[_kind(of)]
        column = pa.array([None, sample, None, sample], of)
        whole = treat("cast", {"to": to}, column)

        assert whole.values[::2] == [None, None]
        assert treat("cast", {"to": to}, column[:0]).values == []
        assert treat("cast", {"to": to}, pa.nulls(2, of)).values == [None, None]
        assert treat("cast", {"to": to}, column[1:3]).values == whole.values[1:3]

    def test_what_is_accepted(self) -> None:
        accepted = {(_kind(of), to) for types in SOURCES.values() for of in types for to in TARGETS if Cast(to=to).returns(of) is not None}

        kinds = {
            (given, _kind(Cast(to=to).returns(of)))
            for given, to in accepted
            for of in SOURCES[given]
            if Cast(to=to).returns(of) is not None
        }
        assert kinds - {(kind, kind) for kind in SOURCES} == {pair for pair in CASTS if pair[0] != pair[1]}


class TestParameters:
    @pytest.mark.parametrize(
        "to",
        [
            "",
            "int",
            "int64 ",
            "decimal128",
            "decimal128(39, 0)",
            "decimal128(5, 6)",
            "decimal128(0, 0)",
            "timestamp[s]",
            "decimal128(5,2)\n",
            5,
        ],
    )
    def test_what_is_no_type(self, to: Any) -> None:
        with pytest.raises(ValueError, match="to"):
            Cast(to=to)

    def test_an_unknown_zone(self) -> None:
        with pytest.raises(ValueError, match="EV112"):
            Cast(to="timestamp[us]", zone="Nowhere")

    def test_other_needs_text(self, in_place: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match=r"^EV215 "):
            in_place("cast", {"to": "int64", "otherwise": "other"}, pa.string())

    def test_covers_nothing(self) -> None:
        assert Cast(to="string").covers is False
