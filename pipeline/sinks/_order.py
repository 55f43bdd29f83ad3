"""The order in which rows that are written together leave: keyed, so that the way they came never shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.transforms.batch import ORDER, WINDOW
from eventveil.transforms.encode.json_events import encode_json

__all__ = ["Rows", "keyed_places", "taken"]

Rows = npt.NDArray[np.int64]


def keyed_places(batches: Sequence[pa.RecordBatch], rows: pa.RecordBatch | pa.Array[Any]) -> Rows:
    """The rows' numbers by `$order`; those of one `$order` by the encoded row, then by window.

    Args:
        batches: veiled, with `$order`; their rows are numbered through.
        rows: the same rows as they leave: lines of JSON, or the output's columns.
    """
    words = np.concatenate([_words(batch.column(ORDER)) for batch in batches])
    places = np.argsort(words[:, 0])
    same = words[places[1:], 0] == words[places[:-1], 0]
    if same.any():
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        found = taken(rows, places[tied])
        ranks = {"high": words[places[tied], 0], "low": words[places[tied], 1]}
        ranks["line"] = encode_json(found) if isinstance(found, pa.RecordBatch) else found
        if WINDOW in batches[0].schema.names:
            ranks["window"] = np.concatenate([batch.column(WINDOW).to_numpy() for batch in batches])[places[tied]]
        by_all = pc.sort_indices(pa.table(ranks), [(name, "ascending") for name in ranks])
        places[tied] = places[tied][by_all.to_numpy()]
    return places


def taken(rows: pa.RecordBatch | pa.Array[Any], places: Rows | None) -> pa.RecordBatch | pa.Array[Any]:
    """The rows at these places; None: all, as they came."""
    return rows if places is None else rows.take(cast(Any, pa.array(places)))


def _words(order: pa.Array[Any]) -> npt.NDArray[np.uint64]:
    """(rows, 2) words of 16-byte keys, in the order of their bytes."""
    buffer: Any = order.buffers()[1]
    big_endian = np.frombuffer(buffer, ">u8")[2 * order.offset : 2 * (order.offset + len(order))]
    words: npt.NDArray[np.uint64] = big_endian.astype(np.uint64).reshape(-1, 2)
    return words
