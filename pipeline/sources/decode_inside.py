"""Decoding inside a source: what tells how far event time has come must have read the events.

One batch of messages may hold events of several types, for policies of several schemas: it is split, and each piece is decoded once for
all policies that share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from eventveil.transforms.batch import Clock, part_of, with_clock
from eventveil.transforms.beam.anonymize import REFUSED_TAG, DecodeEvents
from eventveil.transforms.beam.split import SplitByType
from eventveil.transforms.decode.reading import Reading
from eventveil.transforms.event_times import least_latest
from eventveil.transforms.plan import Plan
from eventveil.transforms.seal import Sealing

__all__ = ["DecodeInside", "Decoding", "decoded_tag", "tagged"]


@dataclass(frozen=True)
class Decoding:
    """What is decoded once.

    Attributes:
        number: tells it from the others of its job. kind: the type of its events; "" where they have one type only.
        plans, policies: behind it; name and digest of each.
    """

    number: int
    kind: str
    reading: Reading
    plans: tuple[Plan, ...]
    policies: tuple[tuple[str, str], ...]


def decoded_tag(decoding: Decoding) -> str:
    return f"decoded {decoding.number}"


def tagged(outputs: Any, decodings: Sequence[Decoding]) -> tuple[dict[str, beam.PCollection], beam.PCollection]:
    """(Decoded batches by tag, letters) of a source's outputs."""
    found = {decoded_tag(decoding): outputs[decoded_tag(decoding)] for decoding in decodings}
    for output in (*found.values(), outputs[REFUSED_TAG]):
        # Tagged outputs have the type Any, and Any is pickled: batches must go through our coder.
        output.element_type = pa.RecordBatch
    return found, outputs[REFUSED_TAG]


class DecodeInside:
    """Raw batches -> decoded ones and letters, each with its tag, and what event times they have. May be pickled before `setup`."""

    def __init__(self, decodings: Sequence[Decoding], split: SplitByType | None, sealing: Sealing) -> None:
        self._decodings = tuple(decodings)
        self._split = split
        self._decoders = [DecodeEvents(one.reading, one.policies, sealing) for one in decodings]

    def setup(self) -> None:
        for step in (self._split, *self._decoders):
            if step is not None:
                step.setup()

    @property
    def tags(self) -> tuple[str, ...]:
        """Of all outputs."""
        return (REFUSED_TAG, *(decoded_tag(decoding) for decoding in self._decodings))

    def treat(self, raws: Iterable[pa.RecordBatch], reported: Timestamp | None, now: int) -> tuple[list[TaggedOutput], dict[str, int]]:
        """(What comes of raw batches, stamped; the highest accepted event time of each origin that has any.)

        All of it, before anything is given out: what a registry that is away keeps from being decoded is not claimed, and read again.

        Args:
            raws: each a part of its own. reported: the watermark before they were read: which events are late is decided against it.
            now: microseconds since 1970, as all event times.
        """
        clock = Clock(None if reported is None else int(reported.micros), now)
        found: list[TaggedOutput] = []
        latest: dict[str, int] = {}
        for raw in raws:
            part = part_of(raw)
            assert part is not None, "a batch of a stream has its part"
            outputs = list(self.process(with_clock(raw, clock), now))
            times = [told for *_, told in outputs if told is not None]
            least = reported
            if times:
                highest = min(highest for _, highest in times)
                latest[part.origin] = max(highest, latest.get(part.origin, highest))
                least = Timestamp(micros=min(lowest for lowest, _ in times))
            # Never behind what was reported: Beam would drop it without a word.
            stamp = max(one for one in (least, reported, MIN_TIMESTAMP) if one is not None)
            found += [TaggedOutput(tag, TimestampedValue(batch, stamp)) for tag, batch, _ in outputs]
        return found, latest

    def process(self, raw: pa.RecordBatch, now: int) -> Iterator[tuple[str, pa.RecordBatch, tuple[int, int] | None]]:
        """(Tag, batch, least and highest event time of what some policy accepts; None for letters and where there is none)."""
        pieces = {"": raw}
        if self._split is not None:
            outputs = {output.tag: output.value for output in self._split.process(raw)}
            yield REFUSED_TAG, outputs.pop(REFUSED_TAG), None
            pieces = {tag.removeprefix("type "): batch for tag, batch in outputs.items()}
        for decoding, decoder in zip(self._decodings, self._decoders):
            letters, decoded = decoder.process(pieces[decoding.kind])
            yield REFUSED_TAG, letters.value, None
            appended = decoded.column("appended") if "appended" in decoded.schema.names else None
            yield decoded_tag(decoding), decoded, least_latest(decoding.plans, decoded.column("event"), now, appended)
