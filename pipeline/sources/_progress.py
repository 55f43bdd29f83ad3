"""How far a stream was read without slices: what an engine keeps of it, and how reading, checkpoints and event time take turns."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import apache_beam as beam
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.utils.timestamp import Timestamp

from eventveil.pipeline.sources.watermark import Watermark
from eventveil.schemas.errors import EventveilError

__all__ = ["Claim", "Progress", "ProgressCoder", "ProgressTracker", "Whole", "report"]

_VERSION = 1


@dataclass(frozen=True)
class Progress:
    """What is left of a stream: everything from these positions on.

    Attributes:
        positions: what comes next in each lane: of a partition, written ``topic/partition``, the offset; of a subscription the number of
            messages before it.
        ids: of the topics. watermark: as `Watermark.as_json` tells it.
        ended: nothing is left, because the rest was handed to somebody else.
    """

    positions: Mapping[str, int]
    ids: Mapping[str, str] = field(default_factory=dict)
    watermark: Mapping[str, Any] = field(default_factory=lambda: Watermark().as_json())
    ended: bool = False


@dataclass(frozen=True)
class Claim:
    """What was read: lanes, each with the position behind it; or how far event time has come by it."""

    positions: Mapping[str, int] = field(default_factory=dict)
    watermark: Mapping[str, Any] | None = None


class ProgressCoder(beam.coders.Coder):
    """JSON that names its version: a savepoint must be readable by what is deployed next."""

    def encode(self, value: Progress) -> bytes:
        document = {
            "version": _VERSION,
            "positions": dict(value.positions),
            "ids": dict(value.ids),
            "watermark": dict(value.watermark),
            "ended": value.ended,
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    def decode(self, encoded: bytes) -> Progress:
        document = json.loads(encoded)
        if document.pop("version") != _VERSION:
            raise EventveilError.of("EV901", "the position of a stream was written by another version")
        return Progress(**document)

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> type[Progress]:
        return Progress


class ProgressTracker(RestrictionTracker):
    """Batches are claimed before they leave, and how far event time has come behind them. The rest is handed on whole, never cut in two."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def current_restriction(self) -> Progress:
        return self._progress

    def try_claim(self, position: Claim) -> bool:
        if self._progress.ended:
            return False
        known = self._progress.positions
        if any(behind < known.get(lane, 0) for lane, behind in position.positions.items()):
            raise EventveilError.of("EV901", "a partition was claimed backwards")
        watermark = self._progress.watermark if position.watermark is None else position.watermark
        self._progress = replace(self._progress, positions={**known, **position.positions}, watermark=watermark)
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Progress, Progress] | None:
        if self._progress.ended or fraction_of_remainder != 0:
            return None
        rest, self._progress = self._progress, replace(self._progress, ended=True)
        return self._progress, rest

    def current_progress(self) -> RestrictionProgress:
        return RestrictionProgress(fraction=1.0 if self._progress.ended else 0.0)

    def check_done(self) -> None:
        if not self._progress.ended:
            raise ValueError("a stream without an end was left without handing on the rest of it")

    def is_bounded(self) -> bool:
        return False


class Whole(RestrictionProvider):
    """One element is read by one reader at a time, from where its `initial_restriction` says."""

    def create_tracker(self, restriction: Progress) -> ProgressTracker:
        return ProgressTracker(restriction)

    def restriction_coder(self) -> ProgressCoder:
        return ProgressCoder()

    def restriction_size(self, element: Any, restriction: Progress) -> int:
        return 0 if restriction.ended else 1

    def truncate(self, element: Any, restriction: Progress) -> None:
        """A job that is drained reads nothing more."""


def report(tracker: Any, estimator: Any, latest: Mapping[str, int], *, now: int, idle: Collection[str], idle_after_s: float) -> None:
    """Say how far event time has come by what was given out; and keep it, so that a restart does not fall behind it.

    Args:
        latest: the highest accepted event time of each lane that had any. now: the clock; both in microseconds.
        idle: the lanes that were read to their end and have been silent for `idle_after_s`.
    """
    progress: Progress = tracker.current_restriction()
    watermark = Watermark.from_json(progress.watermark)
    value = watermark.advance(latest, now=now, lanes=list(progress.positions), idle=idle)
    if value is None and len(idle) == len(progress.positions):
        # Nothing ever came here: it must not hold back what else is read.
        value = now - int(idle_after_s * 1e6)
    reported = estimator.current_watermark()
    kept = tracker.try_claim(Claim(watermark=watermark.as_json()))
    if kept and value is not None and (reported is None or value > reported.micros):
        estimator.set_watermark(Timestamp(micros=value))
