"""Reads topics on Beam's own runner until it is killed, and writes what comes: python topics_child.py JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from eventveil.pipeline.sources.decode_inside import Decoding, decoded_tag
from eventveil.pipeline.sources.kafka import Cluster
from eventveil.pipeline.sources.kafka_stream import Groups
from eventveil.schemas.streams import RegistryDoc
from eventveil.transforms.batch import clock_of, part_of
from eventveil.transforms.compile import load_plan
from eventveil.transforms.decode.reading import Reading
from eventveil.transforms.seal import Sealing


class Note(beam.DoFn):
    def __init__(self, file: str) -> None:
        self._file = file

    def process(self, batch: pa.RecordBatch, stamp: Any = beam.DoFn.TimestampParam) -> Iterator[None]:
        part = part_of(batch)
        assert part is not None
        told: dict[str, Any] = {"origin": part.origin, "rows": batch.num_rows, "stamp": stamp.micros}
        if "event" in batch.schema.names:
            clock = clock_of(batch)
            told |= {"positions": batch["position"].to_pylist(), "watermark": clock.watermark, "now": clock.now}
        with open(self._file, "a") as file:
            file.write(json.dumps(told) + "\n")
        yield from ()


def main(given: dict[str, Any]) -> None:
    plan = load_plan(given["policy"])
    source = Groups(Cluster(given["kafka"]), (given["topic"],), given["group"], given["groups"], idle_after_s=given["idle_after_s"])
    stream = source.stream()
    state = stream.begin(False)
    stream.close()
    options = PipelineOptions(flags=["--streaming"], runner="FnApiRunner")
    with beam.Pipeline(runner="FnApiRunner", options=options) as root:
        registry = given.get("registry")
        reading = Reading(plan.schema, plan.used)
        if registry is not None:
            reading = Reading(plan.schema, plan.used, "avro", registry=RegistryDoc(registry))
        decoding = Decoding(0, "", reading, (plan,), ((plan.name, plan.digest),))
        decoded, letters = source.read(root, state, [decoding], None, Sealing(given["keys"], None))
        decoded[decoded_tag(decoding)] | "NoteDecoded" >> beam.ParDo(Note(given["decoded"])).with_output_types(type(None))
        letters | "NoteLetters" >> beam.ParDo(Note(given["letters"])).with_output_types(type(None))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
