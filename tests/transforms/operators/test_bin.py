from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventveil.transforms.operators.bin import Bin

Treat = Callable[..., Any]
AGES = {"edges": [0, 18, 65], "labels": ["minor", "adult"]}
NUMBERS = [
    pa.int8(),
    pa.int32(),
    pa.int64(),
    pa.uint64(),
    pa.float32(),
    pa.float64(),
    pa.decimal128(9, 2),
    pa.decimal128(38, 9),
    pa.decimal256(50, 2),
]


class TestEdges:
    @pytest.mark.parametrize("of", NUMBERS, ids=str)
    def test_from_an_edge_and_below_the_next(self, treat: Treat, of: pa.DataType) -> None:
        done = treat("bin", AGES, [0, 17, 18, 64, None], of)

        assert (done.values, done.type, done.refused) == (["minor", "minor", "adult", "adult", None], pa.string(), {})

    def test_default_labels(self, treat: Treat) -> None:
        done = treat("bin", {"edges": [-1, 0.5, "1.50", 1e3]}, [-1.0, 0.5, 999.0], pa.float64())

        assert done.values == ["[-1,0.5)", "[0.5,1.5)", "[1.5,1000)"]

    @pytest.mark.parametrize("otherwise", ["refuse", "nullify", "other"])
    def test_outside_goes_where_otherwise_says(self, treat: Treat, otherwise: str) -> None:
        done = treat("bin", {**AGES, "otherwise": otherwise}, [-1, 65, 5, None], pa.int64())

        assert done.refused == ({0: "EV522", 1: "EV522"} if otherwise == "refuse" else {})
        assert done.values[2:] == ["minor", None]
        assert done.values[:2] == [{"other": "other"}.get(otherwise)] * 2
        assert done.counts == {"otherwise": 2}

    def test_null_lies_in_no_bin_and_is_not_misplaced(self, treat: Treat) -> None:
        done = treat("bin", {"edges": [18, 65], "otherwise": "other"}, [None, 17], pa.int64())

        assert (done.values, done.counts) == ([None, "other"], {"otherwise": 1})

    def test_what_is_not_a_number_lies_in_no_bin(self, treat: Treat) -> None:
        done = treat("bin", {"edges": [-1e308, 1e308]}, [float("nan"), float("inf"), -float("inf"), -0.0], pa.float64())

        assert done.refused == {0: "EV522", 1: "EV522", 2: "EV522"}

    def test_a_float_edge_is_the_float_that_is_written(self, treat: Treat) -> None:
        done = treat("bin", {"edges": [0, "0.3", 1]}, [0.3, np.nextafter(0.3, 0)], pa.float64())

        assert done.values == ["[0.3,1)", "[0,0.3)"]

    @pytest.mark.parametrize("of", [pa.int8(), pa.int64(), pa.uint64()], ids=str)
    def test_edges_beyond_the_type(self, treat: Treat, of: pa.DataType) -> None:
        limits = np.iinfo(str(of))
        done = treat("bin", {"edges": [-(10**30), 10**30, 10**31], "labels": ["all", "none"]}, [int(limits.min), int(limits.max), 5], of)

        assert done.values == ["all"] * 3

    def test_edges_between_whole_numbers(self, treat: Treat) -> None:
        done = treat("bin", {"edges": [0, 0.2, 0.5, 1.5], "labels": ["a", "b", "c"]}, [0, 1], pa.int64())

        assert done.values == ["a", "c"]

    @settings(max_examples=80, deadline=None)
    @given(
        edges=st.lists(st.decimals(-(10**30), 10**30, places=3), min_size=2, max_size=6, unique=True).map(sorted),
        values=st.lists(st.one_of(st.integers(-(10**37), 10**37), st.integers(-(2**64), 2**64), st.integers(-5000, 5000)), max_size=8),
    )
    def test_decimals_are_compared_exactly(self, treat: Treat, edges: list[Decimal], values: list[int]) -> None:
        labels = [str(number) for number in range(len(edges) - 1)]
        column = pa.array([Decimal(f"{value}E-2") for value in values], pa.decimal128(38, 2))
        done = treat("bin", {"edges": [f"{edge:f}" for edge in edges], "labels": labels, "otherwise": "nullify"}, column)
        places = [bisect_right([Fraction(edge) for edge in edges], Fraction(value, 100)) - 1 for value in values]

        assert done.values == [str(place) if 0 <= place < len(labels) else None for place in places]


