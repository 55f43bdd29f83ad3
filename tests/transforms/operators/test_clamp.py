from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from eventveil.transforms.operators.clamp import Clamp

Treat = Callable[..., Any]
UTC = timezone.utc


class TestNumbers:
    @pytest.mark.parametrize("of", [pa.int8(), pa.int64(), pa.float32(), pa.float64(), pa.decimal128(5, 2), pa.decimal256(50, 2)], ids=str)
    def test_both_ends_belong_to_the_range(self, treat: Treat, of: pa.DataType) -> None:
        done = treat("clamp", {"min": -3, "max": 100}, [-4, -3, 0, 100, 101, None], of)

        assert (done.values, done.type, done.refused) == ([-3, -3, 0, 100, 100, None], of, {})

    def test_one_end(self, treat: Treat) -> None:
        assert treat("clamp", {"min": 1}, [0, 5], pa.int64()).values == [1, 5]
        assert treat("clamp", {"max": 1}, [0, 5], pa.int64()).values == [0, 1]

    def test_parts(self, treat: Treat) -> None:
        assert treat("clamp", {"max": "0.3"}, [0.2, 0.4], pa.float64()).values == [0.2, 0.3]
        assert treat("clamp", {"max": 0.3}, [Decimal("0.2"), Decimal("0.4")], pa.decimal128(5, 1)).values == [
            Decimal("0.2"),
            Decimal("0.3"),
        ]

    def test_exact_at_64_bits(self, treat: Treat) -> None:
        assert treat("clamp", {"max": 2**53 + 1}, [2**53 + 2, 2**53], pa.int64()).values == [2**53 + 1, 2**53]
        assert treat("clamp", {"min": 2**63}, [2**63 - 1, 2**64 - 1], pa.uint64()).values == [2**63, 2**64 - 1]

    def test_infinities_become_ends_where_there_are_any(self, treat: Treat) -> None:
        done = treat("clamp", {"max": 5}, [float("inf"), -float("inf"), float("nan"), None], pa.float64())

        assert done.values[0] == 5
        assert done.refused == {1: "EV528", 2: "EV528"}


class TestTimes:
    def test_instants(self, treat: Treat) -> None:
        done = treat(
            "clamp",
            {"min": "2014-01-01", "max": "2014-12-31T23:59:59Z"},
            [datetime(2013, 1, 1, tzinfo=UTC), datetime(2015, 1, 1, tzinfo=UTC), None],
            pa.timestamp("us", "UTC"),
        )

        assert done.values == [datetime(2014, 1, 1, tzinfo=UTC), datetime(2014, 12, 31, 23, 59, 59, tzinfo=UTC), None]

    def test_ends_without_offset_are_local(self, treat: Treat) -> None:
        early = [datetime(2013, 1, 1, tzinfo=UTC)]

        assert treat("clamp", {"min": "2014-07-01"}, early, pa.timestamp("ms", "UTC"), zone="Europe/London").values == [
            datetime(2014, 6, 30, 23, tzinfo=UTC)
        ]
        assert treat("clamp", {"min": "2014-07-01", "zone": "Asia/Tokyo"}, early, pa.timestamp("ns", "UTC")).values == [
            datetime(2014, 6, 30, 15, tzinfo=UTC)
        ]

    def test_dates_and_wall_clocks(self, treat: Treat) -> None:
        assert treat("clamp", {"min": "2014-07-01"}, [date(2013, 1, 1), date(2015, 1, 1)], pa.date32()).values == [
            date(2014, 7, 1),
            date(2015, 1, 1),
        ]
        assert treat("clamp", {"max": "2014-07-01T12:00"}, [datetime(2015, 1, 1)], pa.timestamp("s"), zone="Asia/Tokyo").values == [
            datetime(2014, 7, 1, 12)
        ]


class TestParameters:
    @pytest.mark.parametrize(
        ("given", "code"),
        [
            ({}, "EV104"),
            ({"min": 2, "max": 1}, "EV103"),
            ({"min": "x"}, "EV103"),
            ({"min": True}, "EV103"),
            ({"min": 1, "max": "2014-01-01"}, "EV103"),
            ({"min": 1, "zone": "Nowhere"}, "EV112"),
        ],
    )
    def test_wrong_ones(self, given: dict[str, Any], code: str) -> None:
        with pytest.raises(ValueError, match=code):
            Clamp(**given)

    @pytest.mark.parametrize(
        ("given", "of"),
        [
            ({"min": 0.5}, pa.int64()),
            ({"max": 300}, pa.int8()),
            ({"min": -1}, pa.uint64()),
            ({"max": "0.001"}, pa.decimal128(5, 2)),
            ({"max": 1000}, pa.decimal128(5, 2)),
            ({"max": 1e300}, pa.float32()),
            ({"min": "2014-01-01T00:00"}, pa.date32()),
            ({"min": "2014-01-01T00:00:00.5Z"}, pa.timestamp("s", "UTC")),
            ({"min": "2014-01-01T00:00Z"}, pa.timestamp("us")),
            ({"min": "0005-01-01"}, pa.timestamp("ns", "UTC")),
            ({"min": "2015-01-01", "max": "2014-01-01"}, pa.timestamp("us", "UTC")),
        ],
    )
    def test_ends_that_do_not_fit_the_field(self, in_place: Callable[..., Any], given: dict[str, Any], of: pa.DataType) -> None:
        with pytest.raises(ValueError, match=r"^EV217 "):
            in_place("clamp", given, of)

    def test_an_end_that_some_zone_cannot_write_is_none(self, in_place: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match=r"^EV217 "):
            in_place("clamp", {"max": "9999-12-31"}, pa.timestamp("us", "UTC"))
        assert in_place("clamp", {"max": "9999-12-31"}, pa.date32())
        assert in_place("clamp", {"max": "9999-12-31"}, pa.timestamp("us"))

    @pytest.mark.parametrize("of", [pa.timestamp("us", "UTC"), pa.timestamp("ms"), pa.date32()], ids=str)
    def test_a_time_outside_the_calendar_is_refused_where_no_end_meets_it(
        self, in_place: Callable[..., Any], surroundings: Any, of: pa.DataType
    ) -> None:
        count = pa.int32() if of == pa.date32() else pa.int64()
        far = pa.array([2**31 - 1 if of == pa.date32() else 2**63 - 1, None, 0], count).cast(of)

        assert surroundings(3).run(in_place("clamp", {"min": "1970-01-01"}, of), far)[1] == {0: "EV529"}
        assert surroundings(3).run(in_place("clamp", {"max": "2014-01-01"}, of), far)[1] == {}

    def test_a_skipped_time_is_no_end(self, in_place: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match=r"^EV217 "):
            in_place("clamp", {"min": "2014-03-30T01:30", "zone": "Europe/London"}, pa.timestamp("us", "UTC"))

    def test_kinds_that_do_not_go_together(self) -> None:
        assert Clamp(min=1).returns(pa.date32()) is None
        assert Clamp(min="2014-01-01").returns(pa.int64()) is None
        assert [Clamp(min=1).returns(of) for of in (pa.string(), pa.bool_(), pa.float16())] == [None] * 3
