from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest

from eventveil.transforms.operators.floor import Floor

UTC = timezone.utc
T = datetime(2014, 9, 4, 22, 57, 55, 123456, tzinfo=UTC)


class TestInstants:
    @pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
    def test_every_unit_keeps_its_type(self, treat: Callable[..., Any], unit: str) -> None:
        column = pa.array([T.replace(microsecond=0), None], pa.timestamp(unit, "UTC"))
        done = treat("floor", {"size": "10min"}, pa.concat_arrays([column, column]).slice(2))

        assert done.values == [datetime(2014, 9, 4, 22, 50, tzinfo=UTC), None]
        assert done.type == pa.timestamp(unit, "UTC")

    def test_takes_over_the_zone_of_the_event_time(self, treat: Callable[..., Any], in_place: Callable[..., Any]) -> None:
        done = treat("floor", {"size": "1d"}, [T], pa.timestamp("us", "UTC"), zone="America/New_York")

        assert done.values == [datetime(2014, 9, 4, 4, tzinfo=UTC)]
        assert in_place("floor", {"size": "1d", "zone": "Asia/Tokyo"}, pa.timestamp("us", "UTC"), zone="Europe/Paris").zone == "Asia/Tokyo"

    def test_a_time_without_zone_is_a_wall_clock(self, treat: Callable[..., Any]) -> None:
        naive = T.replace(tzinfo=None)

        assert treat("floor", {"size": "1d", "zone": "Asia/Tokyo"}, [naive], pa.timestamp("us")).values == [datetime(2014, 9, 4)]

    def test_the_repeated_hour_stays_apart(self, treat: Callable[..., Any]) -> None:
        twice = [datetime(2014, 10, 26, 0, 40, tzinfo=UTC), datetime(2014, 10, 26, 1, 40, tzinfo=UTC)]
        done = treat("floor", {"size": "1h", "zone": "Europe/London"}, twice, pa.timestamp("us", "UTC"))

        assert done.values == [moment - timedelta(minutes=40) for moment in twice]

    def test_years_outside_the_calendar_are_refused(self, treat: Callable[..., Any]) -> None:
        done = treat("floor", {"size": "1h"}, pa.array([2**63 - 1, 0, -(2**63)]).cast(pa.timestamp("us", "UTC")).slice(0))

        assert done.refused == {0: "EV529", 2: "EV529"}

    @pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
    def test_a_beginning_outside_the_calendar_is_refused(self, treat: Callable[..., Any], zone: str) -> None:
        early = [datetime(1, 6, 1, tzinfo=UTC), T]
        done = treat("floor", {"size": "10y", "zone": zone}, early, pa.timestamp("us", "UTC"))

        assert done.refused == {0: "EV529"}

    def test_a_wall_clock_has_all_of_year_1(self, treat: Callable[..., Any]) -> None:
        early = [datetime(1, 6, 1)]

        assert treat("floor", {"size": "1y"}, early, pa.timestamp("us")).values == [datetime(1, 1, 1)]
        assert treat("floor", {"size": "10y"}, early, pa.timestamp("us")).refused == {0: "EV529"}

    def test_a_beginning_that_nanoseconds_cannot_hold_is_refused(self, treat: Callable[..., Any]) -> None:
        first = pa.array([-(2**63), 0, 2**63 - 1]).cast(pa.timestamp("ns", "UTC"))

        assert treat("floor", {"size": "1y"}, first).refused == {0: "EV529"}
        assert treat("floor", {"size": "1s"}, first).refused == {0: "EV529"}


class TestDates:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            ("1d", date(2014, 9, 4)),
            ("1w", date(2014, 9, 1)),
            ("1mo", date(2014, 9, 1)),
            ("1q", date(2014, 7, 1)),
            ("1y", date(2014, 1, 1)),
            ("10y", date(2010, 1, 1)),
        ],
    )
    def test_sizes_from_a_day(self, treat: Callable[..., Any], size: str, expected: date) -> None:
        done = treat("floor", {"size": size}, [date(2014, 9, 4), None], pa.date32(), zone="Asia/Tokyo")

        assert (done.values, done.type) == ([expected, None], pa.date32())

    def test_a_date_has_no_hours(self, in_place: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match=r"^EV217 a date has no 1h"):
            in_place("floor", {"size": "1h"}, pa.date32())

    def test_far_dates_are_refused(self, treat: Callable[..., Any]) -> None:
        far = pa.array([2**31 - 1, -(2**31), 0], pa.int32()).cast(pa.date32())

        assert treat("floor", {"size": "1mo"}, far).refused == {0: "EV529", 1: "EV529"}

    def test_the_calendar_ends_with_year_1(self, treat: Callable[..., Any]) -> None:
        done = treat("floor", {"size": "10y"}, [date(1, 1, 1), date(9999, 12, 31)], pa.date32())

        assert (done.refused, done.values[1]) == ({0: "EV529"}, date(9990, 1, 1))


class TestParameters:
    @pytest.mark.parametrize(
        ("given", "code"),
        [
            ({"size": "7min"}, "EV217"),
            ({"size": "2d"}, "EV217"),
            ({"size": "1m"}, "EV109"),
            ({"size": 5}, "EV109"),
            ({"size": "1d", "zone": "Europe/Lodnon"}, "EV112"),
        ],
    )
    def test_wrong_ones_say_so(self, given: dict[str, Any], code: str) -> None:
        with pytest.raises(ValueError, match=code):
            Floor(**given)

    @pytest.mark.parametrize("given", [pa.string(), pa.int64(), pa.time64("us"), pa.date64()])
    def test_other_types_are_not_accepted(self, given: pa.DataType) -> None:
        assert Floor(size="1d").returns(given) is None
