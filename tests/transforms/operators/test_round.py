from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventveil.transforms.operators.round import Round, _floats

Treat = Callable[..., Any]
INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]


def nearest(value: Any, step: Fraction) -> Fraction:
    """The exact answer: Python rounds fractions to even."""
    return round(Fraction(value) / step) * step


class TestWholeNumbers:
    @pytest.mark.parametrize(
        ("value", "to", "expected"),
        [
            (15, 10, 20),
            (25, 10, 20),
            (-15, 10, -20),
            (-25, 10, -20),
            (14, 10, 10),
            (-4, 10, 0),
            (7, 7, 7),
            (11, 7, 14),
            (3, 1, 3),
            (9, 2, 8),
            (11, 2, 12),
        ],
    )
    def test_nearest_ties_to_even(self, treat: Treat, value: int, to: int, expected: int) -> None:
        assert treat("round", {"to": to}, [value, None], pa.int64()).values == [expected, None]

    @pytest.mark.parametrize("of", INTEGERS, ids=str)
    def test_at_the_ends_of_each_type(self, treat: Treat, of: pa.DataType) -> None:
        limits = np.iinfo(str(of))
        values = sorted({int(limits.min) + n for n in range(12)} | {int(limits.max) - n for n in range(12)} | set(range(12)))
        for to in (1, 2, 3, 7, 10, 100, int(limits.max)):
            done = treat("round", {"to": to}, values, of)
            exact = [int(nearest(value, Fraction(to))) for value in values]
            fits = [limits.min <= value <= limits.max for value in exact]

            assert done.refused == {row: "EV528" for row, fit in enumerate(fits) if not fit}
            assert [value for value, fit in zip(done.values, fits, strict=True) if fit] == [
                value for value, fit in zip(exact, fits, strict=True) if fit
            ]

    @settings(max_examples=200, deadline=None)
    @given(value=st.integers(-(2**63), 2**63 - 1), to=st.integers(1, 2**63 - 1))
    def test_exact(self, treat: Treat, value: int, to: int) -> None:
        exact = nearest(value, Fraction(to))
        done = treat("round", {"to": to}, [value], pa.int64())

        assert done.refused == ({} if -(2**63) <= exact < 2**63 else {0: "EV528"})
        assert done.refused or done.values == [exact]


class TestDecimals:
    @pytest.mark.parametrize(
        ("value", "to", "expected"),
        [
            ("0.025", "0.05", "0.00"),
            ("0.075", "0.05", "0.10"),
            ("-7.990", 10, "-10"),
            ("7.999", "0.01", "8.00"),
            ("0.005", "0.01", "0.00"),
            ("123456.789", 1000, "123000"),
        ],
    )
    def test_nearest_ties_to_even(self, treat: Treat, value: str, to: Any, expected: str) -> None:
        done = treat("round", {"to": to}, [Decimal(value), None], pa.decimal128(9, 3))

        assert (done.values, done.type) == ([Decimal(expected), None], pa.decimal128(9, 3))

    @settings(max_examples=100, deadline=None)
    @given(
        data=st.data(),
        of=st.sampled_from(
            [
                pa.decimal128(3, 2),
                pa.decimal128(18, 0),
                pa.decimal128(19, 4),
                pa.decimal128(38, 9),
                pa.decimal128(38, 38),
                pa.decimal256(76, 10),
            ]
        ),
    )
    def test_exact(self, treat: Treat, data: st.DataObject, of: Any) -> None:
        largest = 10**of.precision - 1
        unscaled = st.one_of(st.integers(-largest, largest), st.integers(-1000, 1000), st.integers(-(2**64), 2**64)).map(
            lambda value: max(-largest, min(largest, value))
        )
        values = data.draw(st.lists(unscaled, min_size=1, max_size=6))
        step = data.draw(
            st.one_of(st.integers(1, min(largest, 10**15)), st.sampled_from([1, 2, 5, 10])).filter(lambda value: value <= largest)
        )
        done = treat("round", {"to": plain(step, of.scale)}, pa.array([scaled(value, of.scale) for value in values], of))
        exact = [nearest(value, Fraction(step)) for value in values]

        assert done.refused == {row: "EV528" for row, value in enumerate(exact) if abs(value) > largest}
        for row, value in enumerate(exact):
            assert row in done.refused or Fraction(done.values[row]) == value / 10**of.scale


def scaled(value: int, scale: int) -> Decimal:
    return Decimal(f"{value}E-{scale}")


def plain(value: int, scale: int) -> str:
    return f"{scaled(value, scale):f}"


