from __future__ import annotations

import re
import zoneinfo
from datetime import date, datetime, timedelta, timezone
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventveil.schemas.durations import Duration
from eventveil.transforms import _zones
from eventveil.transforms.times import (
    EARLIEST_US,
    LATEST_US,
    check_floor,
    check_zone,
    floor_instants,
    from_local,
    instants,
    parse_iso,
    to_local,
)

ZONES = [
    "UTC",
    "Europe/London",
    "Europe/Dublin",  # negative daylight saving
    "America/New_York",
    "America/Sao_Paulo",  # midnights skipped and repeated
    "America/St_Johns",  # clock back at 00:01
    "Australia/Lord_Howe",  # half an hour
    "Asia/Kathmandu",
    "Pacific/Apia",  # a day left out
    "Pacific/Kwajalein",
    "America/Juneau",  # a day twice
    "America/Nuuk",  # rule with hours below zero
    "Asia/Gaza",
    "Africa/Casablanca",
    "Africa/Monrovia",  # offsets in seconds
    "Africa/Cairo",
]
EPOCH = datetime(1970, 1, 1)
DAY = 86_400_000_000
MIDNIGHT_0001 = -62_135_596_800_000_000


def us(text: str) -> int:
    """The instant or wall clock of a plain ISO text, by the standard library."""
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if found.tzinfo is not None:
        found = found.astimezone(timezone.utc).replace(tzinfo=None)
    return (found - EPOCH) // timedelta(microseconds=1)


NEARLY = r"[0-9]{4}-[01][0-9]-[0-3][0-9]([T ][0-2][0-9]:[0-5][0-9](:[0-6][0-9](\.[0-9]{1,10})?)?(Z|[+-][0-2][0-9](:?[0-6][0-9])?)?)?"
FORM = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(?:[Zz]|([+-])(\d\d)(?::?(\d\d))?)?)?", re.ASCII)


def plainly(text: str | None) -> int | None:
    """The meaning of a text, by regular expression and standard library."""
    found = FORM.fullmatch(text or "")
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, hours, minutes = found.groups()
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    try:
        local = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0))
    except ValueError:
        return None
    if int(minutes or 0) > 59 or offset > timedelta(hours=18):
        return None
    whole = (local - EPOCH) - (-offset if sign == "-" else offset)
    return whole // timedelta(microseconds=1) + int((fraction or "0")[:6].ljust(6, "0"))


def read(*texts: str | None, zone: str = "UTC") -> tuple[list[int], list[bool], list[bool]]:
    micros, bad, skipped = parse_iso(pa.array(texts, pa.string()), zone)
    return micros.tolist(), bad.tolist(), skipped.tolist()


