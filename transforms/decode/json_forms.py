"""What a leaf of the schema looks like in JSON, and how its parsed column becomes values.

pyarrow is asked for booleans, int64, float64, decimals and text only: its own conversions of times and narrow
integers fail for a whole block, quote the value, and refuse valid forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.schemas.events.tree import Leaf
from eventveil.transforms.columns import Column, Kind, buffer_of, flags, not_utf8, numbers_of
from eventveil.transforms.decode.forms import Problems, finite, in_calendar, of_form, without
from eventveil.transforms.times import parse_iso

__all__ = ["parse_type", "read_leaf"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar

Mask = npt.NDArray[np.bool_]

_DATE = "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_TIME = r"^[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?$"
# What an offset looks like, behind a time of day: such a text is an instant, not a local time.
_OFFSET = "[0-9]([Zz]|[+-][0-9]{2}(:?[0-9]{2})?)$"
_DAY_US = 86_400_000_000
_PER_UNIT = {"s": 1_000_000, "ms": 1_000, "us": 1}
# Nanoseconds since 1970 fit into 64 bits from 1677-09-22 to 2262-04-11 (whole days).
_NS_EARLIEST, _NS_LATEST = -9_223_286_400_000_000, 9_223_286_400_000_000


def parse_type(leaf: Leaf) -> Kind:
    """What pyarrow.json is asked for."""
    kind = leaf.type
    if pa.types.is_boolean(kind):
        return kind
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_decimal(kind):
        return kind
    return pa.string()


def read_leaf(leaf: Leaf, values: Column) -> tuple[Column, Sequence[tuple[str, Mask]]]:
    """A column of `parse_type` -> the leaf's type, and what is wrong. A `Reader` (judge.py)."""
    kind = leaf.type
    problems: Problems = []
    if pa.types.is_boolean(kind):
        return values, problems
    if pa.types.is_integer(kind):
        return _narrow_integers(values, kind, problems), problems
    if pa.types.is_floating(kind):
        return _floats(values, kind, problems), problems
    if pa.types.is_decimal(kind):
        return of_form(leaf, values, problems), problems
    wrong = not_utf8(values)
    if wrong is not None:
        problems.append(("EV504", wrong))
        values = without(values, wrong)
    if pa.types.is_string(kind):
        return of_form(leaf, values, problems), problems
    if pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        read = of_form(leaf, _code_points(values, problems), problems)
        return (read if read.type == kind else _fixed(read, kind)), problems
    return _times(values, kind, problems), problems


def _narrow_integers(values: Column, kind: Kind, problems: Problems) -> Column:
    if kind == values.type:
        return values
    info = np.iinfo(np.int32)
    wrong = _pc.or_(_pc.less(values, int(info.min)), _pc.greater(values, int(info.max)))
    mask = flags(wrong)
    if mask.any():
        problems.append(("EV505", mask))
        values = without(values, mask)
    return values.cast(kind)


def _floats(values: Column, kind: Kind, problems: Problems) -> Column:
    narrow = values if kind == values.type else values.cast(kind, safe=False)
    finite(narrow, problems)  # what is too large for 32 bits is infinite now
    return narrow


def _code_points(values: Column, problems: Problems) -> Column:
    """Text whose code points 0 to 255 are bytes -> these bytes (Avro's JSON encoding)."""
    wrong = flags(_pc.match_substring_regex(values, r"[^\x{0}-\x{ff}]"))
    if wrong.any():
        problems.append(("EV506", wrong))
        values = without(values, wrong)
    raw = values.cast(pa.binary())
    if _pc.all(_pc.string_is_ascii(values)).as_py() is not False:
        return raw
    if raw.offset or raw.null_count:
        raw = pa.concat_arrays([raw.fill_null(b"")])
    _, offset_buffer, data_buffer = raw.buffers()
    offsets = numbers_of(offset_buffer, np.int32)[raw.offset : raw.offset + len(raw) + 1]
    data = numbers_of(data_buffer, np.uint8)[: offsets[-1]]
    # Code points 0x80 to 0xff are two bytes in UTF-8, 110000xx 10yyyyyy.
    lead = data >= 0xC0
    merged = data.copy()
    second = np.flatnonzero(lead) + 1
    merged[second] = (data[second] & 0x3F) | ((data[second - 1] & 0x03) << 6)
    gone = np.zeros(len(data) + 1, np.int32)
    np.cumsum(lead, out=gone[1:])
    shorter = (offsets - gone[offsets]).astype(np.int32)
    bytes_ = pa.BinaryArray.from_buffers(pa.binary(), len(raw), [None, buffer_of(shorter), buffer_of(merged[~lead])])
    return without(bytes_, flags(_pc.is_null(values))) if values.null_count else bytes_


def _fixed(values: Column, kind: Kind) -> Column:
    """To a fixed-size type; values of another size, which are refused, become null."""
    return without(values, flags(_pc.not_equal(_pc.binary_length(values), kind.byte_width))).cast(kind)


def _times(values: Column, kind: Kind, problems: Problems) -> Column:
    """ISO 8601 text -> date, time of day, or timestamp; digits finer than the type are cut."""
    nulls = flags(_pc.is_null(values))
    text = values
    if pa.types.is_date(kind):
        form: Column | None = _pc.match_substring_regex(values, _DATE)
    elif pa.types.is_time(kind):
        form = _pc.match_substring_regex(values, _TIME)
        text = _pc.binary_join_element_wise(pa.scalar("1970-01-01T"), values, "")
    elif kind.tz is None:
        form = _pc.invert(_pc.match_substring_regex(_pc.utf8_slice_codeunits(values, 10), _OFFSET))
    else:
        form = None
    micros, bad, _ = parse_iso(text, "UTC")
    if form is not None:
        bad = bad | ~flags(form)
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        bad |= (micros < _NS_EARLIEST) | (micros > _NS_LATEST)
    bad &= ~nulls
    if bad.any():
        problems.append(("EV506", bad))
        micros = np.where(bad, 0, micros)
    read = _counted(micros, values, nulls if values.null_count else None, kind)
    in_calendar(read, problems)
    return read


def _counted(micros: npt.NDArray[np.int64], values: Column, nulls: Mask | None, kind: Kind) -> Column:
    """Microseconds in the units of the type."""
    if pa.types.is_date(kind):
        return pa.array((micros // _DAY_US).astype(np.int32), pa.int32(), mask=nulls).cast(kind)
    counts = micros * 1_000 + _nanoseconds(values) if kind.unit == "ns" else micros // _PER_UNIT[kind.unit]
    if pa.types.is_time32(kind):
        return pa.array(counts.astype(np.int32), pa.int32(), mask=nulls).cast(kind)
    return pa.array(counts, pa.int64(), mask=nulls).cast(kind)


def _nanoseconds(values: Column) -> npt.NDArray[np.int64]:
    """The seventh to ninth digit of the fractions."""
    found = _pc.struct_field(_pc.extract_regex(values, r"\.[0-9]{6}(?P<digits>[0-9]{1,3})"), "digits")
    padded = _pc.utf8_rpad(_pc.fill_null(found, ""), 3, "0")
    return np.asarray(padded.cast(pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)
