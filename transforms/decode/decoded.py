"""What a decoder hands on: the events it read, and the rows that it refused."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventveil.schemas.events.tree import EventSchema, Leaf, ListOf, MapOf, Node, Record

__all__ = ["Decoded", "decoded_type", "drift_labels", "entries_of"]

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Decoded:
    """A batch after decoding. Rows are counted from 0 in the batch that was given.

    Attributes:
        events: what was read, of `decoded_type`.
        rows: for each event the row it came from, ascending; None when no row was refused.
        refused_rows: the rows that were refused, ascending; with each its code and the known path ("" where there is none).
        drifting: the events with unknown fields, by number among `events`, for each deepest known parent, as ``shipping.?``, ``?``,
            ``products[].?``.
    """

    events: pa.StructArray
    rows: Int64s | None
    refused_rows: Int64s
    refused_codes: list[str]
    refused_paths: list[str]
    drifting: dict[str, Int64s] = field(default_factory=dict)

    @property
    def drift(self) -> dict[str, int]:
        """How many events drift, by known parent."""
        return {label: len(events) for label, events in self.drifting.items()}


def decoded_type(schema: EventSchema, used: Set[str] | None = None) -> pa.StructType:
    """The type of the events under `schema`, with the leaves in `used` alone; what holds none of them vanishes.

    A map becomes a struct of its used entries, each named by its key; None means every leaf, and no entry of a map. Every
    field may be null here: whether a required one was missing is the decoder's to judge.
    """
    found = _record(schema.root, "", used)
    return pa.struct([]) if found is None else found


def entries_of(path: str, used: Set[str] | None) -> tuple[str, ...]:
    """The keys of the map at `path` that `used` names, sorted."""
    start = f"{path}{{"
    return tuple(sorted({leaf[len(start) :].partition("}")[0] for leaf in used or () if leaf.startswith(start)}))


def drift_labels(schema: EventSchema) -> tuple[str, ...]:
    """What drift under `schema` can be called, in its order: each known parent, followed by ``.?``; the event itself is ``?``."""
    return tuple(_labels(schema.root, ""))


def _labels(node: Node, path: str) -> list[str]:
    if isinstance(node, Leaf):
        return []
    if isinstance(node, ListOf):
        return _labels(node.item, f"{path}[]")
    if isinstance(node, MapOf):
        return _labels(node.value, f"{path}{{}}")
    below = [label for known in node.fields for label in _labels(known.node, f"{path}.{known.name}" if path else known.name)]
    return [f"{path}.?" if path else "?", *below]


def _type(node: Node, path: str, used: Set[str] | None) -> pa.DataType | None:
    if isinstance(node, Leaf):
        return node.type if used is None or path in used else None
    if isinstance(node, ListOf):
        item = _type(node.item, f"{path}[]", used)
        return None if item is None else pa.list_(item)
    if isinstance(node, Record):
        return _record(node, path, used)
    entries = [(key, _type(node.value, f"{path}{{{key}}}", used)) for key in entries_of(path, used)]
    fields = [pa.field(key, found) for key, found in entries if found is not None]
    return pa.struct(fields) if fields else None


def _record(node: Record, path: str, used: Set[str] | None) -> pa.StructType | None:
    found = [(field.name, _type(field.node, f"{path}.{field.name}" if path else field.name, used)) for field in node.fields]
    fields = [pa.field(name, kind) for name, kind in found if kind is not None]
    return pa.struct(fields) if fields else None
