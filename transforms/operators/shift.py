"""shift: move a time by a keyed random amount."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import PrivateAttr, field_validator

from eventveil.schemas.durations import Duration
from eventveil.transforms.context import Context
from eventveil.transforms.noise.draw import uniform, uniform_distance
from eventveil.transforms.noise.drawn import Drawn
from eventveil.transforms.registry import Operator, Setting, operator
from eventveil.transforms.times import outside, outside_calendar, to_local

__all__ = ["Shift"]

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_DAY = 86_400_000_000
_LONGEST = 366 * 1000 * _DAY
# Ticks per unit of the column's type, in microseconds; nanoseconds are cut first, see `_ticks`.
_TICK = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}


@operator("shift")
class Shift(Drawn):
    """Move a time by a random number of ticks, uniform from -within to +within.

    Discloses the time up to `within`; order and distance of times far enough apart. Not reversible without the key;
    who holds the key can undo it. Not joinable by itself. The value does not enter the draw: a corrected time moves as
    far as the first one. Null stays null.

    Ticks are microseconds, or the type's own where these are longer; days for dates. Finer digits of nanoseconds
    are cut off first: left as they are, they would mark the event. The leaf of `event.time` is reflected at the bounds
    of its release window, which names and headers disclose.

    Args:
        within: a length in s, min, h, d or w, at most 1,000 years; whole days for dates; for `event.time` at most the
            shortest release window.
        per: ``event`` (fresh for every event and element) or ``subject`` (all times of a subject move alike).
        together: a label; rules of one event with the same label and parameters move alike, so that their distance stays.

    Raises:
        EV213: the event time may move further than its release window is wide (when the policy is compiled).
        EV217: a date is shifted by parts of a day (when the policy is compiled).
        EV529: a time leaves the years 1 to 9999 (reflected first, where it is), or its type.

    Example (keyed):
        {shift: {within: 10min, per: event}}: 2014-09-04T22:57:55 -> 2014-09-04T23:02:17.482913
    """

    refusals = ("EV529",)

    within: Duration

    _reflects: bool = PrivateAttr(False)
    _zone: str = PrivateAttr("UTC")

    @field_validator("within")
    @classmethod
    def _of_fixed_length(cls, within: Duration) -> Duration:
        if within.fixed_us is None:
            raise ValueError("EV103 a shift has a fixed length: write it in s, min, h, d or w")
        if within.fixed_us > _LONGEST:
            raise ValueError("EV103 a shift is at most 366000d")
        return within

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        return given if pa.types.is_timestamp(given) or pa.types.is_date32(given) else None

    def needs(self) -> frozenset[str]:
        return super().needs() | ({"time"} if self._reflects else frozenset())

    def settle(self, setting: Setting) -> Operator:
        if pa.types.is_date32(setting.given) and self._within % _DAY:
            raise ValueError(f"EV217 a date moves by whole days, and within is {self.within}")
        settled = self.model_copy()
        if setting.is_event_time and setting.window is not None:
            if self._within > setting.window.shortest_us:
                raise ValueError(f"EV213 within is {self.within}, and the release window {setting.window}")
            settled._reflects, settled._zone = True, setting.zone
        return settled

    def discloses(self) -> str:
        return f"the time to within {self.within}"

    def warnings(self, setting: Setting) -> Sequence[str]:
        said = [] if setting.is_event_time else self.averages_out()  # every event has a time of its own
        if self.per == "subject":
            said.append("all times of a subject move alike: one that is known discloses the others")
        elif self.together is not None:
            said.append("times that move together keep their exact distance")
        return said

    def total_variation(self, given: pa.DataType) -> float:
        """Distance between the drawn shift and the exact uniform one."""
        return uniform_distance(2 * (self._within // _tick(given)) + 1)

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        kind: Any = values.type
        tick = _tick(kind)
        within = self._within // tick
        valid = values.is_valid().to_numpy(zero_copy_only=False).astype(bool)
        lost = outside_calendar(values)
        # What the calendar holds leaves room in int64 for any draw, and for the bounds of any window.
        ticks = np.where(lost, 0, _ticks(values))
        moved = ticks + (uniform(self.draw(context, None), 2 * within + 1) - within)
        if self._reflects:
            start, end = self._window(context, kind)
            moved = _reflected(moved, start // tick, -(-end // tick))
        lost |= outside(moved * tick, local=not pa.types.is_timestamp(kind) or kind.tz is None)
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            lost |= np.abs(moved) > (1 << 63) // 1000 - 1
            moved = np.where(lost, 0, moved) * 1000
        context.refuse(lost & valid, "EV529")
        moved = np.where(valid & ~lost, moved, 0)
        width = np.int32 if pa.types.is_date32(kind) else np.int64
        result: pa.Array[Any] = pa.array(moved.astype(width), mask=~valid).view(kind)
        return result

    @property
    def _within(self) -> int:
        assert self.within.fixed_us is not None
        return self.within.fixed_us

    def _window(self, context: Context, kind: pa.DataType) -> tuple[Int64s, Int64s]:
        """The bounds of each value's release window: on the wall clock, where the value is a local time or a date."""
        start, end = context.window_bounds()
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            return start, end
        return to_local(start, self._zone), to_local(end, self._zone)


def _tick(kind: Any) -> int:
    """The length of a tick in microseconds."""
    return _DAY if pa.types.is_date32(kind) else _TICK[kind.unit]


def _ticks(values: Any) -> Int64s:
    """Values as whole ticks since 1970; any number under a null."""
    whole = values.view(pa.int32() if pa.types.is_date32(values.type) else pa.int64()).fill_null(0)
    numbers: Int64s = np.array(whole.to_numpy(zero_copy_only=False), np.int64)
    if pa.types.is_timestamp(values.type) and values.type.unit == "ns":
        numbers //= 1000
    return numbers


def _reflected(ticks: Int64s, start: Int64s, end: Int64s) -> Int64s:
    """Below `start` t becomes 2 start - t, from `end` on 2 end - 1 - t, until it lies between them: in closed form."""
    width = np.maximum(end - start, 1)
    # Two reflections in a row move by 2 width - 1.
    place = np.abs(ticks - start) % (2 * width - 1)
    reflected: Int64s = start + np.where(place < width, place, 2 * width - 1 - place)
    return reflected
