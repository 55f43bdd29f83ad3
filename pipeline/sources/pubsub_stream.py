"""Pub/Sub where an engine reads without slices: an unbounded splittable DoFn that pulls, decodes, and says how far event time has come.

One element is one subscription, which several pulls at a time share. Messages are ours until the engine has made their bundle durable,
for ten minutes at most, and are acknowledged then; before that nothing of them is lost by whatever happens to a worker. Which events are
late is decided against the watermark that was reported before they were pulled, and noted on each batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.utils.timestamp import Duration

from eventveil.pipeline.sources._progress import Claim, Progress, Whole, report
from eventveil.pipeline.sources._pubsub_client import Project, connect
from eventveil.pipeline.sources._pubsub_leases import Lease, Leases, leases_of
from eventveil.pipeline.sources._pubsub_pulls import Puller, acks_of, raw_batch
from eventveil.pipeline.sources.decode_inside import DecodeInside, Decoding, tagged
from eventveil.pipeline.sources.stream import State, Unreachable
from eventveil.transforms.batch import Part, with_kind, with_part
from eventveil.transforms.beam.guard import guarded
from eventveil.transforms.beam.split import SplitByType
from eventveil.transforms.seal import Sealing

__all__ = ["ReadSubscription", "Subscription"]

_LOG = logging.getLogger(__name__)

_CODE = "EV420"
_BUNDLE_S = 0.5
"""How long a bundle may last: checkpoints wait for it."""
_WAIT_S = 0.5
_IDLE = Duration(seconds=2)  # Flink cuts off a second, and would spin
_AWAY = Duration(seconds=5)


@dataclass(frozen=True)
class Subscription:
    """What is read.

    Attributes:
        name: short, as the project knows it. Nothing else should pull from it.
        idle_after_s: where nothing comes for so long, event time goes on with the clock.
        wants: as for `read_spool`. batch_bytes: of one round of pulls, about.
    """

    project: Project
    name: str
    idle_after_s: float = 60.0
    wants: frozenset[str] = frozenset({"appended"})
    batch_bytes: int = 4 << 20

    @property
    def path(self) -> str:
        """The full name: the origin of the events."""
        return self.project.subscription(self.name)

    def read(
        self, root: beam.Pipeline, state: State, decodings: Sequence[Decoding], split: SplitByType | None, sealing: Sealing
    ) -> tuple[dict[str, beam.PCollection], beam.PCollection]:
        """(Decoded batches by tag, letters) of the subscription, from where it stands: a state says nothing here."""
        # By the clock, so that letters of a job that begins anew do not take the names of an earlier one's: a service gives far fewer
        # messages than one in a microsecond.
        begin = BeginSubscription(Begun(self.path, time.time_ns() // 1000))
        begun = root | "Start" >> beam.Impulse() | "BeginSubscription" >> beam.ParDo(begin).with_output_types(Begun)
        decode = DecodeInside(decodings, split, sealing)
        reader = beam.ParDo(ReadSubscription(self, decode)).with_outputs(*decode.tags)
        return tagged(begun | "SpreadSubscription" >> beam.Reshuffle() | "ReadSubscription" >> reader, decodings)


@dataclass(frozen=True)
class Begun:
    """One element: the subscription, and from where on this job numbers its batches."""

    path: str
    first: int


class BeginSubscription(beam.DoFn):
    """One impulse -> the subscription."""

    def __init__(self, begun: Begun) -> None:
        self._begun = begun

    @guarded
    def process(self, _: bytes) -> Iterator[Begun]:
        yield self._begun


class _WholeSubscription(Whole):
    """All that comes. Its one position counts messages, from where the job begins to number."""

    def initial_restriction(self, element: Begun) -> Progress:
        return Progress({element.path: element.first})


# Beam finds out by these defaults what to hand in.
_PROGRESS: Any = beam.DoFn.RestrictionParam(_WholeSubscription())
_ESTIMATOR: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider())


class ReadSubscription(beam.DoFn):
    """A subscription -> its events as decoded batches, tagged as `DecodeInside` does; what cannot be decoded -> letters.

    A batch is a part of its own, numbered by how many messages came before it, with the clock that it was pulled under: the watermark
    that had been reported, and the time. A message that comes again has the same origin and position, in another batch.

    Args:
        decode: event times are read as the policies behind it say, and the least of them counts.
    """

    def __init__(self, source: Subscription, decode: DecodeInside) -> None:
        self._source = source
        self._decode = decode

    def setup(self) -> None:
        self._decode.setup()
        self._heard = time.monotonic()

    @beam.DoFn.unbounded_per_element()  # type: ignore[untyped-decorator]
    def process(
        self,
        element: Begun,
        finalizer: Any = beam.DoFn.BundleFinalizerParam,  # first: Beam hands it in by its place, and what follows by name
        tracker: Any = _PROGRESS,
        estimator: Any = _ESTIMATOR,
    ) -> Iterator[Any]:
        return self._read(element, tracker, estimator, finalizer)

    @guarded
    def _read(self, element: Begun, tracker: Any, estimator: Any, finalizer: Any) -> Iterator[Any]:
        connection = connect(self._source.project, _CODE)
        leases, puller = leases_of(connection, element.path), Puller(connection, element.path)
        held: list[Lease] = []
        defer: Duration | None = None
        began = time.monotonic()
        ended = False
        try:
            while defer is None and time.monotonic() - began < _BUNDLE_S:
                found: list[pa.RecordBatch] = []
                try:
                    found = puller.pull(self._source.batch_bytes) or puller.wait(_WAIT_S)
                    defer = None if found else _IDLE
                except Unreachable as error:
                    # Raised, it would make the engine restart everything, and soon give up.
                    _LOG.warning("%s", error)
                    self._heard, defer = time.monotonic(), _AWAY
                held += [leases.hold(acks_of(batch)) for batch in found]
                first = tracker.current_restriction().positions[element.path]
                now = time.time_ns() // 1000
                outputs, latest = self._decode.treat(self._raws(found, element.path, first), estimator.current_watermark(), now)
                if not tracker.try_claim(Claim({element.path: first + sum(batch.num_rows for batch in found)})):
                    return
                yield from outputs
                if found:
                    self._heard = time.monotonic()
                idle = [element.path] if time.monotonic() - self._heard >= self._source.idle_after_s else []
                report(tracker, estimator, latest, now=now, idle=idle, idle_after_s=self._source.idle_after_s)
            if held:
                finalizer.register(_Done(leases, held))
            ended = True
        finally:
            if not ended:
                leases.let_go(held)
        tracker.defer_remainder(defer)

    def _raws(self, found: Sequence[pa.RecordBatch], origin: str, first: int) -> Iterator[pa.RecordBatch]:
        for pulled in found:
            raw = raw_batch(pulled, self._source.wants, self._source.name)
            yield with_part(with_kind(raw, "messages"), Part(origin, first))
            first += pulled.num_rows


class _Done:
    """What is done once a bundle is durable: the service is told."""

    def __init__(self, leases: Leases, held: list[Lease]) -> None:
        self._leases = leases
        self._held = held

    def __call__(self) -> None:
        self._leases.done(self._held)
