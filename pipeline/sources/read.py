"""Ranges -> raw batches, as DoFns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import apache_beam as beam
import pyarrow as pa

from eventveil.pipeline.report.meter import METER
from eventveil.pipeline.sources.files import Range, read_range
from eventveil.transforms.beam.guard import guarded

__all__ = ["ListRanges", "ReadEvents"]


class ListRanges(beam.DoFn):
    """One impulse -> the ranges that the launcher listed."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._ranges = tuple(ranges)

    @guarded
    def process(self, _: bytes) -> Iterator[Range]:
        yield from self._ranges


class ReadEvents(beam.DoFn):
    """A range -> its raw batches, in order, marked with their parts."""

    def __init__(self, batch_bytes: int, part_bytes: int, max_event_bytes: int) -> None:
        self._sizes = (batch_bytes, part_bytes, max_event_bytes)

    @guarded
    def process(self, piece: Range) -> Iterator[pa.RecordBatch]:
        for batch in read_range(piece, *self._sizes):
            yield batch
            # Counted behind the yield: what is behind us in a fused stage is done with the batch by then.
            METER.add(read=batch.num_rows)
        METER.add(ranges=1)
