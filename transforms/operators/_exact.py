"""Numbers without loss: parameters as they stand in a policy, and columns as whole numbers.

A policy's ``0.05`` means one twentieth, not the nearest double. Columns of whole numbers and decimals are treated as
integers, so that nothing is rounded on the way; floats are treated as the doubles that they are.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, WithJsonSchema

__all__ = [
    "PLAIN",
    "Number",
    "from_words",
    "in_units",
    "is_decimal",
    "is_number",
    "join_words",
    "nulls_of",
    "numbers",
    "numpy_type",
    "plain",
    "read_decimals",
    "split_word",
    "words",
    "wraps",
]

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_pc: Any = pc  # the stubs know no calls with an array and a scalar

PLAIN = r"-?[0-9]+(\.[0-9]+)?"
_PLAIN = re.compile(rf"{PLAIN}\Z", re.ASCII)
_LONGEST = 100  # digits of a number in a policy


def _as_written(given: Any) -> Decimal:
    """The decimal that a policy writes: a float as its shortest text."""
    if isinstance(given, Decimal):
        return given
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ValueError("EV103 write a number")
    text = given if isinstance(given, str) else repr(given)
    if isinstance(given, str) and not _PLAIN.match(text):
        raise ValueError("EV103 write a number as 10, 0.05 or '0.05'")
    if text in ("inf", "-inf", "nan") or len(text) > _LONGEST:
        raise ValueError("EV103 write a finite number of at most 100 digits")
    return Decimal(text)


Number: TypeAlias = Annotated[
    Decimal,
    BeforeValidator(_as_written),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": rf"^{PLAIN}$"}]}),
]


def plain(number: Decimal | Fraction) -> str:
    """A decimal fraction without exponent and without zeros at its end: ``2.5``, ``1000``."""
    exact = Fraction(number)
    scale = 0
    while exact.denominator != 1:
        exact, scale = exact * 10, scale + 1
    digits = str(abs(exact.numerator)).rjust(scale + 1, "0")
    sign = "-" if exact < 0 else ""
    return f"{sign}{digits[:-scale]}.{digits[-scale:]}" if scale else f"{sign}{digits}"


def is_decimal(given: pa.DataType) -> bool:
    """Whether `words` reads the type."""
    return pa.types.is_decimal128(given) or pa.types.is_decimal256(given)


def is_number(given: pa.DataType) -> bool:
    """Whether the type is one of whole numbers, floats of 32 or 64 bits, or decimals."""
    return pa.types.is_integer(given) or pa.types.is_float32(given) or pa.types.is_float64(given) or is_decimal(given)


def in_units(number: Decimal, given: Any) -> Fraction:
    """A parameter counted in the column's whole numbers: in last digits of decimals."""
    return Fraction(number) * (10**given.scale if is_decimal(given) else 1)


def nulls_of(values: pa.Array[Any]) -> Mask | None:
    """Where values are null; None if none is."""
    return np.asarray(values.is_null().to_numpy(zero_copy_only=False)) if values.null_count else None


def numbers(values: pa.Array[Any]) -> npt.NDArray[Any]:
    """Whole numbers or floats in their own type, nulls as 0: the bytes behind a null may be anything."""
    filled = values.fill_null(0) if values.null_count else values
    return np.asarray(filled.to_numpy(zero_copy_only=False))


def numpy_type(of: pa.DataType) -> np.dtype[Any]:
    """numpy's type of whole numbers or floats; Arrow's own `to_pandas_dtype` imports pandas."""
    return np.asarray(pa.array([], of).to_numpy()).dtype


def words(values: Any) -> Int64s:
    """Decimals as (n, k) 64-bit words of their unscaled whole number, lowest first; nulls as 0."""
    width = values.type.bit_width // 64
    data = values.buffers()[1]
    if data is None or not len(values):
        return np.zeros((len(values), width), np.int64)
    found = np.frombuffer(data, np.int64, (values.offset + len(values)) * width).reshape(-1, width)[values.offset :]
    nulls = nulls_of(values)
    return found if nulls is None else np.where(nulls[:, None], 0, found)


def wraps(found: Int64s) -> Mask:
    """Which numbers need more than their lowest word."""
    return np.asarray((found[:, 1:] != (found[:, :1] >> 63)).any(axis=1))


def join_words(row: Int64s) -> int:
    """The whole number of one row of words."""
    return int.from_bytes(row.tobytes(), "little", signed=True)


def split_word(number: int, width: int) -> Int64s:
    """One row of words."""
    return np.frombuffer(number.to_bytes(8 * width, "little", signed=True), np.int64)


def from_words(found: Int64s, wanted: pa.DataType, nulls: Mask | None) -> pa.Array[Any]:
    """Decimals of type `wanted` from (n, k) words, or from (n,) whole numbers of 64 bits."""
    if found.ndim == 1:
        found = np.stack([found, *[found >> 63] * (wanted.bit_width // 64 - 1)], axis=1)
    bits: Any = None if nulls is None else np.packbits(~nulls, bitorder="little")
    words: Any = np.ascontiguousarray(found)
    made: pa.Array[Any] = pa.Array.from_buffers(wanted, len(found), [None if bits is None else pa.py_buffer(bits), pa.py_buffer(words)])
    return made


def read_decimals(sign: pa.Array[Any], whole: pa.Array[Any], fraction: pa.Array[Any], wanted: Any) -> tuple[pa.Array[Any], pa.Array[Any]]:
    """Decimals from texts of their parts, and which have more digits than `wanted` holds.

    Args:
        sign: ``-`` or anything else.
        whole: digits, at least one; zeros may lead. Null where the result is to be null.
        fraction: digits; empty if there are none.
    """
    whole, fraction = _pc.ascii_ltrim(whole, "0"), _pc.ascii_rtrim(fraction, "0")
    room = wanted.precision - wanted.scale
    too_long = _pc.or_(_pc.greater(_pc.binary_length(whole), room), _pc.greater(_pc.binary_length(fraction), wanted.scale))
    text = _pc.binary_join_element_wise(_pc.if_else(_pc.equal(sign, "-"), "-", ""), "0", whole, ".", fraction, "")
    # A zero in front, for an empty part is a number too; Arrow does not count it among the digits that must fit.
    text = _pc.if_else(too_long, pa.scalar(None, text.type), text)
    return text.cast(wanted), too_long.fill_null(False)
