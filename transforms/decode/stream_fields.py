"""What a stream says beside an event, as fields of the decoded event: its key, headers, topic and time.

Only those that a policy names are read. A key or header is text; one that is not, and a header that stands twice, refuses the event:
a consumer that took the first and one that took the last would treat two different events.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eventveil.transforms.batch import kind_of
from eventveil.transforms.columns import Column, flags, list_lengths, not_utf8
from eventveil.transforms.decode.decoded import Decoded
from eventveil.transforms.decode.judge import assemble

__all__ = ["stream_column", "with_stream_fields"]

Mask = npt.NDArray[np.bool_]

HEADERS = "$headers."
_INSTANT = pa.timestamp("us", "UTC")


def with_stream_fields(decoded: Decoded, raw: pa.RecordBatch, leaves: Sequence[str]) -> Decoded:
    """Add the leaves, as ``$key`` and ``$headers.name``, of the raw batch to the events that were decoded from it (EV519)."""
    if not leaves:
        return decoded
    taken: Column = None if decoded.rows is None else pa.array(decoded.rows)
    rows = np.arange(raw.num_rows, dtype=np.int64) if decoded.rows is None else decoded.rows
    refused = dict(zip(decoded.refused_rows.tolist(), zip(decoded.refused_codes, decoded.refused_paths)))
    columns: dict[str, Column] = {}
    for leaf in leaves:
        values, wrong = stream_column(raw, leaf)
        columns[leaf] = values if taken is None else values.take(taken)
        for row in np.flatnonzero(wrong).tolist() if wrong is not None else ():
            refused.setdefault(row, ("EV519", leaf))
    headers = {leaf.removeprefix(HEADERS): columns.pop(leaf) for leaf in leaves if leaf.startswith(HEADERS)}
    if headers:
        columns["$headers"] = pa.StructArray.from_arrays(list(headers.values()), names=list(headers))
    own: list[Column] = decoded.events.flatten()
    names = [one.name for one in decoded.events.type]
    events = pa.StructArray.from_arrays([*own, *columns.values()], names=[*names, *columns])
    drift = {label: rows[numbers] for label, numbers in decoded.drifting.items()}
    return assemble(events, rows, refused, drift)


def stream_column(raw: pa.RecordBatch, leaf: str) -> tuple[Column, Mask | None]:
    """One leaf of a raw batch, null where its source has none; and which rows hold none that can be read, if any do."""
    name = "headers" if leaf.startswith(HEADERS) else leaf[1:]
    if kind_of(raw) != "messages" or name not in raw.schema.names:
        # Columns of a batch without messages are the event's own, whatever they are called.
        return pa.nulls(raw.num_rows, _INSTANT if leaf == "$time" else pa.string()), None
    column: Column = raw.column(name)
    if leaf in ("$topic", "$time"):
        return column, None
    if leaf == "$key":
        return _text(column)
    return _header(column, leaf.removeprefix(HEADERS))


def _header(headers: Column, name: str) -> tuple[Column, Mask | None]:
    lengths = list_lengths(headers)
    names, values = headers.flatten().flatten()
    found = np.flatnonzero(flags(pc.equal(names, pa.scalar(name))))
    row = np.repeat(np.arange(len(headers)), lengths)[found]
    at = np.full(len(headers), -1, np.int64)
    at[row] = found
    twice = np.bincount(row, minlength=len(headers)) > 1
    texts, wrong = _text(values.take(pa.array(at, mask=at < 0)))
    if not twice.any():
        return texts, wrong
    return texts, twice if wrong is None else twice | wrong


def _text(values: Column) -> tuple[Column, Mask | None]:
    """Bytes as text, null where they are none."""
    if pa.types.is_large_binary(values.type):
        values = values.cast(pa.binary())
    texts: Column = values.view(pa.string()) if pa.types.is_binary(values.type) else values.cast(pa.string())
    wrong = not_utf8(texts)
    if wrong is None:
        return texts, None
    return pc.if_else(pa.array(wrong), pa.scalar(None, pa.binary()), values).cast(pa.string()), wrong
