"""Parts put together: the batches of one part, in order and complete, or nothing.

A range is read, treated and written in one fused stage, so that its batches come by one after the other; there is no
GroupByKey over rows. Where a runner breaks that up, the numbers of a part's batches do not follow each other, and the
job stops rather than publish half a part.
"""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa

from eventveil.schemas.errors import StorageError, remedy_for
from eventveil.transforms.batch import Part, part_of
from eventveil.transforms.beam.guard import guarded

__all__ = ["AssembleParts"]


class AssembleParts(beam.DoFn):
    """Batches marked with parts -> whole parts, given to `publish`, which the DoFns below implement."""

    def start_bundle(self) -> None:
        self._part: Part | None = None
        self._batches: list[pa.RecordBatch] = []

    @guarded
    def process(self, batch: pa.RecordBatch) -> Iterator[None]:
        part = part_of(batch)
        expected = len(self._batches)
        if part is None or part.number != expected or (expected and not self._same(part)):
            raise StorageError.of("EV408", "an output part came in incomplete or out of order", remedy_for("EV408"))
        self._part = part
        self._batches.append(batch)
        if part.last:
            batches, self._batches, self._part = self._batches, [], None
            self.publish(part, batches)
        yield from ()

    def finish_bundle(self) -> None:
        if self._batches:
            raise StorageError.of("EV408", "an output part came in incomplete", remedy_for("EV408"))

    def publish(self, part: Part, batches: list[pa.RecordBatch]) -> None:
        """Write a whole part under its final name, at once."""
        raise NotImplementedError

    def _same(self, part: Part) -> bool:
        return self._part is not None and (self._part.origin, self._part.start) == (part.origin, part.start)
