"""replace: one stated value in place of every value."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
from pydantic import Field, field_validator

from eventveil.transforms.context import Context
from eventveil.transforms.registry import Operator, operator

__all__ = ["Replace"]

_TYPES: dict[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
_FITS: dict[type, tuple[Callable[[pa.DataType], bool], ...]] = {
    bool: (pa.types.is_boolean,),
    int: (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
    float: (pa.types.is_floating,),
    str: (pa.types.is_string,),
}


@operator("replace")
class Replace(Operator):
    """Replace every value, and every null, with one stated value.

    Discloses nothing, not even which values were missing; in a list, how many elements there were. Not reversible.
    The result is never null.

    Args:
        with: a boolean, whole number (64 bits), finite number or text. The field keeps its type if the value fits into it without
            loss; else the field becomes bool, int64, float64 or string.

    Example:
        {replace: {with: hidden}}: "Ufa" -> "hidden", null -> "hidden"
        {replace: 0}: 17 -> 0, "text" -> 0
    """

    short = "with"

    with_: bool | int | float | str = Field(alias="with")

    @field_validator("with_", mode="before")
    @classmethod
    def _can_be_written(cls, literal: Any) -> Any:
        if not isinstance(literal, bool | int | float | str):
            raise ValueError("EV103 write a text, a number or a boolean")
        if isinstance(literal, float) and not math.isfinite(literal):
            raise ValueError("EV103 with is not a finite number")
        if isinstance(literal, int) and not -(2**63) <= literal < 2**63:
            raise ValueError("EV103 with is outside 64 bits")
        if isinstance(literal, str) and not literal.isascii():
            try:
                literal.encode()
            except UnicodeEncodeError:
                raise ValueError("EV103 with is not valid Unicode text") from None
        return literal

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        if self._fits(given):
            return given
        return _TYPES[type(self.with_)]

    def nullable(self, given: bool) -> bool:
        return False

    def discloses(self) -> str:
        return "nothing of the value"

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        wanted = self.returns(values.type)
        assert wanted is not None
        same: pa.Array[Any] = pa.repeat(self._scalar(wanted), len(values))
        return same

    def _scalar(self, wanted: pa.DataType) -> Any:
        if pa.types.is_decimal(wanted):
            return pa.scalar(Decimal(self.with_), wanted)
        return pa.scalar(float(self.with_) if pa.types.is_floating(wanted) else self.with_, wanted)

    def _fits(self, given: pa.DataType) -> bool:
        if not any(accepts(given) for accepts in _FITS[type(self.with_)]):
            return False
        try:
            return bool(self._scalar(given).as_py() == self.with_)
        except (pa.ArrowInvalid, OverflowError):
            return False
