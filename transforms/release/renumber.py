"""renumber within a window: 1 to n for the distinct values of a class, decided when the window closes.

Veiled batches hold a keyed digest of each value. When a release window closes, the distinct digests of each class, over all
variants of the domain, are put in the order of AES-256 under a sub-key of that very window: a keyed permutation of 16-byte blocks, so
no two digests share a place. Arrival does not show in that order, and two windows have unrelated orders even where one key window
spans both.

What is decided on is small: the distinct digests, 16 bytes each. Rows are only seen again when their digests give way to numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventveil.schemas.errors import EventveilError, LimitError, Problem, remedy_for
from eventveil.schemas.events.paths import EACH
from eventveil.transforms.columns import Column, buffer_of, flags, list_lengths, numbers_of, validity
from eventveil.transforms.keys.cmac import Cmac
from eventveil.transforms.keys.derive import DomainKeys
from eventveil.transforms.plan import Plan
from eventveil.transforms.windows import WindowRule

__all__ = ["DIGEST_BYTES", "Numbers", "WindowNumbers", "decision_columns", "shared_windows"]

Int64s = npt.NDArray[np.int64]
# numpy's byte strings of one length: compared as bytes, and sorted five times as fast as pairs of words.
Digests = npt.NDArray[np.bytes_]

DIGEST_BYTES = 16
_DIGEST = np.dtype(f"S{DIGEST_BYTES}")
_KIND = pa.binary(DIGEST_BYTES)
_AT_ONCE = 1 << 16  # what stays in the processor's cache
_DECISION = [pa.field("class", pa.string(), nullable=False), pa.field("digests", pa.list_(_KIND), nullable=False)]
_DECIDED = [*_DECISION, pa.field("numbers", pa.list_(pa.int64()), nullable=False)]


def decision_columns(plan: Plan, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The distinct digests of a veiled batch: a row per class with `class` and `digests`, ascending. All that a decision needs of it."""
    found: dict[str, list[Digests]] = {}
    for one in plan.numbered:
        found.setdefault(one.class_, []).append(_digests(_at(batch.column(one.location[0]), one.location[1:])))
    return _table(_DECISION, [(class_, _distinct(parts)) for class_, parts in found.items()])


