"""Messages in Confluent's wire format: a zero byte, the number of the writer's schema in four, then an Avro datum.

A batch may hold events of several writers. Each is read by its own writer's schema; what became of them stands side by side again, in
the order in which they came.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eventveil.schemas.errors import StorageError
from eventveil.schemas.events.tree import EventSchema
from eventveil.transforms.columns import Column
from eventveil.transforms.decode.avro_events import AvroDecoder
from eventveil.transforms.decode.decoded import Decoded, decoded_type
from eventveil.transforms.decode.judge import assemble
from eventveil.transforms.decode.writer_schemas import WriterSchemas

__all__ = ["WireDecoder", "by_writer"]

Int64s = npt.NDArray[np.int64]

_LOG = logging.getLogger(__name__)
_HEADER = 5
_WRITERS_KEPT = 64


def by_writer(values: Column) -> Iterator[tuple[int | None, Int64s, Column]]:
    """The number of each writer's schema, its rows, and their datums; None for rows that name none, whose datums are nothing to read."""
    rows: dict[int | None, list[int]] = {}
    texts: list[bytes | None] = values.to_pylist()
    for row, text in enumerate(texts):
        marked = text is not None and len(text) >= _HEADER and text[0] == 0
        rows.setdefault(int.from_bytes(text[1:_HEADER], "big") if marked and text else None, []).append(row)
    for number, found in rows.items():
        # Not binary_slice: of a column that was taken from another it asks for a negative buffer (pyarrow 25).
        datums: Column = pa.array([(texts[row] or b"")[_HEADER:] for row in found], pa.binary())
        yield number, np.array(found, np.int64), datums


class WireDecoder:
    """Decodes batches of messages in the wire format.

    A number that the registry does not know, and what is no datum of its schema, is refused (EV516); so is every event of a writer
    whose schema does not fit the event schema (EV502). What only the writer's schema has is drift.

    Args:
        schema, used, max_event_bytes: as for `AvroDecoder`.
    """

    def __init__(self, schema: EventSchema, used: frozenset[str] | None, writers: WriterSchemas, max_event_bytes: int) -> None:
        self._schema = schema
        self._used = used
        self._writers = writers
        self._max_event_bytes = max_event_bytes
        self._made: OrderedDict[int, AvroDecoder | None] = OrderedDict()

    def decode(self, values: Column, /) -> Decoded:
        refused: dict[int, tuple[str, str]] = {}
        drift: dict[str, list[Int64s]] = {}
        events: list[Column] = []
        rows: list[Int64s] = []
        for number, at, datums in by_writer(values):
            decoder = None if number is None else self._decoder(number)
            if isinstance(decoder, AvroDecoder):
                decoded = decoder.decode(datums)
                events.append(decoded.events)
                rows.append(at if decoded.rows is None else at[decoded.rows])
                found = zip(decoded.refused_codes, decoded.refused_paths)
                refused.update(zip(at[decoded.refused_rows].tolist(), found))
                for label, numbers in decoded.drifting.items():
                    drift.setdefault(label, []).append(rows[-1][numbers])
            else:
                refused.update(dict.fromkeys(at.tolist(), (decoder or "EV516", "")))
        return assemble(*self._in_order(events, rows), refused, {label: np.concatenate(found) for label, found in drift.items()})

    def _in_order(self, events: list[Column], rows: list[Int64s]) -> tuple[Column, Int64s]:
        if not events:
            return pa.array([], decoded_type(self._schema, self._used)), np.zeros(0, np.int64)
        if len(events) == 1:
            return events[0], rows[0]
        whole = np.concatenate(rows)
        order = np.argsort(whole)
        return pa.concat_arrays(events).take(pa.array(order)), whole[order]

    def _decoder(self, number: int) -> AvroDecoder | str:
        """The decoder for a writer's schema, or the code by which its events are refused."""
        made = self._made.get(number)
        if made is not None:
            return made
        writer = self._writers.schema(number)
        if writer is None:
            return "EV516"
        try:
            made = AvroDecoder(self._schema, self._used, writer, self._max_event_bytes, single_object=False)
        except StorageError as error:
            # Of names and types: a schema holds no values.
            _LOG.warning("EV502 events of the registry's schema %d are refused: %s", number, error.problems[0].fact)
            return "EV502"
        self._made[number] = made
        if len(self._made) > _WRITERS_KEPT:
            self._made.popitem(last=False)
        return made
