"""Exact numbers in a policy: ``0.1`` is one tenth, not the nearest double."""

from __future__ import annotations

import re
from decimal import Context, Decimal
from fractions import Fraction
from typing import Annotated

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

__all__ = ["Number", "number_text", "plain", "read_number"]

_DIGITS = 40
_WIDE = Context(prec=4 * _DIGITS)
_TEXT = r"[+-]?[0-9]+(\.[0-9]+)?"


def read_number(value: object) -> Fraction:
    """A number as a policy writes it. Raises ValueError (EV103) on anything else, booleans included."""
    if isinstance(value, Fraction):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("EV103 a number is needed, as 10 or 0.5")
    if isinstance(value, str) and not re.fullmatch(_TEXT, value, re.ASCII):
        raise ValueError("EV103 a number is needed, as 10 or 0.5")
    # A float's shortest text is what stands in the policy.
    exact = Decimal(repr(value) if isinstance(value, float) else value)
    if not exact.is_finite() or abs(exact.adjusted()) > _DIGITS or len(exact.as_tuple().digits) > _DIGITS:
        raise ValueError(f"EV103 a finite number of at most {_DIGITS} digits is needed")
    return Fraction(exact)


def number_text(number: Fraction) -> str:
    """Canonical: one text per number, and `read_number` reads it."""
    exact = _WIDE.divide(Decimal(number.numerator), Decimal(number.denominator))
    return f"{exact.normalize(_WIDE):f}" if Fraction(exact) == number else str(number)


Number = Annotated[
    Fraction,
    PlainValidator(read_number),
    PlainSerializer(number_text, return_type=str),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": f"^{_TEXT}$"}]}),
]


def plain(number: Fraction) -> str:
    """For people: whole numbers in full, others to four digits."""
    return str(number) if number.denominator == 1 else f"{float(number):.4g}"
