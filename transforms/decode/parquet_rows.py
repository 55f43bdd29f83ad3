"""Data that is Arrow already (Parquet, record batches of a user) -> the event schema's types, judged as every format is."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventveil.schemas.errors import Problem, StorageError
from eventveil.schemas.events.tree import EventSchema, Leaf, ListOf, MapOf, Node, Record
from eventveil.transforms.columns import Column, Kind, buffer_of, list_lengths, map_entries, numbers_of, validity
from eventveil.transforms.decode.decoded import Decoded, drift_labels
from eventveil.transforms.decode.forms import Problems, read_typed, without
from eventveil.transforms.decode.judge import Judge, assemble

__all__ = ["ColumnsDecoder"]

_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_REMEDY = "correct the schema, or the file"
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


class ColumnsDecoder:
    """Fits record batches to the event schema by the names of their columns, and judges every leaf whatever is used.

    A column that is missing is null where the schema allows null. Types must be those of the schema or widen to them
    without loss: narrower numbers, dictionaries, wide and fixed variants of text, bytes and lists; timestamps of other units are
    converted, and digits that are finer than the schema's unit are cut.

    Args:
        schema: the event schema.
        used: paths of the leaves that go on; None: all, and no entry of a map.
    """

    def __init__(self, schema: EventSchema, used: Set[str] | None = None) -> None:
        self.schema = schema
        self._judge = Judge(schema, used, _read)
        self._labels = drift_labels(schema)
        self._checked: pa.Schema | None = None
        self._unknown: list[str] = []

    @property
    def type(self) -> pa.StructType:
        """The type of the decoded events."""
        return self._judge.type

    def decode(self, batch: pa.RecordBatch) -> Decoded:
        """Decode one batch.

        Raises:
            StorageError: (EV407) a required column is missing, or a column has another type; all of them at once.
        """
        if self._checked is None or not self._checked.equals(batch.schema):
            problems: list[Problem] = []
            unknown: set[str] = set()
            _check_fields(self.schema.root, list(batch.schema), "", problems, unknown)
            if problems:
                raise StorageError(problems)
            self._checked, self._unknown = batch.schema, [label for label in self._labels if label in unknown]
        rows = batch.num_rows
        columns = {name: batch.column(number) for number, name in enumerate(batch.schema.names)}
        events = _record(self.schema.root, columns, rows, None, 0)
        read, verdicts = self._judge.judge(events)
        refused = verdicts.found
        every = np.arange(rows)
        return assemble(read, every, refused, dict.fromkeys(self._unknown, every))


# Do the types fit? Asked once per schema of a file.


def _check_fields(node: Record, given: Sequence[pa.Field[Any]], path: str, problems: list[Problem], unknown: set[str]) -> None:
    names = [column.name for column in given]
    for known in node.fields:
        below = f"{path}.{known.name}" if path else known.name
        found = [column for column in given if column.name == known.name]
        if len(found) > 1:
            problems.append(Problem("", 0, "EV407", f"column {below} stands twice", _REMEDY))
        elif found:
            _check(known.node, found[0].type, below, problems, unknown)
        elif not known.nullable:
            problems.append(Problem("", 0, "EV407", f"column {below} is missing, and the event schema requires it", _REMEDY))
    if set(names) - {known.name for known in node.fields}:
        unknown.add(f"{path}.?" if path else "?")


def _check(node: Node, kind: Kind, path: str, problems: list[Problem], unknown: set[str]) -> None:
    kind = _inner(kind)
    if pa.types.is_null(kind):
        return
    if isinstance(node, Record) and pa.types.is_struct(kind):
        _check_fields(node, list(kind), path, problems, unknown)
    elif isinstance(node, ListOf) and _is_list(kind):
        _check(node.item, kind.value_type, f"{path}[]", problems, unknown)
    elif isinstance(node, MapOf) and pa.types.is_map(kind) and _is_text(_inner(kind.key_type)):
        _check(node.value, kind.item_type, f"{path}{{}}", problems, unknown)
    elif not (isinstance(node, Leaf) and _fits(node, kind)):
        wanted = node.type if isinstance(node, Leaf) else {Record: "struct", ListOf: "list", MapOf: "map"}[type(node)]
        # Of nested types only the kind: their fields may have names that the event schema does not know.
        told = kind if not pa.types.is_nested(kind) else "nested"
        problems.append(Problem("", 0, "EV407", f"column {path} is {told}, and the event schema says {wanted}", _REMEDY))


def _inner(kind: Kind) -> Kind:
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def _is_list(kind: Kind) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_text(kind: Kind) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_bytes(kind: Kind) -> bool:
    types = pa.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind)


def _fits(leaf: Leaf, kind: Kind) -> bool:
    """Whether every value of `kind` has its equal in the leaf's type (or is refused for itself)."""
    wanted: Kind = leaf.type
    types = pa.types
    fits: Any = kind == wanted
    if types.is_string(wanted):
        fits = _is_text(kind) or (leaf.form == "uuid" and kind == pa.binary(16))
    elif types.is_binary(wanted) or types.is_fixed_size_binary(wanted):
        fits = _is_bytes(kind)
    elif types.is_integer(wanted):
        fits = types.is_integer(kind) and (kind == wanted or kind.bit_width < wanted.bit_width)
    elif types.is_floating(wanted):
        exact = wanted.bit_width // 2 if types.is_integer(kind) else wanted.bit_width
        fits = (types.is_integer(kind) or types.is_floating(kind)) and kind.bit_width <= exact
    elif types.is_decimal(wanted):
        fits = types.is_decimal(kind) and kind.bit_width <= 128 and kind.scale <= wanted.scale
        fits = fits and (kind.scale == wanted.scale or kind.precision - kind.scale <= wanted.precision - wanted.scale)
    elif types.is_timestamp(wanted):
        fits = types.is_timestamp(kind) and (kind.tz is None) == (wanted.tz is None)
    elif types.is_time(wanted):
        fits = types.is_time(kind) and _PER_SECOND[kind.unit] <= _PER_SECOND[wanted.unit]
    return bool(fits)


