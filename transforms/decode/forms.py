"""What the schema says of a value beyond its Arrow type, the same for all formats."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.schemas.events.tree import Leaf
from eventveil.transforms.columns import Column, flags, not_utf8
from eventveil.transforms.times import outside_calendar

__all__ = ["Problems", "finite", "in_calendar", "of_form", "read_typed", "without"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar

Mask = npt.NDArray[np.bool_]
Problems: TypeAlias = list[tuple[str, Mask]]
"""(code, mask) in the order in which they count."""

_UUID = "^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$"
_PER_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def read_typed(leaf: Leaf, values: Column) -> tuple[Column, Sequence[tuple[str, Mask]]]:
    """A column that has the leaf's type already, and what is wrong in it. A `Reader` (judge.py)."""
    kind = values.type
    problems: Problems = []
    if pa.types.is_string(kind):
        wrong = not_utf8(values)
        if wrong is not None:
            problems.append(("EV504", wrong))
            values = without(values, wrong)
    elif pa.types.is_floating(kind):
        finite(values, problems)
    elif pa.types.is_temporal(kind):
        in_calendar(values, problems)
    return of_form(leaf, values, problems), problems


def in_calendar(values: Column, problems: Problems) -> None:
    """Times of day lie within a day; dates and timestamps in years 1 to 9999, the only ones that have a text, instants in any zone."""
    kind = values.type
    if pa.types.is_time(kind):
        counts = values.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
        mask = flags(_pc.or_(_pc.less(counts, 0), _pc.greater_equal(counts, _PER_DAY[kind.unit])))
    elif pa.types.is_timestamp(kind) and kind.unit == "ns":
        return
    else:
        mask = outside_calendar(values)
    if mask.any():
        problems.append(("EV506", mask))


def of_form(leaf: Leaf, values: Column, problems: Problems) -> Column:
    """Check what the schema says beyond the type: symbols of an enum, size of a fixed, form of a uuid, digits of a decimal."""
    wrong: Column | None = None
    if leaf.form == "enum":
        wrong = _pc.invert(_pc.is_in(values, value_set=_symbols(leaf.symbols)))
    elif leaf.form == "uuid" and pa.types.is_string(values.type):
        wrong = _pc.invert(_pc.match_substring_regex(values, _UUID))
    elif leaf.form == "fixed" and pa.types.is_binary(values.type):
        wrong = _pc.not_equal(_pc.binary_length(values), leaf.size)
    elif pa.types.is_decimal(values.type):
        wrong = _too_many_digits(values)
    if wrong is not None:
        mask = flags(wrong)
        if values.null_count:
            mask &= flags(_pc.is_valid(values))
        if mask.any():
            problems.append(("EV506", mask))
    return values


@lru_cache(maxsize=256)
def _symbols(symbols: tuple[str, ...]) -> Column:
    return pa.array(symbols, pa.string())


def _too_many_digits(values: Column) -> Column | None:
    """pyarrow lets 12345 pass as decimal(5, 2), though 12345.00 has seven digits."""
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        limit = 10**values.type.precision
        # As integers, of which 38 digits always fit: the column's bytes, read with no scale.
        units = pa.Array.from_buffers(pa.decimal128(38, 0), len(values), values.buffers(), offset=values.offset)
        known = [None if value is None else int(value) for value in units.to_pylist()]  # only where a value is wrong
        return pa.array([value is not None and not -limit < value < limit for value in known], pa.bool_())
    return None


def without(values: Column, wrong: Mask) -> Column:
    """The values with null where they are wrong."""
    return _pc.if_else(pa.array(wrong), pa.scalar(None, values.type), values)


def finite(values: Column, problems: Problems) -> None:
    """Refuse NaN and infinities."""
    mask = ~flags(_pc.is_finite(values).fill_null(True))
    if mask.any():
        problems.append(("EV505", mask))
