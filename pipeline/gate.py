"""The gate: rows whose window is open wait on disk, sealed; windows that are due are put together and published.

No row waits in memory or in a runner's state, and none crosses a GroupByKey: what goes through the graph are the names of files.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
from apache_beam.metrics import Metrics

from eventveil.pipeline.checkpoint.carry import CarryFile, SliceCarry, read_carry
from eventveil.pipeline.checkpoint.seal import WindowSeals
from eventveil.pipeline.gathering import Gathering, split_windows
from eventveil.pipeline.sinks.kinds import MessageSink, publish_messages
from eventveil.pipeline.twins import without_twins
from eventveil.transforms.beam.guard import Step, guarded
from eventveil.transforms.keys.derive import Keys
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.release.renumber import WindowNumbers

if TYPE_CHECKING:
    from eventveil.pipeline.prepare import Variant

__all__ = ["Due", "Fate", "KeepOpen", "ListDue", "PublishDue", "take_fates"]


@dataclass(frozen=True)
class Due:
    """Windows of the same time that are decided on together: of one variant, or of all that number a class together.

    Attributes:
        start_us: when they begin. pane: the slice that they are published in.
        files: what waits for each variant. attempt: at the slice.
    """

    start_us: int
    pane: int
    files: tuple[CarryFile, ...]
    attempt: int = 0


@dataclass(frozen=True)
class Fate:
    """What became of a window.

    Attributes:
        what: published; withheld, because it is larger than may be decided at once (EV603); conflict, because it stands there already
            with another content (EV416).
    """

    variant: str
    start_us: int
    rows: int
    what: Literal["published", "withheld", "conflict"]


_fates: list[tuple[int, Fate]] = []
_lock = threading.Lock()


def take_fates(attempt: int = 0) -> list[Fate]:
    """What became of the windows of an attempt in this process, in the order of variants and windows.

    A thread may outlive the attempt that it worked for: what it reports later belongs to no other one.
    """
    with _lock:
        found = sorted((fate for of, fate in _fates if of == attempt), key=lambda one: (one.variant, one.start_us))
        _fates.clear()
    return found


class KeepOpen(Step):
    """Veiled batches -> the carry of their windows."""

    def __init__(self, carry: SliceCarry, variant: str, gathering: Gathering) -> None:
        self._carry = carry
        self._variant = variant
        self._column = gathering.column

    @guarded
    def process(self, veiled: pa.RecordBatch) -> Iterator[None]:
        for start, rows in split_windows(veiled, self._column):
            self._carry.append(self._variant, start, rows)
        yield from ()


class ListDue(Step):
    """One impulse -> the windows that the launcher found due."""

    def __init__(self, due: Sequence[Due]) -> None:
        self._due = tuple(due)

    @guarded
    def process(self, _: bytes) -> Iterator[Due]:
        yield from self._due


class PublishDue(Step):
    """Windows that are due -> files or messages.

    Args:
        most_bytes: what a release model may hold to decide on one window.
        once_only: whether rows that came twice are published once.
    """

    def __init__(self, variants: Sequence[Variant], keys: str, most_bytes: int, once_only: bool = False) -> None:
        self._once_only = once_only
        self._variants = {variant.name: variant for variant in variants}
        self._keys_name = keys
        self._most_bytes = most_bytes

    def setup(self) -> None:
        self._keys: Keys = load_keys(self._keys_name)

    @guarded
    def process(self, due: Due) -> Iterator[None]:
        numbers = self._decide(due)
        for file in due.files:
            if numbers is not None and numbers.is_too_large:
                fate = Fate(file.variant, due.start_us, file.rows, "withheld")
            else:
                fate = self._publish(file, due, numbers)
            with _lock:
                _fates.append((due.attempt, fate))
            Metrics.counter("eventveil", f"{file.variant}|{fate.what}").inc(file.rows)
        yield from ()

    def _decide(self, due: Due) -> WindowNumbers | None:
        """What the release model decides on all rows together; None where there is none."""
        first = self._variants[due.files[0].variant]
        gathering = first.gathering
        if gathering is None or not gathering.released:
            return None
        numbers = WindowNumbers(self._keys.domain(first.plan.domain), due.start_us, gathering.rule, self._most_bytes)
        for file in due.files:
            for batch in self._rows(file):
                numbers.add(self._variants[file.variant].plan, batch)
                if numbers.is_too_large:
                    return numbers
        return numbers

    def _publish(self, file: CarryFile, due: Due, numbers: WindowNumbers | None) -> Fate:
        variant = self._variants[file.variant]

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in self._rows(file):
                yield batch if numbers is None else numbers.number(variant.plan, batch)

        kept, rows = without_twins(batches) if self._once_only else (batches, file.rows)
        if rows < file.rows:
            Metrics.counter("eventveil", f"{file.variant}|repeated").inc(file.rows - rows)
        if isinstance(variant.sink, MessageSink):
            publish_messages(variant.sink, self._keys, kept, rows, file.length)
            return Fate(file.variant, due.start_us, file.rows, "published")
        unit = variant.sink.publish_window(due.start_us, due.pane, kept, rows, file.length)
        return Fate(file.variant, due.start_us, file.rows, "conflict" if unit.conflict else "published")

    def _rows(self, file: CarryFile) -> Iterator[pa.RecordBatch]:
        variant = self._variants[file.variant]
        assert variant.gathering is not None, "what waits in a carry is gathered"
        seals = WindowSeals(self._keys.domain(variant.plan.domain), variant.gathering.rule)
        return read_carry(file, seals.of(file.window_us))
