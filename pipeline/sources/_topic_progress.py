"""How far a group of partitions was read without slices: what an engine keeps of it, and how reading and checkpoints take turns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import apache_beam as beam
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker

from eventveil.pipeline.sources.watermark import Watermark
from eventveil.schemas.errors import EventveilError

__all__ = ["Claim", "Progress", "ProgressCoder", "ProgressTracker"]

_VERSION = 1


@dataclass(frozen=True)
class Progress:
    """What is left of a group of partitions: everything from these positions on.

    Attributes:
        positions: the next offset of each partition, written ``topic/partition``.
        ids: of the topics. watermark: as `Watermark.as_json` tells it.
        ended: nothing is left, because the rest was handed to somebody else.
    """

    positions: Mapping[str, int]
    ids: Mapping[str, str] = field(default_factory=dict)
    watermark: Mapping[str, Any] = field(default_factory=lambda: Watermark().as_json())
    ended: bool = False


@dataclass(frozen=True)
class Claim:
    """What was read: partitions, each with the offset behind it; or how far event time has come by it."""

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
