from __future__ import annotations

from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from eventveil.transforms.noise.lattice import Lattice
from eventveil.transforms.noise.number import Number, plain, read_number

INT64 = (-(1 << 63), (1 << 63) - 1)
INT32 = (-(1 << 31), (1 << 31) - 1)
WIDE = Context(prec=60)


def added(
    lattice: Lattice, values: pa.Array[Any], noise: list[int], low: Fraction | None = None, high: Fraction | None = None
) -> list[Any]:
    steps = lattice.steps(values, *lattice.bounded(low, high), max(map(abs, noise), default=0))
    return lattice.values(lattice.add(steps, np.array(noise, np.int64), lattice.first, lattice.last)).to_pylist()


def expected(value: Fraction, grid: Fraction, noise: int, least: Fraction, most: Fraction) -> Fraction:
    """In exact rationals: nearest step, ties to even, plus noise, saturating at the last step that the type holds."""
    steps = round(value / grid) + noise
    return max(-(-least // grid), min(most // grid, steps)) * grid


edges = [*INT64, INT64[0] + 1, INT64[1] - 1, 0, 1, -1, *INT32, 1 << 62, -(1 << 62)]
int64s = st.one_of(st.sampled_from(edges), st.integers(*INT64), st.integers(-1000, 1000))
noises = st.one_of(st.integers(-50, 50), st.integers(-44_000_000, 44_000_000))


class TestIntegers:
    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(st.tuples(int64s, noises), min_size=1, max_size=6),
        st.one_of(st.integers(1, 20), st.sampled_from([1000, 1 << 40, INT64[1]])),
    )
    def test_int64_as_in_exact_arithmetic(self, rows: list[tuple[int, int]], grid: int) -> None:
        found = added(
            Lattice.over(pa.int64(), Fraction(grid)), pa.array([value for value, _ in rows], pa.int64()), [noise for _, noise in rows]
        )

        assert found == [expected(Fraction(value), Fraction(grid), noise, Fraction(INT64[0]), Fraction(INT64[1])) for value, noise in rows]

    @pytest.mark.parametrize(
        ("value", "noise", "result"),
        [
            (INT64[1], 1, INT64[1]),
            (INT64[1], 44_000_000, INT64[1]),
            (INT64[1] - 3, 2, INT64[1] - 1),
            (INT64[0], -1, INT64[0]),
            (INT64[0], -44_000_000, INT64[0]),
            (INT64[0] + 3, -2, INT64[0] + 1),
            (INT64[0], 1, INT64[0] + 1),
        ],
    )
    def test_int64_saturates_and_never_wraps(self, value: int, noise: int, result: int) -> None:
        assert added(Lattice.over(pa.int64(), None), pa.array([value], pa.int64()), [noise]) == [result]

    @pytest.mark.parametrize(
        ("value", "noise", "result"), [(INT32[1], 5, INT32[1]), (INT32[0], -5, INT32[0]), (INT32[1] - 9, 5, INT32[1] - 4)]
    )
    def test_int32_saturates(self, value: int, noise: int, result: int) -> None:
        assert added(Lattice.over(pa.int32(), None), pa.array([value], pa.int32()), [noise]) == [result]

    def test_ties_go_to_even_multiples(self) -> None:
        values = pa.array([-15, -5, 5, 15, 25, 4, 6, -4, -6])

        assert added(Lattice.over(pa.int64(), Fraction(10)), values, [0] * 9) == [-20, 0, 0, 20, 20, 0, 10, 0, -10]

    def test_large_integers_keep_every_digit(self) -> None:
        assert added(Lattice.over(pa.int64(), None), pa.array([2**53 + 1, -(2**60) - 1]), [0, 1]) == [2**53 + 1, -(2**60)]


class TestDecimals:
    @settings(max_examples=150, deadline=None)
    @given(
        st.sampled_from([(9, 2), (18, 0), (19, 2), (38, 9), (38, 38), (5, -2)]),
        st.lists(st.tuples(st.integers(-(10**38) + 1, 10**38 - 1), noises), min_size=1, max_size=5),
        st.one_of(st.integers(1, 30), st.sampled_from([10**3, 10**15, 10**21])),
    )
    def test_as_in_exact_arithmetic(self, kind: tuple[int, int], rows: list[tuple[int, int]], units: int) -> None:
        precision, scale = kind
        units = min(units, 10**precision - 1)
        unit = Fraction(10) ** -scale
        digits = [int(number / 10 ** (38 - precision)) if abs(number) >= 10**precision else number for number, _ in rows]
        digits = [max(-(10**precision) + 1, min(10**precision - 1, number)) for number in digits]
        values = pa.array([Decimal(number).scaleb(-scale, WIDE) for number in digits], pa.decimal128(precision, scale))
        most = (10**precision - 1) * unit
        found = added(Lattice.over(values.type, units * unit), values, [noise for _, noise in rows])

        assert [Fraction(value) for value in found] == [
            expected(number * unit, units * unit, noise, -most, most) for number, (_, noise) in zip(digits, rows)
        ]

    def test_a_wide_value_does_not_change_its_neighbours(self) -> None:
        kind = pa.decimal128(38, 2)
        values = pa.array([Decimal("1.25"), Decimal("9" * 36 + ".99"), Decimal("-1.25")], kind)
        alone = [added(Lattice.over(kind, Fraction(1, 2)), values.slice(i, 1), [3])[0] for i in range(3)]

        assert added(Lattice.over(kind, Fraction(1, 2)), values, [3, 3, 3]) == alone
        assert alone[0] == Decimal("2.50")

    def test_slices(self) -> None:
        values = pa.array([Decimal(n) for n in range(9)], pa.decimal128(9, 2))

        assert added(Lattice.over(values.type, None), values.slice(3, 4), [1] * 4) == [Decimal(f"{n}.01") for n in range(3, 7)]


class TestFloats:
    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(st.tuples(st.floats(-1e12, 1e12), noises), min_size=1, max_size=5),
        st.sampled_from([Fraction(1, 100), Fraction(1, 3), Fraction(3, 10), Fraction(5), Fraction(1, 4)]),
    )
    def test_a_result_is_the_nearest_float_to_a_multiple_of_the_grid(self, rows: list[tuple[float, int]], grid: Fraction) -> None:
        found = added(Lattice.over(pa.float64(), grid), pa.array([value for value, _ in rows]), [noise for _, noise in rows])

        for (value, noise), result in zip(rows, found):
            steps = round(Fraction(result) / grid)
            assert result == float(steps * grid)
            assert abs(Fraction(value) / grid + noise - steps) <= Fraction(501, 1000) + abs(Fraction(value) / grid) / 2**51

    def test_the_result_depends_on_whole_steps_only(self) -> None:
        values = pa.array([0.1, 0.1 + 1e-17, 0.1 + 1e-9, 0.1 - 1e-9, 0.10000000000000002])

        assert len(set(added(Lattice.over(pa.float64(), Fraction(1, 100)), values, [3] * 5))) == 1

    @pytest.mark.parametrize("kind", [pa.float32(), pa.float64()], ids=str)
    @pytest.mark.parametrize("grid", [Fraction(1, 100), Fraction(10**12)], ids=str)
    def test_saturates_where_steps_are_told_apart_no_more(self, kind: pa.DataType, grid: Fraction) -> None:
        lattice = Lattice.over(kind, grid)
        huge = pa.array([3e38, -3e38], kind)

        assert added(lattice, huge, [5, -5]) == pa.array([float(2**53 * grid), -float(2**53 * grid)], kind).to_pylist()

    def test_saturates_at_the_types_bounds_where_the_grid_is_wide(self) -> None:
        most = float(np.finfo(np.float32).max)
        found = added(Lattice.over(pa.float32(), Fraction(10) ** 38), pa.array([most, -most, 0.0], pa.float32()), [9, -9, 1])

        assert found == pa.array([3e38, -3e38, 1e38], pa.float32()).to_pylist()

    def test_zero_has_no_sign(self) -> None:
        found = added(Lattice.over(pa.float64(), Fraction(1)), pa.array([-0.0, -0.3, -2.0]), [0, 0, 2])

        assert [str(value) for value in found] == ["0.0"] * 3


