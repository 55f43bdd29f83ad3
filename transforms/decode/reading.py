"""From raw batches to decoded events, whatever the format; and back to the events as they came, for the dead letters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from eventveil.schemas.events.tree import EventSchema
from eventveil.schemas.streams import RegistryDoc
from eventveil.transforms.batch import kind_of
from eventveil.transforms.decode.decoded import Decoded
from eventveil.transforms.decode.envelope import unwrap
from eventveil.transforms.decode.stream_fields import with_stream_fields
from eventveil.transforms.encode.json_events import encode_json
from eventveil.transforms.nested import Column

__all__ = ["WRITER", "Decoders", "Originals", "Reading"]

WRITER = b"eventveil.writer"
_WRITERS_KEPT = 64


@dataclass(frozen=True)
class Reading:
    """How events become columns.

    Attributes:
        schema, used: the event schema, and the leaves that go on.
        format: "json" or "avro" for batches with a `value` column; batches of columns need none.
        max_event_bytes: larger events are refused.
        stream: what is read of a message beside its value, as ``$key``.
        envelope: what stands around the event. registry: of the writers' schemas, where messages name them by id.
        tombstones: whether a message without a value says that something is gone: it is counted and left out. Otherwise it is refused.
    """

    schema: EventSchema
    used: frozenset[str]
    format: str = "json"
    max_event_bytes: int = 8 << 20
    stream: tuple[str, ...] = ()
    envelope: str | None = None
    registry: RegistryDoc | None = None
    tombstones: bool = False


class Originals:
    """The events of a batch as they came: messages, or rows that are columns already and are told as JSON.

    Attributes:
        name: "value" for messages, "row" for columns.
        column: one of them per event. positions: where each was read; -1 where that is not known.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        kind = kind_of(batch)
        if not kind:
            # Nobody's batch but its owner's: whatever its columns are called, they are an event's.
            self.name = "row"
            self.column: Column = batch.to_struct_array()
            self.positions: Column = pa.array(np.full(batch.num_rows, -1, np.int64))
            return
        self.name = "row" if kind == "rows" or "row" in batch.schema.names else "value"
        self.column = batch.column(self.name)
        self.positions = batch.column("position")

    def take(self, rows: Column) -> Column:
        taken = self.column.take(rows)
        if self.name == "value":
            # Of a message without a value there is nothing to keep.
            return taken.fill_null(b"") if taken.null_count else taken
        return encode_json(pa.RecordBatch.from_struct_array(taken)) if len(rows) else pa.array([], pa.large_binary())


class _Decoder(Protocol):
    def decode(self, column: Column, /) -> Decoded: ...


class Decoders:
    """The decoder for each kind of raw batch, made when the first one comes: JSON, Avro by its writer's schema, columns."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._made: OrderedDict[tuple[str, bytes], _Decoder] = OrderedDict()

    def decode(self, raw: pa.RecordBatch) -> Decoded:
        """Decode a raw batch; its rows are numbered as in the batch."""
        originals = Originals(raw)
        writer = (raw.schema.metadata or {}).get(WRITER, b"")
        kind = "columns" if originals.name == "row" else "avro" if writer else self._reading.format
        if kind == "avro" and not writer and self._reading.registry is not None:
            kind = "wire"
        decoder = self._made.get((kind, writer))
        if decoder is None:
            decoder = self._made[kind, writer] = self._make(kind, writer)
            if len(self._made) > _WRITERS_KEPT:
                self._made.popitem(last=False)
        values, refused = originals.column, dict[int, str]()
        if kind == "json" and self._reading.envelope is not None:
            values, refused = unwrap(values, self._reading.schema.root, self._reading.max_event_bytes)
        decoded = decoder.decode(values)
        if originals.name == "value" and values.null_count:
            decoded = _with_reasons(decoded, originals.column, refused)
        return with_stream_fields(decoded, raw, self._reading.stream)

    def _make(self, kind: str, writer: bytes) -> _Decoder:
        reading = self._reading
        if kind == "columns":
            from eventveil.transforms.decode.parquet_rows import ColumnsDecoder

            return _Columns(ColumnsDecoder(reading.schema, reading.used))
        if kind == "avro":
            from eventveil.transforms.decode.avro_events import AvroDecoder

            return AvroDecoder(reading.schema, reading.used, writer=writer.decode() or None, max_event_bytes=reading.max_event_bytes)
        if kind == "wire":
            from eventveil.transforms.decode.wire_format import WireDecoder
            from eventveil.transforms.decode.writer_schemas import writer_schemas

            assert reading.registry is not None, "only a registry has the writers' schemas"
            return WireDecoder(reading.schema, reading.used, writer_schemas(reading.registry), reading.max_event_bytes)
        from eventveil.transforms.decode.json_events import JsonDecoder

        return JsonDecoder(reading.schema, reading.used, max_event_bytes=reading.max_event_bytes)


def _with_reasons(decoded: Decoded, values: Column, refused: Mapping[int, str]) -> Decoded:
    """Why there was nothing to decode: no value, or what `refused` says. To a decoder that is as malformed as any text that is no event."""
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    found = zip(decoded.refused_rows.tolist(), decoded.refused_codes)
    return replace(decoded, refused_codes=[refused.get(row, code) if valid[row] else "EV517" for row, code in found])


class _Columns:
    """A decoder of record batches, given their rows as one struct column."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def decode(self, column: Column, /) -> Decoded:
        return self._inner.decode(pa.RecordBatch.from_struct_array(column))  # type: ignore[no-any-return]
