"""allow: let only listed values pass."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from eventveil.transforms.context import Context
from eventveil.transforms.registry import Operator, Placing, Setting, operator

__all__ = ["Allow"]


@operator("allow")
class Allow(Placing):
    """Let the listed values pass unchanged, and no other.

    Discloses the value itself where it is listed; with ``otherwise: nullify`` or ``other`` also that it is not.
    Joinable. Null stays null and is not looked up.

    Args:
        values: at least one, each of the field's type: text, whole numbers or booleans. Text is compared code point
            by code point.
        otherwise: ``refuse`` the event, ``nullify`` the value, or write the text ``other`` (text fields only).

    Raises:
        EV217: a listed value is not of the field's type, or no symbol of its enum (when the policy is compiled).
        EV520: a value is not listed.

    Example:
        {allow: {values: [EUR, USD], otherwise: other}}: "EUR" -> "EUR", "XAU" -> "other", null -> null
        {allow: [1, 2]}: 1 -> 1, 7 -> refused EV520
    """

    short = "values"
    may_return_input = True
    refusals = ("EV520",)

    values: tuple[bool | int | str, ...] = Field(strict=False, min_length=1)

    @field_validator("values", mode="before")
    @classmethod
    def _scalars(cls, given: Any) -> Any:
        if isinstance(given, list | tuple) and not all(isinstance(value, bool | int | str) for value in given):
            raise ValueError("EV103 write texts, whole numbers or booleans")
        return given

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: tuple[bool | int | str, ...]) -> tuple[bool | int | str, ...]:
        if len({(type(value), value) for value in values}) < len(values):
            raise ValueError("EV103 a value is listed twice")
        return values

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        accepted = pa.types.is_string(given) or pa.types.is_integer(given) or pa.types.is_boolean(given)
        return given if accepted else None

    def settle(self, setting: Setting) -> Operator:
        kind: Any = str if pa.types.is_string(setting.given) else bool if pa.types.is_boolean(setting.given) else int
        wrong = [place for place, value in enumerate(self.values, 1) if type(value) is not kind]
        if wrong:
            raise ValueError(f"EV217 value {wrong[0]} of allow does not have the field's type, {setting.given}")
        try:
            pa.array(self.values, setting.given)
        except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):
            raise ValueError(f"EV217 a value of allow cannot be written as {setting.given}") from None
        strange = [place for place, value in enumerate(self.values, 1) if setting.symbols and value not in setting.symbols]
        if strange:
            raise ValueError(f"EV217 value {strange[0]} of allow is no symbol of the enum: {', '.join(setting.symbols)}")
        return super().settle(setting)

    def discloses(self) -> str:
        return "the value itself, one of those listed"

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        listed = pc.is_in(values, value_set=pa.array(self.values, values.type))
        return self.place(values, pc.and_(pc.invert(listed), pc.is_valid(values)), context)
