"""Ranges -> raw batches, as DoFns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from eventveil.pipeline.report.meter import METER
from eventveil.pipeline.sources.files import Range, read_range
from eventveil.transforms.batch import Clock, with_clock
from eventveil.transforms.beam.guard import Step, guarded

__all__ = ["ListRanges", "MessageRange", "ReadEvents"]

_NO_CLOCK = Clock()


class MessageRange(Protocol):
    """What a slice reads of a stream, as `Stream.ranges` gives it."""

    def read(self, wants: frozenset[str], batch_bytes: int) -> Iterator[pa.RecordBatch]:
        """Its raw batches, marked with their parts. `wants`: columns beside value and position; `batch_bytes`: of a batch, about."""
        ...


class ListRanges(Step):
    """One impulse -> the ranges that the launcher listed."""

    def __init__(self, ranges: Sequence[Range | MessageRange]) -> None:
        self._ranges = tuple(ranges)

    @guarded
    def process(self, _: bytes) -> Iterator[Range | MessageRange]:
        yield from self._ranges


class ReadEvents(Step):
    """A range -> its raw batches, in order, marked with their parts."""

    def __init__(
        self, batch_bytes: int, part_bytes: int, max_event_bytes: int, wants: frozenset[str] = frozenset(), clock: Clock = _NO_CLOCK
    ) -> None:
        self._sizes = (batch_bytes, part_bytes, max_event_bytes)
        self._wants = wants
        self._clock = clock

    @guarded
    def process(self, piece: Range | MessageRange) -> Iterator[pa.RecordBatch]:
        batches = read_range(piece, *self._sizes) if isinstance(piece, Range) else piece.read(self._wants, self._sizes[0])
        for batch in batches:
            yield batch if self._clock.now is None else with_clock(batch, self._clock)
            # Counted behind the yield: what is behind us in a fused stage is done with the batch by then.
            METER.add(read=batch.num_rows)
        METER.add(ranges=1)
