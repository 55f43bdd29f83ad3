"""Messages that an engine hands over one by one, put together at once, in the same stage, into raw batches.

A batch ends with its bundle, for what has not left by then would be lost with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from eventveil.pipeline.sources.decode_inside import DecodeInside
from eventveil.transforms.batch import clock_of
from eventveil.transforms.beam.guard import Step, guarded

__all__ = ["BatchSingles", "DecodeMessages"]


class BatchSingles(Step):
    """Single messages -> raw batches, each with the earliest time of its messages. What a message is, those below say."""

    def __init__(self, batch_bytes: int) -> None:
        self._batch_bytes = batch_bytes

    def size_of(self, message: Any) -> int:
        """Bytes, about."""
        raise NotImplementedError

    def batches_of(self, messages: list[Any]) -> Iterable[pa.RecordBatch]:
        """Raw batches, each a part of its own, with its clock."""
        raise NotImplementedError

    def start_bundle(self) -> None:
        self._held: list[Any] = []
        self._bytes = 0
        self._earliest: Timestamp | None = None

    def process(self, message: Any, stamp: Any = beam.DoFn.TimestampParam) -> Iterator[TimestampedValue]:
        # Not guarded as a generator: it runs for every single message, and nothing of it reads a value.
        self._held.append(message)
        self._bytes += self.size_of(message)
        if self._earliest is None or stamp < self._earliest:
            self._earliest = stamp
        return self._full() if self._bytes >= self._batch_bytes else iter(())

    @guarded
    def _full(self) -> Iterator[TimestampedValue]:
        stamp, batches = self._taken()
        for batch in batches:
            yield TimestampedValue(batch, stamp)

    @guarded
    def finish_bundle(self) -> Iterator[Any]:
        if self._held:
            stamp, batches = self._taken()
            for batch in batches:
                yield GlobalWindows.windowed_value(batch, stamp)

    def _taken(self) -> tuple[Any, list[pa.RecordBatch]]:
        messages, stamp = self._held, self._earliest
        self.start_bundle()
        return stamp, list(self.batches_of(messages))


class DecodeMessages(Step):
    """Raw batches -> decoded ones and letters, each with its tag; times stay."""

    def __init__(self, decode: DecodeInside) -> None:
        self._decode = decode

    def setup(self) -> None:
        self._decode.setup()

    @guarded
    def process(self, raw: pa.RecordBatch) -> Iterator[Any]:
        for tag, batch, _ in self._decode.process(raw, clock_of(raw).now or 0):
            yield beam.pvalue.TaggedOutput(tag, batch)
