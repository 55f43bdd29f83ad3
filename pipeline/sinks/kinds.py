"""The two kinds of sinks: of files and tables, in which a window appears once and whole; and of messages, which may repeat, each the same.

A sink is frozen and picklable, and holds neither a client nor a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import pyarrow as pa

from eventveil.pipeline.sinks.publish import Batches, Unit, in_shards
from eventveil.transforms.keys.derive import Keys

__all__ = ["MessageSink", "MessageWriter", "PartSink", "Sink", "publish_messages"]


class PartSink(Protocol):
    """Files, or a table: what was published under a name stands, and is never published twice."""

    def prepare(self) -> None:
        """At the start of a job: see that it can be written, and claim it for this policy. Raises EventveilError."""
        ...

    def bind(self, series: str, after: str | None = None) -> None:
        """Belong to one checkpoint from now on; `after`: the one that it goes on from. Raises StorageError."""
        ...

    def publish(self, name: str, batches: Sequence[pa.RecordBatch]) -> Any:
        """All rows of one part of bounded input, at once. Raises StorageError."""
        ...

    def publish_window(self, start_us: int, pane: int, batches: Batches, rows: int, size: int) -> Unit:
        """All rows of one pane of a window, at once, or none where another content stands. Raises StorageError.

        Args:
            start_us: when the window begins, in microseconds since 1970. pane: 0, or which of several.
            batches: gives the rows, from the beginning each time it is called. rows, size: how many, and roughly their bytes.
        """
        ...


class MessageWriter(Protocol):
    """Writes batches as messages; for one thread."""

    def write(self, batch: pa.RecordBatch) -> None: ...

    def flush(self) -> None:
        """Wait until all that was written is there. Raises StorageError, Unreachable."""
        ...

    def abandon(self) -> None:
        """Let go of what was written and may not be there yet."""
        ...


@runtime_checkable
class MessageSink(Protocol):
    """A topic: at least once, a repeated message the same in every byte."""

    def prepare(self) -> None:
        """At the start of a job: see that it can be written. Raises EventveilError."""
        ...

    def writer(self, keys: Keys) -> MessageWriter: ...

    @property
    def order(self) -> Literal["keyed", "keep"]:
        """Of the rows of a batch."""
        ...


def publish_messages(sink: MessageSink, keys: Keys, batches: Batches, rows: int, size: int) -> None:
    """Write all rows of a window; all are there when this returns. Published again, they come again, the same in every byte.

    Args:
        batches: gives the window's batches from the beginning each time it is called.
        rows, size: how many rows there are, and roughly the bytes they take.

    Raises:
        Unreachable, StorageError: as of the sink's writer.
    """
    writer = sink.writer(keys)
    try:
        # Over the whole window, as in files: what a slice of the stream was, must not show.
        for _, shard in in_shards(batches, rows, size, keep=sink.order == "keep"):
            for batch in shard.to_batches():
                writer.write(batch)
        writer.flush()
    finally:
        writer.abandon()


Sink: TypeAlias = PartSink | MessageSink
