"""Times: text, numbers and dates become instants, instants become wall clocks and coarser instants.

An instant is an int64 of microseconds since 1970-01-01T00:00:00 UTC. Everything here is vectorised, pure, and raises
on no value: what cannot be read comes back under a mask. Dates and wall clocks lie in years 0001 to 9999; instants do
so on the clock of any zone, and therefore end a day before these years do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.schemas.durations import Duration
from eventveil.transforms._zones import load_zone

__all__ = [
    "EARLIEST_US",
    "LATEST_US",
    "check_floor",
    "check_zone",
    "floor_instants",
    "from_local",
    "instants",
    "month_of",
    "outside",
    "outside_calendar",
    "parse_iso",
    "start_of_month",
    "to_local",
    "to_micros",
]

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

_SECOND = 1_000_000
_DAY = 86_400 * _SECOND
_UNITS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_FIRST_US, _LAST_US = -719_162 * _DAY, 2_932_897 * _DAY - 1  # years 0001 to 9999
# No zone is a day away from UTC.
EARLIEST_US, LATEST_US = _FIRST_US + _DAY, _LAST_US - _DAY

_SHORTEST, _LONGEST = 10, 35
# Lengths of a time without its offset: date, minutes, seconds, one to nine digits of a fraction.
_BODIES = (16, 19, *range(21, 30))
_FIRST_ZONED = min(_BODIES) + 1


def check_zone(zone: str) -> bool:
    """Whether `zone` is a name of the IANA time zone database, the same on every machine (so not `localtime`)."""
    try:
        load_zone(zone)
    except LookupError:
        return False
    return True


def to_local(micros: Int64s, zone: str) -> Int64s:
    """Instants -> microseconds of the wall clock in `zone`. Raises LookupError if there is no such zone."""
    return micros if zone == "UTC" else load_zone(zone).to_local(micros)


def from_local(local: Int64s, zone: str, *, skipped: Literal["flag", "later"] = "flag") -> tuple[Int64s, Mask]:
    """Microseconds of the wall clock in `zone` -> instants, and a mask of the local times that do not exist.

    A repeated local time is the earlier instant. A skipped one becomes the first instant after the gap; with
    ``skipped="later"`` that is the answer and nothing is flagged. Raises LookupError if there is no such zone.
    """
    if zone == "UTC":
        return local, np.zeros(len(local), np.bool_)
    micros, mask = load_zone(zone).from_local(local)
    return micros, mask if skipped == "flag" else np.zeros(len(local), np.bool_)


def instants(values: pa.Array[Any], zone: str, unit: str | None) -> tuple[Int64s, Mask, Mask]:
    """Any column that can hold times -> instants, a mask of what cannot be read, and one of local times that do not exist.

    Args:
        values: ISO 8601 text, timestamps, dates (the first instant of the day), or numbers with a unit.
        zone: IANA name; where times without offset are local. A repeated hour is the earlier instant.
        unit: ``s ms us ns``: what numbers count, since 1970-01-01 UTC; None for other columns.

    Finer digits than microseconds are cut (floats: rounded). Null is 0 under neither mask. An instant that some zone
    writes with another year than 0001 to 9999 cannot be read.

    Raises:
        ValueError: (EV210) the column's type, or a number without unit, cannot be a time.
    """
    if isinstance(values, pa.DictionaryArray):
        values = values.dictionary_decode()
    given: Any = values.type
    if pa.types.is_string(given) or pa.types.is_large_string(given):
        return _only_instants(*parse_iso(values, zone))
    if pa.types.is_timestamp(given):
        micros, bad = to_micros(values)
        if given.tz is not None:
            return micros, bad, np.zeros(len(values), np.bool_)
        return _only_instants(*_read_local(micros, bad, values, zone, "flag"))
    if pa.types.is_date(given):
        per_day, days = (1, pa.int32()) if pa.types.is_date32(given) else (86_400_000, pa.int64())
        counts = _numbers(values.cast(days)).astype(np.int64)
        micros, bad = _in_range(counts, _DAY, per_day, local=True)
        return _only_instants(*_read_local(micros, bad, values, zone, "later"))
    if unit is None:
        raise ValueError(f"EV210 {given} is a time only with a unit: s, ms, us or ns")
    if pa.types.is_integer(given):
        micros, bad = _in_range(_numbers(values), _SECOND, _UNITS_PER_SECOND[unit], local=False)
    elif pa.types.is_floating(given):
        micros, bad = _from_floats(_numbers(values.cast(pa.float64())), unit)
    else:
        raise ValueError(f"EV210 {given} cannot be a time")
    return micros, bad, np.zeros(len(values), np.bool_)


def to_micros(values: pa.Array[Any]) -> tuple[Int64s, Mask]:
    """Timestamps of any unit -> their microseconds, floored, and a mask of those outside the calendar; these and nulls are 0."""
    kind: Any = values.type
    return _in_range(_numbers(values.cast(pa.int64())), _SECOND, _UNITS_PER_SECOND[kind.unit], local=kind.tz is None)


def outside(micros: Int64s, *, local: bool) -> Mask:
    """Which microseconds lie outside years 0001 to 9999: as dates and wall clocks (`local`), or as instants on the clock of any zone."""
    low, high = _bounds(local)
    mask: Mask = (micros < low) | (micros > high)
    return mask


def outside_calendar(values: pa.Array[Any]) -> Mask:
    """Which values of a column of dates (date32) or timestamps lie outside years 0001 to 9999; nulls do not."""
    if pa.types.is_timestamp(values.type):
        return to_micros(values)[1]
    return _in_range(_numbers(values.cast(pa.int32())), _DAY, 1, local=True)[1]


def _bounds(local: bool) -> tuple[int, int]:
    return (_FIRST_US, _LAST_US) if local else (EARLIEST_US, LATEST_US)


def _only_instants(micros: Int64s, bad: Mask, skipped: Mask) -> tuple[Int64s, Mask, Mask]:
    """Local times may be read that are no instants, a day at either end."""
    mask = outside(micros, local=False)
    if mask.any():
        micros, bad, skipped = np.where(mask, 0, micros), bad | mask, skipped & ~mask
    return micros, bad, skipped


def _numbers(values: pa.Array[Any]) -> npt.NDArray[Any]:
    """A primitive column as numpy, nulls as 0 (the bytes behind a null may be anything)."""
    if values.null_count:
        values = values.fill_null(0)
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _in_range(counts: npt.NDArray[Any], times: int, divided_by: int, *, local: bool) -> tuple[Int64s, Mask]:
    """floor(counts * times / divided_by), one of the two dividing the other; 0 and masked outside the calendar."""
    factor, divisor = max(1, times // divided_by), max(1, divided_by // times)
    if counts.dtype != np.uint64:
        counts = counts.astype(np.int64, copy=False)
    low, high = _bounds(local)
    lowest, highest = low * divisor // factor, (high * divisor + divisor - 1) // factor
    bad = counts > highest if counts.dtype == np.uint64 else (counts < lowest) | (counts > highest)
    if bad.any():
        counts = np.where(bad, counts.dtype.type(0), counts)
    if divisor > 1:
        counts = counts // counts.dtype.type(divisor)
    micros = counts.astype(np.int64, copy=False)
    return micros if factor == 1 else micros * factor, bad


def _from_floats(counts: npt.NDArray[np.float64], unit: str) -> tuple[Int64s, Mask]:
    """Nearest microseconds: a float of seconds has no exact ones, and its shortest text means the nearest."""
    with np.errstate(over="ignore", invalid="ignore"):
        micros = counts * (_SECOND // _UNITS_PER_SECOND[unit]) if unit != "ns" else counts / 1_000
        # The last instant itself is no double, the one behind it is.
        bad = ~((micros >= EARLIEST_US) & (micros < LATEST_US + 1))
    return np.rint(np.where(bad, 0, micros)).astype(np.int64), bad


def _read_local(local: Int64s, bad: Mask, values: pa.Array[Any], zone: str, skipped: Literal["flag", "later"]) -> tuple[Int64s, Mask, Mask]:
    micros, gap = from_local(local, zone, skipped=skipped)
    nothing = bad if not values.null_count else bad | _nulls(values)
    if nothing.any():
        micros, gap = np.where(nothing, 0, micros), gap & ~nothing
    return micros, bad, gap


def _nulls(values: pa.Array[Any]) -> Mask:
    return np.asarray(pc.is_null(values).to_numpy(zero_copy_only=False))


# ISO 8601 text


def parse_iso(values: pa.Array[Any], zone: str) -> tuple[Int64s, Mask, Mask]:
    """ISO 8601 text -> instants, a mask of what is not of the form, and one of local times that do not exist in `zone`.

    Forms: ``YYYY-MM-DD``, or that and ``T`` or a space and ``HH:MM[:SS[.f]]`` with one to nine digits of a fraction, and
    ``Z``, ``+HH:MM``, ``+HHMM`` or ``+HH``. Without an offset the time is local; a date alone is the first instant of its
    day. Years 0001 to 9999 as written, no leap seconds, offsets up to 18 hours; digits finer than microseconds are cut.
    Which of them are instants, `instants` says. Null is 0 under neither mask. Raises LookupError if there is no such zone.
    """
    rows = len(values)
    micros, bad, is_local = np.zeros(rows, np.int64), np.ones(rows, np.bool_), np.zeros(rows, np.bool_)
    offsets, data = _text(values)
    lengths = np.diff(offsets)
    nulls = _nulls(values) if values.null_count else None
    if nulls is not None:
        lengths = np.where(nulls, 0, lengths)
        bad[nulls] = False
    # Other lengths are of no form, however long, and their bytes are never looked at.
    counts = np.bincount(np.clip(lengths, _SHORTEST - 1, _LONGEST + 1), minlength=_LONGEST + 2)
    for length in np.flatnonzero(counts[: _LONGEST + 1]).tolist():
        if length < _SHORTEST:
            continue
        if counts[length] == rows:
            matrix = data[int(offsets[0]) : int(offsets[-1])].reshape(rows, length)
            micros, bad, is_local = _read(np.ascontiguousarray(matrix.T))
        else:
            at = np.flatnonzero(lengths == length)
            matrix = np.lib.stride_tricks.as_strided(data, (len(data) - length + 1, length), (1, 1))[offsets[:-1][at]]
            micros[at], bad[at], is_local[at] = _read(np.ascontiguousarray(matrix.T))
    skipped = np.zeros(rows, np.bool_)
    if zone != "UTC" and is_local.any():
        at = np.flatnonzero(is_local & ~bad)
        micros[at], gap = from_local(micros[at], zone)
        skipped[at] = gap & (lengths[at] > _SHORTEST)
    return micros, bad, skipped


def _text(values: pa.Array[Any]) -> tuple[npt.NDArray[Any], Bytes]:
    """Offsets and bytes of a text column; those of a slice begin where it begins."""
    offsets: Any
    data: Any
    _, offsets, data = values.buffers()
    width: Any = np.int64 if pa.types.is_large_string(values.type) else np.int32
    if offsets is None or not offsets.size:
        return np.zeros(len(values) + 1, width), np.zeros(0, np.uint8)
    content = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return np.frombuffer(offsets, width)[values.offset : values.offset + len(values) + 1], content


def _read(text: Bytes) -> tuple[Int64s, Mask, Mask]:
    """Texts of one length, as columns of bytes -> local or UTC micros, bad, and whether they are local."""
    length, rows = text.shape
    micros, bad, is_local = np.zeros(rows, np.int64), np.ones(rows, np.bool_), np.ones(rows, np.bool_)
    for suffix, of_form in _suffixes(text):
        body = length - suffix
        if body != _SHORTEST and body not in _BODIES:
            continue
        whole = bool(of_form.all())
        part = text if whole else text[:, of_form]
        local, wrong = _read_body(part[:body])
        if suffix > 1:
            offset, wrong_offset = _read_offset(part[body:])
            local -= offset
            wrong |= wrong_offset
        local[wrong] = 0
        micros[of_form], bad[of_form], is_local[of_form] = local, wrong, suffix == 0
        if whole:
            break
    return micros, bad, is_local


def _suffixes(text: Bytes) -> list[tuple[int, Mask]]:
    """Which rows end in which length of an offset: none, Z, +HH, +HHMM, +HH:MM."""
    rest = np.ones(text.shape[1], np.bool_)
    found = []
    if len(text) >= _FIRST_ZONED:
        for suffix in (1, 6, 5, 3):
            if len(text) - suffix < min(_BODIES):
                continue
            mark = text[-suffix]
            is_mark = (mark | 0x20) == ord("z") if suffix == 1 else (mark == ord("+")) | (mark == ord("-"))
            here = is_mark & rest
            if here.any():
                found.append((suffix, here))
                rest &= ~here
                if not rest.any():
                    return found
    return [*found, (0, rest)]


def _read_body(text: Bytes) -> tuple[Int64s, Mask]:
    century, bad = _two_digits(text, 0)
    year, month, day = (_checked(text, at, bad) for at in (2, 5, 8))
    bad |= (text[4] != ord("-")) | (text[7] != ord("-")) | (month < 1) | (month > 12)
    months = (century.astype(np.int32) * 100 + year) * 12 + month - 1
    bad |= months < 12
    months[bad] = 12
    starts = _month_starts()
    days = starts[months] + day - 1
    bad |= (day < 1) | (days >= starts[months + 1])
    if len(text) == _SHORTEST:
        return days.astype(np.int64) * _DAY, bad
    hour, minute = _checked(text, 11, bad), _checked(text, 14, bad)
    bad |= ((text[10] | 0x20) != ord("t")) & (text[10] != ord(" ")) | (text[13] != ord(":")) | (hour > 23) | (minute > 59)
    seconds = hour.astype(np.int32) * 3_600 + minute.astype(np.int32) * 60
    if len(text) > 16:
        second = _checked(text, 17, bad)
        bad |= (text[16] != ord(":")) | (second > 59)
        seconds += second
    micros = days.astype(np.int64) * _DAY + seconds.astype(np.int64) * _SECOND
    if len(text) > 19:
        bad |= text[19] != ord(".")
        digits = text[20:] - np.uint8(48)
        bad |= (digits > 9).any(axis=0)
        for place, digit in zip((100_000, 10_000, 1_000, 100, 10, 1), digits, strict=False):
            micros += digit * np.int64(place)
    return micros, bad


def _read_offset(text: Bytes) -> tuple[Int64s, Mask]:
    """``+HH``, ``+HHMM`` or ``+HH:MM`` -> microseconds east of UTC."""
    hours, bad = _two_digits(text, 1)
    minutes = hours.astype(np.int64) * 60
    if len(text) > 3:
        more = _checked(text, len(text) - 2, bad)
        bad |= more > 59
        minutes += more
    if len(text) == 6:
        bad |= text[3] != ord(":")
    bad |= minutes > 18 * 60
    return np.where(text[0] == ord("-"), -minutes, minutes) * (60 * _SECOND), bad


def _two_digits(text: Bytes, at: int) -> tuple[Bytes, Mask]:
    """The number of two bytes, and where they are no digits; unsigned bytes wrap, so that one comparison finds both sides."""
    tens, ones = text[at] - np.uint8(48), text[at + 1] - np.uint8(48)
    return tens * np.uint8(10) + ones, (tens > 9) | (ones > 9)


def _checked(text: Bytes, at: int, bad: Mask) -> Bytes:
    value, wrong = _two_digits(text, at)
    bad |= wrong
    return value


@lru_cache(maxsize=1)
def _month_starts() -> npt.NDArray[np.int32]:
    """Days since 1970 of the first of each month, from January of year 0 to January of year 10000."""
    months = np.arange(-1970 * 12, (10_000 - 1970) * 12 + 1).astype("datetime64[M]")
    return months.astype("datetime64[D]").astype(np.int32)


# coarser times

_WITHIN_DAY = {"s": (_SECOND, 60), "min": (60 * _SECOND, 60), "h": (3_600 * _SECOND, 24)}
_MONTHS = {"mo": 1, "q": 3}
_WEEK = 7 * _DAY
_MONDAY = 4 * _DAY  # 1970-01-05


def check_floor(duration: Duration) -> None:
    """Raise ValueError (EV217) unless times can be floored to `duration`: a multiple must divide the next larger unit."""
    count, unit = duration.count, duration.unit
    if unit in _WITHIN_DAY:
        divided, of = _WITHIN_DAY[unit][1], {"s": "a minute", "min": "an hour", "h": "a day"}[unit]
        if divided % count:
            raise ValueError(f"EV217 floor: {duration} does not divide {of}; {divided} must be a multiple of {count}")
    elif unit in ("d", "w") and count != 1:
        raise ValueError(f"EV217 floor: days and weeks only one at a time, not {duration}")
    elif unit in _MONTHS and 12 % (count * _MONTHS[unit]):
        raise ValueError(f"EV217 floor: {duration} does not divide a year")
    elif unit == "y" and count > 1000:
        raise ValueError("EV103 floor: at most 1000y")


def floor_instants(micros: Int64s, duration: Duration, zone: str) -> Int64s:
    """Each instant's beginning of its second, minute, ... year in `zone`; the exact meaning of `floor`.

    ``s min h`` count on the wall clock at the instant's own offset. From ``d`` up it is the first instant that exists
    of the local day, week (from Monday), month, quarter or year; ``10y`` counts from year 0.

    Raises:
        ValueError: (EV217) the duration does not divide the next unit.
        LookupError: there is no such zone.
    """
    check_floor(duration)
    local = to_local(micros, zone)
    if duration.unit in _WITHIN_DAY:
        return micros - local % (duration.count * _WITHIN_DAY[duration.unit][0])
    start = _local_start(local, duration)
    return from_local(start, zone, skipped="later")[0]


def _local_start(local: Int64s, duration: Duration) -> Int64s:
    if duration.unit == "d":
        return local - local % _DAY
    if duration.unit == "w":
        return local - (local - _MONDAY) % _WEEK
    months = month_of(local)
    if duration.unit == "y":
        return start_of_month(months - (months + 1970 * 12) % (12 * duration.count))
    return start_of_month(months - months % (duration.count * _MONTHS[duration.unit]))


def month_of(local: Int64s) -> Int64s:
    """Whole months since January 1970 of wall-clock microseconds."""
    return (local // _DAY).astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)


def start_of_month(months: Int64s) -> Int64s:
    """Wall-clock microseconds of the first of the month, counted from January 1970."""
    return months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) * _DAY
