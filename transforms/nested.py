"""Lists in, lists out: an event's columns laid flat, level by level, and put together again.

A level is what stands in one list: level 0 are the events themselves, `products[]` a level, `products[].tags[]` the
next. Columns of a level are as long as the level has elements. Rules run on flat columns; afterwards the levels are
folded back, with the output's names and records, from the innermost outwards.

Rules that look at several leaves of an event at once (one class of sequence numbers over two lists) need all columns
flat before the first is folded: that is why laying flat and folding are two walks and not one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Column", "FlatLevel", "LevelSpec", "OutLeaf", "OutList", "OutNode", "OutRecord", "column", "fold", "lay_flat"]

Int64s = npt.NDArray[np.int64]
# An Arrow array. The stubs know fewer combinations of types than the library.
Column: TypeAlias = Any


@dataclass(frozen=True)
class LevelSpec:
    """Where a level's list stands: in which level, under which names. Level 0 has parent -1."""

    parent: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class OutLeaf:
    """A finished column: its slot."""

    slot: int
    type: pa.DataType
    nullable: bool


@dataclass(frozen=True)
class OutRecord:
    """A record of the output. `source` names the input record whose nulls it takes over; None: never null."""

    fields: tuple[tuple[str, OutNode], ...]
    source: tuple[str, ...] | None
    nullable: bool

    @property
    def type(self) -> pa.StructType:
        return pa.struct([pa.field(name, node.type, node.nullable) for name, node in self.fields])


@dataclass(frozen=True)
class OutList:
    """A list of the output, folded from a level."""

    level: int
    item: OutNode
    nullable: bool

    @property
    def type(self) -> pa.DataType:
        return pa.list_(pa.field("item", self.item.type, self.item.nullable))


OutNode: TypeAlias = OutLeaf | OutRecord | OutList


@dataclass(frozen=True)
class FlatLevel:
    """One level of a batch.

    Attributes:
        items: the elements: a struct, a scalar or a list for each.
        row: for each element the event it belongs to; None at level 0.
        element: for each element its number within the event, from 0; None at level 0.
        lengths: for each element of the parent level how many elements its list has (0 for a null list).
        valid: for each element of the parent level whether its list is there; None if all are.
    """

    items: Column
    row: Int64s | None = None
    element: Int64s | None = None
    lengths: Int64s | None = None
    valid: npt.NDArray[np.bool_] | None = None


def column(items: Column, names: tuple[str, ...]) -> Column:
    """The column under `names` in a struct; null where a record above it is null."""
    return pc.struct_field(items, list(names)) if names else items


def lay_flat(events: pa.StructArray, specs: Sequence[LevelSpec]) -> list[FlatLevel]:
    """The levels of a batch of events, in the order of `specs` (parents before children)."""
    levels = [FlatLevel(events)]
    for spec in specs[1:]:
        parent = levels[spec.parent]
        lists = column(parent.items, spec.names)
        sizes = lists.value_lengths()
        valid = None
        if sizes.null_count:
            valid = np.asarray(sizes.is_valid().to_numpy(zero_copy_only=False))
            sizes = sizes.fill_null(0)
        lengths = sizes.to_numpy(zero_copy_only=False).astype(np.int64)
        rows = np.arange(len(lengths), dtype=np.int64) if parent.row is None else parent.row
        row = np.repeat(rows, lengths)
        per_event = np.bincount(row, minlength=len(events))
        first = np.cumsum(per_event) - per_event
        element = np.arange(len(row), dtype=np.int64) - first[row]
        levels.append(FlatLevel(lists.flatten(), row, element, lengths, valid))
    return levels


def fold(node: OutNode, level: int, levels: Sequence[FlatLevel], slots: Sequence[Column | None]) -> Column:
    """The output of one node, as long as its level."""
    if isinstance(node, OutLeaf):
        values = slots[node.slot]
        assert values is not None, "compile writes every slot of the output"
        return values
    if isinstance(node, OutRecord):
        columns = [fold(child, level, levels, slots) for _, child in node.fields]
        return pa.StructArray.from_arrays(columns, fields=list(node.type), mask=_missing(node, levels[level]))
    inner = levels[node.level]
    assert inner.lengths is not None, "only level 0 has no list"
    offsets: Any = np.zeros(len(inner.lengths) + 1, np.int32)
    np.cumsum(inner.lengths, out=offsets[1:])
    mask: Column = None if inner.valid is None else pa.array(~inner.valid)
    values = fold(node.item, node.level, levels, slots)
    listed: Any = pa.ListArray
    return listed.from_arrays(pa.array(offsets), values, type=node.type, mask=mask)


def _missing(node: OutRecord, level: FlatLevel) -> pa.BooleanArray | None:
    if node.source is None:
        return None
    record = column(level.items, node.source)
    return record.is_null() if record.null_count else None
