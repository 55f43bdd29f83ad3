"""The kernels of `cast`: one function per type that values become.

Each takes a column and its target and gives the result, and a mask of the values that cannot be had without loss; what
stands in their slots is null. Arrow's own casts are only called on values that have been found to fit: their errors
concern the whole column and quote a value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.transforms.operators._exact import (
    from_words,
    join_words,
    nulls_of,
    numbers,
    numpy_type,
    plain,
    read_decimals,
    split_word,
    words,
    wraps,
)
from eventveil.transforms.times import instants, outside_calendar, parse_iso, to_local, to_micros

__all__ = ["CASTS"]

Mask = npt.NDArray[np.bool_]
Cast: TypeAlias = Callable[[Any, Any, str], tuple[Any, Mask]]
_pc: Any = pc  # the stubs know no calls with an array and a scalar

_DAY = 86_400_000_000
_JSON_NUMBER = r"\A-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?\z"
_PLAIN_NUMBER = r"\A(?P<sign>-?)(?P<whole>0|[1-9][0-9]*)(?:\.(?P<fraction>[0-9]+))?\z"
_WHOLE_NUMBER = r"\A-?(0|[1-9][0-9]{0,18})\z"
_LONGEST = 350  # characters of a number in text that is not plainly a double


def _mask(of: Any) -> Mask:
    return np.asarray(of.fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)


def _without(values: Any, misplaced: Mask) -> Any:
    """`values`, null where misplaced."""
    return _pc.if_else(pa.array(misplaced), pa.scalar(None, values.type), values) if misplaced.any() else values


def _none(values: Any) -> Mask:
    return np.zeros(len(values), np.bool_)


def _made(found: npt.NDArray[Any], wanted: pa.DataType, values: Any, misplaced: Mask) -> tuple[Any, Mask]:
    """A column of numpy's values, null where `values` is or what is misplaced."""
    nulls = nulls_of(values)
    if nulls is not None:
        misplaced = misplaced & ~nulls
    hidden = misplaced if nulls is None else misplaced | nulls
    return pa.array(found, wanted, mask=hidden if hidden.any() else None), misplaced


# whole numbers and booleans


