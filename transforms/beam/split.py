"""Several types of event in one stream: a raw batch is split by type; an event of an unknown type is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from eventveil.schemas.streams import RegistryDoc
from eventveil.transforms.batch import part_of, refused_batch, with_part
from eventveil.transforms.beam.anonymize import count, count_codes, without_tombstones
from eventveil.transforms.beam.guard import Step, guarded
from eventveil.transforms.decode.event_type import event_types
from eventveil.transforms.decode.reading import Originals
from eventveil.transforms.nested import Column
from eventveil.transforms.seal import Sealing

__all__ = ["split_by_type"]


def rows_of(index: Any, number: int) -> Column:
    return pa.array(np.flatnonzero(index == number))


class SplitByType(Step):
    """Raw batch -> one raw batch per type, tagged ``type NAME``; the rest -> letters."""

    def __init__(
        self,
        field: str,
        names: Sequence[str],
        policies: Sequence[tuple[str, str]],
        sealing: Sealing,
        max_event_bytes: int,
        tombstones: bool = False,
        envelope: str | None = None,
        registry: RegistryDoc | None = None,
    ) -> None:
        self._field = field
        self._names = tuple(names)
        self._policies = tuple(policies)
        self._sealing = sealing
        self._max_event_bytes = max_event_bytes
        self._tombstones = tombstones
        self._envelope = envelope
        self._registry = registry

    def setup(self) -> None:
        self._sealer = self._sealing.sealer()

    @guarded
    def process(self, raw: pa.RecordBatch) -> Iterator[Any]:
        part = part_of(raw)
        if self._tombstones and not self._field.startswith("$"):
            # Without a value it has no type; by header or topic it has one, and is counted there.
            before = raw.num_rows
            raw = without_tombstones(raw, self._policies)
            for policy, _ in self._policies:
                count(f"{policy}|in", before - raw.num_rows)
        originals = Originals(raw)
        kinds, codes = event_types(raw, self._field, self._max_event_bytes, self._envelope, self._registry)
        number = {name: i for i, name in enumerate(self._names)}
        index = np.array([number.get(kind, -1) if kind is not None else -1 for kind in kinds], np.int64)
        refused = np.flatnonzero(index < 0)
        told = [codes[i] or "EV509" for i in refused.tolist()]
        for policy, _ in self._policies:
            count(f"{policy}|in", len(refused))
            count_codes(policy, told)
        rows: Column = pa.array(refused)
        path = [self._field] * len(told)
        windows = pa.nulls(len(told), pa.int64())
        batch = refused_batch(told, path, ["event.type"] * len(told), originals.positions.take(rows), windows, originals.take(rows))
        names = ", ".join(name for name, _ in self._policies)
        letters = self._sealer.seal(batch, origin=part.origin if part else "", policy=names, digest="")
        yield beam.pvalue.TaggedOutput("refused", with_part(letters, part) if part else letters)
        for i, name in enumerate(self._names):
            # An empty batch too: a part must reach every sink with all its numbers.
            yield beam.pvalue.TaggedOutput(f"type {name}", raw.take(rows_of(index, i)))


def split_by_type(
    raw: beam.PCollection,
    field: str,
    names: Sequence[str],
    policies: Sequence[tuple[str, str]],
    sealing: Sealing,
    max_event_bytes: int,
    tombstones: bool = False,
    envelope: str | None = None,
    registry: RegistryDoc | None = None,
) -> tuple[dict[str, beam.PCollection], beam.PCollection]:
    """Raw batches -> (raw batches of each type, letters).

    Args:
        field: of the event; or ``$headers.name`` or ``$topic``.
        tombstones, envelope, registry: as in `Reading`.
    """
    tags = [f"type {name}" for name in names]
    splitter = SplitByType(field, names, policies, sealing, max_event_bytes, tombstones, envelope, registry)
    outputs = raw | "SplitByType" >> beam.ParDo(splitter).with_outputs("refused", *tags)
    for tag in ("refused", *tags):
        outputs[tag].element_type = pa.RecordBatch
    return {name: outputs[tag] for name, tag in zip(names, tags)}, outputs["refused"]
