"""Readers of Avro datums into columns, made from a writer's schema and the event schema.

fastavro is not let near a message: its C code trusts counts (an array of 2^31 elements of no bytes is five bytes long),
takes a negative number of a union's case for one counted from the end, and makes an object per record that would have
to be taken apart again. These readers check every length against the bytes that are there, append to one list per
leaf, and step over what the event schema does not know. Python runs per value here: an Avro datum has no columns.

Source: Apache Avro 1.12, Specification: binary encoding, schema resolution.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import numpy as np
import pyarrow as pa

from eventveil.schemas.events.tree import Leaf, ListOf, MapOf, Node, Record
from eventveil.transforms.columns import Column, Kind, buffer_of

__all__ = ["BadDatum", "Columns", "Misfit", "reader_of"]

Read: TypeAlias = Callable[[bytes, int], int]
"""From (datum, offset) to the offset behind the value. IndexError or BadDatum where the bytes are not of the schema."""

_SIZES = {"null": 0, "boolean": 1, "float": 4, "double": 8}
_UNITS = {"millis": 1_000, "micros": 1_000_000, "nanos": 1_000_000_000}
_ARROW_UNITS = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_INT32 = range(-(2**31), 2**31)
_INT64 = range(-(2**63), 2**63)
_MOST_UNITS = 10**38


class BadDatum(Exception):
    """The bytes are no datum of the schema, or hold a value that the event schema does not allow. Holds code and path, no data."""

    def __init__(self, code: str = "EV516", path: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.path = path


class Misfit(Exception):
    """The writer's schema does not fit the event schema; says where in known names, and why."""


@dataclass
class Columns:
    """The column of one node, growing: its own list and the columns below.

    Attributes:
        node: of the event schema.
        values: values of a leaf; whether there is one, of a record; lengths, of a list or map. None stands for null.
        below: columns of fields, of the items, or of the values.
        keys: of a map.
        present: False where the writer does not have the node: all null.
    """

    node: Node
    values: list[Any] = field(default_factory=list)
    below: list[Columns] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    present: bool = True

    def lists(self) -> list[list[Any]]:
        """Every list that grows, for going back to where an event began."""
        return [self.values, self.keys, *(found for column in self.below for found in column.lists())] if self.present else []

    def null(self) -> None:
        """Append a null."""
        if not self.present:
            return
        self.values.append(None)
        if isinstance(self.node, Record):
            for column in self.below:
                column.null()

    def build(self, rows: int) -> Column:
        """The Arrow column, in the leaf's own types; empties the lists."""
        node = self.node
        if not self.present:
            return pa.nulls(rows, _arrow_type(node))
        values = self.values
        if isinstance(node, Leaf):
            made = _leaf(node.type, values)
        elif isinstance(node, Record):
            children = [column.build(rows) for column in self.below]
            kind = pa.struct([pa.field(known.name, child.type) for known, child in zip(node.fields, children, strict=True)])
            nulls = values.count(None)
            bits = buffer_of(np.packbits(np.array([value is not None for value in values], np.bool_), bitorder="little")) if nulls else None
            made = pa.StructArray.from_buffers(kind, rows, [bits], nulls, 0, children)
        else:
            sums = np.zeros(rows + 1, np.int32)
            np.cumsum([value or 0 for value in values], out=sums[1:])
            offsets: Column = pa.array(sums)
            mask: Column = pa.array([value is None for value in values], pa.bool_())
            items = self.below[0].build(int(sums[-1]))
            if isinstance(node, MapOf):
                keys = pa.array(self.keys, pa.binary()).view(pa.string())
                made = pa.MapArray.from_arrays(offsets, keys, items, mask=mask)
                self.keys.clear()
            else:
                made = pa.ListArray.from_arrays(offsets, items, mask=mask)
        values.clear()
        return made