# The columns in the shape of the schema


def _fit(node: Node, array: Any) -> Column:
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        else:
            break
    if isinstance(node, Leaf):
        return array
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), _nothing(node))
    if isinstance(node, Record):
        columns = {field.name: child for field, child in zip(array.type, array.flatten())}
        return _record(node, columns, len(array), validity(array), array.null_count)
    if isinstance(node, MapOf):
        keys, values = map_entries(array)
        keys = _fit(Leaf(pa.string()), keys).cast(pa.string())
        return _listed(pa.map_, [keys, _fit(node.value, values)], array)
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_field))
    items = array.flatten()
    fitted = _fit(node.item, items)
    return array if fitted is items and pa.types.is_list(array.type) else _listed(pa.list_, [fitted], array)


def _record(node: Record, columns: dict[str, Column], rows: int, bits: pa.Buffer | None, nulls: int) -> Column:
    children = [
        _fit(known.node, columns[known.name]) if known.name in columns else pa.nulls(rows, _nothing(known.node)) for known in node.fields
    ]
    kind = pa.struct([pa.field(known.name, child.type) for known, child in zip(node.fields, children)])
    return pa.StructArray.from_buffers(kind, rows, [bits], nulls, 0, children)


def _listed(kind: Any, children: list[Column], like: Any) -> Column:
    """A list or map of these elements, with the lengths and nulls of another."""
    offsets = np.zeros(len(like) + 1, np.int32)
    np.cumsum(list_lengths(like), out=offsets[1:])
    made = kind(*(child.type for child in children))
    inner = children[0] if len(children) == 1 else _entries(made, children)
    return pa.Array.from_buffers(made, len(like), [validity(like), buffer_of(offsets)], like.null_count, 0, [inner])


