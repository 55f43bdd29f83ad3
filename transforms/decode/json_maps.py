"""Maps in JSON: objects whose keys the producer chooses, read by msgspec.

pyarrow.json cannot read an object with arbitrary keys as a map, and asking it for the entries that a policy names would
judge only these. So every map of every event is read here with the type that the schema gives its values, which also is
the judgement on it, and becomes an Arrow map beside the columns that pyarrow has read.

Python runs per event here, and per entry: there is no columnar reader of maps. Events nested deeper than
`_DEEPEST` are refused under schemas with maps, because msgspec's own limit depends on who calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import chain
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventveil.schemas.events.tree import Leaf, ListOf, MapOf, Node, Record
from eventveil.transforms.columns import Column, validity
from eventveil.transforms.decode.json_forms import parse_type
from eventveil.transforms.decode.json_scan import Scanner

__all__ = ["MapReader", "has_maps"]

_DEEPEST = 200
# With more entries than this a second decoder is cheaper than looking for each key.
_MANY_KEYS = 64
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


def has_maps(node: Node) -> bool:
    """Whether there is a map at or below `node`."""
    if isinstance(node, Record):
        return any(has_maps(field.node) for field in node.fields)
    return isinstance(node, MapOf) or (isinstance(node, ListOf) and has_maps(node.item))


class MapReader:
    """Reads the maps of events that pyarrow has read without them. `root` is the event."""

    def __init__(self, root: Record) -> None:
        self._root = root
        self._scan = Scanner(root).scan
        self._decode = msgspec.json.Decoder(_view(root, False)).decode
        self._decimals = any(_decimals_in_maps(field.node, False) for field in root.fields)

    def read(
        self, events: Column, rows: npt.NDArray[np.int64], texts: dict[int, bytes], refused: dict[int, tuple[str, str]]
    ) -> tuple[Column, npt.NDArray[np.int64]]:
        """The events with their maps; those whose maps cannot be read go to `refused`."""
        objects = []
        keep = np.ones(len(rows), np.bool_)
        for at, row in enumerate(rows.tolist()):
            read = self._event(texts[row])
            if isinstance(read, tuple):
                refused[row] = read
                keep[at] = False
            else:
                objects.append(read)
        if not keep.all():
            events, rows = events.filter(pa.array(keep)), rows[keep]
        return _merge_record(self._root, events, objects), rows

    def _event(self, text: bytes) -> Any:
        """The event as an object, or code and path."""
        if text.count(b"{") + text.count(b"[") > _DEEPEST:
            found = self._scan(text)
            if found.problem is not None or found.depth > _DEEPEST:
                return found.problem or ("EV501", "")
        try:
            read = self._decode(text)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            found = self._scan(text)
            return found.problem or found.unreadable or found.suspicion or ("EV501", "")
        # A key twice: its later value would silently win. Without escapes both stand in the text as they are.
        keys = list(_keys(self._root, read))
        many = b"\\" in text or len(keys) > _MANY_KEYS
        if self._decimals or (_twice(text) if many else any(text.count(b'"%b"' % key.encode()) > 1 for key in keys)):
            found = self._scan(text)
            if found.problem is not None or (self._decimals and found.suspicion is not None):
                return found.problem or found.suspicion
        return read


def _view(node: Node, in_map: bool) -> Any:
    """A msgspec type that sees maps, what leads to them, and all that is in them."""
    if isinstance(node, Leaf):
        kind = node.type
        if pa.types.is_boolean(kind):
            return bool
        if pa.types.is_integer(kind):
            return _Int64
        if pa.types.is_floating(kind):
            return float
        return Decimal if pa.types.is_decimal(kind) else str
    if isinstance(node, ListOf):
        return list[_view(node.item, in_map) | None]  # type: ignore[misc]
    if isinstance(node, MapOf):
        return dict[str, _view(node.value, True) | None]  # type: ignore[misc]
    seen = [(number, field) for number, field in enumerate(node.fields) if in_map or has_maps(field.node)]
    fields = [(f"f{number}", _view(field.node, in_map) | None, None) for number, field in seen]
    return msgspec.defstruct("Seen", fields, rename={f"f{number}": field.name for number, field in seen})


def _decimals_in_maps(node: Node, in_map: bool) -> bool:
    if isinstance(node, Leaf):
        return in_map and pa.types.is_decimal(node.type)
    if isinstance(node, Record):
        return any(_decimals_in_maps(field.node, in_map) for field in node.fields)
    return _decimals_in_maps(node.value, True) if isinstance(node, MapOf) else _decimals_in_maps(node.item, in_map)


def _keys(node: Node, read: Any) -> Iterator[str]:
    """All keys of all maps of one event."""
    if read is None or isinstance(node, Leaf):
        return
    if isinstance(node, Record):
        for number, field in enumerate(node.fields):
            if has_maps(field.node):
                yield from _keys(field.node, getattr(read, f"f{number}"))
    elif isinstance(node, ListOf):
        for item in read:
            yield from _keys(node.item, item)
    else:
        yield from read
        if has_maps(node.value):
            for value in read.values():
                yield from _keys(node.value, value)


def _twice(text: bytes) -> bool:
    """Whether any object in the text has a key twice, known to the schema or not."""
    twice = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal twice
        twice = twice or len({key for key, _ in pairs}) < len(pairs)

    try:
        json.loads(text, object_pairs_hook=look)
    except (ValueError, RecursionError):
        return True
    return twice


def _merge(node: Node, array: Column | None, objects: Sequence[Any]) -> Column:
    """pyarrow's column with the maps put in; None: pyarrow has no column here, as for a list of maps."""
    if isinstance(node, MapOf) or array is None:
        return _column(node, objects)
    if isinstance(node, ListOf):
        items = _merge(node.item, array.flatten(), [item for found in objects if found is not None for item in found])
        return _list(items, objects)
    assert isinstance(node, Record)
    return _merge_record(node, array, objects)


