from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from eventveil.schemas.durations import Duration
from eventveil.transforms.context import Context, RowContext, SubKeys
from eventveil.transforms.operators.shift import Shift, _reflected
from eventveil.transforms.registry import Setting

KEY = bytes(range(32))
ONE_DAY = Duration(1, "d")
DAY = 86_400_000_000
T0 = 16_317 * DAY + 82_675_123_456  # 2014-09-04T22:57:55.123456
INSTANT = pa.timestamp("us", "UTC")


class Refusals:
    def __init__(self) -> None:
        self.codes: dict[int, str] = {}

    def refuse_rows(self, rows: np.ndarray, code: str, path: str, rule: str) -> None:
        for row in rows.tolist():
            self.codes.setdefault(row, code)


def shift(
    given: pa.DataType = INSTANT,
    *,
    is_event_time: bool = False,
    window: Duration | None = ONE_DAY,
    zone: str = "UTC",
    **parameters: Any,
) -> Shift:
    operator = Shift.model_validate({"per": "event", "within": "10min", **parameters})
    settled = operator.settle(Setting("time", zone, is_event_time, window, given, True, lambda name: b""))
    assert isinstance(settled, Shift)
    return settled


def surroundings(
    rows: int,
    events: Sequence[int] | None = None,
    subjects: Sequence[int] | None = None,
    element: Sequence[int] | None = None,
    window: tuple[int, int] | None = None,
) -> Context:
    ids = np.array([(n, 7) for n in (range(rows) if events is None else events)], np.uint64)
    people = np.array([(n, 9) for n in (range(rows) if subjects is None else subjects)], np.uint64)
    start, end = (None, None) if window is None else (np.full(rows, bound, np.int64) for bound in window)
    elements = None if element is None else np.array(element, np.int64)
    return Context(RowContext(rows, ids, people, start, end), Refusals(), "time", "fields.time", element=elements, sub_keys=SubKeys([KEY]))


def run(operator: Shift, values: pa.Array[Any], context: Context | None = None) -> np.ndarray:
    """The result as integers of the column's unit."""
    result = operator.apply(values, context or surroundings(len(values)))
    result.validate(full=True)
    assert result.type == values.type
    return result.view(pa.int32() if result.type == pa.date32() else pa.int64()).to_numpy(zero_copy_only=False).astype(np.int64)


def times(ticks: Sequence[int], kind: pa.DataType = INSTANT) -> pa.Array[Any]:
    return pa.array(ticks, pa.int32() if kind == pa.date32() else pa.int64()).view(kind)


