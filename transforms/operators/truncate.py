"""truncate: the first characters of a text."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from eventveil.transforms.context import Context
from eventveil.transforms.registry import Operator, operator

__all__ = ["Truncate"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar


@operator("truncate")
class Truncate(Operator):
    """Keep only the first characters of a text.

    Discloses these characters: joinable by them. Not reversible. A value that would pass whole becomes null, so the
    result is nullable. Null stays null.

    Args:
        keep_first: code points left, at least 1.

    Example:
        {truncate: 2}: "85123A" -> "85", "71" -> null, "" -> null, null -> null
    """

    short = "keep_first"

    keep_first: int = Field(ge=1, le=2**31 - 1)

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        return given if pa.types.is_string(given) else None

    def nullable(self, given: bool) -> bool:
        return True

    def discloses(self) -> str:
        return f"the first {self.keep_first} characters" if self.keep_first > 1 else "the first character"

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        longer = _pc.greater(_pc.utf8_length(values), self.keep_first)
        first = _pc.utf8_slice_codeunits(values, 0, self.keep_first)
        truncated: pa.Array[Any] = _pc.if_else(longer, first, pa.scalar(None, values.type))
        return truncated