def _merge_record(node: Record, array: Column, objects: Sequence[Any]) -> Column:
    parsed = dict(zip([field.name for field in array.type], array.flatten(), strict=True))
    children = []
    for number, field in enumerate(node.fields):
        child = parsed.get(field.name)
        if has_maps(field.node):
            child = _merge(field.node, child, _attributes(objects, number))
        children.append(child)
    return _record(node, children, array)


def _column(node: Node, objects: Sequence[Any]) -> Column:
    """Objects of one node -> the column that pyarrow would have made."""
    if isinstance(node, Leaf):
        return pa.array(objects, parse_type(node))
    if isinstance(node, ListOf):
        return _list(_column(node.item, [item for found in objects if found is not None for item in found]), objects)
    if isinstance(node, MapOf):
        keys = pa.array(list(chain.from_iterable(found for found in objects if found is not None)), pa.string())
        items = _column(node.value, [value for found in objects if found is not None for value in found.values()])
        offsets, mask = _offsets(objects)
        return pa.MapArray.from_arrays(offsets, keys, items, mask=mask)
    present = pa.array([None if found is None else True for found in objects], pa.bool_())
    return _record(node, [_column(field.node, _attributes(objects, number)) for number, field in enumerate(node.fields)], present)


def _attributes(objects: Sequence[Any], number: int) -> list[Any]:
    name = f"f{number}"
    return [None if found is None else getattr(found, name) for found in objects]


def _record(node: Record, children: Sequence[Column], like: Column) -> Column:
    kind = pa.struct([pa.field(field.name, child.type) for field, child in zip(node.fields, children, strict=True)])
    return pa.StructArray.from_buffers(kind, len(like), [validity(like)], like.null_count, 0, list(children))


def _list(items: Column, objects: Sequence[Any]) -> Column:
    offsets, mask = _offsets(objects)
    return pa.ListArray.from_arrays(offsets, items, mask=mask)


def _offsets(objects: Sequence[Any]) -> tuple[Column, Column]:
    offsets = np.zeros(len(objects) + 1, np.int32)
    np.cumsum([0 if found is None else len(found) for found in objects], out=offsets[1:])
    return pa.array(offsets), pa.array([found is None for found in objects], pa.bool_())
