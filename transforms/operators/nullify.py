"""nullify: null in place of every value."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from eventveil.transforms.context import Context
from eventveil.transforms.registry import Operator, operator

__all__ = ["Nullify"]


@operator("nullify")
class Nullify(Operator):
    """Replace every value with null, so that the field stays in the output's schema.

    Discloses nothing; in a list, how many elements there were. Not reversible. The result is nullable.

    Example:
        nullify: "Ufa" -> null, 3 -> null, null -> null
    """

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        return given

    def nullable(self, given: bool) -> bool:
        return True

    def discloses(self) -> str:
        return "nothing of the value"

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        nulls: pa.Array[Any] = pa.nulls(len(values), values.type)
        return nulls
