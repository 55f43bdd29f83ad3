"""normalize: one way of writing a text."""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from eventveil.transforms.context import Context
from eventveil.transforms.normal_form import normal_form
from eventveil.transforms.registry import Operator, operator

__all__ = ["Normalize"]

_pc: Any = pc  # the stubs know no calls with keywords


@operator("normalize")
class Normalize(Operator):
    """Bring texts that mean the same into one form, before they are compared or pseudonymized.

    Discloses the text but for its form: it covers no field by itself. Null stays null; a text may become empty.

    Args:
        steps: in the listed order: ``trim`` (white space at both ends), ``lower`` (lower case, letter by letter),
            ``nfkc`` (Unicode compatibility form), ``digits`` (keep 0 to 9 only).

    Source: Unicode Standard Annex 15 (NFKC).

    Example:
        {normalize: [trim, lower]}: " Abdullin Rinat " -> "abdullin rinat", null -> null
        {normalize: [nfkc, digits]}: "+49 (0) 30/１２３" -> "49030123"
    """

    short = "steps"
    may_return_input = True
    covers = False

    steps: tuple[Literal["trim", "lower", "nfkc", "digits"], ...] = Field(strict=False, min_length=1)

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        return given if pa.types.is_string(given) else None

    def discloses(self) -> str:
        return "the text, in one form"

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        for step in self.steps:
            values = _step(values, step)
        return values


def _step(values: pa.Array[Any], step: str) -> Any:
    if step == "trim":
        return _pc.utf8_trim_whitespace(values)
    if step == "lower":
        return _pc.utf8_lower(values)
    if step == "nfkc":
        return _compatible(values)
    return _pc.replace_substring_regex(values, pattern="[^0-9]+", replacement="")


def _compatible(values: pa.Array[Any]) -> Any:
    """Form NFKC. Value by value, but only what is not ASCII: what pyarrow calls NFKC is form KD, letters and accents apart."""
    other = _pc.invert(_pc.string_is_ascii(values)).fill_null(False)
    if not _pc.any(other).as_py():
        return values
    composed = [normal_form("NFKC", text) for text in values.filter(other).to_pylist() if text is not None]
    return _pc.replace_with_mask(values, other, pa.array(composed, values.type))
