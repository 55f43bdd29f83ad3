"""Single Avro datums, plain or in single-object encoding -> typed columns.

The verdict on one event: its bytes must be exactly one datum of the writer's schema (EV516), and its columns pass the
judge (judge.py), as those of every format. Each event is read on its own, so it cannot matter which ones stand beside it.
"""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Any

import fastavro
import fastavro.schema
import numpy as np
import pyarrow as pa

from eventveil.schemas.errors import StorageError
from eventveil.schemas.events.tree import EventSchema
from eventveil.transforms.columns import Column
from eventveil.transforms.decode.avro_datums import BadDatum, Columns, Misfit, Read, reader_of
from eventveil.transforms.decode.decoded import Decoded, drift_labels
from eventveil.transforms.decode.forms import read_typed
from eventveil.transforms.decode.judge import Judge, assemble

__all__ = ["AvroDecoder"]

_MARK = b"\xc3\x01"
_HEADER = 10  # the mark and a fingerprint of eight bytes


class AvroDecoder:
    """Decodes batches of Avro datums, and judges every leaf of the schema whatever is used.

    What the writer's schema has and the event schema does not is drift, counted for every event of that writer. What it
    lacks is null. Its types must be those of the event schema, or widen to them: int to long, integers to floats, float to
    double, timestamps to finer units, bytes and text to one another.

    Args:
        schema: the event schema.
        used: paths of the leaves that go on; None: all, and no entry of a map.
        writer: the writer's schema as JSON; None: the event schema itself.
        max_event_bytes: larger events are refused (EV515).
        single_object: whether a datum that begins with C3 01 is in single-object encoding, whose fingerprint must be that of
            the writer's schema (EV516). None: yes for messages under the event schema itself; no where a writer's schema is
            given, as for the datums of a file, which may begin with these bytes by chance.

    Raises:
        StorageError: (EV407) the writer's schema is none, or does not fit the event schema.
    """

    def __init__(
        self,
        schema: EventSchema,
        used: Set[str] | None = None,
        writer: str | None = None,
        max_event_bytes: int = 10 << 20,
        single_object: bool | None = None,
    ) -> None:
        self.schema = schema
        self._max_bytes = max_event_bytes
        self._judge = Judge(schema, used, read_typed)
        self._read, self._columns, self._unknown, fingerprint = _compiled(schema, writer)
        self._header = _MARK + fingerprint if (writer is None if single_object is None else single_object) else None

    @property
    def type(self) -> pa.StructType:
        """The type of the decoded events."""
        return self._judge.type

    def decode(self, values: Column) -> Decoded:
        """Decode one batch: binary values, one datum each. A null value is no datum (EV516)."""
        refused: dict[int, tuple[str, str]] = {}
        lists = self._columns.lists()
        for column in lists:
            column.clear()
        sizes = [0] * len(lists)
        rows: list[int] = []
        # Datum by datum, in Python: where a field stands is known only when those before it were read.
        for row, datum in enumerate(values.to_pylist()):
            try:
                self._datum(datum)
            except (BadDatum, IndexError) as error:
                refused[row] = (error.code, error.path) if isinstance(error, BadDatum) else ("EV516", "")
                for column, size in zip(lists, sizes, strict=True):
                    del column[size:]
            else:
                rows.append(row)
                sizes = list(map(len, lists))
        found = np.array(rows, np.int64)
        events, verdicts = self._judge.judge(self._columns.build(len(rows)))
        for at, verdict in verdicts.found.items():
            refused[int(found[at])] = verdict
        return assemble(events, found, refused, dict.fromkeys(self._unknown, found))

    def _datum(self, datum: bytes | None) -> None:
        if datum is None:
            raise BadDatum
        if len(datum) > self._max_bytes:
            raise BadDatum("EV515")
        at = 0
        if self._header is not None and datum[:2] == _MARK:
            if datum[:_HEADER] != self._header:
                raise BadDatum
            at = _HEADER
        if self._read(datum, at) != len(datum):
            raise BadDatum


def _compiled(schema: EventSchema, writer: str | None) -> tuple[Read, Columns, list[str], bytes]:
    """Reader, columns and unknown labels for a writer's schema, and its fingerprint (CRC-64-AVRO, little endian)."""
    named: dict[str, Any] = {}
    try:
        document = json.loads(schema.canonical if writer is None else writer)
        parsed: Any = fastavro.parse_schema(document, named_schemas=named, _force=True)
        canonical = fastavro.schema.to_parsing_canonical_form(document)
        fingerprint = bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))
    except Exception:  # noqa: BLE001 whatever is wrong with it: libraries quote the schema, which may be a stranger's
        raise _unfit("the writer's schema is no Avro schema") from None
    try:
        read, columns, unknown = reader_of(parsed, named, schema.root)
    except Misfit as error:
        raise _unfit(f"the writer's schema does not fit the event schema: {error}") from None
    except RecursionError:
        raise _unfit("the writer's schema is nested too deeply") from None
    return read, columns, [label for label in drift_labels(schema) if label in unknown], fingerprint


def _unfit(fact: str) -> StorageError:
    return StorageError.of("EV407", fact, "correct the schema, or the producer")  # type: ignore[return-value]
