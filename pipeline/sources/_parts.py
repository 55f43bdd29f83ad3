"""Marks a run of batches with the parts they belong to, and bounds both by rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from eventveil.transforms.batch import Part, with_kind, with_part

__all__ = ["BATCH_ROWS", "PART_ROWS", "mark_parts"]

# Bytes alone bound nothing: 32 MB may be 16 million events of two bytes, and each may become a letter of a kilobyte.
PART_ROWS = 1 << 17
BATCH_ROWS = 1 << 15


def mark_parts(
    origin: str, pieces: Iterable[tuple[int, pa.RecordBatch]], part_rows: int = PART_ROWS, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Number the batches of each part and mark the last one.

    A part of more than `part_rows` rows becomes several, cut after so many rows whatever the batches, each named by the
    position of its first event. A batch of more than `batch_rows` rows becomes several.

    Args:
        pieces: (start of the part, batch), the parts one after the other. A batch is held back until the next one is there or the
            source has ended well, so that the end of a part is never announced for input that turns out to be damaged.
    """
    held: pa.RecordBatch | None = None
    held_start = number = 0
    for start, batch in _bounded(pieces, part_rows, batch_rows):
        if held is not None:
            last = start != held_start
            yield _marked(held, Part(origin, held_start, number, last))
            number = 0 if last else number + 1
        held, held_start = batch, start
    if held is not None:
        yield _marked(held, Part(origin, held_start, number, True))


def _marked(batch: pa.RecordBatch, part: Part) -> pa.RecordBatch:
    return with_kind(with_part(batch, part), "rows" if batch.schema.names[0] == "row" else "messages")


def _bounded(pieces: Iterable[tuple[int, pa.RecordBatch]], part_rows: int, batch_rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    nominal = start = None
    rows = 0
    for begin, batch in pieces:
        if begin != nominal:
            nominal = start = begin
            rows = 0
        assert start is not None
        if not batch.num_rows:
            yield start, batch
        at = 0
        while at < batch.num_rows:
            if rows == part_rows:
                start, rows = int(batch.column("position")[at].as_py()), 0
            size = min(batch.num_rows - at, batch_rows, part_rows - rows)
            yield start, batch.slice(at, size)
            at += size
            rows += size
