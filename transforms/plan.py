"""A compiled policy: frozen, without keys, can be pickled. `plan.bind(keys)` gives the veil that treats batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from eventveil.schemas.events.paths import EACH, parse_path
from eventveil.schemas.events.tree import EventSchema
from eventveil.transforms.batch import ORDER, WINDOW
from eventveil.transforms.keys.derive import Keys
from eventveil.transforms.nested import LevelSpec, OutRecord
from eventveil.transforms.registry import GroupOperator, Operator
from eventveil.transforms.windows import WindowRule

if TYPE_CHECKING:
    from eventveil.transforms.veil import Veil

__all__ = ["POSITION", "Apply", "EventAccess", "KeyRequest", "Numbered", "OutputField", "Plan", "Step", "Together"]

POSITION = "$position"


@dataclass(frozen=True)
class KeyRequest:
    """Which sub-key a step needs."""

    scope: Literal["window", "domain"]
    purpose: str
    info: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One operator at its place: `rule` is the place in the policy, for the report and the dead letters."""

    operator: Operator
    rule: str
    key: KeyRequest | None = None


@dataclass(frozen=True)
class Apply:
    """Run steps on a column.

    `names` picks the column out of the level, or a capture out of the slot `given`. Where `record`, the record that the column
    stands in, is missing, there is no value, not even a null one: steps run on the others alone.
    """

    level: int
    path: str
    steps: tuple[Step, ...]
    result: int
    names: tuple[str, ...] = ()
    given: int | None = None
    record: tuple[str, ...] | None = None
    is_time: bool = False
    local_zone: str | None = None


@dataclass(frozen=True)
class Together:
    """Run a group operator over several slots of an event at once."""

    operator: GroupOperator
    given: tuple[int, ...]
    results: tuple[int, ...]
    levels: tuple[int, ...]
    paths: tuple[str, ...]
    rules: tuple[str, ...]


@dataclass(frozen=True)
class EventAccess:
    """Where time, id, subject and consent of an event stand. Paths are names of nested records at level 0."""

    times: tuple[tuple[str, ...], ...] = ()
    time_unit: str | None = None
    zone: str = "UTC"
    ids: tuple[tuple[str, ...], ...] = ()
    subjects: tuple[tuple[str, ...], ...] = ()
    first_of: bool = False
    missing_subject: Literal["refuse", "unprotected"] | None = None
    only_if: tuple[tuple[tuple[str, ...], tuple[object, ...]], ...] = ()


@dataclass(frozen=True)
class Numbered:
    """A leaf of the output that is numbered when its release window closes; until then a keyed digest stands in its place.

    Attributes:
        location: its names in the output, EACH for the elements of a list. class_: leaves of one class share their numbers.
    """

    location: tuple[str, ...]
    class_: str


@dataclass(frozen=True)
class OutputField:
    """One leaf of the output, for people: where it comes from and what it still says."""

    name: str
    type: str
    source: str
    operators: tuple[str, ...]
    discloses: str


@dataclass(frozen=True)
class Plan:
    """A policy compiled against an event schema.

    Attributes:
        used: the leaves of the schema that are read. stream: those of what a stream says beside an event: ``$key``, ``$headers.name``,
            ``$topic``, ``$time``. Decoded events have both.
        event_type: the path of the field, header or topic that names an event's type, and the type that the policy is for.
        max_ahead_us, lateness_us: how far ahead of its arrival an event may be dated, and how long a window stays open.
    """

    name: str
    version: int
    digest: str
    domain: str
    schema: EventSchema
    used: frozenset[str]
    event: EventAccess
    key_window: WindowRule | None
    release_window: WindowRule | None
    refuse_unknown: bool
    keep_order: bool
    levels: tuple[LevelSpec, ...]
    instructions: tuple[Apply | Together, ...]
    slots: int
    output: OutRecord
    fields: tuple[OutputField, ...]
    warnings: tuple[str, ...]
    needs_subject: bool = False
    event_type: tuple[str, str] | None = None
    max_ahead_us: int = 3_600_000_000
    lateness_us: int = 0
    numbered: tuple[Numbered, ...] = ()
    stream: tuple[str, ...] = ()
    tombstones: Literal["drop"] = "drop"

    @property
    def type_names(self) -> tuple[str, ...]:
        """Where the type of an event stands, by names; empty where the policy is for all events."""
        path = parse_path(self.event_type[0]) if self.event_type else None
        return path.steps if path is not None else ()

    @property
    def output_schema(self) -> pa.Schema:
        """The schema of what leaves."""
        fields: list[Any] = [pa.field(name, node.type, node.nullable) for name, node in self.output.fields]
        for one in self.numbered:
            fields = _with_numbers(fields, one.location)
        return pa.schema(fields)

    @property
    def veiled_schema(self) -> pa.Schema:
        """The schema of veiled batches: digests where numbers will stand, and the internal columns that a sink removes."""
        columns: list[Any] = [pa.field(name, node.type, node.nullable) for name, node in self.output.fields]
        extra: list[Any] = [pa.field(ORDER, pa.binary(16), nullable=False)]
        if self.release_window is not None:
            extra.append(pa.field(WINDOW, pa.int64(), nullable=False))
        return pa.schema([*columns, *extra])

    @property
    def rules(self) -> tuple[str, ...]:
        """The places in the policy at which values are treated, in order."""
        found: list[str] = []
        for instruction in self.instructions:
            if isinstance(instruction, Apply):
                found += [step.rule for step in instruction.steps]
            else:
                found += instruction.rules
        return tuple(found)

    def bind(self, keys: Keys, roll: WindowRule | None = None) -> Veil:
        """The plan with its keys. Keys are derived per window, when a window is first seen. `roll`: as for `Veil`."""
        from eventveil.transforms.veil import Veil

        return Veil(self, keys.domain(self.domain), roll)


def _with_numbers(fields: Sequence[Any], location: tuple[str, ...]) -> list[Any]:
    """Fields of the output, the leaf at `location` as the number that it leaves as."""
    return [one.with_type(_type_with_numbers(one.type, location[1:])) if one.name == location[0] else one for one in fields]


def _type_with_numbers(kind: Any, location: tuple[str, ...]) -> pa.DataType:
    if not location:
        return pa.int64()
    if location[0] == EACH:
        return pa.list_(kind.value_field.with_type(_type_with_numbers(kind.value_type, location[1:])))
    return pa.struct(_with_numbers(list(kind), location))
