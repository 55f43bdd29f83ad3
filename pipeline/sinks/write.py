"""Sinks as DoFns: whole parts -> files or tables, batches -> messages."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from eventveil.pipeline.assemble import AssembleParts
from eventveil.pipeline.sinks.kinds import MessageSink, MessageWriter, PartSink
from eventveil.transforms.batch import Part
from eventveil.transforms.beam.guard import Step, guarded
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.part_names import part_name

__all__ = ["WriteMessages", "WriteParts"]


class WriteParts(AssembleParts):
    """Veiled batches -> whole parts: of files one per part, and window where the sink partitions by it; of a table a commit."""

    def __init__(self, sink: PartSink, domain: str, keys: str) -> None:
        self._sink = sink
        self._domain = domain
        self._keys = keys

    def setup(self) -> None:
        # Not the key of the names itself: this refuses to be pickled.
        self._names = load_keys(self._keys).domain(self._domain)

    def publish(self, part: Part, batches: list[pa.RecordBatch]) -> None:
        self._sink.publish(part_name(self._names.for_domain("part"), part), batches)


class WriteMessages(Step):
    """Veiled batches -> messages of a topic. A bundle is over when the broker has acknowledged all of them."""

    def __init__(self, sink: MessageSink, keys: str) -> None:
        self._sink = sink
        self._keys = keys

    def setup(self) -> None:
        self._loaded = load_keys(self._keys)
        self._writer: MessageWriter | None = None

    def start_bundle(self) -> None:
        self.teardown()

    @guarded
    def process(self, batch: pa.RecordBatch) -> Iterator[None]:
        if self._writer is None:
            self._writer = self._sink.writer(self._loaded)
        self._writer.write(batch)
        yield from ()

    @guarded
    def finish_bundle(self) -> Iterator[None]:
        if self._writer is not None:
            self._writer.flush()
        yield from ()

    def teardown(self) -> None:
        # What a bundle that failed has left behind.
        if self._writer is not None:
            self._writer.abandon()
