"""Marks a run of batches with the parts they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from eventveil.transforms.batch import Part, with_part

__all__ = ["mark_parts"]


def mark_parts(origin: str, pieces: Iterable[tuple[int, pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    """Number the batches of each part and mark the last one.

    Args:
        pieces: (start of the part, batch), the parts one after the other. A batch is held back until the next one is there or the
            source has ended well, so that the end of a part is never announced for input that turns out to be damaged.
    """
    held: pa.RecordBatch | None = None
    held_start = number = 0
    for start, batch in pieces:
        if held is not None:
            last = start != held_start
            yield with_part(held, Part(origin, held_start, number, last))
            number = 0 if last else number + 1
        held, held_start = batch, start
    if held is not None:
        yield with_part(held, Part(origin, held_start, number, True))
