"""eventveil run, but that decoded batches cross a GroupByKey as they are: what a search through Flink's state has to find.

A launcher for tests; its functions run on workers, which find them under the name of this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import FixedWindows

from eventveil.pipeline import engine
from eventveil.pipeline.cli.main import main
from eventveil.transforms.beam.coder import RecordBatchCoder

_PAIR = tuple[bytes, bytes]
_MONTH_S = 30 * 86_400  # no such window closes before the job is stopped
_veil_decoded = engine.veil_decoded


def as_it_is(batch: pa.RecordBatch) -> tuple[bytes, bytes]:
    return b"", RecordBatchCoder().encode(batch)


def _spill_and_veil(decoded: beam.PCollection, variants: Sequence[Any], job: Any, series: str) -> dict[str, beam.PCollection]:
    pairs = decoded | "AsItIs" >> beam.Map(as_it_is).with_output_types(_PAIR)
    pairs | "Month" >> beam.WindowInto(FixedWindows(_MONTH_S)) | "Wait" >> beam.GroupByKey()
    return _veil_decoded(decoded, variants, job, series)


def run() -> None:
    vars(engine)["veil_decoded"] = _spill_and_veil
    main()


if __name__ == "__main__":
    import flink_canary

    flink_canary.run()