def reader_of(schema: Any, named: Mapping[str, Any], root: Record) -> tuple[Read, Columns, list[str]]:
    """A reader of datums of `schema` that appends to columns of `root`; the columns; and the labels of the writer's unknown fields.

    Args:
        schema: the writer's schema, parsed: named types written out or by full name.
        named: its named types by full name.

    Raises:
        Misfit: a known field has another type, or a type has no end or no size.
    """
    compiler = _Compiler(named)
    columns = Columns(root)
    return compiler.reader(schema, root, columns, ""), columns, compiler.unknown


def _arrow_type(node: Node) -> Kind:
    if isinstance(node, Leaf):
        return node.type
    if isinstance(node, ListOf):
        return pa.list_(_arrow_type(node.item))
    if isinstance(node, MapOf):
        return pa.map_(pa.string(), _arrow_type(node.value))
    return pa.struct([pa.field(known.name, _arrow_type(known.node)) for known in node.fields])


def _leaf(kind: Kind, values: list[Any]) -> Column:
    types = pa.types
    if types.is_string(kind):
        return pa.array(values, pa.binary()).view(kind)  # bytes as they came: the judge looks whether they are UTF-8
    if types.is_decimal(kind):
        units = pa.array(values, pa.binary(16))
        return pa.Array.from_buffers(kind, len(values), units.buffers(), units.null_count, units.offset)
    if types.is_date(kind) or types.is_time32(kind):
        return pa.array(values, pa.int32()).view(kind)
    if types.is_time(kind) or types.is_timestamp(kind):
        return pa.array(values, pa.int64()).view(kind)
    return pa.array(values, kind)


# Numbers, sizes


