"""Every leaf of the schema is judged on Arrow columns, whatever the policy uses; what it uses goes on.

One recursion over the schema's tree for all formats. A format says by a `Reader` how its columns become values of the
leaf's type; required fields, null elements and maps are judged here. An event is refused by its first problem in the
order of the schema, so that the verdict does not depend on other events, nor on the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.schemas.events.tree import EventSchema, Leaf, ListOf, MapOf, Node, Record
from eventveil.transforms.columns import Column, buffer_of, flags, list_lengths, map_entries, not_utf8, validity
from eventveil.transforms.decode.decoded import Decoded, decoded_type, entries_of

__all__ = ["Judge", "Reader", "Verdicts", "assemble"]

_pc: Any = pc  # the stubs know no calls with an array and a scalar

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

Reader: TypeAlias = Callable[[Leaf, Column], tuple[Column, Sequence[tuple[str, Mask]]]]
"""A leaf's column as it was parsed -> values of the leaf's type, and (code, mask) of those that are wrong, first code
first. Raises on no value; nulls are never wrong; a wrong value may leave anything in its slot."""


@dataclass
class Verdicts:
    """Refused rows of one batch: the first problem of each."""

    found: dict[int, tuple[str, str]] = field(default_factory=dict)

    def refuse(self, rows: Int64s, code: str, path: str) -> None:
        for row in rows.tolist():
            self.found.setdefault(row, (code, path))


@dataclass(frozen=True)
class _Level:
    """Which row each element belongs to; worked out only when something is refused. None above: elements are rows."""

    above: _Level | None = None
    lengths: Int64s | None = None

    def rows(self, at: Int64s) -> Int64s:
        if self.above is None or self.lengths is None:
            return at
        return self.above.rows(np.repeat(np.arange(len(self.lengths)), self.lengths)[at])


_EVENTS = _Level()


class Judge:
    """Judges parsed events against the schema, and reduces them to what is used.

    Args:
        schema: the event schema.
        used: paths of the leaves that go on; None: all, and no entry of a map.
        read: how the format's columns become values.
    """

    def __init__(self, schema: EventSchema, used: Set[str] | None, read: Reader) -> None:
        self.schema = schema
        self.used = used
        self.type = decoded_type(schema, used)
        self._read = read

    def judge(self, events: Column) -> tuple[Column, Verdicts]:
        """The events in `self.type`, one for one, and the verdicts by row. Nothing is copied where nothing changes."""
        verdicts = Verdicts()
        read = self._record(self.schema.root, events, "", _EVENTS, verdicts)
        if read is None:
            read = pa.StructArray.from_buffers(self.type, len(events), [None])
        return read, verdicts

    def _node(self, node: Node, array: Column, path: str, level: _Level, verdicts: Verdicts) -> Column | None:
        if isinstance(node, Record):
            return self._record(node, array, path, level, verdicts)
        if isinstance(node, ListOf):
            return self._list(node, array, path, level, verdicts)
        if isinstance(node, MapOf):
            return self._map(node, array, path, level, verdicts)
        values, problems = self._read(node, array)
        for code, mask in problems:
            if mask.any():
                verdicts.refuse(level.rows(np.flatnonzero(mask)), code, path)
        return values if self.used is None or path in self.used else None

    def _record(self, node: Record, array: Column, path: str, level: _Level, verdicts: Verdicts) -> Column | None:
        children = array.flatten()
        kept: list[tuple[str, Column]] = []
        for fld, child in zip(node.fields, children, strict=True):
            below = f"{path}.{fld.name}" if path else fld.name
            if not fld.nullable and child.null_count:
                missing = flags(_pc.is_null(child))
                if array.null_count:
                    missing &= flags(_pc.is_valid(array))
                verdicts.refuse(level.rows(np.flatnonzero(missing)), "EV503", below)
            read = self._node(fld.node, child, below, level, verdicts)
            if read is not None:
                kept.append((fld.name, read))
        if not kept:
            return None
        if len(kept) == len(children) and all(new is old for (_, new), old in zip(kept, children, strict=True)):
            return array
        return _struct(kept, array)

    def _list(self, node: ListOf, array: Column, path: str, level: _Level, verdicts: Verdicts) -> Column | None:
        items = array.flatten()
        lengths = list_lengths(array)
        below = _Level(level, lengths)
        if not node.nullable_items and items.null_count:
            verdicts.refuse(below.rows(np.flatnonzero(flags(_pc.is_null(items)))), "EV503", f"{path}[]")
        read = self._node(node.item, items, f"{path}[]", below, verdicts)
        if read is None or read is items:
            return None if read is None else array
        offsets = np.zeros(len(array) + 1, np.int32)
        np.cumsum(lengths, out=offsets[1:])
        return pa.ListArray.from_buffers(
            pa.list_(read.type), len(array), [validity(array), buffer_of(offsets)], array.null_count, 0, [read]
        )

    def _map(self, node: MapOf, array: Column, path: str, level: _Level, verdicts: Verdicts) -> Column | None:
        """All entries are judged, as elements of a list would be; those that the policy names become fields."""
        keys, items = map_entries(array)
        lengths = list_lengths(array)
        below = _Level(level, lengths)
        parent = np.repeat(np.arange(len(array)), lengths)
        if (wrong := not_utf8(keys)) is not None:
            verdicts.refuse(below.rows(np.flatnonzero(wrong)), "EV504", f"{path}{{}}")
        codes = np.asarray(keys.dictionary_encode().indices.to_numpy(zero_copy_only=False), dtype=np.int64)
        pairs = parent * (int(codes.max(initial=0)) + 1) + codes
        _, first = np.unique(pairs, return_index=True)
        if len(first) != len(pairs):
            again = np.ones(len(pairs), np.bool_)
            again[first] = False
            verdicts.refuse(below.rows(np.flatnonzero(again)), "EV507", f"{path}{{}}")
        if not node.nullable_values and items.null_count:
            verdicts.refuse(below.rows(np.flatnonzero(flags(_pc.is_null(items)))), "EV503", f"{path}{{}}")
        entries = entries_of(path, self.used)
        kept: list[tuple[str, Column]] = []
        for key in entries:
            at = np.full(len(array), -1, np.int64)
            here = np.flatnonzero(flags(_pc.equal(keys, pa.scalar(key, keys.type))))
            at[parent[here]] = here
            chosen = items.take(pa.array(at, mask=at < 0))
            # Verdicts come from the judgement of all entries below; this reading only selects.
            value = self._node(node.value, chosen, f"{path}{{{key}}}", level, Verdicts())
            if value is not None:
                kept.append((key, value))
        self._node(node.value, items, f"{path}{{}}", below, verdicts)
        return _struct(kept, array) if kept else None


def assemble(events: Column, rows: Int64s, refused: dict[int, tuple[str, str]], drift: dict[str, Int64s]) -> Decoded:
    """Take the refused events out. `rows`: for each event its row of the batch; `refused` and `drift` are by row of the batch too."""
    if not refused:
        return Decoded(events, None, np.zeros(0, np.int64), [], [], {label: found for label, found in drift.items() if len(found)})
    refused_rows = np.array(sorted(refused), np.int64)
    keep = ~np.isin(rows, refused_rows)
    if not keep.all():
        events, rows = events.filter(pa.array(keep)), rows[keep]
    found = [refused[row] for row in refused_rows.tolist()]
    drifting = {label: np.flatnonzero(np.isin(rows, drifted)) for label, drifted in drift.items()}
    drifting = {label: read for label, read in drifting.items() if len(read)}
    return Decoded(events, rows, refused_rows, [code for code, _ in found], [path for _, path in found], drifting)


def _struct(kept: list[tuple[str, Column]], like: Column) -> Column:
    """A struct of these columns that is null where `like` is."""
    kind = pa.struct([pa.field(name, child.type) for name, child in kept])
    return pa.StructArray.from_buffers(kind, len(like), [validity(like)], like.null_count, 0, [child for _, child in kept])
