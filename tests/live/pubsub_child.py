"""Reads a subscription on Beam's own runner until it is killed, and writes what comes: python pubsub_child.py JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from eventveil.pipeline.sources import _pubsub_leases
from eventveil.pipeline.sources.decode_inside import Decoding, decoded_tag
from eventveil.pipeline.sources.pubsub import PubsubStream
from eventveil.schemas.streams import PubsubAddress
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
        told: dict[str, Any] = {"origin": part.origin, "start": part.start, "rows": batch.num_rows, "stamp": stamp.micros}
        if "event" in batch.schema.names:
            numbers = batch["event"].field("n").to_pylist()
            told |= {"positions": batch["position"].to_pylist(), "numbers": numbers, "watermark": clock_of(batch).watermark}
        with open(self._file, "a") as file:
            file.write(json.dumps(told) + "\n")
        yield from ()


def main(given: dict[str, Any]) -> None:
    if given["deaf"]:
        # The engine never makes anything durable; and what is ours is ours for as short as can be.
        vars(_pubsub_leases)["_EXTENSION_S"] = 10
        _pubsub_leases.Leases.done = lambda *_: None  # type: ignore[method-assign]
    plan = load_plan(given["policy"])
    stream = PubsubStream(PubsubAddress(given["project"], given["subscription"]), (), None, given["keys"])
    state = stream.begin(False)
    source = stream.on_engine("flink", frozenset({"appended"}), 1 << 20, int(given["idle_after_s"] * 1e6))
    options = PipelineOptions(flags=["--streaming"], runner="FnApiRunner")
    with beam.Pipeline(runner="FnApiRunner", options=options) as root:
        decoding = Decoding(0, "", Reading(plan.schema, plan.used), (plan,), ((plan.name, plan.digest),))
        decoded, letters = source.read(root, state, [decoding], None, Sealing(given["keys"], None))
        decoded[decoded_tag(decoding)] | "NoteDecoded" >> beam.ParDo(Note(given["decoded"])).with_output_types(type(None))
        letters | "NoteLetters" >> beam.ParDo(Note(given["letters"])).with_output_types(type(None))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