def _long(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint of at most 64 bits."""
    byte = data[at]
    if byte < 128:
        return (byte >> 1) ^ -(byte & 1), at + 1
    value = byte & 127
    shift = 7
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
        if shift > 63:
            raise BadDatum
    value = (value >> 1) ^ -(value & 1)
    if value not in _INT64:
        raise BadDatum
    return value, at + 1


def _sized(data: bytes, at: int) -> tuple[int, int]:
    """Where bytes or text begin and end."""
    length, at = _long(data, at)
    end = at + length
    if length < 0 or end > len(data):
        raise BadDatum
    return at, end


def _count(data: bytes, at: int, smallest: int) -> tuple[int, int]:
    """The number of items of a block; never more than the bytes that are left can hold."""
    count, at = _long(data, at)
    if count < 0:
        count = -count
        size, at = _long(data, at)
        if size < 0:
            raise BadDatum
    if count * smallest > len(data) - at:
        raise BadDatum
    return count, at


class _Compiler:
    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self.unknown: list[str] = []

    def reader(self, schema: Any, node: Node, columns: Columns, path: str) -> Read:
        """A reader that appends one value (or null) to `columns` each time."""
        schema = self._resolved(schema)
        if isinstance(schema, list):
            return self._union(schema, node, columns, path)
        kind = _kind(schema)
        if kind == "null" and path:
            return _null(columns)
        if isinstance(node, Record):
            return self._record(schema, kind, node, columns, path)
        if isinstance(node, ListOf | MapOf):
            return self._items(schema, kind, node, columns, path)
        return self._scalar(schema, kind, node, columns.values.append, path)

    def _resolved(self, schema: Any) -> Any:
        """A type without its wrappings: names are looked up, {"type": {"type": ...}} is the inner one."""
        while True:
            if isinstance(schema, str) and schema in self._named:
                schema = self._named[schema]
            elif isinstance(schema, dict) and (isinstance(schema["type"], dict | list) or schema["type"] in self._named):
                schema = schema["type"]
            else:
                return schema

    def _union(self, cases: list[Any], node: Node, columns: Columns, path: str) -> Read:
        readers: list[Read] = []
        misfit: Misfit | None = None
        fits = False
        for case in cases:
            if _kind(self._resolved(case)) == "null":
                readers.append(_null(columns) if path else _wrong(path))  # no event is null
                continue
            try:
                if fits and columns.below:
                    raise Misfit(f"{path}: a union of several types that fit")
                readers.append(self.reader(case, node, columns, path))
                fits = True
            except Misfit as error:
                # Only an event of this case is wrong.
                misfit = error
                readers.append(_wrong(path))
        if not fits and (misfit is not None or not path):
            raise misfit or _misfit(path, "a union of nothing", "a record")
        return _cases(readers)

    def _record(self, schema: Any, kind: str, node: Record, columns: Columns, path: str) -> Read:
        if kind not in ("record", "error"):
            raise _misfit(path, kind, "a record")
        given = {entry["name"]: entry for entry in schema["fields"]}
        columns.below = [Columns(known.node, present=known.name in given) for known in node.fields]
        at = {known.name: number for number, known in enumerate(node.fields)}
        steps: list[Read] = []
        label = f"{path}.?" if path else "?"
        for entry in schema["fields"]:
            number = at.get(entry["name"])
            if number is None:
                if label not in self.unknown:
                    self.unknown.append(label)
                steps.append(_callable(self.skipper(entry["type"], ())))
            else:
                below = f"{path}.{entry['name']}" if path else entry["name"]
                steps.append(self.reader(entry["type"], node.fields[number].node, columns.below[number], below))
        append = columns.values.append

        def read(data: bytes, at: int) -> int:
            append(True)
            for step in steps:
                at = step(data, at)
            return at

        return read

    def _items(self, schema: Any, kind: str, node: ListOf | MapOf, columns: Columns, path: str) -> Read:
        is_map = isinstance(node, MapOf)
        if kind != ("map" if is_map else "array"):
            raise _misfit(path, kind, "a map" if is_map else "an array")
        inner = schema["values" if is_map else "items"]
        below = f"{path}{{}}" if is_map else f"{path}[]"
        smallest = self.smallest(inner, ()) + is_map
        if smallest == 0:
            raise Misfit(f"{below}: elements that take no bytes")
        columns.below = [Columns(node.value if isinstance(node, MapOf) else node.item)]
        item = self.reader(inner, columns.below[0].node, columns.below[0], below)
        append, append_key = columns.values.append, columns.keys.append if is_map else None

        def read(data: bytes, at: int) -> int:
            total = 0
            while True:
                count, at = _count(data, at, smallest)
                if count == 0:
                    append(total)
                    return at
                total += count
                for _ in range(count):
                    if append_key is not None:
                        start, at = _sized(data, at)
                        append_key(data[start:at])
                    at = item(data, at)

        return read

    def _scalar(self, schema: Any, kind: str, node: Leaf, append: Callable[[Any], None], path: str) -> Read:
        logical = schema.get("logicalType") if isinstance(schema, dict) else None
        types, wanted = pa.types, node.type
        if types.is_decimal(wanted):
            if kind not in ("bytes", "fixed") or logical != "decimal" or schema.get("scale", 0) != wanted.scale:
                raise _misfit(path, kind, "a decimal of the same scale")
            return _decimals(append, schema["size"] if kind == "fixed" else None, path)
        if node.form == "enum":
            if kind != "enum":
                raise _misfit(path, kind, "an enum")
            return _enum(append, [symbol.encode() for symbol in schema["symbols"]])
        if node.form == "fixed" or (node.form == "uuid" and kind == "fixed"):
            if kind != "fixed" or schema["size"] != node.size:
                raise _misfit(path, kind, f"fixed of {node.size} bytes")
            return _fixed(append, node.size, _uuid_text if node.form == "uuid" else None)
        if types.is_string(wanted) or types.is_binary(wanted):
            if kind not in ("string", "bytes"):
                raise _misfit(path, kind, "text or bytes")
            return _bytes(append)
        if types.is_boolean(wanted) and kind == "boolean":
            return _booleans(append)
        if types.is_timestamp(wanted):
            return _integers(append, _INT64, self._times(kind, logical, wanted, path), path)
        if types.is_temporal(wanted):
            names = {"date32[day]": ("int", "date"), "time32[ms]": ("int", "time-millis"), "time64[us]": ("long", "time-micros")}
            if (kind, logical) != names.get(str(wanted)):
                raise _misfit(path, kind, str(wanted))
            return _integers(append, _INT32 if kind == "int" else _INT64, 1, path)
        allowed = {
            "int32": ("int",),
            "int64": ("int", "long"),
            "float": ("int", "long", "float"),
            "double": ("int", "long", "float", "double"),
        }
        if kind not in allowed.get(str(wanted), ()):
            raise _misfit(path, kind, str(wanted))
        if kind in ("int", "long"):
            appended = append if types.is_integer(wanted) else lambda value: append(float(value))
            return _integers(appended, _INT32 if kind == "int" else _INT64, 1, path)
        return _floats(append, "<f" if kind == "float" else "<d")

    def _times(self, kind: str, logical: Any, wanted: Kind, path: str) -> int:
        """By what the writer's counts are to be multiplied."""
        start = "timestamp-" if wanted.tz is not None else "local-timestamp-"
        unit = str(logical)[len(start) :] if str(logical).startswith(start) else ""
        if kind != "long" or unit not in _UNITS or _ARROW_UNITS[wanted.unit] % _UNITS[unit]:
            raise _misfit(path, kind, f"{start}{wanted.unit}")
        return _ARROW_UNITS[wanted.unit] // _UNITS[unit]

    def skipper(self, schema: Any, above: tuple[int, ...]) -> int | Read:
        """A reader that keeps nothing; an int where every value has that size. `above` are the types that it stands in."""
        schema = self._resolved(schema)
        if isinstance(schema, list):
            return _cases([_callable(self.skipper(case, above)) for case in schema])
        kind = _kind(schema)
        if kind in _SIZES:
            return _skip_boolean if kind == "boolean" else _SIZES[kind]
        if kind in ("int", "long"):
            return _integers(_forget, _INT32 if kind == "int" else _INT64, 1, "")
        if kind in ("bytes", "string"):
            return lambda data, at: _sized(data, at)[1]
        if kind == "fixed":
            return int(schema["size"])
        if kind == "enum":
            return _enum(_forget, schema["symbols"])
        if id(schema) in above:
            # How deep it nests would be the message's choice, and how deep we can follow our caller's.
            raise Misfit("a field that the event schema does not know has a type that contains itself")
        above = (*above, id(schema))
        if kind not in ("array", "map"):
            steps = [self.skipper(entry["type"], above) for entry in schema["fields"]]
            fixed = [step for step in steps if isinstance(step, int)]
            return sum(fixed) if len(fixed) == len(steps) else _chain([_callable(step) for step in steps])
        inner = schema["values" if kind == "map" else "items"]
        item = self.skipper(inner, above)
        smallest = self.smallest(inner, ()) + (kind == "map")
        if smallest == 0:
            raise Misfit("a field that the event schema does not know has elements that take no bytes")
        return _skip_items(_callable(item), smallest, kind == "map")

    def smallest(self, schema: Any, above: tuple[int, ...]) -> int:
        """The fewest bytes that a value takes."""
        schema = self._resolved(schema)
        if isinstance(schema, list):
            return 1
        kind = _kind(schema)
        if kind == "fixed":
            return int(schema["size"])
        if kind in ("record", "error"):
            if id(schema) in above:
                return 0
            return sum(self.smallest(entry["type"], (*above, id(schema))) for entry in schema["fields"])
        return _SIZES.get(kind, 1)


def _kind(schema: Any) -> str:
    """The name of a type that is no union."""
    return str(schema["type"] if isinstance(schema, dict) else schema)


def _misfit(path: str, found: str, wanted: str) -> Misfit:
    return Misfit(f"{path or 'the event'} is {found}, and not {wanted}")


def _forget(_: Any) -> None:
    """What the event schema does not know is read for its end only."""


def _null(columns: Columns) -> Read:
    null = columns.null

    def read(data: bytes, at: int) -> int:
        null()
        return at

    return read


def _wrong(path: str) -> Read:
    def read(data: bytes, at: int) -> NoReturn:
        raise BadDatum("EV502", path)

    return read


def _cases(readers: Sequence[Read]) -> Read:
    def read(data: bytes, at: int) -> int:
        case, at = _long(data, at)
        if not 0 <= case < len(readers):
            raise BadDatum
        return readers[case](data, at)

    return read


def _chain(steps: Sequence[Read]) -> Read:
    def read(data: bytes, at: int) -> int:
        for step in steps:
            at = step(data, at)
        return at

    return read


def _callable(skip: int | Read) -> Read:
    if not isinstance(skip, int):
        return skip

    def read(data: bytes, at: int) -> int:
        if at + skip > len(data):
            raise BadDatum
        return at + skip

    return read


def _skip_boolean(data: bytes, at: int) -> int:
    if data[at] > 1:
        raise BadDatum
    return at + 1


def _skip_items(item: Read, smallest: int, is_map: bool) -> Read:
    def read(data: bytes, at: int) -> int:
        while True:
            count, at = _count(data, at, smallest)
            if count == 0:
                return at
            for _ in range(count):
                at = item(data, _sized(data, at)[1] if is_map else at)

    return read


def _integers(append: Callable[[Any], None], within: range, times: int, path: str) -> Read:
    def read(data: bytes, at: int) -> int:
        byte = data[at]
        if byte < 128:
            append(((byte >> 1) ^ -(byte & 1)) * times)
            return at + 1
        value, at = _long(data, at)
        if value not in within:
            raise BadDatum
        value *= times
        if value not in _INT64:
            raise BadDatum("EV506", path)
        append(value)
        return at

    return read


def _floats(append: Callable[[Any], None], form: str) -> Read:
    unpack, size = struct.Struct(form).unpack_from, struct.calcsize(form)

    def read(data: bytes, at: int) -> int:
        if at + size > len(data):
            raise BadDatum
        append(unpack(data, at)[0])
        return at + size

    return read


def _booleans(append: Callable[[Any], None]) -> Read:
    def read(data: bytes, at: int) -> int:
        byte = data[at]
        if byte > 1:
            raise BadDatum
        append(byte == 1)
        return at + 1

    return read


def _bytes(append: Callable[[Any], None]) -> Read:
    def read(data: bytes, at: int) -> int:
        start, end = _sized(data, at)
        append(data[start:end])
        return end

    return read


def _fixed(append: Callable[[Any], None], size: int, change: Callable[[bytes], bytes] | None) -> Read:
    def read(data: bytes, at: int) -> int:
        end = at + size
        if end > len(data):
            raise BadDatum
        append(data[at:end] if change is None else change(data[at:end]))
        return end

    return read


def _uuid_text(value: bytes) -> bytes:
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}".encode()


def _enum(append: Callable[[Any], None], symbols: Sequence[Any]) -> Read:
    def read(data: bytes, at: int) -> int:
        number, at = _long(data, at)
        if not 0 <= number < len(symbols):
            raise BadDatum
        append(symbols[number])
        return at

    return read


def _decimals(append: Callable[[Any], None], size: int | None, path: str) -> Read:
    """Two's complement, big endian -> the sixteen bytes, little endian, of Arrow's decimals."""

    def read(data: bytes, at: int) -> int:
        if size is None:
            start, end = _sized(data, at)
        else:
            start, end = at, at + size
            if end > len(data):
                raise BadDatum
        units = int.from_bytes(data[start:end], "big", signed=True)
        if not -_MOST_UNITS < units < _MOST_UNITS:
            raise BadDatum("EV506", path)
        append(units.to_bytes(16, "little", signed=True))
        return end

    return read
