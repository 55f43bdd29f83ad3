"""Durations as policies write them: a whole number and a unit of s min h d w mo q y."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

__all__ = ["Duration"]

_FIXED_US = {
    "s": 1_000_000,
    "min": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
_MONTHS = {"mo": 1, "q": 3, "y": 12}
_FORM = re.compile(r"([1-9][0-9]{0,8})(s|min|h|d|w|mo|q|y)\Z")


@dataclass(frozen=True)
class Duration:
    """`count` times `unit`. As a pydantic field it is read from text such as ``10min``."""

    count: int
    unit: str

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Raises ValueError (EV109) on anything but a whole number and a unit."""
        found = _FORM.match(text) if isinstance(text, str) else None
        if found is None:
            hint = "; write min for minutes or mo for months" if isinstance(text, str) and text.endswith("m") else ""
            raise ValueError(f"EV109 not a duration: write a whole number and one of s min h d w mo q y{hint}")
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"

    @property
    def fixed_us(self) -> int | None:
        """Microseconds; None for months, quarters and years, whose length depends on the calendar."""
        return self.count * _FIXED_US[self.unit] if self.unit in _FIXED_US else None

    @property
    def months(self) -> int | None:
        """Whole months, for months, quarters and years."""
        return self.count * _MONTHS[self.unit] if self.unit in _MONTHS else None

    @property
    def shortest_us(self) -> int:
        """The least number of microseconds it can be: a month has at least 28 days, a year 365."""
        if self.fixed_us is not None:
            return self.fixed_us
        months = self.months or 0
        days = (months // 12) * 365 + (0, 28, 59, 89, 120, 150, 181, 212, 242, 273, 303, 334)[months % 12]
        return days * _FIXED_US["d"]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.parse(value),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": "^[1-9][0-9]{0,8}(s|min|h|d|w|mo|q|y)$"}
