"""cast: another type, if nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from pydantic import field_validator

from eventveil.transforms.context import Context
from eventveil.transforms.operators._casts import CASTS
from eventveil.transforms.operators._exact import is_decimal, nulls_of
from eventveil.transforms.registry import Operator, Placing, Setting, operator
from eventveil.transforms.times import check_zone

__all__ = ["Cast"]

_NAMES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
    "date32": pa.date32(),
    "timestamp[us]": pa.timestamp("us", "UTC"),
}
_DECIMAL = re.compile(r"decimal128\(([0-9]{1,2}), ?([0-9]{1,2})\)\Z", re.ASCII)


@operator("cast")
class Cast(Placing):
    """Give a value another type, if the value survives it without loss.

    Discloses the value: it covers no field by itself. Null stays null.

    Text is read strictly: numbers as JSON writes them (no sign ``+``, no zeros in front, no white space; an exponent for floats
    only), ``true`` and ``false``, ISO 8601 times and dates. A float takes a decimal or a text whose digits its shortest text has.
    Numbers become their shortest exact text, decimals without exponent, times ISO 8601 as in JSON output.

    Args:
        to: ``bool int32 int64 float32 float64 string binary date32 timestamp[us]`` or ``decimal128(precision, scale)``.
        zone: of times written without offset, and of the days of instants; by default that of `event.time`.
        otherwise: ``refuse`` the event, ``nullify`` the value, or (to string) write the text ``other``, where something would
            be lost.

    Raises:
        EV103: `to` is no such type (when the policy is compiled).
        EV112: the zone is unknown (when the policy is compiled).
        EV524: the value cannot be cast without loss.

    Example:
        {cast: string}: 17 -> "17", 0.5 -> "0.5", true -> "true", null -> null
        {cast: int64}: "17" -> 17, "017" -> refused EV524, 2.5 -> refused EV524
        {cast: "timestamp[us]"}: "2014-09-04T22:57:55+02:00" -> "2014-09-04T20:57:55Z"
    """

    short = "to"
    may_return_input = True
    covers = False
    refusals = ("EV524",)

    to: str
    zone: str | None = None

    @field_validator("to")
    @classmethod
    def _named(cls, to: str) -> str:
        if _wanted(to) is None:
            raise ValueError(f"EV103 cast to one of {', '.join(_NAMES)}, decimal128(precision, scale)")
        return to

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str | None) -> str | None:
        if zone is not None and not check_zone(zone):
            raise ValueError(f"EV112 unknown time zone {zone!r}")
        return zone

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        wanted = _wanted(self.to)
        assert wanted is not None
        if pa.types.is_timestamp(given) and pa.types.is_timestamp(wanted):
            return pa.timestamp("us", given.tz)
        return wanted if given.equals(wanted) or (_kind(given), _kind(wanted)) in CASTS else None

    def settle(self, setting: Setting) -> Operator:
        super().settle(setting)
        return self if self.zone is not None else self.model_copy(update={"zone": setting.zone})

    def discloses(self) -> str:
        return f"the value itself, as {self.to}"

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        wanted: Any = self.returns(values.type)
        if values.type.equals(wanted):
            return values
        made, misplaced = CASTS[_kind(values.type), _kind(wanted)](values, wanted, self.zone or "UTC")
        nulls = nulls_of(values)
        return self.place(made, misplaced if nulls is None else misplaced & ~nulls, context)


def _wanted(name: str) -> pa.DataType | None:
    found = _DECIMAL.match(name)
    if found is None:
        return _NAMES.get(name)
    precision, scale = int(found[1]), int(found[2])
    return pa.decimal128(precision, scale) if 1 <= precision <= 38 and scale <= precision else None


def _kind(given: pa.DataType) -> str:
    kinds: dict[str, Callable[[Any], bool]] = {
        "bool": pa.types.is_boolean,
        "int": pa.types.is_integer,
        "float": lambda of: pa.types.is_float32(of) or pa.types.is_float64(of),
        "decimal": is_decimal,
        "text": pa.types.is_string,
        "binary": lambda of: pa.types.is_binary(of) or pa.types.is_fixed_size_binary(of),
        "date": pa.types.is_date32,
        "timestamp": pa.types.is_timestamp,
    }
    return next((kind for kind, accepts in kinds.items() if accepts(given)), "other")
