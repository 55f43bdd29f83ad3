"""floor: the beginning of a time's minute, day, month or the like."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import field_validator

from eventveil.schemas.durations import Duration
from eventveil.transforms.context import Context
from eventveil.transforms.operators._exact import nulls_of, numbers
from eventveil.transforms.registry import Operator, Setting, operator
from eventveil.transforms.times import check_floor, check_zone, floor_instants, outside, outside_calendar, to_micros

__all__ = ["Floor"]

_DAY = 86_400_000_000
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@operator("floor")
class Floor(Operator):
    """Cut a time down to the beginning of its minute, hour, day, month or year.

    Discloses the time to within `size`, and order and distances that are larger. Not reversible; joinable by the coarser
    time. Null stays null.

    Args:
        size: ``1s`` to ``30s``, ``1min`` to ``30min`` and ``1h`` to ``12h`` in numbers that divide the next unit, on the wall
            clock at the instant's offset; ``1d``, ``1w`` (from Monday), ``1mo 2mo 3mo 4mo 6mo``, ``1q 2q``, ``1y`` to ``1000y``: the
            first existing instant of the local period. For dates from ``1d`` up.
        zone: whose clock and calendar count; by default that of `event.time`. Times without zone are taken as the wall clock.

    Raises:
        EV112: the zone is unknown (when the policy is compiled).
        EV103: `size` is more than 1000y (when the policy is compiled).
        EV217: `size` does not divide the next unit, or is shorter than the day of a date (when the policy is compiled).
        EV529: the time or its beginning lies outside years 0001 to 9999, or its beginning outside what nanoseconds can hold.

    Example:
        {floor: 1min}: "2014-09-04T22:57:55Z" -> "2014-09-04T22:57:00Z", null -> null
        {floor: {size: 1d, zone: Europe/London}}: "2014-09-04T22:57:55Z" -> "2014-09-03T23:00:00Z"
    """

    short = "size"
    may_return_input = True
    refusals = ("EV529",)

    size: Duration
    zone: str | None = None

    @field_validator("size")
    @classmethod
    def _divides(cls, size: Duration) -> Duration:
        check_floor(size)
        return size

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str | None) -> str | None:
        if zone is not None and not check_zone(zone):
            raise ValueError(f"EV112 unknown time zone {zone!r}")
        return zone

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        return given if pa.types.is_timestamp(given) or pa.types.is_date32(given) else None

    def settle(self, setting: Setting) -> Operator:
        if pa.types.is_date32(setting.given) and self.size.unit in ("s", "min", "h"):
            raise ValueError(f"EV217 a date has no {self.size}; floor it to 1d or more")
        return self if self.zone is not None else self.model_copy(update={"zone": setting.zone})

    def discloses(self) -> str:
        return f"the time to within {self.size}"

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        nulls = nulls_of(values)
        if pa.types.is_date32(values.type):
            days = numbers(values.cast(pa.int32())).astype(np.int64)
            bad = outside_calendar(values)
            start = floor_instants(np.where(bad, 0, days) * _DAY, self.size, "UTC")
            bad |= outside(start, local=True)
            context.refuse(bad, "EV529")
            floored = np.where(bad, 0, start) // _DAY
            dates: pa.Array[Any] = pa.array(floored.astype(np.int32), pa.int32(), mask=nulls).cast(values.type)
            return dates
        micros, bad = to_micros(values)
        zone = "UTC" if values.type.tz is None else self.zone or "UTC"
        start = floor_instants(micros, self.size, zone)
        bad |= outside(start, local=values.type.tz is None)
        floored, too_early = _in_unit(np.where(bad, 0, start), values.type.unit)
        context.refuse(bad | too_early, "EV529")
        instants: pa.Array[Any] = pa.array(floored, pa.int64(), mask=nulls).cast(values.type)
        return instants


def _in_unit(micros: npt.NDArray[np.int64], unit: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Microseconds in a column's unit; they are whole there. Only nanoseconds can be too far, and then only backwards."""
    if unit != "ns":
        return micros // (1_000_000 // _PER_SECOND[unit]), np.zeros(len(micros), np.bool_)
    too_early = micros < -(2**63) // 1_000 + 1
    return np.where(too_early, 0, micros) * 1_000, too_early
