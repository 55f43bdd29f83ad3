"""The event schema as a tree: records, lists, maps and typed leaves.

A schema language (Avro now) is read into this tree; everything behind it knows only the tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa

__all__ = ["EventSchema", "Field", "Leaf", "ListOf", "MapOf", "Node", "Record"]


@dataclass(frozen=True)
class Leaf:
    """A scalar.

    Attributes:
        type: the Arrow type after decoding: bool, int32, int64, float32, float64, string, binary,
            decimal128, date32, time32[ms], time64[us], timestamp[ms|us|ns] (with tz="UTC", or without tz for
            Avro's local timestamps).
        form: what a value must look like beyond its type: "" (anything), "enum", "fixed", "uuid".
        symbols: the texts of an enum.
        size: the bytes of a fixed.
    """

    type: pa.DataType
    form: str = ""
    symbols: tuple[str, ...] = ()
    size: int = 0


@dataclass(frozen=True)
class Field:
    """A named node of a record. `nullable` also allows the field to be missing."""

    name: str
    node: Node
    nullable: bool = False


@dataclass(frozen=True)
class Record:
    fields: tuple[Field, ...]

    def field(self, name: str) -> Field | None:
        return next((field for field in self.fields if field.name == name), None)


@dataclass(frozen=True)
class ListOf:
    item: Node
    nullable_items: bool = False


@dataclass(frozen=True)
class MapOf:
    """Entries with text keys, chosen by the producer. Only entries that a policy names survive."""

    value: Node
    nullable_values: bool = False


Node: TypeAlias = Leaf | Record | ListOf | MapOf


@dataclass(frozen=True)
class EventSchema:
    """One type of event.

    Attributes:
        name: the full name of the record.
        root: the event itself.
        canonical: a canonical text of the schema document; it goes into the policy digest.
        file: where the schema was read, for messages; not part of the digest.
    """

    name: str
    root: Record
    canonical: str
    file: str = ""

    def leaves(self) -> Iterator[tuple[str, Leaf | MapOf]]:
        """Every leaf and every map with its path as written in a policy, in schema order."""
        yield from _leaves(self.root, "")


def _leaves(node: Node, path: str) -> Iterator[tuple[str, Leaf | MapOf]]:
    if isinstance(node, Record):
        for field in node.fields:
            yield from _leaves(field.node, f"{path}.{field.name}" if path else field.name)
    elif isinstance(node, ListOf):
        yield from _leaves(node.item, f"{path}[]")
    else:
        yield path, node
