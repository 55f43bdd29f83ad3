"""What a source gave twice, told where a window is put together.

A source without positions, as Pub/Sub, may give an event again. Its release id is the same then, and so is every byte of what leaves: one
of them is enough. Rows of one id that differ are two events, and both stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from eventveil.pipeline.sinks.publish import INTERNAL, Batches
from eventveil.transforms.batch import ORDER
from eventveil.transforms.columns import Column, numbers_of
from eventveil.transforms.encode.json_events import encode_json

__all__ = ["without_twins"]


def without_twins(batches: Batches) -> tuple[Batches, int]:
    """The same veiled batches without rows that another row repeats, and how many rows are left. Holds 16 bytes per row meanwhile."""
    ids = [_ids(batch) for batch in batches()]
    rows = sum(map(len, ids))
    if not rows:
        return batches, 0
    found, times = np.unique(np.concatenate(ids), return_counts=True)
    repeated = found[times > 1]
    if not len(repeated):
        return batches, rows

    def kept() -> Iterator[pa.RecordBatch]:
        seen: set[tuple[Any, Any]] = set()
        for batch in batches():
            suspects = np.flatnonzero(np.isin(_ids(batch), repeated))
            if not len(suspects):
                yield batch
                continue
            stays = np.ones(batch.num_rows, bool)
            taken: Column = pa.array(suspects)
            some = batch.take(taken)
            visible = some.select([name for name in some.schema.names if name not in INTERNAL])
            # Per-row Python over what has come again alone.
            for row, one, shown in zip(suspects.tolist(), _ids(some).tolist(), encode_json(visible).to_pylist()):
                stays[row] = (one, shown) not in seen
                seen.add((one, shown))
            mask: Column = pa.array(stays)
            yield batch.filter(mask)

    return kept, sum(batch.num_rows for batch in kept())


def _ids(batch: pa.RecordBatch) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """The release ids, as 16 bytes each."""
    order = batch.column(ORDER)
    found = numbers_of(order.buffers()[1], np.uint8, 16 * len(order), 16 * order.offset)
    return np.ascontiguousarray(found).view("V16")
