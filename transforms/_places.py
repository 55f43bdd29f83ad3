"""Places of an event schema: every node at its path, with the schema's maps narrowed to the entries that a policy names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import pyarrow as pa

from eventveil.schemas.events.paths import EACH, Path, is_of_stream, is_stream_leaf, parse_path
from eventveil.schemas.events.tree import Field, Leaf, ListOf, MapOf, Node, Record

__all__ = ["Place", "Steps", "list_of", "name_of", "names_of", "narrowed", "of_stream", "starts_with", "steps_of", "walk", "within"]

Steps: TypeAlias = tuple[str, ...]

_INSTANT = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class Place:
    """A node of the schema at its path. Within its list: `own`, it may be missing; `above`, a record above it may be."""

    steps: Steps
    node: Node
    own: bool
    above: bool = False

    @property
    def is_of_stream(self) -> bool:
        """Whether it is no field of the event, but what a stream says beside it."""
        return bool(self.steps) and is_of_stream(Path(self.steps))

    @property
    def nullable(self) -> bool:
        return self.own or self.above

    def __str__(self) -> str:
        return str(Path(self.steps))


def narrowed(node: Node, steps: Steps, named: Sequence[Steps]) -> Node:
    """The schema with every map made a record of the entries that the policy names; a map without any stays."""
    if isinstance(node, Record):
        return Record(tuple(replace(one, node=narrowed(one.node, (*steps, one.name), named)) for one in node.fields))
    if isinstance(node, ListOf):
        return replace(node, item=narrowed(node.item, (*steps, EACH), named))
    if isinstance(node, MapOf):
        depth = len(steps)
        keys = dict.fromkeys(path[depth] for path in named if path[:depth] == steps and len(path) > depth and path[depth].startswith("{"))
        if keys:
            return Record(tuple(Field(key, narrowed(node.value, (*steps, key), named), nullable=True) for key in keys))
    return node


def walk(node: Node, steps: Steps, own: bool, above: bool = False) -> Iterator[Place]:
    """Every place below and including `node`, in schema order."""
    yield Place(steps, node, own, above)
    if isinstance(node, Record):
        for one in node.fields:
            yield from walk(one.node, (*steps, one.name), one.nullable, own or above)
    elif isinstance(node, ListOf):
        yield from walk(node.item, (*steps, EACH), node.nullable_items)


def of_stream(named: Sequence[Steps]) -> Iterator[Place]:
    """The leaves beside the event that a policy names. Any may be missing: not every source has them."""
    for steps in dict.fromkeys(named):
        if is_stream_leaf(Path(steps)):
            yield Place(steps, Leaf(_INSTANT if steps == ("$time",) else pa.string()), own=True)


def list_of(steps: Steps) -> Steps:
    """The steps of the innermost list that a place stands in, its [] included."""
    return Path(steps).lists


def within(steps: Steps) -> Steps:
    """The steps behind the innermost list."""
    return steps[len(list_of(steps)) :]


def name_of(step: str) -> str:
    return step[1:-1] if step.startswith("{") else step


def names_of(steps: Steps) -> tuple[str, ...]:
    return tuple(map(name_of, steps))


def steps_of(text: str) -> Steps:
    path = parse_path(text)
    return path.steps if path is not None else ()


def starts_with(steps: Steps, beginning: Steps) -> bool:
    return steps[: len(beginning)] == beginning
