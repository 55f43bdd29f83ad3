"""Anonymize for pipelines of other languages and for Beam YAML: names of files in, single messages in, single events out.

A pipeline in Java asks Beam's expansion service for `AnonymizeMessages` by its full name; see examples/java.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa

from eventveil.schemas.errors import PolicyError, Problem
from eventveil.transforms.beam.anonymize import Anonymize
from eventveil.transforms.beam.guard import Step, guarded
from eventveil.transforms.encode.json_events import encode_json

__all__ = ["EVENTS", "REFUSED", "AnonymizeMessages"]

EVENTS, REFUSED = "events", "refused"


class AnonymizeMessages(beam.PTransform):
    """Anonymize single messages under a policy.

    Takes a PCollection of `bytes` or `str`, one message each. Gives two PCollections of the same type by name: ``events``, one anonymous
    event each as JSON, and ``refused``, one letter each, a line of JSON that is sealed to the custodian. Single elements cost far
    more than batches do: from Python use `Anonymize`.

    Args:
        policy, keys, custodian, format, allow_loss, max_event_bytes: as for `Anonymize`. Files are read by whoever expands the
            transform, but for the keyring, which workers read.

    Raises:
        PolicyError, SchemaError: as `Anonymize`; EV120 also when elements are neither bytes nor text.
    """

    def __init__(
        self,
        policy: str,
        keys: str,
        custodian: str | None = None,
        format: str = "json",
        allow_loss: bool = False,
        max_event_bytes: int = 8 << 20,
    ) -> None:
        super().__init__()
        self._anonymize = Anonymize(
            policy, keys=keys, custodian=custodian, format=format, allow_loss=allow_loss, max_event_bytes=max_event_bytes
        )

    def expand(self, messages: beam.PCollection) -> dict[str, beam.PCollection]:
        kind = messages.element_type
        if kind not in (bytes, str):
            fact = f"AnonymizeMessages takes bytes or str, and the PCollection has elements of the type {kind}"
            raise PolicyError(Problem("", 0, "EV120", fact, "say it on the transform before: .with_output_types(bytes)"))
        if kind is str:
            messages = messages | "TakeTexts" >> beam.ParDo(_TakeTexts()).with_output_types(bytes)
        veiled, letters = messages | "Anonymize" >> self._anonymize
        return {
            EVENTS: veiled | "GiveEvents" >> beam.ParDo(_GiveEvents(kind)).with_output_types(kind),
            REFUSED: letters | "GiveLetters" >> beam.ParDo(_GiveLetters(kind)).with_output_types(kind),
        }


class _TakeTexts(Step):
    @guarded
    def process(self, text: str) -> Iterator[bytes]:
        yield text.encode()


class _Give(Step):
    def __init__(self, kind: type) -> None:
        self._kind = kind

    @guarded
    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        # Here events become single ones: pipelines of other languages know nothing else.
        for line in self.lines_of(batch):
            yield line.rstrip(b"\n") if self._kind is bytes else line.decode().rstrip("\n")

    def lines_of(self, batch: pa.RecordBatch) -> list[Any]:
        raise NotImplementedError


class _GiveEvents(_Give):
    def lines_of(self, batch: pa.RecordBatch) -> list[Any]:
        return encode_json(batch).cast(pa.binary()).to_pylist()


class _GiveLetters(_Give):
    def lines_of(self, batch: pa.RecordBatch) -> list[Any]:
        return batch.column("letter").drop_null().cast(pa.binary()).to_pylist()