class TestIsoText:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            pytest.param("2014-09-04", "2014-09-04T00:00:00", id="date"),
            pytest.param("2014-09-04T22:57", "2014-09-04T22:57:00", id="minutes"),
            pytest.param("2014-09-04T22:57:55", "2014-09-04T22:57:55", id="seconds"),
            pytest.param("2014-09-04 22:57:55", "2014-09-04T22:57:55", id="space"),
            pytest.param("2014-09-04t22:57:55z", "2014-09-04T22:57:55", id="lower-case"),
            pytest.param("2014-09-04T22:57:55Z", "2014-09-04T22:57:55", id="z"),
            pytest.param("2014-09-04T22:57Z", "2014-09-04T22:57:00", id="minutes-z"),
            pytest.param("2014-09-04T22:57:55.1", "2014-09-04T22:57:55.100000", id="one-digit"),
            pytest.param("2014-09-04T22:57:55.000001Z", "2014-09-04T22:57:55.000001", id="six-digits"),
            pytest.param("2014-09-04T22:57:55.123456789Z", "2014-09-04T22:57:55.123456", id="nanoseconds-are-cut"),
            pytest.param("1969-12-31T23:59:59.999999999Z", "1969-12-31T23:59:59.999999", id="cut-before-1970"),
            pytest.param("2014-09-04T22:57:55+02:00", "2014-09-04T20:57:55", id="offset"),
            pytest.param("2014-09-04T22:57:55-0930", "2014-09-05T08:27:55", id="offset-without-colon"),
            pytest.param("2014-09-04T22:57+02", "2014-09-04T20:57:00", id="offset-of-hours"),
            pytest.param("2014-09-04T22:57:55.5+18:00", "2014-09-04T04:57:55.500000", id="widest-offset"),
            pytest.param("2016-02-29T00:00:00Z", "2016-02-29T00:00:00", id="leap-day"),
            pytest.param("2000-02-29", "2000-02-29T00:00:00", id="leap-century"),
            pytest.param("0001-01-01T00:00:00Z", "0001-01-01T00:00:00", id="first"),
            pytest.param("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999", id="last"),
        ],
    )
    def test_forms(self, text: str, expected: str) -> None:
        assert read(text) == ([us(expected)], [False], [False])

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "2014",
            "2014-09",
            "2014-9-4",
            "2014-09-04T",
            "2014-09-04T22",
            "2014-09-04T2:57",
            "2014-09-04X22:57",
            "2014/09/04",
            "2014-09-04T22:57:",
            "2014-09-04T22:57:5",
            "2014-09-04T22:57:55.",
            "2014-09-04T22:57:55.Z",
            "2014-09-04T22:57:55,5",
            "2014-09-04T22.57.55",
            "2014-09-04T24:00:00",
            "2014-09-04T22:60:00",
            "2014-09-04T22:57:60",
            "2014-13-01",
            "2014-00-01",
            "2014-01-00",
            "2014-01-32",
            "2014-04-31",
            "2015-02-29",
            "1900-02-29",
            "0000-01-01",
            "2014-09-04T22:57:55+18:01",
            "2014-09-04T22:57:55+19:00",
            "2014-09-04T22:57:55+02:60",
            "2014-09-04T22:57:55+2",
            "2014-09-04T22:57:55+020",
            "2014-09-04T22:57:55 +02:00",
            "2014-09-04T22:57:55+02-00",
            "2014-09-04T22:57:55ZZ",
            "2014-09-04Z",
            "2014-09-04+02:00",
            " 2014-09-04",
            "2014-09-04 ",
            "-014-09-04",
            "+2014-09-04",
            "2014-09-04T22:57:55.1234567890",
            "２014-09-04",
            "2014-09-0４",
            "2014–09–04",
            "2014-09-0\0",
            "x" * 19,
            "é" * 10,
            "x" * 1_000_000,
            "2014-09-04T22:57:55.12345678a",
            "2014-09-04T22:57:55.a2345678Z",
            "2014-09-04T22:57:55+0a:00",
        ],
    )
    def test_other_texts_are_bad(self, text: str) -> None:
        assert read(text, "2014-09-04") == ([0, us("2014-09-04")], [True, False], [False, False])

    def test_null_is_neither_read_nor_bad(self) -> None:
        assert read(None, "2014-09-04", None) == ([0, us("2014-09-04"), 0], [False] * 3, [False] * 3)

    def test_bytes_behind_a_null_are_not_read(self) -> None:
        whole = pa.array(["2014-09-04", "bad stuff!"])
        hidden = pa.StringArray.from_buffers(2, *whole.buffers()[1:], pa.array([False, False]).buffers()[1])

        assert [part.tolist() for part in parse_iso(hidden, "UTC")] == [[0, 0], [False, False], [False, False]]

    @pytest.mark.parametrize(
        "values", [pa.array([], pa.string()), pa.array([None, None], pa.string()), pa.array([""]), pa.array(["2014-09-04"]).slice(1)]
    )
    def test_nothing_to_read(self, values: pa.Array) -> None:
        assert [len(part) for part in parse_iso(values, "Europe/London")] == [len(values)] * 3

    def test_large_strings_and_slices(self) -> None:
        values = pa.array(["x", "2014-09-04", "2014-09-04T22:57:55Z", None, "2014-09-05"], pa.large_string()).slice(1, 3)
        micros, bad, _ = parse_iso(values, "UTC")

        assert (micros.tolist(), bad.tolist()) == ([us("2014-09-04"), us("2014-09-04T22:57:55"), 0], [False] * 3)

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(st.one_of(st.from_regex(NEARLY, fullmatch=True), st.datetimes().map(str), st.text(max_size=12), st.none()), max_size=8),
        st.integers(0, 3),
    )
    def test_as_a_plain_reading_one_by_one_whatever_stands_beside_it(self, texts: list[str | None], start: int) -> None:
        micros, bad, skipped = parse_iso(pa.array(texts, pa.string()).slice(start), "UTC")
        expected = [plainly(text) for text in texts[start:]]

        assert bad.tolist() == [text is not None and found is None for text, found in zip(texts[start:], expected, strict=True)]
        assert micros.tolist() == [found or 0 for found in expected]
        assert not skipped.any()


