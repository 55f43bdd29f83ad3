"""keep: let a value pass as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pydantic import field_validator

from eventveil.transforms.context import Context
from eventveil.transforms.registry import Operator, Setting, operator

__all__ = ["Keep"]


@operator("keep")
class Keep(Operator):
    """Let every value pass unchanged, on purpose.

    Discloses the value itself: joinable, and as identifying as the field is. For text whose values are few prefer
    `allow`. Null stays null.

    Args:
        because: why the value may leave, for whoever reads the policy later; without it `check` warns.

    Example:
        {keep: {because: a carrier is no person}}: "usps" -> "usps", null -> null
        keep: 3 -> 3
    """

    may_return_input = True

    because: str | None = None

    @field_validator("because")
    @classmethod
    def _says_something(cls, because: str | None) -> str | None:
        if because is not None and not because.strip():
            raise ValueError("EV103 because is blank")
        return because

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        return given

    def discloses(self) -> str:
        return "the value itself"

    def warnings(self, setting: Setting) -> Sequence[str]:
        return () if self.because else ("kept without a reason: write keep: {because: ...}",)

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        return values
