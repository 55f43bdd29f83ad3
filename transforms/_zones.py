"""Time zones as sorted tables, read from the IANA database by ourselves.

pyarrow looks a zone up in the system's database only, fails without one even for UTC, and quotes values when a local
time does not exist; `zoneinfo` answers one instant at a time. A TZif file (RFC 9636) is small and its meaning is
fixed, so we read it: from the folders of `zoneinfo.TZPATH`, else from the package `tzdata`.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any
from zoneinfo import TZPATH

import numpy as np
import numpy.typing as npt

__all__ = ["Zone", "load_zone"]

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_SECOND = 1_000_000
_DAY_S = 86_400
# The Gregorian calendar, and with it every yearly rule, repeats after 400 years: a whole number of weeks.
_PERIOD = 146_097 * _DAY_S * _SECOND
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*\Z")
# Names that mean another zone on another machine, or count leap seconds.
_NOT_ZONES = re.compile(r"(localtime|posixrules|Factory)\Z|(posix|right)/")


@dataclass(frozen=True, eq=False)
class Zone:
    """The offsets of one zone, in microseconds.

    Attributes:
        at: the instants at which the offset changes, ascending.
        offsets: offsets[i] holds before at[i]; one more than `at`.
        local: the local times from which offsets[i + 1] is tried: of a repeated hour its end, so that the earlier instant wins.
        end: from here on the table repeats with the calendar's period; None where the last offset holds for ever.
    """

    at: Int64s
    offsets: Int64s
    local: Int64s
    end: int | None

    def to_local(self, micros: Int64s) -> Int64s:
        """Instants -> wall-clock times."""
        local: Int64s = micros + self._offsets_at(micros, self.at)
        return local

    def from_local(self, local: Int64s) -> tuple[Int64s, Mask]:
        """Wall-clock times -> instants, and which local times are skipped; these get the first instant after the gap."""
        if not len(self.at):
            return local - self.offsets[0], np.zeros(len(local), np.bool_)
        folded, periods = self._fold(local)
        index = np.searchsorted(self.local, folded, side="right")
        micros = folded - self.offsets[index]
        change: Any = np.append(self.at, np.iinfo(np.int64).max)[index]
        skipped: Mask = np.asarray(micros >= change)
        found: Any = np.where(skipped, change, micros) + periods
        return found, skipped

    def _offsets_at(self, times: Int64s, changes: Int64s) -> Any:
        if not len(times) or not len(changes):
            return self.offsets[0]
        folded, _ = self._fold(times)
        # The times of a batch mostly lie between two changes: one search instead of one per value.
        first, last = np.searchsorted(changes, [folded.min(), folded.max()], side="right")
        if first == last:
            return self.offsets[first]
        return self.offsets[np.searchsorted(changes, folded, side="right")]

    def _fold(self, times: Int64s) -> tuple[Int64s, Int64s | int]:
        """Times behind the table's end, moved back by whole periods, and by how much."""
        if self.end is None or not len(times) or times.max() < self.end:
            return times, 0
        beyond = times >= self.end
        periods = np.where(beyond, (times - self.end) // _PERIOD + 1, 0) * _PERIOD
        return times - periods, periods


@lru_cache(maxsize=64)
def load_zone(name: str) -> Zone:
    """The table of an IANA zone. Raises LookupError if there is none of that name; the text holds the name only."""
    if name in ("UTC", "Etc/UTC"):
        return _zone([], [0], None)
    if not _NAME.match(name) or _NOT_ZONES.match(name):
        raise LookupError(f"no time zone {name!r}")
    for folder in TZPATH:
        path = Path(folder, name)
        if path.is_file():
            return _parse(path.read_bytes(), name)
    try:
        packaged = resources.files("tzdata").joinpath("zoneinfo", *name.split("/"))
        content = packaged.read_bytes()
    except (ImportError, OSError):
        raise LookupError(f"no time zone {name!r}") from None
    return _parse(content, name)


def _parse(data: bytes, name: str) -> Zone:
    """Read a TZif file of version 2 or later: header, a block of 32-bit data that is skipped, header, block, footer."""
    header = struct.Struct(">4sc15x6l")
    try:
        magic, version, utc, std, leap, changes, types, chars = header.unpack_from(data)
        skipped = header.size + changes * 5 + types * 6 + chars + leap * 8 + std + utc
        if magic != b"TZif" or version < b"2":
            raise ValueError
        _, _, utc, std, leap, changes, types, chars = header.unpack_from(data, skipped)
        if leap:
            raise ValueError
        start = skipped + header.size
        at = np.frombuffer(data, ">i8", changes, start).astype(np.int64)
        codes = np.frombuffer(data, np.uint8, changes, start + changes * 8)
        kinds = [struct.unpack_from(">l", data, start + changes * 9 + 6 * number)[0] for number in range(types)]
        footer = data[start + changes * 9 + types * 6 + chars + std + utc :].strip(b"\n").decode("ascii")
        offsets = [kinds[0], *(kinds[code] for code in codes)]
    except (struct.error, ValueError, IndexError):
        raise LookupError(f"time zone {name!r} is not a TZif file of version 2 or later") from None
    # zic may write a first change at the beginning of time; nothing lies before it, and its seconds overflow as microseconds.
    keep = at > np.iinfo(np.int64).min // _SECOND // 2
    first = int(len(keep) - keep.sum())
    at, offsets = at[first:], offsets[first:]
    rule = _yearly(footer)
    if rule is None:
        return _zone(at.tolist(), offsets, None)
    last = int(at[-1]) if len(at) else -(1 << 62)
    year = 1970 + last // 31_556_952 if len(at) else 1970
    more = [change for change in _changes(rule, year - 1, year + 402) if change[0] > last]
    end = _days_to_month(year + 401, 1) * _DAY_S * _SECOND
    return _zone(at.tolist() + [second for second, _ in more], offsets + [offset for _, offset in more], end)


def _zone(at_s: list[int], offsets_s: list[int], end: int | None) -> Zone:
    at = np.array(at_s, np.int64) * _SECOND
    offsets = np.array(offsets_s, np.int64) * _SECOND
    moved = np.flatnonzero(offsets[1:] != offsets[:-1])
    at, offsets = at[moved], offsets[np.append(0, moved + 1)]
    local = np.maximum.accumulate(at + np.maximum(offsets[:-1], offsets[1:])) if len(at) else at
    return Zone(at, offsets, local, end)


# The footer, a POSIX TZ string with RFC 9636's wider hours: std offset [dst [offset] , start , end]
_ABBREVIATION = r"(?:<[A-Za-z0-9+-]+>|[A-Za-z]+)"
_HOURS = r"[+-]?\d{1,3}(?::\d{2}){0,2}"
_DATE = r"(?:M\d{1,2}\.\d\.\d|J?\d{1,3})"
_FOOTER = re.compile(
    f"{_ABBREVIATION}(?P<std>{_HOURS})"
    f"(?:{_ABBREVIATION}(?P<dst>{_HOURS})?,(?P<start>{_DATE})(?:/(?P<start_at>{_HOURS}))?,(?P<end>{_DATE})(?:/(?P<end_at>{_HOURS}))?)?\\Z"
)


@dataclass(frozen=True)
class _Rule:
    standard: int
    summer: int
    start: tuple[str, int]
    end: tuple[str, int]


def _yearly(footer: str) -> _Rule | None:
    """The rule of a zone that changes every year; None if it does not."""
    found = _FOOTER.match(footer)
    if found is None or found["start"] is None:
        return None
    standard = -_seconds(found["std"])
    summer = standard + 3600 if found["dst"] is None else -_seconds(found["dst"])
    return _Rule(standard, summer, (found["start"], _seconds(found["start_at"] or "2")), (found["end"], _seconds(found["end_at"] or "2")))


def _seconds(text: str) -> int:
    parts = [int(part) for part in text.lstrip("+-").split(":")]
    return (-1 if text[0] == "-" else 1) * sum(part * scale for part, scale in zip(parts, (3600, 60, 1), strict=False))


def _changes(rule: _Rule, first_year: int, end_year: int) -> list[tuple[int, int]]:
    """(instant in seconds, offset from then on), ascending. A few hundred years, once per zone."""
    found = []
    for year in range(first_year, end_year):
        found.append((_day_of(rule.start[0], year) * _DAY_S + rule.start[1] - rule.standard, rule.summer))
        found.append((_day_of(rule.end[0], year) * _DAY_S + rule.end[1] - rule.summer, rule.standard))
    return sorted(found)


def _day_of(date: str, year: int) -> int:
    """Days since 1970 of ``Mmonth.week.weekday``, ``Jday`` (1 to 365, never 29 February) or ``day`` (from 0)."""
    january = _days_to_month(year, 1)
    if date[0] == "M":
        month, week, weekday = map(int, date[1:].split("."))
        start = _days_to_month(year, month)
        day = start + (weekday - (start + 4)) % 7 + 7 * (week - 1)
        following = _days_to_month(year + month // 12, month % 12 + 1)
        return day if day < following else day - 7
    if date[0] == "J":
        day = int(date[1:])
        leap = _days_to_month(year, 3) - january == 60
        return january + day - 1 + (leap and day >= 60)
    return january + int(date)


def _days_to_month(year: int, month: int) -> int:
    before = year - 1
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    days = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)[month - 1] + (leap and month > 2)
    return before * 365 + before // 4 - before // 100 + before // 400 + days - 719_162