class Numbers:
    """The numbers that digests have in one window. Answers for the digests that it was made with, and refuses any other.

    Args:
        of_class: for each class its digests, ascending, and the number of each.
    """

    def __init__(self, of_class: Mapping[str, tuple[Digests, Int64s]]) -> None:
        self._of_class = of_class

    @classmethod
    def joined(cls, tables: Iterable[pa.RecordBatch]) -> Numbers:
        """Of what `decided` gave for parts of a window."""
        gathered: dict[str, list[tuple[Digests, Int64s]]] = {}
        for table in tables:
            for (class_, digests), numbers in zip(_rows(table), table.column("numbers")):
                gathered.setdefault(class_, []).append((digests, numbers.values.to_numpy()))
        joined = {}
        for class_, parts in gathered.items():
            digests, numbers = (np.concatenate(side) for side in zip(*parts))
            order = np.argsort(digests, kind="stable")
            digests, numbers = digests[order], numbers[order]
            first = _first_of_equals(digests)
            joined[class_] = (digests[first], numbers[first])
        return cls(joined)

    def decided(self, columns: pa.RecordBatch) -> pa.RecordBatch:
        """Decision columns with their `numbers`."""
        return _table(_DECIDED, [(class_, digests, self._numbers(class_, digests)) for class_, digests in _rows(columns)])

    def number(self, plan: Plan, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A veiled batch with numbers in the place of its digests; all else stays. Raises EV901 for a digest without number."""
        fields, columns = list(batch.schema), batch.columns
        for one in plan.numbered:
            at = batch.schema.get_field_index(one.location[0])
            columns[at] = _replaced(columns[at], one.location[1:], partial(self._numbered, one.class_))
            fields[at] = fields[at].with_type(columns[at].type)
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields).with_metadata(batch.schema.metadata))

    def _numbered(self, class_: str, held: Column) -> Column:
        there = flags(held.is_valid())
        numbers = np.zeros(len(held), np.int64)
        numbers[there] = self._numbers(class_, _digests(held))
        return pa.Array.from_buffers(pa.int64(), len(held), [validity(held), buffer_of(numbers)], held.null_count)

    def _numbers(self, class_: str, digests: Digests) -> Int64s:
        numbers = np.zeros(len(digests), np.int64)
        if not len(digests):
            return numbers
        known, numbers_of_known = self._of_class.get(class_, (np.zeros(0, _DIGEST), numbers[:0]))
        # In order, so that the search walks through memory once instead of leaping.
        order = np.argsort(digests)
        wanted = digests[order]
        places = np.searchsorted(known, wanted)
        if not len(known) or places[-1] == len(known) or (known[places] != wanted).any():
            raise EventveilError.of("EV901", f"a value of class {class_} has no number: it was not there when its window was decided on")
        numbers[order] = numbers_of_known[places]
        return numbers


class WindowNumbers:
    """Numbers the values of one release window, over all variants of its domain.

    First `add` every batch of the window, then `number` each. The same rows give the same numbers, in whatever batches and order they
    come, and however often. Memory: less than 60 bytes per distinct digest while they are gathered and put in order, 24 from then on.

    Args:
        keys: of the domain. start_us, rule: the release window.
        most_bytes: of decision columns, which are 16 bytes per distinct digest, counted over all classes.
    """

    def __init__(self, keys: DomainKeys, start_us: int, rule: WindowRule, most_bytes: int) -> None:
        self._keys = keys
        self._start_us = start_us
        self._rule = rule
        self._most_bytes = most_bytes
        self._gathered: dict[str, _Distinct] = {}
        self._numbers: Numbers | None = None
        self._too_large = False

    def add(self, plan: Plan, batch: pa.RecordBatch) -> None:
        """Take in the digests of a veiled batch. Of a window that is too large nothing is kept."""
        self.gather(decision_columns(plan, batch))

    def gather(self, columns: pa.RecordBatch) -> None:
        """Take in decision columns."""
        if self._numbers is not None:
            raise EventveilError.of("EV901", "a batch came for a window whose values have their numbers already")
        if self._too_large:
            return
        for class_, digests in _rows(columns):
            self._gathered.setdefault(class_, _Distinct()).add(digests)
        if self._bytes() > self._most_bytes:
            for one in self._gathered.values():
                one.merge()
            if self._bytes() > self._most_bytes:
                self._too_large = True
                self._gathered.clear()

    @property
    def is_too_large(self) -> bool:
        """Whether the window has more decision columns than may be decided on at once, and is to be withheld."""
        return self._too_large

    def number(self, plan: Plan, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A veiled batch with numbers in the place of its digests; all else stays.

        Raises:
            EV603: the window is too large. EV901: a digest was not added.
        """
        return self.decide().number(plan, batch)

    def decide(self) -> Numbers:
        """Give every digest its number; nothing can be added from then on. Raises EV603."""
        if self._too_large:
            raise LimitError.of("EV603", f"a window has more than {self._most_bytes} bytes to decide on", remedy_for("EV603"))
        if self._numbers is None:
            # One class after the other, each let go of before the next is put in order.
            self._numbers = Numbers({class_: self._ranked(class_, self._gathered.pop(class_)) for class_ in list(self._gathered)})
        return self._numbers

    def _ranked(self, class_: str, gathered: _Distinct) -> tuple[Digests, Int64s]:
        digests = gathered.merge()
        cipher = Cmac(self._keys.for_window(self._start_us, str(self._rule.duration), self._rule.zone, "renumber", "order", class_))
        places = np.empty(len(digests), _DIGEST)
        for start in range(0, len(digests), _AT_ONCE):
            piece = slice(start, start + _AT_ONCE)
            places[piece] = cipher.ecb(digests[piece].view("<u8").reshape(-1, 2)).reshape(-1).view(_DIGEST)
        order = np.argsort(places)
        del places
        numbers = np.empty(len(digests), np.int64)
        numbers[order] = np.arange(1, len(digests) + 1)
        return digests, numbers

    def _bytes(self) -> int:
        return DIGEST_BYTES * sum(len(one) for one in self._gathered.values())


class _Distinct:
    """Distinct digests, gathered piece by piece: sorted once per quarter that they have grown by, not per piece."""

    def __init__(self) -> None:
        self._sorted = np.zeros(0, _DIGEST)
        self._fresh: list[Digests] = []
        self._waiting = 0

    def __len__(self) -> int:
        """How many there are at most: exact behind `merge`."""
        return len(self._sorted) + self._waiting

    def add(self, digests: Digests) -> None:
        """Take in digests that are ascending and distinct among themselves."""
        if len(self._sorted):
            places = np.minimum(np.searchsorted(self._sorted, digests), len(self._sorted) - 1)
            digests = digests[self._sorted[places] != digests]
        if len(digests):
            self._fresh.append(digests)
            self._waiting += len(digests)
        if self._waiting > max(_AT_ONCE, len(self._sorted) // 4):
            self.merge()

    def merge(self) -> Digests:
        """All of them, ascending."""
        if self._waiting:
            parts, self._fresh, self._waiting = [self._sorted, *self._fresh], [], 0
            self._sorted = np.zeros(0, _DIGEST)  # let go of before the copy is sorted
            self._sorted = _distinct(parts)
        return self._sorted


def shared_windows(plans: Sequence[Plan]) -> list[Problem]:
    """What keeps the policies of one job from numbering a class together: they must agree on when its window closes, and on its key."""
    of_class: dict[tuple[str, str], dict[tuple[object, ...], Plan]] = {}
    for plan in plans:
        for one in plan.numbered:
            window = (plan.release_window, plan.key_window, plan.lateness_us)
            of_class.setdefault((plan.domain, one.class_), {}).setdefault(window, plan)
    return [
        Problem(
            "",
            0,
            "EV208",
            f"{' and '.join(plan.name for plan in differing.values())} number class {class_} of domain {domain} in windows that differ",
            "give them one window, with its zone, and one allowed_lateness; or name two classes",
        )
        for (domain, class_), differing in of_class.items()
        if len(differing) > 1
    ]


def _rows(columns: pa.RecordBatch) -> Iterator[tuple[str, Digests]]:
    """The classes of decision columns, each with its digests."""
    for class_, digests in zip(columns.column("class"), columns.column("digests")):
        yield str(class_), _digests(digests.values)


def _digests(held: Column) -> Digests:
    """The digests of a column, nulls left out."""
    if held.type != _KIND:
        raise EventveilError.of("EV901", "a column to be numbered does not hold digests")
    held = held.drop_null()
    if not len(held):
        return np.zeros(0, _DIGEST)
    return numbers_of(held.buffers()[1], _DIGEST, len(held), held.offset * DIGEST_BYTES)


def _distinct(parts: Sequence[Digests]) -> Digests:
    """Distinct digests, ascending. Not by np.unique: of byte strings it is ten times as slow."""
    together = np.concatenate(parts)
    together.sort()
    first = _first_of_equals(together)
    return together if first.all() else together[first]


def _first_of_equals(ascending: Digests) -> npt.NDArray[np.bool_]:
    first = np.ones(len(ascending), bool)
    first[1:] = ascending[1:] != ascending[:-1]
    return first


def _at(held: Column, location: Sequence[str]) -> Column:
    """The leaf's values, all elements of lists one after the other."""
    for step in location:
        held = held.flatten() if step == EACH else held.flatten()[held.type.get_field_index(step)]
    return held


def _replaced(held: Column, location: Sequence[str], leaf: Callable[[Column], Column]) -> Column:
    """The column with its leaf at `location` made anew. Lists come back without what a slice or a null has hidden in them."""
    if not location:
        return leaf(held)
    if location[0] == EACH:
        items = _replaced(held.flatten(), location[1:], leaf)
        offsets = np.zeros(len(held) + 1, np.int32)
        np.cumsum(list_lengths(held), out=offsets[1:])
        listed: pa.DataType = pa.list_(held.type.value_field.with_type(items.type))
        return pa.Array.from_buffers(listed, len(held), [validity(held), buffer_of(offsets)], held.null_count, 0, [items])
    children, fields = held.flatten(), list(held.type)
    at = held.type.get_field_index(location[0])
    children[at] = _replaced(children[at], location[1:], leaf)
    fields[at] = fields[at].with_type(children[at].type)
    return pa.StructArray.from_buffers(pa.struct(fields), len(held), [validity(held)], held.null_count, 0, children)


def _table(fields: Sequence[Any], rows: Sequence[Sequence[Any]]) -> pa.RecordBatch:
    """A row per class; what it has of digests and numbers as one list each."""
    columns: list[Any] = [pa.array([row[0] for row in rows], pa.string())]
    for number, field in enumerate(fields[1:], 1):
        lists = [row[number] for row in rows]
        values = np.concatenate([np.zeros(0, lists[0].dtype), *lists]) if lists else np.zeros(0, np.int64)
        items = pa.Array.from_buffers(field.type.value_type, len(values), [None, buffer_of(values)])
        offsets: Any = np.cumsum([0, *map(len, lists)]).astype(np.int32)
        columns.append(pa.Array.from_buffers(field.type, len(rows), [None, buffer_of(offsets)], 0, 0, [items]))
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
