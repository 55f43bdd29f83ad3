"""Where each datum of an Avro block ends, found by walking over it with the writer's schema: nothing is decoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DatumError", "datum_ends", "read_long", "walker_of"]

# From (bytes, offset) to the offset behind the value. May lie behind the last byte; whoever asks for the whole checks that.
_Walk = Callable[[bytes, int], int]
# A value of a fixed size is walked over by addition, so that a forged count of such items cannot cost time; every other value is at
# least one byte that must be there. So a walk takes no more steps than there are bytes, whatever a file says.
Walker = int | _Walk

_SIZES = {"null": 0, "boolean": 1, "float": 4, "double": 8}


class DatumError(ValueError):
    """The bytes are not what the writer's schema says, or the schema is none. Holds no data."""


def walker_of(schema: str) -> Walker:
    """The walker over a datum of a schema (Avro 1.11, JSON text); an int where every datum has that size.

    Raises DatumError if the text is no schema.
    """
    try:
        return _Schema().walker(json.loads(schema), "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DatumError("not an Avro schema") from None


def datum_ends(walker: Walker, data: bytes, count: int) -> npt.NDArray[np.int64]:
    """The offset behind each of the `count` datums that fill `data` exactly.

    Raises DatumError if they do not.
    """
    if isinstance(walker, int):
        if walker * count != len(data):
            raise DatumError("the datums do not fill the block")
        return np.arange(1, count + 1, dtype=np.int64) * walker
    ends = np.empty(count, np.int64)
    at = 0
    try:
        # Datum by datum: where one ends is known only when it has been walked over.
        for number in range(count):
            at = walker(data, at)
            ends[number] = at
    except (IndexError, RecursionError):
        raise DatumError("a datum goes past the end of the block, or is nested too deeply") from None
    if at != len(data):
        raise DatumError("the datums do not fill the block")
    return ends


def read_long(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint, and the offset behind it. Raises IndexError at the end of the data, DatumError past 64 bits."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
        if shift > 63:
            raise DatumError("a number has more than 64 bits")
    return (value >> 1) ^ -(value & 1), at


def _long(data: bytes, at: int) -> int:
    for last in range(at, at + 10):
        if data[last] < 128:
            return last + 1
    raise DatumError("a number has more than 64 bits")


def _bytes(data: bytes, at: int) -> int:
    length = data[at]
    if length < 128:
        at += 1
        length = (length >> 1) ^ -(length & 1)
    else:
        length, at = read_long(data, at)
    if length < 0:
        raise DatumError("a length is negative")
    return at + length


def _fixed(size: int) -> _Walk:
    return lambda data, at: at + size


def _record(steps: list[_Walk]) -> _Walk:
    def walk(data: bytes, at: int) -> int:
        for step in steps:
            at = step(data, at)
        return at

    return walk


def _union(cases: list[_Walk]) -> _Walk:
    def walk(data: bytes, at: int) -> int:
        case, at = read_long(data, at)
        if not 0 <= case < len(cases):
            raise DatumError("a union has no such case")
        return cases[case](data, at)

    return walk


def _optional(null: int, value: _Walk) -> _Walk:
    """A union of null and one other type, the most frequent of all."""
    other = 2 - null

    def walk(data: bytes, at: int) -> int:
        case = data[at]
        if case == other:
            return value(data, at + 1)
        if case != null:
            raise DatumError("a union has no such case")
        return at + 1

    return walk


def _blocks(item: Walker) -> _Walk:
    def walk(data: bytes, at: int) -> int:
        while True:
            count, at = read_long(data, at)
            if count == 0:
                return at
            if count < 0:
                # The size in bytes that follows is for readers that skip; we walk, so that it cannot lie.
                count = -count
                at = _long(data, at)
            if isinstance(item, int):
                at += item * count
                if at > len(data):
                    raise DatumError("a list goes past the end of the block")
                continue
            for _ in range(count):
                at = item(data, at)

    return walk


class _Schema:
    """Turns a schema into walkers; knows the names that were defined so far."""

    def __init__(self) -> None:
        self._named: dict[str, Walker | None] = {}

    def walker(self, schema: Any, space: str) -> Walker:
        if isinstance(schema, list):
            return self._of_union([self.walker(case, space) for case in schema])
        if isinstance(schema, str):
            return self._of_name(schema, space)
        kind = schema["type"]
        if not isinstance(kind, str):
            return self.walker(kind, space)
        if kind in ("record", "error", "enum", "fixed"):
            return self._of_definition(kind, schema, space)
        if kind == "array":
            return _blocks(self.walker(schema["items"], space))
        if kind == "map":
            return _blocks(_record([_bytes, _callable(self.walker(schema["values"], space))]))
        return self._of_name(kind, space)

    def _of_union(self, cases: list[Walker]) -> Walker:
        if len(cases) == 2 and 0 in cases:
            null = cases.index(0)
            return _optional(2 * null, _callable(cases[1 - null]))
        return _union([_callable(case) for case in cases])

    def _of_name(self, name: str, space: str) -> Walker:
        if name in _SIZES:
            return _SIZES[name]
        if name in ("int", "long"):
            return _long
        if name in ("bytes", "string"):
            return _bytes
        full = f"{space}.{name}" if space and "." not in name and f"{space}.{name}" in self._named else name
        found = self._named[full]
        if found is not None:
            return found

        # Named inside of its own definition: looked up when it is walked, after the definition is complete.
        def later(data: bytes, at: int) -> int:
            return _callable(self._named[full] or 0)(data, at)

        return later

    def _of_definition(self, kind: str, schema: dict[str, Any], space: str) -> Walker:
        name = str(schema["name"])
        space = name.rpartition(".")[0] if "." in name else str(schema.get("namespace", space) or "")
        full = name if "." in name or not space else f"{space}.{name}"
        if full in self._named:
            raise DatumError("a name is defined twice")
        if kind == "enum":
            self._named[full] = _long
            return _long
        if kind == "fixed":
            size = schema["size"]
            if not isinstance(size, int) or size < 0:
                raise DatumError("not an Avro schema")
            self._named[full] = size
            return size
        self._named[full] = None
        fields = [self.walker(field["type"], space) for field in schema["fields"]]
        sizes = [field for field in fields if isinstance(field, int)]
        walker = sum(sizes) if len(sizes) == len(fields) else _record(_merged(fields))
        self._named[full] = walker
        return walker


def _callable(walker: Walker) -> _Walk:
    return _fixed(walker) if isinstance(walker, int) else walker


def _merged(fields: list[Walker]) -> list[_Walk]:
    """The steps of a record; neighbours of fixed size are one step, those of none are no step."""
    steps: list[_Walk] = []
    size = 0
    for field in fields:
        if isinstance(field, int):
            size += field
            continue
        if size:
            steps.append(_fixed(size))
            size = 0
        steps.append(field)
    return [*steps, _fixed(size)] if size else steps