class TestBounds:
    def test_bounds_of_the_output_move_inward_to_the_grid(self) -> None:
        assert Lattice.over(pa.int64(), Fraction(5)).inside(Fraction(1), Fraction(24)) == (1, 4)

    def test_bounds_of_the_input_move_inward_to_the_types_digits(self) -> None:
        lattice = Lattice.over(pa.decimal128(9, 1), Fraction(1))

        assert lattice.bounded(Fraction("0.15"), Fraction("9.99")) == (Fraction("0.2"), Fraction("9.9"))

    def test_the_input_is_clamped_before_it_is_rounded(self) -> None:
        values = pa.array([-100, 3, 4, 8, 100, INT64[0], INT64[1]])

        assert added(Lattice.over(pa.int64(), Fraction(5)), values, [0] * 7, Fraction(3), Fraction(8)) == [5, 5, 5, 10, 10, 5, 10]

    @pytest.mark.parametrize(
        ("kind", "grid", "fact"),
        [
            (pa.float64(), None, "give a grid"),
            (pa.int64(), Fraction(1, 2), "no multiple of 1"),
            (pa.int32(), Fraction(1 << 31), "wider than the range"),
            (pa.decimal128(9, 2), Fraction(1, 1000), "no multiple of 0.01"),
            (pa.int64(), Fraction(0), "more than 0"),
        ],
        ids=["float", "half", "wide", "finer than a decimal", "zero"],
    )
    def test_a_grid_that_does_not_fit_is_refused(self, kind: pa.DataType, grid: Fraction | None, fact: str) -> None:
        with pytest.raises(ValueError, match=rf"^EV217 .*{fact}"):
            Lattice.over(kind, grid)

    def test_bounds_without_a_value_between_them_are_refused(self) -> None:
        lattice = Lattice.over(pa.int64(), Fraction(10))

        with pytest.raises(ValueError, match=r"^EV217 no multiple of the grid"):
            lattice.inside(Fraction(1), Fraction(9))
        with pytest.raises(ValueError, match=r"^EV217 no value of int64"):
            lattice.bounded(Fraction("0.2"), Fraction("0.8"))
        with pytest.raises(ValueError, match=r"^EV217 no value of int64"):
            lattice.bounded(Fraction(10**20), None)

    @pytest.mark.parametrize(("kind", "grid"), [(pa.int64(), None), (pa.decimal128(9, 2), None), (pa.decimal128(5, -2), None)], ids=str)
    def test_defaults_of_exact_types(self, kind: pa.DataType, grid: None) -> None:
        assert Lattice.over(kind, grid).grid == (Fraction(10) ** -kind.scale if pa.types.is_decimal(kind) else 1)

    @pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.decimal128(9, 2)], ids=str)
    @pytest.mark.parametrize("value", ["0", "0.5", "1.5", "2.5", "-0.5", "-1.5", "7", "3.49"])
    def test_one_step_is_rounded_as_a_column_is(self, kind: pa.DataType, value: str) -> None:
        lattice = Lattice.over(kind, Fraction(3))
        number = Fraction(value) * 3
        if pa.types.is_integer(kind) and number.denominator != 1:
            number = Fraction(round(number))
        column = pa.array([Decimal(number.numerator) / number.denominator]).cast(kind)

        assert lattice.steps(column, None, None, 0).tolist() == [lattice.step(number)]