class TestWidth:
    @pytest.mark.parametrize("of", NUMBERS, ids=str)
    def test_counts_from_0(self, treat: Treat, of: pa.DataType) -> None:
        done = treat("bin", {"width": 10}, [0, 9, 10, 99, None], of)

        assert done.values == ["[0,10)", "[0,10)", "[10,20)", "[90,100)", None]

    def test_below_0(self, treat: Treat) -> None:
        assert treat("bin", {"width": 10}, [-1, -10, -11], pa.int64()).values == ["[-10,0)", "[-10,0)", "[-20,-10)"]

    def test_parts(self, treat: Treat) -> None:
        assert treat("bin", {"width": "0.25"}, [Decimal("0.30"), Decimal("-0.01")], pa.decimal128(5, 2)).values == [
            "[0.25,0.5)",
            "[-0.25,0)",
        ]
        assert treat("bin", {"width": 0.1}, [0.3, 0.7, 0.29999999999999993], pa.float64()).values == ["[0.3,0.4)", "[0.7,0.8)", "[0.2,0.3)"]

    def test_beside_an_edge_that_division_misses(self, treat: Treat) -> None:
        done = treat("bin", {"width": 0.01}, [0.29, 0.57, np.nextafter(0.05, 0)], pa.float64())

        assert done.values == ["[0.29,0.3)", "[0.57,0.58)", "[0.04,0.05)"]

    def test_at_the_ends_of_the_type(self, treat: Treat) -> None:
        done = treat("bin", {"width": 10}, [2**63 - 1, -(2**63)], pa.int64())

        assert done.values == ["[9223372036854775800,9223372036854775810)", "[-9223372036854775810,-9223372036854775800)"]

    def test_many_digits(self, treat: Treat) -> None:
        done = treat(
            "bin", {"width": 1000}, pa.array([Decimal("9" * 29 + ".5"), None, Decimal("-1" + "0" * 28), Decimal(5)], pa.decimal128(38, 9))
        )

        assert done.values == [f"[{'9' * 26}000,1{'0' * 29})", None, f"[-1{'0' * 28},-{'9' * 25}000)", "[0,1000)"]

    def test_a_float_whose_bin_cannot_be_told_is_misplaced(self, treat: Treat) -> None:
        done = treat("bin", {"width": 10}, [1e300, float("nan"), float("inf"), 1e14], pa.float64())

        assert done.refused == {0: "EV522", 1: "EV522", 2: "EV522"}

    @settings(max_examples=100, deadline=None)
    @given(
        values=st.lists(st.one_of(st.floats(-1e9, 1e9), st.integers(-9999, 9999).map(lambda n: n / 100)), min_size=1),
        width=st.sampled_from(["0.01", "0.1", "0.3", "2.5", "7", "10"]),
    )
    def test_every_float_lies_in_its_bin(self, treat: Treat, values: list[float], width: str) -> None:
        for value, label in zip(values, treat("bin", {"width": width}, values, pa.float64()).values, strict=True):
            low, high = label[1:-1].split(",")

            assert float(low) <= value < float(high)
            assert (Fraction(low) / Fraction(width)).denominator == 1
            assert Fraction(high) - Fraction(low) == Fraction(width)


class TestParameters:
    @pytest.mark.parametrize(
        ("given", "code"),
        [
            ({}, "EV104"),
            ({"width": 1, "edges": [0, 1]}, "EV104"),
            ({"width": 0}, "EV103"),
            ({"edges": [1, 1]}, "EV103"),
            ({"edges": [2, 1]}, "EV103"),
            ({"edges": [0, 1], "labels": ["a", "b"]}, "EV103"),
            ({"width": 1, "labels": ["a"]}, "EV103"),
            ({"edges": [0, "x"]}, "EV103"),
        ],
    )
    def test_wrong_ones(self, given: dict[str, Any], code: str) -> None:
        with pytest.raises(ValueError, match=code):
            Bin(**given)

    @pytest.mark.parametrize(("width", "of"), [("0.5", pa.int64()), ("0.001", pa.decimal128(9, 2)), (10**30, pa.int64())])
    def test_a_width_that_does_not_fit_the_field(self, in_place: Callable[..., Any], width: Any, of: pa.DataType) -> None:
        with pytest.raises(ValueError, match=r"^EV217 "):
            in_place("bin", {"width": width}, of)

    def test_other_types_are_not_accepted(self) -> None:
        assert [Bin(width=1).returns(of) for of in (pa.string(), pa.bool_(), pa.float16(), pa.date32())] == [None] * 4