class TestLocalText:
    def test_without_offset_is_read_in_the_zone_with_offset_is_not(self) -> None:
        assert read("2014-07-01T12:00:00", "2014-07-01T12:00:00Z", zone="Europe/London")[0] == [
            us("2014-07-01T11:00:00"),
            us("2014-07-01T12:00:00"),
        ]

    def test_a_repeated_hour_is_the_earlier_instant(self) -> None:
        assert read("2014-10-26T01:30:00", zone="Europe/London") == ([us("2014-10-26T00:30:00")], [False], [False])

    def test_a_skipped_hour_is_flagged(self) -> None:
        assert read("2014-03-30T01:30:00", "2014-03-30T02:00:00", zone="Europe/London")[2] == [True, False]

    def test_a_date_whose_midnight_is_skipped_begins_with_its_first_instant(self) -> None:
        assert read("2018-11-04", "2018-11-04T00:00", zone="America/Sao_Paulo") == (
            [us("2018-11-04T03:00")] * 2,
            [False, False],
            [False, True],
        )

    def test_a_null_is_not_flagged(self) -> None:
        assert read(None, "2014-03-30T01:30:00", zone="Europe/London")[2] == [False, True]

    @pytest.mark.parametrize("zone", ZONES)
    def test_the_first_and_the_last_year(self, zone: str) -> None:
        micros, bad, skipped = parse_iso(pa.array(["0001-01-01T00:00:00", "9999-12-31T23:59:59"]), zone)

        assert not bad.any() and not skipped.any()
        assert to_local(micros, zone).tolist() == [us("0001-01-01T00:00:00"), us("9999-12-31T23:59:59")]


