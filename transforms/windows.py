"""Windows: which one an instant falls into, and when it begins and ends.

Windows are contiguous, begin on the wall clock of a zone, and are numbered from the one that holds 1970-01-01
(weeks: that begins on Monday 1970-01-05). Lengths in s, min and h are divisions. Days and longer are calendar
windows: in a zone a day may have 23 or 25 hours, or begin at one o'clock, so their boundaries are looked up, for the few
periods that a batch touches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eventveil.schemas.durations import Duration
from eventveil.transforms.times import from_local, month_of, start_of_month, to_local

__all__ = ["WindowRule"]

Int64s = npt.NDArray[np.int64]

_DAY = 86_400_000_000
_FIRST_MONDAY = 4


@dataclass(frozen=True)
class WindowRule:
    """Windows of one length, in one zone.

    Attributes:
        duration: any count of s, min, h, d, w, mo, q, y.
        zone: IANA name: whose midnights, Mondays and months count. Unknown: LookupError on first use.

    Instants are microseconds since 1970 UTC, in years 0001 to 9999.
    """

    duration: Duration
    zone: str = "UTC"

    def index(self, micros: Int64s) -> Int64s:
        """The number of the window of each instant; it never falls as time goes on."""
        size = self._fixed_us()
        if size is not None:
            return (micros - self._origin()) // size
        periods = self._period_of(to_local(micros, self.zone))
        if self.zone == "UTC":
            return periods
        # Where the clock goes back over midnight, the local date returns to a day whose successor has begun already:
        # instants are compared with the beginning of the next period, or windows would interleave.
        return periods + (micros >= _for_distinct(self._start, periods + 1))

    def bounds(self, index: Int64s) -> tuple[Int64s, Int64s]:
        """First instant and end (the first instant behind it) of each window. A day that a zone left out is empty."""
        size = self._fixed_us()
        if size is not None:
            start = index * size + self._origin()
            return start, start + size
        return _for_distinct(self._start, index), _for_distinct(self._start, index + 1)

    def _fixed_us(self) -> int | None:
        calendar = self.duration.unit in ("d", "w") and self.zone != "UTC"
        return None if calendar else self.duration.fixed_us

    def _origin(self) -> int:
        day = _FIRST_MONDAY if self.duration.unit == "w" else 0
        return int(from_local(np.array([day * _DAY]), self.zone, skipped="later")[0][0])

    def _period_of(self, local: Int64s) -> Int64s:
        """The number of the period that the wall clock shows."""
        months = self.duration.months
        if months is not None:
            return month_of(local) // months
        if self.duration.unit == "w":
            return (local - _FIRST_MONDAY * _DAY) // (7 * _DAY * self.duration.count)
        return local // (_DAY * self.duration.count)

    def _start(self, periods: Int64s) -> Int64s:
        """The first existing instant of each period."""
        months = self.duration.months
        if months is not None:
            local = start_of_month(periods * months)
        elif self.duration.unit == "w":
            local = (periods * (7 * self.duration.count) + _FIRST_MONDAY) * _DAY
        else:
            local = periods * (self.duration.count * _DAY)
        return from_local(local, self.zone, skipped="later")[0]


def _for_distinct(function: Callable[[Int64s], Int64s], numbers: Int64s) -> Int64s:
    """function(numbers), called for the numbers that occur, or for their whole range where that is small."""
    if not len(numbers):
        return numbers
    low, high = int(numbers.min()), int(numbers.max())
    if high - low <= 1_000:
        return function(np.arange(low, high + 1))[numbers - low]
    distinct, codes = np.unique(numbers, return_inverse=True)
    return function(distinct)[codes]
