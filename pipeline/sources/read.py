"""Ranges -> raw batches, as DoFns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from eventveil.pipeline.report.meter import METER
from eventveil.pipeline.sources.files import Range, read_range
from eventveil.transforms.batch import Clock, with_clock
from eventveil.transforms.beam.guard import Step, guarded

if TYPE_CHECKING:
    from eventveil.pipeline.sources.kafka import TopicRange

__all__ = ["ListRanges", "ReadEvents"]

_NO_CLOCK = Clock()


class ListRanges(Step):
    """One impulse -> the ranges that the launcher listed."""

    def __init__(self, ranges: Sequence[Range | TopicRange]) -> None:
        self._ranges = tuple(ranges)

    @guarded
    def process(self, _: bytes) -> Iterator[Range | TopicRange]:
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
    def process(self, piece: Range | TopicRange) -> Iterator[pa.RecordBatch]:
        batches = read_range(piece, *self._sizes) if isinstance(piece, Range) else self._messages(piece)
        for batch in batches:
            yield batch if self._clock.now is None else with_clock(batch, self._clock)
            # Counted behind the yield: what is behind us in a fused stage is done with the batch by then.
            METER.add(read=batch.num_rows)
        METER.add(ranges=1)

    def _messages(self, piece: TopicRange) -> Iterator[pa.RecordBatch]:
        # Its client is an extra: who reads files does not have it.
        from eventveil.pipeline.sources.kafka import read_topic

        batch_bytes, *_ = self._sizes
        return read_topic(piece, self._wants, batch_bytes)
