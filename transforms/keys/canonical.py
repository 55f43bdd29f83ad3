"""The one form of a value that is hashed: equal values have equal bytes, whatever column they stand in.

| tag | values | bytes |
|---|---|---|
| ``s`` | text | UTF-8 in Unicode normal form C |
| ``y`` | bytes | as they are |
| ``i`` | integers up to int64 | 8, two's complement |
| ``u`` | uint64 | 8 |
| ``f`` | floats | 8, IEEE 754 double; -0 is 0, every NaN is one NaN |
| ``d`` | decimals | plain decimal text without superfluous zeros: ``-12.5``, ``0`` |
| ``b`` | booleans | 1 |
| ``t`` ``tn`` | instants (timestamps with a zone) | 8: microseconds since 1970 UTC; ``tn``, for ns columns: nanoseconds |
| ``l`` ``ln`` | local times (timestamps without) | 8: the same, of the wall clock |
| ``c`` ``cn`` | times of day | 8: microseconds since midnight; ``cn``: nanoseconds |
| ``D`` | dates | 8: days since 1970 |

Numbers are big-endian. Values under different tags are never compared: the tag goes into the sub-key. The form never
changes under the same `CANONICAL_VERSION`; tests/vectors holds golden vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from eventveil.transforms.normal_form import is_normal_form, normal_form

__all__ = ["CANONICAL_VERSION", "canonical", "canonical_tag"]

# The stubs of these functions know neither text literals beside columns nor all of their names.
compute: Any = pyarrow.compute

CANONICAL_VERSION = 1
_TO_MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}
_DAY_MS = 86_400_000


def canonical_tag(kind: pa.DataType) -> str:
    """Which form a type has. Two columns can hold equal values only if their tags are equal.

    Raises TypeError for types that have none: lists, structs, durations, null.
    """
    is_ = pa.types
    if is_.is_dictionary(kind):
        return canonical_tag(kind.value_type)
    if is_.is_string(kind) or is_.is_large_string(kind) or is_.is_string_view(kind):
        return "s"
    if is_.is_binary(kind) or is_.is_large_binary(kind) or is_.is_fixed_size_binary(kind) or is_.is_binary_view(kind):
        return "y"
    if is_.is_uint64(kind):
        return "u"
    if is_.is_integer(kind):
        return "i"
    if is_.is_floating(kind):
        return "f"
    if is_.is_decimal(kind):
        return "d"
    if is_.is_boolean(kind):
        return "b"
    if is_.is_timestamp(kind):
        return ("l" if kind.tz is None else "t") + ("n" if kind.unit == "ns" else "")
    if is_.is_time(kind):
        return "cn" if kind.unit == "ns" else "c"
    if is_.is_date(kind):
        return "D"
    raise TypeError(f"values of type {kind} have no canonical form")


def canonical(values: pa.Array[Any]) -> pa.BinaryArray:
    """Each value in its canonical form; null stays null. Never raises on a value."""
    result: pa.BinaryArray = _canonical(values)
    return result


def _canonical(values: Any) -> Any:
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _canonical(values.dictionary_decode())
    tag = canonical_tag(kind)
    if tag == "s":
        return _text(values)
    if tag == "y":
        return values.cast(pa.binary())
    if tag == "d":
        return _decimal_text(values).cast(pa.binary())
    if tag == "b":
        return _fixed(values, values.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint8))
    if tag == "f":
        numbers = values.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64) + 0.0  # -0 + 0 is 0
        numbers[np.isnan(numbers)] = np.nan
        return _fixed(values, numbers.astype(">f8"))
    return _fixed(values, _integers(values).astype(">u8" if tag == "u" else ">i8"))


def _text(values: Any) -> Any:
    """UTF-8 in normal form C. Normal forms of assigned characters are stable over versions of Unicode."""
    text = values if pa.types.is_string(values.type) else values.cast(pa.string())
    form = text.cast(pa.binary())
    plain = compute.string_is_ascii(text)
    if compute.all(plain, min_count=0).as_py():
        return form
    # Value by value, but only what is not ASCII: pyarrow's utf8_normalize takes longer, and its "NFC" gives form D.
    other = compute.invert(plain).fill_null(False)
    try:
        found = text.filter(other).to_pylist()
    except UnicodeDecodeError:
        # Decoders refuse what is not UTF-8. Should some come here, its bytes stay, and its neighbours are treated as ever.
        found = [value.decode("utf-8", "surrogateescape") for value in form.filter(other).to_pylist()]
    if all(is_normal_form("NFC", value) for value in found):
        return form
    normal = pa.array([normal_form("NFC", value).encode("utf-8", "surrogateescape") for value in found], pa.binary())
    return compute.replace_with_mask(form, other, normal)


def _integers(values: Any) -> Any:
    """Integers, dates and times as whole numbers of their canonical unit; any number under a null."""
    kind = values.type
    if pa.types.is_integer(kind):
        return values.fill_null(0).to_numpy(zero_copy_only=False)
    width = pa.int32() if pa.types.is_date32(kind) or pa.types.is_time32(kind) else pa.int64()
    numbers = values.view(width).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_date32(kind):
        return numbers
    if pa.types.is_date64(kind):
        return numbers // _DAY_MS
    # Beyond the year 294,000 the product wraps: distinct times may share a pseudonym there, nothing else happens.
    return numbers * _TO_MICROSECONDS[kind.unit]


def _decimal_text(values: Any) -> Any:
    """Plain text, from the unscaled integers: Arrow's own text of a decimal may have an exponent and keeps zeros."""
    scale = values.type.scale
    if values.type.bit_width == 256:
        whole_type: pa.DataType = pa.decimal256(76, 0)
    else:
        values = values if values.type.bit_width == 128 else values.cast(pa.decimal128(values.type.precision, scale))
        whole_type = pa.decimal128(38, 0)
    unscaled = pa.Array.from_buffers(whole_type, len(values), values.buffers(), offset=values.offset)
    signed = unscaled.cast(pa.string())
    digits = compute.ascii_ltrim(signed, "-")
    if scale > 0:
        digits = compute.ascii_lpad(digits, scale + 1, "0")
        whole, part = compute.utf8_slice_codeunits(digits, 0, -scale), compute.utf8_slice_codeunits(digits, -scale)
        digits = compute.ascii_rtrim(compute.binary_join_element_wise(whole, compute.ascii_rtrim(part, "0"), "."), ".")
    elif scale < 0:
        digits = compute.if_else(compute.equal(digits, "0"), digits, compute.binary_join_element_wise(digits, "0" * -scale, ""))
    return compute.if_else(compute.starts_with(signed, "-"), compute.binary_join_element_wise("-", digits, ""), digits)


def _fixed(values: Any, numbers: Any) -> Any:
    """Numbers of one width as a binary column, with the nulls of `values`."""
    count, width = len(numbers), numbers.dtype.itemsize
    offsets: Any = np.arange(0, (count + 1) * width, width, dtype=np.int32)
    valid: Any = None
    if values.null_count:
        valid = np.packbits(values.is_valid().to_numpy(zero_copy_only=False), bitorder="little")
    data: Any = np.ascontiguousarray(numbers)
    buffers = [None if valid is None else pa.py_buffer(valid), pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), count, buffers, values.null_count)
