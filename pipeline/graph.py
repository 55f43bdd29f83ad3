"""The one job graph: one read, N policies; what is refused leaves by one door, sealed.

A bounded job is this graph once, over all ranges. A job on a stream is this graph once per slice: what is read now, and, independent of
it, the windows that are due.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa

from eventveil.pipeline.checkpoint.carry import SliceCarry
from eventveil.pipeline.dead_letters.write import WriteLetters
from eventveil.pipeline.gate import Due, KeepOpen, ListDue, PublishDue
from eventveil.pipeline.prepare import ReadyJob, Variant
from eventveil.pipeline.sinks.kinds import MessageSink
from eventveil.pipeline.sinks.write import WriteMessages, WriteParts
from eventveil.pipeline.sources.files import Range
from eventveil.pipeline.sources.read import ListRanges, MessageRange, ReadEvents
from eventveil.transforms.batch import Clock
from eventveil.transforms.beam.anonymize import decode, veil
from eventveil.transforms.beam.split import split_by_type
from eventveil.transforms.decode.reading import Reading

__all__ = [
    "Work",
    "build",
    "keep_letters",
    "policies_of",
    "read_ranges",
    "reading_of",
    "sharing_a_schema",
    "veil_decoded",
    "veil_ranges",
    "write_at_once",
]

_NO_CLOCK = Clock()


@dataclass(frozen=True)
class Work:
    """What one pass over the graph does.

    Attributes:
        ranges: what is read. clock: how far the stream had come before.
        series: of the checkpoint; tells its dead letters from those of an earlier one.
        carry: where gathered rows wait; None where none are gathered. due: the windows that are published.
        spread: whether several threads share ranges and windows. One does without, and a slice of little costs half as much.
    """

    ranges: Sequence[Range | MessageRange]
    clock: Clock = _NO_CLOCK
    carry: SliceCarry | None = None
    due: Sequence[Due] = ()
    series: str = ""
    spread: bool = True


def build(root: beam.Pipeline, job: ReadyJob, work: Work) -> None:
    """Add one pass to a pipeline. Every transform is labelled, so that a job can be recognised and updated in place."""
    if work.ranges:
        _read(root, job, work)
    if work.due:
        due = root | "Tick" >> beam.Impulse() | "ListDue" >> beam.ParDo(ListDue(work.due)).with_output_types(Due)
        publisher = PublishDue(job.variants, job.sealing.keys, job.max_window_bytes, job.once_only)
        spread = due | "SpreadDue" >> beam.Reshuffle() if work.spread else due
        spread | "PublishDue" >> beam.ParDo(publisher).with_output_types(type(None))


def _read(root: beam.Pipeline, job: ReadyJob, work: Work) -> None:
    raw = read_ranges(root, job, work)
    for variant, veiled in veil_ranges(raw, job, work).items():
        _write(veiled, job.variant(variant), job, work)


def read_ranges(root: beam.Pipeline, job: ReadyJob, work: Work) -> beam.PCollection:
    """What lies in ranges, as raw batches."""
    # Files, a topic or a spool: their clients are extras, so their types are not known here.
    kind = type(work.ranges[0])
    ranges = root | "Start" >> beam.Impulse() | "ListRanges" >> beam.ParDo(ListRanges(work.ranges)).with_output_types(kind)
    spread = ranges | "SpreadRanges" >> beam.Reshuffle() if work.spread else ranges
    reader = ReadEvents(job.batch_bytes, job.part_bytes, job.max_event_bytes, job.wants, work.clock)
    return spread | "ReadEvents" >> beam.ParDo(reader).with_output_types(pa.RecordBatch)


def veil_ranges(raw: beam.PCollection, job: ReadyJob, work: Work) -> dict[str, beam.PCollection]:
    """Raw batches -> the veiled batches of each variant; what is refused is kept."""
    veiled: dict[str, beam.PCollection] = {}
    for name, events in _by_type(raw, job, work).items():
        for number, variants in enumerate(sharing_a_schema(job.variants, name)):
            label = "/".join(str(one) for one in (name, number or None) if one)
            # Decoded once for all variants of one schema.
            reading, policies = reading_of(job, variants), policies_of(variants)
            decoded, undecodable = decode(events, reading, policies, job.sealing, f"DecodeEvents/{label}" if label else "DecodeEvents")
            keep_letters(undecodable, job, work.series, f"decoding/{label}" if label else "decoding")
            veiled.update(veil_decoded(decoded, variants, job, work.series))
    return veiled


def veil_decoded(decoded: beam.PCollection, variants: Sequence[Variant], job: ReadyJob, series: str) -> dict[str, beam.PCollection]:
    """Decoded batches -> the veiled batches of each variant; what is refused is kept."""
    found = {}
    for variant in variants:
        roll = variant.gathering.rule if variant.gathering is not None and not variant.gathering.released else None
        tells = job.runner == "local"
        veiled, unveilable = veil(decoded, variant.plan, variant.name, job.sealing, f"ApplyPolicy/{variant.name}", roll, tells)
        keep_letters(unveilable, job, series, f"policy/{variant.name}")
        found[variant.name] = veiled
    return found


def _write(veiled: beam.PCollection, variant: Variant, job: ReadyJob, work: Work) -> None:
    if variant.gathering is not None:
        assert work.carry is not None, "a pass over what is gathered has a place for it"
        gate = KeepOpen(work.carry, variant.name, variant.gathering)
        veiled | f"KeepOpen/{variant.name}" >> beam.ParDo(gate).with_output_types(type(None))
    else:
        write_at_once(veiled, variant, job)


def write_at_once(veiled: beam.PCollection, variant: Variant, job: ReadyJob) -> None:
    """Veiled batches that wait for nothing -> messages, or whole parts."""
    if isinstance(variant.sink, MessageSink):
        writer = WriteMessages(variant.sink, job.sealing.keys)
        veiled | f"WriteMessages/{variant.name}" >> beam.ParDo(writer).with_output_types(type(None))
    else:
        writer = WriteParts(variant.sink, variant.plan.domain, job.sealing.keys)
        veiled | f"WriteParts/{variant.name}" >> beam.ParDo(writer).with_output_types(type(None))


def policies_of(variants: Sequence[Variant]) -> list[tuple[str, str]]:
    """Name and digest of each policy, as letters name them."""
    return [(variant.name, variant.plan.digest) for variant in variants]


def reading_of(job: ReadyJob, variants: Sequence[Variant]) -> Reading:
    """What is decoded for variants of one schema: the leaves that any of them uses."""
    plans = [variant.plan for variant in variants]
    used = frozenset().union(*(plan.used for plan in plans))
    stream = tuple(sorted({leaf for plan in plans for leaf in plan.stream}))
    return Reading(plans[0].schema, used, job.format, job.max_event_bytes, stream, job.envelope, job.registry, job.live is not None)


def keep_letters(letters: beam.PCollection, job: ReadyJob, series: str, stage: str) -> None:
    """Letters -> the folder for them, under names of their stage and of the checkpoint that they belong to."""
    writer = WriteLetters(job.letters, f"{series} {stage}" if series else stage, job.sealing.keys)
    letters | f"KeepRefused/{stage}" >> beam.ParDo(writer).with_output_types(type(None))


def _by_type(raw: beam.PCollection, job: ReadyJob, work: Work) -> dict[str, beam.PCollection]:
    """The events of each type that some policy is for; "" where events have one type only."""
    types = {variant.plan.event_type for variant in job.variants}
    if types == {None}:
        return {"": raw}
    field = next(one[0] for one in types if one is not None)
    names = sorted({one[1] for one in types if one is not None})
    policies, tombstones = policies_of(job.variants), job.live is not None
    kinds, unknown = split_by_type(raw, field, names, policies, job.sealing, job.max_event_bytes, tombstones, job.envelope, job.registry)
    keep_letters(unknown, job, work.series, "types")
    return kinds


def sharing_a_schema(variants: Sequence[Variant], kind: str) -> list[list[Variant]]:
    """The variants for one type of event, those with the same schema together."""
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        if not kind or (variant.plan.event_type is not None and variant.plan.event_type[1] == kind):
            groups.setdefault(variant.plan.schema.canonical, []).append(variant)
    return list(groups.values())
