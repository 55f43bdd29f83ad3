"""mask: hide all but the first and last few characters."""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from eventveil.transforms.context import Context
from eventveil.transforms.registry import Operator, operator

__all__ = ["Mask"]

_FIXED = "*" * 8
_pc: Any = pc  # the stubs know no calls with an array and a scalar


@operator("mask")
class Mask(Operator):
    """Replace the middle of a text with ``*``.

    Discloses the characters kept, and with ``length: same`` the length. Not reversible; for a value that must join
    across events use `pseudonymize`. Null stays null.

    Args:
        keep_first, keep_last: code points left in clear, 0 to 8. A value not longer than both together is masked
            whole: no character is ever shown because a value is short.
        length: ``fixed`` (eight stars, whatever is hidden) or ``same`` (one star per code point hidden).

    Example:
        {mask: {keep_last: 4, length: same}}: "4111111111111111" -> "************1111", "12" -> "**"
        {mask: {keep_first: 1}}: "Reykjavík" -> "R********", "R" -> "********", "" -> "********", null -> null
    """

    keep_first: int = Field(0, ge=0, le=8)
    keep_last: int = Field(0, ge=0, le=8)
    length: Literal["fixed", "same"] = "fixed"

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        return given if pa.types.is_string(given) else None

    def discloses(self) -> str:
        ends = [(self.keep_first, "first"), (self.keep_last, "last")]
        shown = [f"the {end} {count} characters" if count > 1 else f"the {end} character" for count, end in ends if count]
        shown += ["the length"] if self.length == "same" else []
        return " and ".join(shown) or "nothing of the value"

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        kept = self.keep_first + self.keep_last
        lengths = _pc.utf8_length(values)
        whole = _pc.less_equal(lengths, kept)
        hidden = _pc.if_else(whole, lengths, _pc.subtract(lengths, kept))
        stars = _pc.binary_repeat("*", hidden) if self.length == "same" else _pc.if_else(_pc.is_valid(values), _FIXED, None)
        first = _pc.utf8_slice_codeunits(values, 0, self.keep_first)
        last = _pc.utf8_slice_codeunits(values, -self.keep_last) if self.keep_last else ""
        masked: pa.Array[Any] = _pc.if_else(whole, stars, _pc.binary_join_element_wise(first, stars, last, ""))
        return masked
