"""Whole parts -> files, as a DoFn."""

from __future__ import annotations

import pyarrow as pa

from eventveil.pipeline.assemble import AssembleParts
from eventveil.pipeline.sinks.files import FolderSink
from eventveil.transforms.batch import Part
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.keys.part_names import part_name

__all__ = ["WriteParts"]


class WriteParts(AssembleParts):
    """Veiled batches -> one file per part, and window where the sink partitions by it."""

    def __init__(self, sink: FolderSink, domain: str, keys: str) -> None:
        self._sink = sink
        self._domain = domain
        self._keys = keys

    def setup(self) -> None:
        # Not the key of the names itself: this refuses to be pickled.
        self._names = load_keys(self._keys).domain(self._domain)

    def publish(self, part: Part, batches: list[pa.RecordBatch]) -> None:
        self._sink.publish(part_name(self._names.for_domain("part"), part), batches)