class TestNumbers:
    @pytest.mark.parametrize(
        ("given", "number"),
        [
            (1, 1),
            (0.1, Fraction(1, 10)),
            ("0.1", Fraction(1, 10)),
            (1e-7, Fraction(1, 10**7)),
            ("-12.50", Fraction(-25, 2)),
            (2**60 + 1, 2**60 + 1),
        ],
        ids=str,
    )
    def test_a_decimal_means_what_is_written(self, given: object, number: Fraction) -> None:
        assert read_number(given) == number

    @pytest.mark.parametrize(
        "given", [True, None, "abc", "", "nan", float("inf"), "1e9999999", 10**50, [1], "1/3", "1" * 50], ids=lambda given: str(given)[:12]
    )
    def test_anything_else_is_refused(self, given: object) -> None:
        with pytest.raises(ValueError, match=r"^EV103"):
            read_number(given)

    def test_for_people(self) -> None:
        assert [plain(Fraction(given)) for given in ("3", "1/3", "1000000", "0.25")] == ["3", "0.3333", "1000000", "0.25"]

    @pytest.mark.parametrize(
        ("given", "text"),
        [(1, "1"), (0.5, "0.5"), ("100", "100"), ("2.50", "2.5"), (1e-7, "0.0000001"), (-3, "-3"), (0, "0"), (10**39, "1" + "0" * 39)],
    )
    def test_has_one_text_that_is_read_again(self, given: object, text: str) -> None:
        written = TypeAdapter(Number).dump_python(read_number(given), mode="json")

        assert written == text
        assert read_number(written) == read_number(given)