def _bool_from_int(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    given = numbers(values)
    return _made(given == 1, wanted, values, (given != 0) & (given != 1))


def _bool_from_text(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    true = _pc.equal(values, "true")
    return _known(true, _mask(_pc.invert(_pc.or_(true, _pc.equal(values, "false")))))


def _known(values: Any, misplaced: Mask) -> tuple[Any, Mask]:
    return _without(values, misplaced), misplaced


def _int_from_int(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    given, limits = numbers(values), np.iinfo(numpy_type(wanted))
    misplaced = given > given.dtype.type(limits.max) if np.iinfo(given.dtype).max > limits.max else _none(given)
    if np.iinfo(given.dtype).min < limits.min:
        misplaced = misplaced | (given < limits.min)
    return _made(given.astype(limits.dtype), wanted, values, misplaced)


def _int_from_bool(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    return values.cast(wanted), _none(values)


def _int_from_float(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    given, limits = numbers(values).astype(np.float64), np.iinfo(numpy_type(wanted))
    # limits.max + 1 is a power of two: exact as a double, which limits.max itself is not.
    misplaced = ~((given >= float(limits.min)) & (given < float(limits.max + 1)) & (given == np.floor(given)))
    return _made(np.where(misplaced, 0, given).astype(limits.dtype), wanted, values, misplaced)


def _int_from_decimal(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    found, limits = words(values), np.iinfo(numpy_type(wanted))
    unit = 10**values.type.scale
    hard = wraps(found) | (unit >= 2**62)
    low, small = np.where(hard, 0, found[:, 0]), min(unit, 2**62)
    whole = low // small
    misplaced = (low % small != 0) | (whole < limits.min) | (whole > limits.max)
    # More than 18 digits: one by one, for numpy has no such numbers.
    for row in np.flatnonzero(hard).tolist():
        quotient, rest = divmod(join_words(found[row]), unit)
        misplaced[row] = rest != 0 or not limits.min <= quotient <= limits.max
        whole[row] = 0 if misplaced[row] else quotient
    return _made(np.where(misplaced, 0, whole).astype(limits.dtype), wanted, values, misplaced)


def _int_from_text(values: Any, wanted: Any, zone: str) -> tuple[Any, Mask]:
    of_form = _pc.match_substring_regex(values, pattern=_WHOLE_NUMBER)
    misplaced = _mask(_pc.invert(of_form))
    # Nineteen digits fit a decimal, if not an int64.
    made, too_large = _int_from_decimal(_without(values, misplaced).cast(pa.decimal128(19, 0)), wanted, zone)
    return made, misplaced | too_large


# floats


def _float_from_int(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    given = numbers(values)
    made = given.astype(numpy_type(wanted))
    limits = np.iinfo(given.dtype)
    inside = made.astype(np.float64) < float(limits.max + 1)  # or it cannot be turned back
    misplaced = ~inside | (np.where(inside, made, 0).astype(given.dtype) != given)
    return _made(made, wanted, values, misplaced)


def _float_from_float(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    given = numbers(values)
    with np.errstate(over="ignore"):
        made = given.astype(numpy_type(wanted))
    return _made(made, wanted, values, ~(np.isfinite(made) & (made == given)))


def _float_from_decimal(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    found, scale = words(values), values.type.scale
    digits = 6 if pa.types.is_float32(wanted) else 15
    # Doubles hold any 15 digits, and the quotient of two exact ones is the nearest; single floats hold 6.
    low = found[:, 0]
    easy = ~wraps(found) & (low < 10**digits) & (low > -(10**digits)) & (scale <= 22)
    made = (np.where(easy, low, 0) / 10.0 ** min(scale, 22)).astype(numpy_type(wanted))
    misplaced = _none(values)
    for row in np.flatnonzero(~easy).tolist():  # more digits: one by one, whether the shortest text of the float has them all
        exact = Fraction(join_words(found[row]), 10**scale)
        made[row], misplaced[row] = _nearest(exact, made.dtype)
    return _made(made, wanted, values, misplaced)


def _float_from_text(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    misplaced = _mask(_pc.invert(_pc.match_substring_regex(values, pattern=_JSON_NUMBER)))
    digits = 6 if pa.types.is_float32(wanted) else 15
    short = _pc.less_equal(_pc.binary_length(values), digits)
    plain_ = _pc.invert(_pc.match_substring_regex(values, pattern="[eE]"))
    easy = _mask(_pc.and_(short, plain_)) & ~misplaced
    made = numbers(_without(values, ~easy).cast(pa.float64())).astype(numpy_type(wanted))
    hard = ~easy & ~misplaced & _mask(values.is_valid())
    if hard.any():
        made = made.copy()
        for row in np.flatnonzero(hard).tolist():  # one by one, whether the shortest text of the float is the same number
            text = values[row].as_py()
            made[row], misplaced[row] = (0, True) if len(text) > _LONGEST else _nearest(Fraction(Decimal(text)), made.dtype)
    return _made(made, wanted, values, misplaced)


def _nearest(exact: Fraction, of: np.dtype[Any]) -> tuple[float, bool]:
    """The nearest float, and whether neither it nor its shortest text is that number."""
    try:
        with np.errstate(over="ignore"):
            made = of.type(float(exact))
    except OverflowError:
        return 0.0, True
    if not np.isfinite(made):
        return 0.0, True
    lossy = exact not in (Fraction(Decimal(str(made))), Fraction(float(made)))
    return (0.0, True) if lossy else (float(made), False)


# decimals


def _decimal_from_int(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    given = numbers(values)
    limit = 10 ** (wanted.precision - wanted.scale)
    too_large = given >= limit if limit <= np.iinfo(given.dtype).max else _none(given)
    if given.dtype.kind == "i" and -limit >= np.iinfo(given.dtype).min:
        too_large = too_large | (given <= -limit)
    fitting = pa.array(np.where(too_large, given.dtype.type(0), given)).cast(pa.decimal128(20, 0)).cast(wanted)
    return _hidden(fitting, values, too_large)


def _hidden(made: Any, values: Any, misplaced: Mask) -> tuple[Any, Mask]:
    nulls = nulls_of(values)
    if nulls is not None:
        misplaced = misplaced & ~nulls
    return _without(made, misplaced if nulls is None else misplaced | nulls), misplaced


def _decimal_from_decimal(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    found, shift = words(values), wanted.scale - values.type.scale
    limit, factor, divisor = 10**wanted.precision, 10 ** max(shift, 0), 10 ** max(-shift, 0)
    result = np.zeros((len(values), wanted.bit_width // 64), np.int64)
    low = found[:, 0]
    # Whatever stays below 64 bits on the way is done together, the rest one by one.
    reach = 2**62 // factor
    hard = wraps(found) | (low >= reach) | (low <= -reach) | (divisor >= 2**62)
    eased, times, by = np.where(hard, 0, low), min(factor, 2**62), min(divisor, 2**62)
    result[:, 0] = eased // by * times
    result[:, 1:] = result[:, :1] >> 63
    misplaced = (eased % by != 0) | (np.abs(result[:, 0]) >= min(limit, 2**62))
    for row in np.flatnonzero(hard).tolist():
        quotient, rest = divmod(join_words(found[row]) * factor, divisor)
        misplaced[row] = rest != 0 or abs(quotient) >= limit
        result[row] = split_word(0 if misplaced[row] else quotient, result.shape[1])
    result[misplaced] = 0
    return _hidden(from_words(result, wanted, None), values, misplaced)


def _decimal_from_float(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    given, scale, limit = numbers(values), wanted.scale, 10**wanted.precision
    with np.errstate(over="ignore", invalid="ignore"):
        unscaled = np.rint(given.astype(np.float64) * 10.0 ** min(scale, 22))
        back = (unscaled / 10.0 ** min(scale, 22)).astype(given.dtype)
        easy = (np.abs(unscaled) < 2.0**53) & (back == given) & (scale <= 22)
    low = np.where(easy, unscaled, 0).astype(np.int64)
    misplaced = np.abs(low) >= limit if limit < 2**63 else _none(low)
    result = np.stack([low, low >> 63], axis=1)
    for row in np.flatnonzero(~easy).tolist():  # larger or finer: one by one, from the float's shortest text
        exact = Fraction(Decimal(str(given[row]))) * 10**scale if np.isfinite(given[row]) else Fraction(1, 2)
        misplaced[row] = exact.denominator != 1 or abs(exact) >= limit
        result[row] = split_word(0 if misplaced[row] else exact.numerator, 2)
    result[misplaced] = 0
    return _hidden(from_words(result, wanted, None), values, misplaced)


def _decimal_from_text(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    found = _pc.extract_regex(values, pattern=_PLAIN_NUMBER)
    sign, whole, fraction = found.flatten()
    made, too_long = read_decimals(sign, whole, fraction, wanted)
    return made, _mask(_pc.or_(_pc.and_(found.is_null(), values.is_valid()), too_long))


# text and bytes


def _text(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    return values.cast(wanted), _none(values)


def _text_from_float(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    given = numbers(values)
    made, misplaced = _made(given + given.dtype.type(0), values.type, values, ~np.isfinite(given))  # -0 is 0
    return made.cast(wanted), misplaced


def _text_from_decimal(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    # Arrow writes small ones with an exponent. Amounts repeat, so one by one means few.
    coded = values.dictionary_encode()
    texts = pa.array([plain(one) for one in coded.dictionary.to_pylist()], wanted)
    return texts.take(coded.indices), _none(values)


def _text_from_bytes(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    values = values.cast(pa.binary())
    try:
        return values.cast(wanted), _none(values)
    except pa.ArrowInvalid:  # some value is not UTF-8: which, is only told one by one
        misplaced = np.array([one is not None and not _is_utf8(one) for one in values.to_pylist()], np.bool_)
    return _without(values, misplaced).cast(wanted), misplaced


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _text_from_date(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    days = numbers(values.cast(pa.int32()))
    fitting, misplaced = _made(days, pa.int32(), values, outside_calendar(values))
    return fitting.cast(pa.date32()).cast(wanted), misplaced


def _text_from_timestamp(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    misplaced = outside_calendar(values)
    # Arrow writes times without zone with no look into a database, and with all the digits of their unit.
    plain_ = _without(values.cast(pa.int64()), misplaced).cast(pa.timestamp(values.type.unit))
    text = _pc.replace_substring(plain_.cast(wanted), pattern=" ", replacement="T")
    text = _pc.replace_substring_regex(text, pattern=r"\.0+\z", replacement="")
    return (text if values.type.tz is None else _pc.binary_join_element_wise(text, "Z", "")), _hidden(text, values, misplaced)[1]


# dates and times


def _date_from_text(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    micros, bad, _skipped = parse_iso(values, "UTC")
    bad |= _mask(_pc.not_equal(_pc.binary_length(values), len("YYYY-MM-DD")))
    return _dates(micros, values, bad)


def _date_from_timestamp(values: Any, wanted: Any, zone: str) -> tuple[Any, Mask]:
    micros, bad = to_micros(values)
    if values.type.unit == "ns":
        bad |= numbers(values.cast(pa.int64())) % 1_000 != 0
    local = micros if values.type.tz is None else to_local(micros, zone)
    return _dates(local, values, bad | (local % _DAY != 0))


def _dates(micros: npt.NDArray[np.int64], values: Any, misplaced: Mask) -> tuple[Any, Mask]:
    made, misplaced = _made((micros // _DAY).astype(np.int32), pa.int32(), values, misplaced)
    return made.cast(pa.date32()), misplaced


def _instant(values: Any, wanted: Any, zone: str) -> tuple[Any, Mask]:
    micros, bad, skipped = instants(values, zone, None)
    made, misplaced = _made(micros, pa.int64(), values, bad | skipped)
    return made.cast(wanted), misplaced


def _timestamp_from_timestamp(values: Any, wanted: Any, _: str) -> tuple[Any, Mask]:
    micros, bad = to_micros(values)
    if values.type.unit == "ns":
        bad |= numbers(values.cast(pa.int64())) % 1_000 != 0
    made, misplaced = _made(micros, pa.int64(), values, bad)
    return made.cast(wanted), misplaced


# (kind of the given type, kind of the wanted one); what is not here is not accepted
CASTS: Mapping[tuple[str, str], Cast] = {
    ("int", "bool"): _bool_from_int,
    ("text", "bool"): _bool_from_text,
    ("bool", "int"): _int_from_bool,
    ("int", "int"): _int_from_int,
    ("float", "int"): _int_from_float,
    ("decimal", "int"): _int_from_decimal,
    ("text", "int"): _int_from_text,
    ("int", "float"): _float_from_int,
    ("float", "float"): _float_from_float,
    ("decimal", "float"): _float_from_decimal,
    ("text", "float"): _float_from_text,
    ("int", "decimal"): _decimal_from_int,
    ("float", "decimal"): _decimal_from_float,
    ("decimal", "decimal"): _decimal_from_decimal,
    ("text", "decimal"): _decimal_from_text,
    ("bool", "text"): _text,
    ("int", "text"): _text,
    ("float", "text"): _text_from_float,
    ("decimal", "text"): _text_from_decimal,
    ("binary", "text"): _text_from_bytes,
    ("date", "text"): _text_from_date,
    ("timestamp", "text"): _text_from_timestamp,
    ("text", "binary"): _text,
    ("binary", "binary"): _text,
    ("text", "date"): _date_from_text,
    ("timestamp", "date"): _date_from_timestamp,
    ("text", "timestamp"): _instant,
    ("date", "timestamp"): _instant,
    ("timestamp", "timestamp"): _timestamp_from_timestamp,
}
