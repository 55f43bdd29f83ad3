"""The one job graph: one read, N policies; what is refused leaves by one door, sealed."""

from __future__ import annotations

from collections.abc import Sequence

import apache_beam as beam
import pyarrow as pa

from eventveil.pipeline.dead_letters.write import WriteLetters
from eventveil.pipeline.prepare import FileJob, Variant
from eventveil.pipeline.sinks.write import WriteParts
from eventveil.pipeline.sources.files import Range
from eventveil.pipeline.sources.read import ListRanges, ReadEvents
from eventveil.transforms.beam.anonymize import decode, veil
from eventveil.transforms.beam.split import split_by_type
from eventveil.transforms.decode.reading import Reading

__all__ = ["build"]


def build(root: beam.Pipeline, job: FileJob) -> None:
    """Add the job to a pipeline. Every transform is labelled, so that a job can be recognised and updated in place."""
    ranges = root | "Start" >> beam.Impulse() | "ListRanges" >> beam.ParDo(ListRanges(job.ranges)).with_output_types(Range)
    spread = ranges | "SpreadRanges" >> beam.Reshuffle()
    reader = ReadEvents(job.batch_bytes, job.part_bytes, job.max_event_bytes)
    raw = spread | "ReadEvents" >> beam.ParDo(reader).with_output_types(pa.RecordBatch)
    for kind, events in _by_type(raw, job).items():
        for number, variants in enumerate(_sharing_a_schema(job.variants, kind)):
            label = "/".join(str(one) for one in (kind, number or None) if one)
            _treat(events, variants, job, f"/{label}" if label else "")


def _treat(events: beam.PCollection, variants: Sequence[Variant], job: FileJob, label: str) -> None:
    """Decode once for all variants of one schema, then apply each policy."""
    used = frozenset().union(*(variant.plan.used for variant in variants))
    reading = Reading(variants[0].plan.schema, used, "json", job.max_event_bytes)
    policies = [(variant.name, variant.plan.digest) for variant in variants]
    decoded, undecodable = decode(events, reading, policies, job.sealing, f"DecodeEvents{label}")
    _keep_letters(undecodable, job, f"decoding{label}")
    for variant in variants:
        veiled, unveilable = veil(decoded, variant.plan, variant.name, job.sealing, f"ApplyPolicy/{variant.name}")
        writer = WriteParts(variant.sink, variant.plan.domain, job.sealing.keys)
        veiled | f"WriteParts/{variant.name}" >> beam.ParDo(writer).with_output_types(type(None))
        _keep_letters(unveilable, job, f"policy/{variant.name}")


def _keep_letters(letters: beam.PCollection, job: FileJob, stage: str) -> None:
    writer = WriteLetters(job.letters, stage, job.sealing.keys)
    letters | f"KeepRefused/{stage}" >> beam.ParDo(writer).with_output_types(type(None))


def _by_type(raw: beam.PCollection, job: FileJob) -> dict[str, beam.PCollection]:
    """The events of each type that some policy is for; "" where events have one type only."""
    types = {variant.plan.event_type for variant in job.variants}
    if types == {None}:
        return {"": raw}
    field = next(one[0] for one in types if one is not None)
    names = sorted({one[1] for one in types if one is not None})
    policies = [(variant.name, variant.plan.digest) for variant in job.variants]
    kinds, unknown = split_by_type(raw, field, names, policies, job.sealing, job.max_event_bytes)
    _keep_letters(unknown, job, "types")
    return kinds


def _sharing_a_schema(variants: Sequence[Variant], kind: str) -> list[list[Variant]]:
    """The variants for one type of event, those with the same schema together."""
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        if not kind or (variant.plan.event_type is not None and variant.plan.event_type[1] == kind):
            groups.setdefault(variant.plan.schema.canonical, []).append(variant)
    return list(groups.values())