def _entries(kind: Kind, children: list[Column]) -> Column:
    fields = [kind.key_field, kind.item_field]
    return pa.StructArray.from_buffers(pa.struct(fields), len(children[0]), [None], 0, 0, children)


def _nothing(node: Node) -> Kind:
    """A type for a column that is null throughout."""
    if isinstance(node, Leaf):
        return node.type
    if isinstance(node, ListOf):
        return pa.list_(_nothing(node.item))
    if isinstance(node, MapOf):
        return pa.map_(pa.string(), _nothing(node.value))
    return pa.struct([pa.field(known.name, _nothing(known.node)) for known in node.fields])


# Values in the types of the schema


def _read(leaf: Leaf, values: Column) -> tuple[Column, Sequence[tuple[str, npt.NDArray[np.bool_]]]]:
    """A column of a type that fits -> the leaf's type, and what is wrong in it. A `Reader` (judge.py)."""
    kind: Kind = values.type
    wanted: Kind = leaf.type
    if kind == wanted:
        return read_typed(leaf, values)
    if pa.types.is_timestamp(wanted) and pa.types.is_timestamp(kind):
        problems: Problems = []
        read, more = read_typed(leaf, _timestamps(values, wanted, problems))
        return read, [*problems, *more]
    if pa.types.is_decimal(kind) and kind.scale == wanted.scale:
        # More digits than the schema allows: as many as there can be are looked at, and the judge finds those that are too many.
        wide = values.cast(pa.decimal128(38, kind.scale))
        return read_typed(leaf, pa.Array.from_buffers(wanted, len(wide), wide.buffers(), wide.null_count, wide.offset))
    if pa.types.is_string(wanted) and pa.types.is_fixed_size_binary(kind):
        return read_typed(leaf, _uuid_text(values))
    if pa.types.is_string(wanted):
        # By way of bytes, so that text which is not UTF-8 is found by the judge and not by an exception.
        return read_typed(
            leaf, values.cast(pa.large_binary() if pa.types.is_large_string(kind) else pa.binary()).cast(pa.binary()).view(wanted)
        )
    return read_typed(leaf, values.cast(wanted))


def _timestamps(values: Column, wanted: Kind, problems: Problems) -> Column:
    counts = values.cast(pa.int64())
    numbers = np.asarray((counts.fill_null(0) if counts.null_count else counts).to_numpy(zero_copy_only=False))
    factor, divisor = _PER_SECOND[wanted.unit] // _PER_SECOND[values.type.unit], _PER_SECOND[values.type.unit] // _PER_SECOND[wanted.unit]
    if factor > 1:
        limit = (2**63 - 1) // factor
        wrong = (numbers > limit) | (numbers < -limit)
        if wrong.any():
            problems.append(("EV506", wrong))
        numbers = numbers * factor
    elif divisor > 1:
        numbers = numbers // divisor
    read = pa.array(numbers, pa.int64()).cast(wanted)
    return without(read, np.asarray(values.is_null().to_numpy(zero_copy_only=False))) if values.null_count else read


def _uuid_text(values: Column) -> Column:
    """Sixteen bytes -> the hyphenated text."""
    data = values.buffers()[1]
    raw = numbers_of(data, np.uint8, len(values) * 16, values.offset * 16).reshape(-1, 16) if len(values) else np.zeros((0, 16), np.uint8)
    digits = np.stack([_HEX[raw >> 4], _HEX[raw & 15]], axis=2).reshape(-1, 32)
    text = np.full((len(raw), 36), ord("-"), np.uint8)
    at = 0
    for number, length in enumerate((8, 4, 4, 4, 12)):
        text[:, at + number : at + number + length] = digits[:, at : at + length]
        at += length
    offsets = np.arange(0, (len(raw) + 1) * 36, 36, dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(raw), [validity(values), buffer_of(offsets), buffer_of(text)], values.null_count)
