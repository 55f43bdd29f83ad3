"""What the tests of Flink run on its workers: they import it from here, by the path that their pool was given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.metrics import Metrics
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.utils.timestamp import Duration, Timestamp

BEGIN_S = 1_700_000_000
CANARY = "kanarienvogel@example.org"


class Forever(RestrictionProvider):
    def initial_restriction(self, element: Any) -> OffsetRange:
        return OffsetRange(0, 2**62)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: Any, restriction: OffsetRange) -> int:
        return 1

    def split(self, element: Any, restriction: OffsetRange) -> Iterator[OffsetRange]:
        yield restriction


_TRACKER = beam.DoFn.RestrictionParam(Forever())
_WATERMARK = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider())


class Tick(beam.DoFn):
    """0, 1, 2, ..., ten at a time; the event time of n is n seconds after BEGIN_S."""

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        _: Any,
        tracker: Any = _TRACKER,
        watermark: Any = _WATERMARK,
    ) -> Iterator[int]:
        begin = tracker.current_restriction().start
        for number in range(begin, begin + 10):
            if not tracker.try_claim(number):
                return
            watermark.set_watermark(Timestamp(BEGIN_S + number))
            yield number
        tracker.defer_remainder(Duration(2))


class Note(beam.DoFn):
    """Appends each number to a file, and counts it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def process(self, number: int) -> Iterator[int]:
        Metrics.counter("eventveil", "orders|in").inc()
        Metrics.counter("others", "orders|in").inc()
        with Path(self.path).open("a") as file:
            file.write(f"{number}\n")
        yield number


class Fail(beam.DoFn):
    """Fails at 15: with what a library might say, or with an error of ours."""

    def __init__(self, ours: bool) -> None:
        self.ours = ours

    def process(self, number: int) -> Iterator[int]:
        from eventveil.schemas.errors import StorageError

        if number >= 15:
            if self.ours:
                raise StorageError.of("EV404", "the disk is full", "make room", file="out")
            raise ValueError(f"cannot parse '{CANARY}'")
        yield number