class TestInstants:
    @pytest.mark.parametrize(
        ("values", "unit", "expected", "bad"),
        [
            pytest.param(pa.array([1, -1, None], pa.int32()), "s", [1_000_000, -1_000_000, 0], [False] * 3, id="int32-s"),
            pytest.param(pa.array([1, 2**62], pa.int64()), "s", [1_000_000, 0], [False, True], id="overflow-s"),
            pytest.param(pa.array([1, -(2**63), 2**63 - 1]), "ms", [1_000, 0, 0], [False, True, True], id="overflow-ms"),
            pytest.param(pa.array([-1, 2**63 - 1, 999, -1001]), "ns", [-1, 9_223_372_036_854_775, 0, -2], [False] * 4, id="ns-floored"),
            pytest.param(pa.array([5, 2**63 - 1]), "us", [5, 0], [False, True], id="us-far"),
            pytest.param(pa.array([2**64 - 1, 7], pa.uint64()), "s", [0, 7_000_000], [True, False], id="uint64"),
            pytest.param(pa.array([2**64 - 1], pa.uint64()), "ns", [18_446_744_073_709_551], [False], id="uint64-ns"),
            pytest.param(
                pa.array([1409871475.123456, float("nan"), float("inf"), 1e300, None]),
                "s",
                [1409871475123456, 0, 0, 0, 0],
                [False, True, True, True, False],
                id="floats",
            ),
            pytest.param(pa.array([1.5], pa.float32()), "ms", [1500], [False], id="float32-ms"),
            pytest.param(pa.array([1500.0]), "ns", [2], [False], id="float-ns-even"),
            pytest.param(pa.array([date(1970, 1, 2), None]), None, [DAY, 0], [False, False], id="date32"),
            pytest.param(pa.array([date(1970, 1, 2)], pa.date64()), None, [DAY], [False], id="date64"),
            pytest.param(pa.array([2**31 - 1], pa.int32()).cast(pa.date32()), None, [0], [True], id="far-date"),
            pytest.param(pa.array([-1, None, 1999], pa.timestamp("ns", "UTC")), None, [-1, 0, 1], [False] * 3, id="timestamp-ns"),
            pytest.param(pa.array([3, 2**60], pa.timestamp("s")), None, [3_000_000, 0], [False, True], id="timestamp-s"),
            pytest.param(pa.array([3], pa.timestamp("ms", "Europe/Paris")), None, [3_000], [False], id="timestamp-ms"),
            pytest.param(
                pa.array(["1970-01-01T00:00:01", "no"]).dictionary_encode(), None, [1_000_000, 0], [False, True], id="dictionary-of-text"
            ),
        ],
    )
    def test_columns(self, values: pa.Array, unit: str | None, expected: list[int], bad: list[bool]) -> None:
        padded = pa.concat_arrays([values, values, values]).slice(len(values), len(values))
        for column in (values, padded):
            micros, wrong, skipped = instants(column, "UTC", unit)

            assert (micros.dtype, micros.tolist(), wrong.tolist(), skipped.any()) == (np.int64, expected, bad, False)

    def test_timestamps_without_zone_are_local(self) -> None:
        values = pa.array([us("2014-07-01T12:00"), us("2014-03-30T01:30"), None], pa.timestamp("us"))
        micros, bad, skipped = instants(values, "Europe/London", None)

        assert micros.tolist()[::2] == [us("2014-07-01T11:00"), 0]
        assert (bad.tolist(), skipped.tolist()) == ([False] * 3, [False, True, False])

    def test_a_null_is_not_flagged(self) -> None:
        values = pa.array([None, us("1972-01-07T00:20")], pa.timestamp("us"))

        assert instants(values, "Africa/Monrovia", None)[2].tolist() == [False, True]

    def test_dates_are_the_first_instant_of_the_local_day(self) -> None:
        micros, bad, skipped = instants(pa.array([date(2018, 11, 4), date(2018, 11, 5)]), "America/Sao_Paulo", None)

        assert (micros.tolist(), bad.any(), skipped.any()) == ([us("2018-11-04T03:00"), us("2018-11-05T02:00")], False, False)

    @pytest.mark.parametrize("values", [pa.array([1]), pa.array([1.5]), pa.array([True]), pa.array([b"x"]), pa.array([[1]])])
    def test_other_columns_are_an_error_of_the_policy(self, values: pa.Array) -> None:
        with pytest.raises(ValueError, match=r"^EV210 "):
            instants(values, "UTC", None)

    @pytest.mark.parametrize("zone", ["UTC", "Asia/Manila", "America/Juneau"])
    @pytest.mark.parametrize(
        ("values", "unit"),
        [
            pytest.param(
                pa.array(["0001-01-02T00:00:00Z", "0001-01-01T23:59:59Z", "9999-12-30T23:59:59Z", "9999-12-31T00:00:00Z"]), None, id="text"
            ),
            pytest.param(pa.array([-62_135_510_400, -62_135_510_401, 253_402_214_399, 253_402_214_400]), "s", id="seconds"),
            pytest.param(pa.array([-62_135_510_400e3, -62_135_510_401e3, 253_402_214_399e3, 253_402_214_400e3]), "ms", id="floats"),
            pytest.param(
                pa.array([-62_135_510_400, -62_135_510_401, 253_402_214_399, 253_402_214_400]).cast(pa.timestamp("s", "UTC")),
                None,
                id="timestamps",
            ),
        ],
    )
    def test_only_instants_of_years_that_every_zone_can_write(self, values: pa.Array, unit: str | None, zone: str) -> None:
        micros, bad, skipped = instants(values, zone, unit)

        assert (bad.tolist(), skipped.any()) == ([False, True, False, True], False)
        assert (micros[[0, 2]] // 1_000_000).tolist() == [-62_135_510_400, 253_402_214_399]

    @pytest.mark.parametrize(
        "last",
        [
            pa.array(["9999-12-31T23:59:59"]),
            pa.array(["9999-12-31"]),
            pa.array([date(9999, 12, 31)]),
            pa.array([datetime(9999, 12, 31, 23)], pa.timestamp("us")),
        ],
        ids=["text", "text-of-a-date", "date", "wall-clock"],
    )
    def test_the_last_day_of_a_wall_clock_is_no_instant(self, last: pa.Array) -> None:
        assert instants(last, "America/New_York", None)[1].tolist() == [True]

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.sampled_from(["s", "ms", "us", "ns"]), st.sampled_from(ZONES))
    def test_no_number_raises(self, numbers: list[int], unit: str, zone: str) -> None:
        scale = {"s": 1_000_000, "ms": 1_000, "us": 1}
        exact = [number // 1_000 if unit == "ns" else number * scale[unit] for number in numbers]
        inside = [EARLIEST_US <= value <= LATEST_US for value in exact]
        micros, bad, _ = instants(pa.array(numbers, pa.int64()), zone, unit)

        assert bad.tolist() == [not fits for fits in inside]
        assert micros.tolist() == [value if fits else 0 for value, fits in zip(exact, inside, strict=True)]
        instants(pa.array(numbers, pa.timestamp(unit)), zone, None)


class TestZones:
    @pytest.mark.parametrize("name", ["UTC", "Europe/London", "Etc/GMT+5", "America/Argentina/Buenos_Aires", "EST5EDT"])
    def test_names(self, name: str) -> None:
        assert check_zone(name)

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "Europe",
            "Europe/Lodnon",
            "../UTC",
            "/etc/passwd",
            "Europe/../UTC",
            "localtime",
            "posixrules",
            "right/UTC",
            "+01:00",
            "tzdata.zi",
            "UTC\n",
            "zone.tab",
        ],
    )
    def test_other_names(self, name: str) -> None:
        assert not check_zone(name)

    def test_an_unknown_zone_is_a_lookup_error(self) -> None:
        with pytest.raises(LookupError, match="no time zone 'Nowhere'"):
            to_local(np.array([0]), "Nowhere")

    def test_without_the_system_database_the_package_answers_alike(self, monkeypatch: pytest.MonkeyPatch) -> None:
        system = _zones.load_zone("Europe/London")
        monkeypatch.setattr(_zones, "TZPATH", ())
        packaged = _zones.load_zone.__wrapped__("Europe/London")

        at = np.arange(us("1990-01-01"), us("2100-01-01"), 7 * DAY)
        assert system.to_local(at).tolist() == packaged.to_local(at).tolist()

    def test_utc_needs_no_database(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("eventveil.transforms.times.load_zone", None)

        assert to_local(np.array([5]), "UTC").tolist() == [5]
        assert from_local(np.array([5]), "UTC")[0].tolist() == [5]

    @pytest.mark.parametrize("zone", sorted(zoneinfo.available_timezones() - {"localtime", "Factory"}))
    def test_every_zone_as_the_standard_library_reads_it(self, zone: str) -> None:
        table = _zones.load_zone(zone)
        # Around every change, and far from any.
        near = (table.at[:, None] + np.array([-DAY // 3, -1, 0, 1, DAY // 3])).ravel()
        far = np.array([us(f"{year:04}-{month:02}-15T12:00") for year in (2, 1800, 1969, 2024, 2500, 9998) for month in (1, 7)])
        micros = np.concatenate([near[(near > MIDNIGHT_0001) & (near < us("2200-01-01"))], far])[:: 1 if zone in ZONES else 7]
        known = _library(zone)

        expected = [
            (known.fromutc((EPOCH + timedelta(microseconds=value)).replace(tzinfo=known)).replace(tzinfo=None) - EPOCH)
            // timedelta(microseconds=1)
            for value in micros.tolist()
        ]
        assert to_local(micros, zone).tolist() == expected

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(ZONES), st.lists(st.integers(EARLIEST_US // 1_000_000, LATEST_US // 1_000_000), max_size=8), st.data())
    def test_the_earliest_instant_of_each_wall_clock(self, zone: str, seconds: list[int], data: st.DataObject) -> None:
        table = _zones.load_zone(zone)
        if len(table.at):
            near = data.draw(st.lists(st.tuples(st.integers(0, len(table.at) - 1), st.integers(-90_000, 90_000))))
            seconds = seconds + [int(table.at[index]) // 1_000_000 + distance for index, distance in near]
        micros = np.array(seconds, np.int64) * 1_000_000
        local = to_local(micros, zone)
        back, skipped = from_local(local, zone)

        assert not skipped.any()
        assert to_local(back, zone).tolist() == local.tolist()
        assert (back <= micros).all() and (micros - back <= DAY).all()
        for offset in np.unique(table.offsets):  # no offset that was ever in force gives an earlier one
            earlier = local - offset
            assert not ((to_local(earlier, zone) == local) & (earlier < back)).any()

    @pytest.mark.parametrize("zone", [zone for zone in ZONES if zone != "UTC"])
    def test_a_wall_clock_that_no_instant_shows_is_skipped(self, zone: str) -> None:
        table = _zones.load_zone(zone)
        jump = np.diff(table.offsets)
        at, before, jump = table.at[jump > 0], table.offsets[:-1][jump > 0], jump[jump > 0]
        for local, skips in ((at + before - 1, False), (at + before, True), (at + before + jump - 1, True), (at + before + jump, False)):
            micros, mask = from_local(local, zone)

            assert (mask == skips).all()
            if skips:
                assert micros.tolist() == at.tolist()
        later, mask = from_local(at + before + jump // 2, zone, skipped="later")
        assert (later.tolist(), mask.any()) == (at.tolist(), False)


@lru_cache
def _library(zone: str) -> zoneinfo.ZoneInfo:
    return zoneinfo.ZoneInfo(zone)


def floored(text: str, duration: str, zone: str = "UTC") -> str:
    value = int(floor_instants(np.array([us(text)]), Duration.parse(duration), zone)[0])
    return (EPOCH + timedelta(microseconds=value)).isoformat()


class TestFloor:
    @pytest.mark.parametrize(
        ("duration", "expected"),
        [
            ("1s", "2014-09-04T22:57:55"),
            ("15s", "2014-09-04T22:57:45"),
            ("1min", "2014-09-04T22:57:00"),
            ("20min", "2014-09-04T22:40:00"),
            ("1h", "2014-09-04T22:00:00"),
            ("6h", "2014-09-04T18:00:00"),
            ("1d", "2014-09-04T00:00:00"),
            ("1w", "2014-09-01T00:00:00"),
            ("1mo", "2014-09-01T00:00:00"),
            ("4mo", "2014-09-01T00:00:00"),
            ("6mo", "2014-07-01T00:00:00"),
            ("1q", "2014-07-01T00:00:00"),
            ("2q", "2014-07-01T00:00:00"),
            ("4q", "2014-01-01T00:00:00"),
            ("1y", "2014-01-01T00:00:00"),
            ("10y", "2010-01-01T00:00:00"),
            ("1000y", "2000-01-01T00:00:00"),
        ],
    )
    def test_units(self, duration: str, expected: str) -> None:
        assert floored("2014-09-04T22:57:55.123456", duration) == expected

    def test_no_more_than_a_thousand_years(self) -> None:
        with pytest.raises(ValueError, match=r"^EV103 "):
            floor_instants(np.array([0]), Duration.parse("1001y"), "UTC")

    @pytest.mark.parametrize("duration", ["7s", "61s", "120s", "25min", "90min", "5h", "48h", "2d", "7d", "2w", "5mo", "24mo", "3q", "8q"])
    def test_multiples_that_do_not_divide(self, duration: str) -> None:
        with pytest.raises(ValueError, match=r"^EV217 "):
            check_floor(Duration.parse(duration))
        with pytest.raises(ValueError, match=r"^EV217 "):
            floor_instants(np.array([0]), Duration.parse(duration), "UTC")

    @pytest.mark.parametrize(
        ("text", "duration", "zone", "expected"),
        [
            pytest.param("1969-12-31T23:59:59", "1d", "UTC", "1969-12-31T00:00:00", id="before-1970"),
            pytest.param("1969-12-31T23:59:59", "1w", "UTC", "1969-12-29T00:00:00", id="week-before-1970"),
            pytest.param("1970-01-05T00:00:00", "1w", "UTC", "1970-01-05T00:00:00", id="monday"),
            pytest.param("1970-01-04T23:59:59", "1w", "UTC", "1969-12-29T00:00:00", id="sunday"),
            pytest.param("1969-11-30T00:00:00", "1q", "UTC", "1969-10-01T00:00:00", id="quarter-before-1970"),
            pytest.param("2014-07-01T12:20:00", "1h", "Asia/Kathmandu", "2014-07-01T12:15:00", id="quarter-hour-zone"),
            pytest.param("2014-07-01T23:30:00", "1d", "Europe/London", "2014-07-01T23:00:00", id="summer-day"),
            pytest.param("2014-07-01T00:00:00", "1y", "Europe/London", "2014-01-01T00:00:00", id="offset-of-the-result"),
            # the repeated hour: at the instant's own offset, so each of the two stays where it is
            pytest.param("2014-10-26T00:40:00", "1h", "Europe/London", "2014-10-26T00:00:00", id="repeated-first"),
            pytest.param("2014-10-26T01:40:00", "1h", "Europe/London", "2014-10-26T01:00:00", id="repeated-second"),
            # 2018-11-04 began at 01:00 in Sao Paulo
            pytest.param("2018-11-04T12:00:00", "1d", "America/Sao_Paulo", "2018-11-04T03:00:00", id="midnight-skipped"),
            pytest.param("2018-02-18T02:30:00", "1d", "America/Sao_Paulo", "2018-02-17T02:00:00", id="clock-back-at-midnight"),
            # at 00:01 back to 23:01: the second 23:30 of the old day
            pytest.param("2005-10-30T03:00:00", "1d", "America/St_Johns", "2005-10-29T02:30:00", id="clock-back-over-midnight"),
            pytest.param("2005-10-30T12:00:00", "1d", "America/St_Johns", "2005-10-30T02:30:00", id="midnight-repeated"),
            pytest.param("2011-12-31T00:00:00", "1d", "Pacific/Apia", "2011-12-30T10:00:00", id="after-a-day-left-out"),
            pytest.param("2011-12-30T09:59:59", "1d", "Pacific/Apia", "2011-12-29T10:00:00", id="before-a-day-left-out"),
        ],
    )
    def test_in_zones(self, text: str, duration: str, zone: str, expected: str) -> None:
        assert floored(text, duration, zone) == expected

    @settings(max_examples=150, deadline=None)
    @given(
        st.sampled_from(ZONES),
        st.sampled_from(["30s", "1min", "5min", "1h", "12h", "1d", "1w", "1mo", "6mo", "1q", "1y", "100y"]),
        st.lists(st.integers(MIDNIGHT_0001 + 1_100 * 366 * DAY, LATEST_US - DAY), min_size=1),
    )
    def test_floors_shift_no_instant_to_a_later_one_and_stay_when_floored_again(self, zone: str, duration: str, micros: list[int]) -> None:
        given_ = np.array(micros)
        size = Duration.parse(duration)
        once = floor_instants(given_, size, zone)

        assert (once <= given_).all()
        if size.unit in ("d", "w", "mo", "q", "y"):
            assert floor_instants(once, size, zone).tolist() == once.tolist()
        else:
            # The wall clock at the instant's offset: another offset may be in force at the result.
            offset = to_local(given_, zone) - given_
            assert ((once + offset) % (size.fixed_us or 1) == 0).all()