class TestShift:
    def test_is_uniform_from_minus_within_to_within(self) -> None:
        moved = run(shift(within="10min"), times([T0] * 100_000)) - T0
        within = 600_000_000
        counts, _ = np.histogram(moved, bins=50, range=(-within, within))

        assert abs(moved).max() <= within
        assert moved.min() < -0.999 * within and moved.max() > 0.999 * within
        assert ((counts - 2000) ** 2 / 2000).sum() < 96  # chi-square, 49 degrees of freedom, 0.9999

    def test_both_ends_and_every_tick_between_are_as_likely(self) -> None:
        moved = run(shift(pa.date32(), within="3d"), times([16_000] * 70_000, pa.date32())) - 16_000
        ticks, counts = np.unique(moved, return_counts=True)

        assert ticks.tolist() == [-3, -2, -1, 0, 1, 2, 3]
        assert ((counts - 10_000) ** 2 / 10_000).sum() < 27.9  # 6 degrees of freedom, 0.9999

    @pytest.mark.parametrize("within", ["10min", "52w", "366000d"])
    def test_distance_to_the_uniform_distribution(self, within: str) -> None:
        assert shift(within=within, window=None).total_variation(INSTANT) < 2.0**-70

    def test_milliseconds_move_by_whole_milliseconds(self) -> None:
        moved = run(shift(pa.timestamp("ms"), within="1s"), times([T0 // 1000] * 20_000, pa.timestamp("ms"))) - T0 // 1000

        assert (moved.min(), moved.max()) == (-1000, 1000)

    def test_finer_digits_of_nanoseconds_do_not_leave(self) -> None:
        kind = pa.timestamp("ns", "UTC")
        one = run(shift(kind), times([T0 * 1000 + 123] * 50, kind))

        assert one.tolist() == run(shift(kind), times([T0 * 1000 + 987] * 50, kind)).tolist()
        assert one.tolist() == (run(shift(), times([T0] * 50)) * 1000).tolist()

    @pytest.mark.parametrize(("kind", "tick"), [(INSTANT, T0), (pa.timestamp("ns"), T0 * 1000)], ids=str)
    def test_nulls_stay_null(self, kind: pa.DataType, tick: int) -> None:
        operator, context = shift(kind, within="60000d" if kind == INSTANT else "366000d", window=None), surroundings(50)
        result = operator.apply(times([tick] * 50, kind).take(pa.array([None] * 49 + [0])), context)

        assert result.is_null().to_pylist() == [True] * 49 + [False]
        context.refusals.codes.pop(49, None)  # type: ignore[attr-defined]
        assert context.refusals.codes == {}  # type: ignore[attr-defined]
        assert operator.nullable(True) and not operator.nullable(False)


class TestDraws:
    OF = times([T0] * 200)

    def test_a_replay_is_equal_whatever_the_batch_and_its_order(self) -> None:
        whole = run(shift(), self.OF).tolist()
        cut = [
            run(shift(), self.OF[n : n + 7], surroundings(len(self.OF[n : n + 7]), range(n, min(n + 7, 200)))).tolist()
            for n in range(0, 200, 7)
        ]

        assert run(shift(), self.OF).tolist() == whole
        assert [value for part in cut for value in part] == whole
        assert run(shift(), self.OF, surroundings(200, range(199, -1, -1))).tolist() == whole[::-1]

    def test_a_corrected_time_moves_as_far(self) -> None:
        assert (run(shift(), times([T0 + 12_345] * 200)) - run(shift(), self.OF)).tolist() == [12_345] * 200

    def test_elements_and_rules_move_apart(self) -> None:
        operator = shift()
        first = run(operator, self.OF)

        assert (first == run(operator, self.OF, surroundings(200, element=[1] * 200))).sum() == 0
        assert operator.key_info("in", 0, INSTANT) != operator.key_info("out", 0, INSTANT)
        assert operator.key_info("in", 0, INSTANT) != shift(within="11min").key_info("in", 0, INSTANT)

    def test_times_together_keep_their_distance(self) -> None:
        operator = shift(together="stay", within="3d")
        admitted = run(operator, self.OF, surroundings(200, element=range(200)))
        discharged = run(operator, times([T0 + 5 * DAY] * 200))

        assert (discharged - admitted).tolist() == [5 * DAY] * 200
        assert operator.key_info("admitted", 0, INSTANT) == operator.key_info("discharged", 2, pa.timestamp("ms"))

    def test_columns_of_different_precision_move_together_to_within_a_tick(self) -> None:
        micros = run(shift(together="stay"), self.OF) - T0
        millis = run(shift(pa.timestamp("ms"), together="stay"), times([T0 // 1000] * 200, pa.timestamp("ms"))) - T0 // 1000

        assert abs(micros - millis * 1000).max() <= 1000

    def test_per_subject_moves_all_times_of_a_subject_alike(self) -> None:
        operator = shift(per="subject")
        found = run(
            operator, self.OF, surroundings(200, subjects=[n % 10 for n in range(200)], element=[n % 3 for n in range(200)])
        ).tolist()

        assert found == found[:10] * 20
        assert len(set(found[:10])) == 10
        assert operator.needs() == {"subject"}


def reflected_step_by_step(ticks: int, start: int, end: int) -> int:
    while not start <= ticks < end:
        ticks = 2 * start - ticks if ticks < start else 2 * end - 1 - ticks
    return ticks


class TestEventTime:
    WINDOW = (16_317 * DAY, 16_318 * DAY)

    def test_stays_in_its_window_and_is_reflected_at_its_bounds(self) -> None:
        start, end = self.WINDOW
        for true in (start, start + 5, end - 1, end - 300_000_000, start + DAY // 2):
            inside = run(shift(is_event_time=True), times([true] * 2000), surroundings(2000, window=self.WINDOW))
            anywhere = run(shift(), times([true] * 2000))

            assert start <= inside.min() and inside.max() < end
            assert inside.tolist() == [reflected_step_by_step(moved, start, end) for moved in anywhere.tolist()]

    @pytest.mark.parametrize("width", [1, 2, 3, 10])
    def test_repeated_reflection(self, width: int) -> None:
        ticks = np.arange(-40, 60)
        found = _reflected(ticks, np.full(100, 7), np.full(100, 7 + width))

        assert found.tolist() == [reflected_step_by_step(tick, 7, 7 + width) for tick in ticks.tolist()] if width > 1 else [7] * 100

    def test_a_shift_as_wide_as_the_window_is_reflected_twice_where_needed(self) -> None:
        found = run(shift(is_event_time=True, within="1d"), times([self.WINDOW[0]] * 3000), surroundings(3000, window=self.WINDOW))

        assert self.WINDOW[0] <= found.min() and found.max() < self.WINDOW[1]

    def test_milliseconds(self) -> None:
        kind = pa.timestamp("ms", "UTC")
        found = run(
            shift(kind, is_event_time=True), times([self.WINDOW[1] // 1000 - 1] * 2000, kind), surroundings(2000, window=self.WINDOW)
        )

        assert self.WINDOW[0] // 1000 <= found.min() and found.max() < self.WINDOW[1] // 1000

    def test_local_times_and_dates_are_reflected_on_the_wall_clock(self) -> None:
        """A day in New York begins at 04:00 UTC in summer."""
        begins = 16_317 * DAY + 4 * DAY // 24
        window = (begins, begins + DAY)
        local = run(
            shift(pa.timestamp("us"), is_event_time=True, zone="America/New_York"),
            times([16_317 * DAY + 7] * 2000, pa.timestamp("us")),
            surroundings(2000, window=window),
        )
        dates = run(
            shift(pa.date32(), is_event_time=True, zone="America/New_York", within="1d"),
            times([16_317] * 500, pa.date32()),
            surroundings(500, window=window),
        )

        assert 16_317 * DAY <= local.min() and local.max() < 16_318 * DAY
        assert set(dates.tolist()) == {16_317}

    def test_only_the_event_time_is_reflected(self) -> None:
        assert shift(is_event_time=True).needs() == {"id", "time"}
        assert shift(is_event_time=False).needs() == {"id"}
        assert run(shift(), times([self.WINDOW[0]] * 100)).min() < self.WINDOW[0]

    @pytest.mark.parametrize(
        ("within", "window"),
        [("2h", Duration(1, "h")), ("29d", Duration(1, "mo")), ("366d", Duration(1, "y"))],
        ids=["hour", "February", "a common year"],
    )
    def test_a_shift_wider_than_the_shortest_window_is_no_policy(self, within: str, window: Duration) -> None:
        with pytest.raises(ValueError, match=rf"^EV213 within is {within}, and the release window {window}"):
            shift(is_event_time=True, within=within, window=window)

    @pytest.mark.parametrize(("within", "window"), [("1h", Duration(1, "h")), ("28d", Duration(1, "mo"))])
    def test_one_as_wide_is(self, within: str, window: Duration) -> None:
        assert shift(is_event_time=True, within=within, window=window).needs() == {"id", "time"}

    def test_what_hides_behind_a_null_is_left_alone(self) -> None:
        behind = times([-(2**63), 2**63 - 1, T0])
        values = pa.Array.from_buffers(INSTANT, 3, [pa.py_buffer(b"\x04"), behind.buffers()[1]])
        context = surroundings(3, window=self.WINDOW)
        result = shift(is_event_time=True).apply(values, context)

        assert [value is None for value in result.to_pylist()] == [True, True, False]
        assert context.refusals.codes == {}  # type: ignore[attr-defined]


class TestRange:
    @pytest.mark.parametrize(
        ("kind", "tick"),
        [
            (INSTANT, 2**63 - 1),
            (INSTANT, -(2**63)),
            (pa.timestamp("ms"), 2**63 - 1),
            (pa.date32(), 2**31 - 1),
            (pa.date32(), -(2**31)),
            (pa.timestamp("ns"), 2**63 - 1),
            (pa.timestamp("ns"), -(2**63)),
        ],
        ids=str,
    )
    def test_what_leaves_the_type_is_refused(self, kind: pa.DataType, tick: int) -> None:
        context = surroundings(50)
        run(shift(kind, within="366000d", window=None), times([tick] * 50, kind), context)

        assert set(context.refusals.codes.values()) == {"EV529"}  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("edge", "outward"),
        [(datetime(1, 1, 2), -1), (datetime(9999, 12, 30, 23, 59, 59, 999_999), 1)],
        ids=["year 1", "year 9999"],
    )
    def test_what_leaves_the_years_of_iso_8601_is_refused(self, edge: datetime, outward: int) -> None:
        ticks = (edge.replace(tzinfo=timezone.utc) - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)
        context = surroundings(500)
        operator = shift(within="1h", together="a")  # all draws are known from another time
        moved = run(shift(within="1h", together="a"), times([T0] * 500)) - T0
        run(operator, times([ticks] * 500), context)

        assert sorted(context.refusals.codes) == np.flatnonzero(moved * outward > 0).tolist()  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("kind", "edge"),
        [
            (INSTANT, datetime(1, 1, 2)),
            (INSTANT, datetime(9999, 12, 30, 23, 59, 59, 999_999)),
            (pa.timestamp("us"), datetime(1, 1, 1)),
            (pa.timestamp("us"), datetime(9999, 12, 31, 23, 59, 59, 999_999)),
        ],
        ids=["first instant", "last instant", "first wall clock", "last wall clock"],
    )
    def test_what_is_reflected_into_the_calendar_is_not_refused(self, kind: pa.DataType, edge: datetime) -> None:
        ticks = (edge - datetime(1970, 1, 1)) // timedelta(microseconds=1)
        window = (ticks - ticks % DAY, ticks - ticks % DAY + DAY)
        context = surroundings(500, window=window)
        found = run(shift(kind, is_event_time=True, within="1h"), times([ticks] * 500, kind), context)

        assert context.refusals.codes == {}  # type: ignore[attr-defined]
        assert window[0] <= found.min() < found.max() < window[1]

    def test_what_is_reflected_out_of_the_calendar_is_refused(self) -> None:
        """At the end of a window that began in year -30 a later time is reflected to an earlier one: into year 0."""
        first = (date(1, 1, 2) - date(1970, 1, 1)).days * DAY
        context = surroundings(500, window=(first - 366 * 31 * DAY, first + 1))
        operator = shift(is_event_time=True, window=Duration(31, "y"), within="30d")
        found = run(operator, times([first] * 500), context)
        refused = context.refusals.codes  # type: ignore[attr-defined]

        assert len(refused) > 490
        assert {first} >= {found[row] for row in range(500) if row not in refused}

    @pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
    @pytest.mark.parametrize("kind", [INSTANT, pa.timestamp("us"), pa.date32()], ids=str)
    def test_windows_that_reach_beyond_the_calendar(self, kind: pa.DataType, zone: str) -> None:
        """A window of 400 years may begin in year -30."""
        days = (date(1, 1, 3) - date(1970, 1, 1)).days
        context = surroundings(500, window=((days - 366 * 31) * DAY, (days + 366 * 369) * DAY))
        found = run(
            shift(kind, is_event_time=True, window=Duration(400, "y"), within="3650d", zone=zone),
            times([days if kind == pa.date32() else days * DAY] * 500, kind),
            context,
        )
        refused = context.refusals.codes  # type: ignore[attr-defined]

        assert set(refused.values()) == {"EV529"}
        assert 200 < len(refused) < 300
        assert min(found[row] for row in range(500) if row not in refused) >= (days - 2) * (1 if kind == pa.date32() else DAY)

    def test_dates_at_the_edge(self) -> None:
        last = (date(9999, 12, 31) - date(1970, 1, 1)).days
        context = surroundings(300)
        found = run(shift(pa.date32(), within="1d"), times([last] * 300, pa.date32()), context)
        kept = [n for n in range(300) if n not in context.refusals.codes]  # type: ignore[attr-defined]

        assert 50 < 300 - len(kept) < 150
        assert set(found[kept].tolist()) == {last - 1, last}


class TestParameters:
    @pytest.mark.parametrize(
        ("given", "fact"),
        [
            ({"within": "1mo"}, "EV103 a shift has a fixed length"),
            ({"within": "400000d"}, "EV103 a shift is at most 366000d"),
            ({"within": "10m"}, "EV109 .*write min for minutes"),
            ({"within": 10}, "EV109"),
            ({"together": ""}, "together"),
        ],
        ids=["month", "too long", "bare m", "number", "empty label"],
    )
    def test_wrong_ones(self, given: dict[str, Any], fact: str) -> None:
        with pytest.raises(ValidationError, match=fact):
            Shift.model_validate({"per": "event", "within": "10min", **given})

    @pytest.mark.parametrize("missing", ["within", "per"])
    def test_both_are_required(self, missing: str) -> None:
        with pytest.raises(ValidationError, match=missing):
            Shift.model_validate({name: value for name, value in {"per": "event", "within": "10min"}.items() if name != missing})

    def test_dates_move_by_whole_days(self) -> None:
        with pytest.raises(ValueError, match=r"^EV217 a date moves by whole days, and within is 36h"):
            shift(pa.date32(), within="36h")

    def test_accepts_times_only(self) -> None:
        kinds = [INSTANT, pa.timestamp("ms"), pa.date32(), pa.int64(), pa.string(), pa.time64("us")]

        assert [shift(within="1d").returns(kind) for kind in kinds] == [INSTANT, pa.timestamp("ms"), pa.date32(), None, None, None]


class TestWarnings:
    def said(self, **parameters: Any) -> str:
        operator, here = shift(**parameters), parameters.get("is_event_time", False)
        return "\n".join(operator.warnings(Setting("time", "UTC", here, ONE_DAY, INSTANT, True, lambda name: b"")))

    def test_a_time_that_stays_the_same_averages_out(self) -> None:
        assert "averaging discloses it" in self.said()
        assert "averaging" not in self.said(is_event_time=True) + self.said(per="subject")

    def test_what_moves_alike_is_known_alike(self) -> None:
        assert "one that is known discloses the others" in self.said(per="subject")
        assert "exact distance" in self.said(together="stay")
