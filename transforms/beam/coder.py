"""The coder of a RecordBatch: one version byte, then an Arrow IPC stream.

Beam pickles this coder by reference, so that a worker that unpickles it imports this module first and knows it ever
after; a coder registered under a URN of its own is unknown to a worker that was restarted.
"""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa

from eventveil.schemas.errors import EventveilError

__all__ = ["RecordBatchCoder"]

_VERSION = b"\x01"


class RecordBatchCoder(beam.coders.Coder):
    """Encodes a RecordBatch with its schema and its part. Not deterministic: never the coder of a key."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        sink = pa.BufferOutputStream()
        sink.write(_VERSION)
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return bytes(sink.getvalue())

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        if encoded[:1] != _VERSION:
            raise EventveilError.of("EV901", "a batch was written by another version of the coder")
        # Copied: behind the version byte no number would stand at a multiple of its size, and numpy and Arrow want that.
        with pa.ipc.open_stream(pa.py_buffer(encoded[1:])) as reader:
            return reader.read_next_batch()

    def estimate_size(self, value: pa.RecordBatch) -> int:
        # Beam asks it of the first batches that pass each step: encoding them would be the largest part of a short pass.
        return value.nbytes

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type[pa.RecordBatch]:
        return pa.RecordBatch

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)
