"""round: the nearest multiple of a number."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import field_validator

from eventveil.transforms.context import Context
from eventveil.transforms.operators._exact import (
    Number,
    from_words,
    in_units,
    is_decimal,
    is_number,
    join_words,
    nulls_of,
    numbers,
    numpy_type,
    plain,
    split_word,
    words,
    wraps,
)
from eventveil.transforms.registry import Operator, Setting, operator

__all__ = ["Round"]

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@operator("round")
class Round(Operator):
    """Round a number to the nearest multiple of another.

    Discloses the number to within half of `to`; sums and averages hardly change. Not reversible; joinable by the coarser
    value. Null stays null.

    Args:
        to: a positive number; write ``'0.05'`` in quotes or not, it means one twentieth. Whole for fields of whole numbers, and
            not finer than the last digit of decimals. Ties go to the even multiple. Exact for whole numbers and
            decimals; for floats the double nearest to the multiple. -0 becomes 0.

    Raises:
        EV217: `to` is finer than the field's numbers, or larger than all of them (when the policy is compiled).
        EV528: the value is not finite, or its multiple does not fit the field's type.

    Example:
        {round: 10}: 15 -> 20, 25 -> 20, -7 -> -10, null -> null
        {round: 0.05}: 7.99 -> 8.0, 0.12 -> 0.1
    """

    short = "to"
    may_return_input = True
    refusals = ("EV528",)

    to: Number

    @field_validator("to")
    @classmethod
    def _positive(cls, to: Number) -> Number:
        if to <= 0:
            raise ValueError("EV103 to must be more than 0")
        return to

    def returns(self, given: pa.DataType) -> pa.DataType | None:
        return given if is_number(given) else None

    def settle(self, setting: Setting) -> Operator:
        given: Any = setting.given
        if not pa.types.is_floating(given):
            step = in_units(self.to, given)
            largest = 10**given.precision - 1 if is_decimal(given) else int(np.iinfo(_wide(numpy_type(given))).max)
            if step.denominator != 1 or step > largest:
                raise ValueError(f"EV217 a field of {given} cannot hold multiples of {plain(self.to)}")
        return super().settle(setting)

    def discloses(self) -> str:
        return f"the number to the nearest {plain(self.to)}"

    def apply(self, values: pa.Array[Any], context: Context) -> pa.Array[Any]:
        step, nulls = in_units(self.to, values.type), nulls_of(values)
        if isinstance(values.type, pa.Decimal128Type | pa.Decimal256Type):
            unscaled, bad = _decimals(words(values), step.numerator, 10**values.type.precision - 1)
            context.refuse(bad, "EV528")
            return from_words(unscaled, values.type, nulls)
        given = numbers(values)
        rounded: npt.NDArray[Any]
        if pa.types.is_floating(values.type):
            with np.errstate(over="ignore"):
                rounded = _floats(given.astype(np.float64, copy=False), step).astype(given.dtype, copy=False)
            bad = ~np.isfinite(rounded)
        else:
            rounded, bad = _integers(given.astype(_wide(given.dtype), copy=False), step.numerator, np.iinfo(given.dtype))
        if bad.any():
            context.refuse(bad, "EV528")
            rounded = np.where(bad, rounded.dtype.type(0), rounded)
        made: pa.Array[Any] = pa.array(rounded.astype(given.dtype, copy=False), values.type, mask=nulls)
        return made


def _wide(of: Any) -> type[np.int64] | type[np.uint64]:
    return np.uint64 if np.dtype(of) == np.uint64 else np.int64


def _integers(values: npt.NDArray[Any], step: int, limits: np.iinfo[Any]) -> tuple[npt.NDArray[Any], Mask]:
    """64-bit numbers rounded, and where the result lies outside the limits of their type (it has then wrapped)."""
    if step == 1:
        return values, np.zeros(len(values), np.bool_)
    size = values.dtype.type(step)
    above = values % size
    below = size - above
    up = (above > below) | ((above == below) & (values // size % values.dtype.type(2) == 1))
    lowest, highest = values.dtype.type(limits.min), values.dtype.type(limits.max)
    bad = np.where(up, values > highest - below, values < lowest + above)
    return np.where(up, values + below, values - above), bad


def _decimals(found: Int64s, step: int, largest: int) -> tuple[Int64s, Mask]:
    """Words of decimals rounded, and where the result has too many digits."""
    rows, width = found.shape
    low = np.ascontiguousarray(found[:, 0])
    if step < 2**63:
        rounded, bad = _integers(low, step, np.iinfo(np.int64))
        hard = wraps(found) | bad
    else:
        rounded, hard = low, np.ones(rows, np.bool_)
    result = np.stack([rounded, *[rounded >> 63] * (width - 1)], axis=1)
    bad = np.zeros(rows, np.bool_)
    if largest < 2**63:
        bad = ~hard & ((rounded > largest) | (rounded < -largest))
    # More than 18 digits: one by one, for numpy has no such numbers. Amounts of money do not come here.
    for row in np.flatnonzero(hard).tolist():
        whole = round(Fraction(join_words(found[row]), step)) * step
        bad[row] = abs(whole) > largest
        result[row] = split_word(0 if bad[row] else whole, width)
    if bad.any():
        result[bad] = 0
    return result, bad


def _floats(values: Floats, step: Fraction) -> Floats:
    """Doubles nearest to the nearest multiples; not finite where there is none."""
    top, bottom = step.numerator, step.denominator
    small = top < 2**50 and bottom < 2**50
    with np.errstate(over="ignore", invalid="ignore"):
        if not small:
            rounded, hard = values.copy(), np.isfinite(values)
        else:
            times = values / top if bottom == 1 else values * bottom / top
            count = np.rint(times)
            # count * top is a whole number below 2^53, so exact; then one correctly rounded division. Adding 0 turns -0 into 0.
            rounded = count * top + 0.0 if bottom == 1 else count * top / bottom + 0.0
            # `times` is off by less than 2^-12 while it is below 2^40: nearer to a tie than that, or larger, it decides nothing.
            far = np.abs(times) >= min(2.0**40, 2.0**52 / top)
            near = np.abs(np.abs(times - count) - 0.5) < 2.0**-11
            if bottom == 1:
                near &= (np.floor(times) + 0.5) * top != values  # a true tie is exact, and rint has sent it to the even side
            hard = (far | near) & np.isfinite(values)
            rounded[np.isnan(times) & np.isinf(values)] = np.inf
    if hard.any():
        distinct, codes = np.unique(values[hard], return_inverse=True)
        # By fractions, one distinct value at a time: prices of a hundredth from a tie of 0.1 are few.
        rounded[hard] = np.array([_exactly(value, step) for value in distinct.tolist()])[codes]
    return rounded


def _exactly(value: float, step: Fraction) -> float:
    try:
        return float(round(Fraction(value) / step) * step)
    except OverflowError:
        return float("inf")