class TestFloats:
    @pytest.mark.parametrize(
        ("value", "to", "expected"),
        [
            (7.99, 10, 10.0),
            (5.0, 10, 0.0),
            (15.0, 10, 20.0),
            (25.0, 10, 20.0),
            (4.999999999999999, 10, 0.0),
            (5.000000000000001, 10, 10.0),
            (0.15, 0.1, 0.1),  # the double is less than a tie
            (0.35, "0.1", 0.3),
            (0.25, 0.1, 0.2),
            (0.125, 0.05, 0.1),
            (0.3, 0.1, 0.3),
            (7.99, 0.05, 8.0),
            (0.7, 0.3, 0.6),
            (1e22, 10, 1e22),
            (1e300, 7, 1e300),
            (2.5, 1, 2.0),
            (-7.0, 2.5, -7.5),
        ],
    )
    def test_nearest(self, treat: Treat, value: float, to: Any, expected: float) -> None:
        assert treat("round", {"to": to}, [value, None], pa.float64()).values == [expected, None]

    @pytest.mark.parametrize("value", [-0.0, -0.04, -5e-324])
    def test_minus_zero_is_zero(self, treat: Treat, value: float) -> None:
        for to in (10, 0.1, "0.3", 1e30):
            assert math.copysign(1, treat("round", {"to": to}, [value], pa.float64()).values[0]) == 1

    def test_what_is_not_finite_is_refused(self, treat: Treat) -> None:
        done = treat("round", {"to": 10}, [float("nan"), float("inf"), -float("inf"), 1.0], pa.float64())

        assert done.refused == {0: "EV528", 1: "EV528", 2: "EV528"}

    @pytest.mark.parametrize(("of", "top"), [(pa.float64(), 1.7976931348623157e308), (pa.float32(), 3.4028234663852886e38)])
    def test_overflow_is_refused(self, treat: Treat, of: pa.DataType, top: float) -> None:
        assert treat("round", {"to": Decimal(str(top)) * Decimal("0.6")}, [top, -top, 1.0], of).refused == {0: "EV528", 1: "EV528"}

    def test_single_floats_stay_single(self, treat: Treat) -> None:
        done = treat("round", {"to": 0.1}, [7.99, 0.3], pa.float32())

        assert (done.values, done.type) == ([8.0, float(np.float32(0.3))], pa.float32())

    @settings(max_examples=200, deadline=None)
    @given(
        values=st.lists(
            st.one_of(
                st.floats(allow_nan=False, allow_infinity=False),
                st.floats(-1e6, 1e6),
                st.integers(-10000, 10000).map(lambda n: n / 40),
                st.integers(-(2**60), 2**60).map(float),
            ),
            min_size=1,
        ),
        to=st.one_of(
            st.sampled_from(["10", "0.05", "0.1", "2.5", "0.3", "1", "1000", "0.001", "7"]),
            st.decimals("0.000001", "1000000", places=6).filter(lambda d: d > 0).map(str),
        ),
    )
    def test_the_double_nearest_to_the_exact_multiple(self, values: list[float], to: str) -> None:
        def exact(value: float) -> float:
            try:
                return float(nearest(value, Fraction(Decimal(to))))
            except OverflowError:
                return math.inf

        assert _floats(np.array(values), Fraction(Decimal(to))).tolist() == [exact(value) for value in values]

    @settings(max_examples=200, deadline=None)
    @given(
        ties=st.lists(st.integers(-(10**6), 10**6), min_size=1),
        to=st.sampled_from(["10", "0.05", "0.1", "2.5", "0.3", "3"]),
        ulps=st.integers(-2, 2),
    )
    def test_beside_ties(self, ties: list[int], to: str, ulps: int) -> None:
        step = Fraction(Decimal(to))
        values = np.array([float((tie + Fraction(1, 2)) * step) for tie in ties])
        for _ in range(abs(ulps)):
            values = np.nextafter(values, math.copysign(math.inf, ulps))

        assert _floats(values, step).tolist() == [float(nearest(value, step)) for value in values.tolist()]


class TestParameters:
    @pytest.mark.parametrize("to", [0, -1, "x", "1e3", True, None, float("nan"), float("inf"), [1], "1" * 101])
    def test_what_is_no_positive_number(self, to: Any) -> None:
        with pytest.raises(ValueError, match="EV103"):
            Round(to=to)

    @pytest.mark.parametrize(
        ("to", "of"), [("0.5", pa.int64()), ("0.001", pa.decimal128(9, 2)), (10**7, pa.decimal128(9, 2)), (2**63, pa.int32())]
    )
    def test_what_the_field_cannot_hold(self, in_place: Callable[..., Any], to: Any, of: pa.DataType) -> None:
        with pytest.raises(ValueError, match=r"^EV217 a field of "):
            in_place("round", {"to": to}, of)

    def test_a_float_means_what_is_written(self) -> None:
        assert Round(to=0.05) == Round(to="0.05")

    @pytest.mark.parametrize("of", [pa.string(), pa.bool_(), pa.float16(), pa.date32()])
    def test_other_types_are_not_accepted(self, of: pa.DataType) -> None:
        assert Round(to=1).returns(of) is None
