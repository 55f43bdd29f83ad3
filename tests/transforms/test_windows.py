from __future__ import annotations

import pickle
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventveil.schemas.durations import Duration
from eventveil.transforms import windows
from eventveil.transforms._zones import load_zone
from eventveil.transforms.times import EARLIEST_US, LATEST_US
from eventveil.transforms.windows import WindowRule

EPOCH = datetime(1970, 1, 1)
ZONES = [
    "UTC",
    "Europe/London",
    "Europe/Dublin",
    "America/New_York",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Pacific/Apia",
    "Pacific/Kwajalein",
    "America/Juneau",
    "Asia/Manila",
    "America/Nuuk",
    "Asia/Gaza",
    "Africa/Monrovia",
    "Africa/Cairo",
    "Asia/Tehran",
    "America/Havana",
    "Antarctica/Casey",
    "Asia/Beirut",
]
LENGTHS = ["7s", "1min", "90min", "1h", "36h", "1d", "7d", "1w", "2w", "1mo", "3mo", "5mo", "1q", "1y", "7y"]


def us(text: str) -> int:
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


def rule(length: str, zone: str = "UTC") -> WindowRule:
    return WindowRule(Duration.parse(length), zone)


class TestNumbers:
    @pytest.mark.parametrize(
        ("length", "zone", "start", "end"),
        [
            ("1d", "UTC", "1970-01-01", "1970-01-02"),
            ("90min", "UTC", "1970-01-01", "1970-01-01T01:30"),
            ("7d", "UTC", "1970-01-01", "1970-01-08"),
            ("1w", "UTC", "1970-01-05", "1970-01-12"),
            ("2w", "UTC", "1970-01-05", "1970-01-19"),
            ("1mo", "UTC", "1970-01-01", "1970-02-01"),
            ("3mo", "UTC", "1970-01-01", "1970-04-01"),
            ("1y", "UTC", "1970-01-01", "1971-01-01"),
            ("1d", "America/New_York", "1970-01-01T05:00", "1970-01-02T05:00"),
            ("1h", "Asia/Kathmandu", "1969-12-31T18:30", "1969-12-31T19:30"),
            ("1w", "America/New_York", "1970-01-05T05:00", "1970-01-12T05:00"),
            ("1q", "Europe/London", "1969-12-31T23:00", "1970-03-31T23:00"),
        ],
    )
    def test_window_0(self, length: str, zone: str, start: str, end: str) -> None:
        first, behind = rule(length, zone).bounds(np.array([0]))

        assert (first.tolist(), behind.tolist()) == ([us(start)], [us(end)])
        assert rule(length, zone).index(np.array([us(start) - 1, us(start), us(end) - 1, us(end)])).tolist() == [-1, 0, 0, 1]

    @pytest.mark.parametrize(
        ("zone", "day", "start", "end"),
        [
            pytest.param("Europe/London", "2014-03-30", "2014-03-30T00:00", "2014-03-30T23:00", id="23-hours"),
            pytest.param("Europe/London", "2014-10-26", "2014-10-25T23:00", "2014-10-27T00:00", id="25-hours"),
            pytest.param("America/Sao_Paulo", "2018-11-04", "2018-11-04T03:00", "2018-11-05T02:00", id="midnight-skipped"),
            pytest.param("America/St_Johns", "2005-10-30", "2005-10-30T02:30", "2005-10-31T03:30", id="midnight-repeated"),
            pytest.param("Pacific/Apia", "2011-12-30", "2011-12-30T10:00", "2011-12-30T10:00", id="day-left-out"),
        ],
    )
    def test_unusual_days(self, zone: str, day: str, start: str, end: str) -> None:
        number = np.array([us(day) // 86_400_000_000])
        first, behind = rule("1d", zone).bounds(number)

        assert (first.tolist(), behind.tolist()) == ([us(start)], [us(end)])
        if start != end:
            assert rule("1d", zone).index(np.array([us(start), us(end) - 1])).tolist() == [number[0]] * 2

    def test_of_a_clock_that_goes_back_over_midnight_the_new_day_stays(self) -> None:
        # 00:00:30 of the 30th, then the clock shows 23:30 of the 29th again
        numbers = rule("1d", "America/St_Johns").index(np.array([us("2005-10-30T02:30:30"), us("2005-10-30T03:00")]))

        assert numbers[0] == numbers[1] == us("2005-10-30") // 86_400_000_000


class TestEveryZone:
    @pytest.mark.parametrize("length", LENGTHS)
    @pytest.mark.parametrize("zone", ZONES)
    def test_around_every_change_of_the_clock(self, zone: str, length: str) -> None:
        at = load_zone(zone).at
        near = (
            at[:, None]
            + np.array([-90_000_000_000, -3_600_000_000, -60_000_001, -1, 0, 1, 60_000_000, 1_800_000_000, 5_400_000_000, 90_000_000_000])
        ).ravel()
        _holds(rule(length, zone), np.sort(near[(near > EARLIEST_US) & (near < LATEST_US)]))

    @settings(max_examples=200, deadline=None)
    @given(st.sampled_from(ZONES), st.sampled_from(LENGTHS), st.lists(st.integers(EARLIEST_US, LATEST_US), max_size=20))
    def test_anywhere(self, zone: str, length: str, micros: list[int]) -> None:
        _holds(rule(length, zone), np.array(sorted(micros), np.int64))

    @pytest.mark.parametrize("zone", ["UTC", "Europe/London", "America/Juneau"])
    @pytest.mark.parametrize("length", LENGTHS)
    def test_the_first_and_the_last_year_build_no_table(self, zone: str, length: str, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[int] = []
        start = WindowRule._start
        monkeypatch.setattr(WindowRule, "_start", lambda self, periods: asked.append(len(periods)) or start(self, periods))

        _holds(rule(length, zone), np.array([EARLIEST_US, EARLIEST_US + 1, 0, LATEST_US - 1, LATEST_US]))
        assert sum(asked) < 10_000


def _holds(windows: WindowRule, micros: np.ndarray) -> None:
    """Every instant lies in its window, windows follow upon each other, and numbers do not fall."""
    index = windows.index(micros)
    start, end = windows.bounds(index)

    assert index.dtype == start.dtype == end.dtype == np.int64
    assert ((start <= micros) & (micros < end)).all()
    assert (np.diff(index) >= 0).all()
    assert windows.bounds(index + 1)[0].tolist() == end.tolist()
    assert windows.bounds(index - 1)[1].tolist() == start.tolist()


class TestRule:
    def test_nothing(self) -> None:
        for length in LENGTHS:
            assert rule(length, "Europe/London").index(np.zeros(0, np.int64)).tolist() == []

    def test_is_a_value(self) -> None:
        assert pickle.loads(pickle.dumps(rule("1mo", "Europe/London"))) == rule("1mo", "Europe/London")
        assert len({rule("1d"), rule("1d")}) == 1

    def test_looks_up_nothing_for_utc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("eventveil.transforms.times.load_zone", None)

        assert rule("1mo").index(np.array([us("2014-09-04")])).tolist() == [(2014 - 1970) * 12 + 8]

    def test_few_distinct_among_many(self) -> None:
        numbers = np.array([5, 10_000_000, 5, -7])

        assert windows._for_distinct(lambda asked: asked * 2 if len(asked) == 3 else asked, numbers).tolist() == [10, 20_000_000, 10, -14]
