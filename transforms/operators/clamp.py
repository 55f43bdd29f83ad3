"""clamp: values outside a range become its ends."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, TypeAdapter, WithJsonSchema, field_validator, model_validator

from eventveil.transforms.context import Context
from eventveil.transforms.operators._exact import Number, in_units, is_decimal, is_number, numbers, plain
from eventveil.transforms.registry import Operator, Setting, operator
from eventveil.transforms.times import check_zone, instants, outside_calendar, parse_iso

__all__ = ["Clamp"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar
_NUMBER: TypeAdapter[Decimal] = TypeAdapter(Number)
_DATE = "YYYY-MM-DD"
_OFFSET = re.compile(r"([Zz]|[+-][0-9]{2}(:?[0-9]{2})?)\Z")
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def _time_or_number(given: Any) -> Any:
    return given if isinstance(given, str) and _is_time(given) else _NUMBER.validate_python(given)


def _is_time(text: str) -> bool:
    return text.isascii() and not parse_iso(pa.array([text]), "UTC")[1][0]


_Bound: TypeAlias = Annotated[
    Decimal | str, BeforeValidator(_time_or_number), WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]})
]


@operator("clamp")
class Clamp(Operator):
    """Bring a number or a time into a range: what lies outside becomes the nearer end.

    Discloses the value itself within the range, and beyond it that it lies outside. Joinable. Null stays null.

    Args:
        min: the least value that is left, inclusive; a number, or ISO 8601 text for times and dates.
        max: the largest value that is left, inclusive. At least one of the two.
        zone: of times written without offset; by default that of `event.time`. Fields without zone take such times only.

    Raises:
        EV112: the zone is unknown (when the policy is compiled).
        EV217: an end is not of the field's type, or does not fit into it without loss (when the policy is compiled).
        EV528: the value is not a number, or is infinite on a side without an end.
        EV529: the time lies outside years 0001 to 9999 on a side without an end.

    Example:
        {clamp: {min: 0, max: 100}}: 17 -> 17, -3 -> 0, 250 -> 100, null -> null
        {clamp: {min: "2014-01-01"}}: "2013-09-04T22:57:55Z" -> "2014-01-01T00:00:00Z"
    """

    may_return_input = True
    refusals = ("EV528", "EV529")

    min: _Bound | None = None
    max: _Bound | None = None
    zone: str | None = None

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str | None) -> str | None:
        if zone is not None and not check_zone(zone):
            raise ValueError(f"EV112 unknown time zone {zone!r}")
        return zone

    @model_validator(mode="after")
    def _a_range(self) -> Clamp:
        if self.min is None and self.max is None:
            raise ValueError("EV104 give min, max or both")
        if self.min is not None and self.max is not None and isinstance(self.min, str) != isinstance(self.max, str):
            raise ValueError("EV103 min is a number and max a time, or the other way round")
        if isinstance(self.min, Decimal) and isinstance(self.max, Decimal) and self.min > self.max:
            raise ValueError("EV103 min is more than max")
        return self

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        as_numbers = any(isinstance(end, Decimal) for end in (self.min, self.max))
        as_times = any(isinstance(end, str) for end in (self.min, self.max))
        if pa.types.is_timestamp(given) or pa.types.is_date32(given):
            return None if as_numbers else given
        return given if is_number(given) and not as_times else None

    def settle(self, setting: Setting) -> Operator:
        here = self if self.zone is not None else self.model_copy(update={"zone": setting.zone})
        low, high = here._end(self.min, setting.given), here._end(self.max, setting.given)
        if low is not None and high is not None and _pc.greater(low, high).as_py():
            raise ValueError("EV217 min is more than max")
        return here

    def discloses(self) -> str:
        return "the value itself within the range"

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        low, high = self._end(self.min, values.type), self._end(self.max, values.type)
        if low is not None:
            values = _pc.if_else(_pc.less(values, low), low, values)
        if high is not None:
            values = _pc.if_else(_pc.greater(values, high), high, values)
        if pa.types.is_floating(values.type):
            bad = ~np.isfinite(numbers(values))
            if bad.any():
                context.refuse(bad, "EV528")
        elif pa.types.is_temporal(values.type):
            context.refuse(outside_calendar(values), "EV529")
        return values

    def _end(self, bound: Decimal | str | None, given: Any) -> Any:
        """An end as a scalar of the column's type. Raises ValueError (EV217) if it does not fit."""
        if bound is None:
            return None
        if isinstance(bound, str):
            return self._time(bound, given)
        if pa.types.is_floating(given):
            with np.errstate(over="ignore"):
                made = np.float32(float(bound)) if pa.types.is_float32(given) else float(bound)
            if not np.isfinite(made):
                raise ValueError(f"EV217 {given} does not hold {plain(bound)}")
            return pa.scalar(float(made), given)
        scaled = in_units(bound, given)
        try:
            if scaled.denominator == 1:
                return pa.scalar(bound if is_decimal(given) else scaled.numerator, given)
        except (pa.ArrowInvalid, OverflowError):
            pass
        raise ValueError(f"EV217 {given} does not hold {plain(bound)}")

    def _time(self, text: str, given: Any) -> Any:
        written = pa.array([text])
        if pa.types.is_date32(given) or given.tz is None:
            micros, bad, skipped = parse_iso(written, "UTC")
        else:
            micros, bad, skipped = instants(written, self.zone or "UTC", None)
        if pa.types.is_date32(given):
            if len(text) == len(_DATE):
                return pa.scalar(int(micros[0]) // 86_400_000_000, pa.int32()).cast(given)
            raise ValueError(f"EV217 {text} is not a date")
        if bad[0] or skipped[0] or (given.tz is None and _OFFSET.search(text, len(_DATE))):
            raise ValueError(f"EV217 {text} is not a time of a field of {given}")
        count = Fraction(int(micros[0]) * _PER_SECOND[given.unit], 1_000_000)
        if count.denominator != 1 or not -(2**63) <= count < 2**63:
            raise ValueError(f"EV217 {given} does not hold {text}")
        return pa.scalar(count.numerator, pa.int64()).cast(given)
