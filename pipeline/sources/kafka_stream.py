"""Kafka where an engine reads without slices: an unbounded splittable DoFn that reads, decodes, and says how far event time has come.

One element is a group of partitions; what an engine keeps of it is a few numbers, never an event. Which events are late is decided
against the watermark that was reported before they were read, and noted on each batch, so that nothing behind has to ask again.
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

from eventveil.pipeline.sources._kafka_group import tell_group
from eventveil.pipeline.sources._kafka_reader import Lane, Reader, lane_named, name_of, park, take
from eventveil.pipeline.sources._progress import Claim, Progress, Whole, report
from eventveil.pipeline.sources.decode_inside import DecodeInside, Decoding, tagged
from eventveil.pipeline.sources.kafka import Cluster, KafkaStream
from eventveil.pipeline.sources.stream import State, Unreachable
from eventveil.transforms.batch import Part, with_kind, with_part
from eventveil.transforms.beam.guard import guarded
from eventveil.transforms.beam.split import SplitByType
from eventveil.transforms.seal import Sealing

__all__ = ["Groups", "ReadTopics"]

_LOG = logging.getLogger(__name__)

_BUNDLE_S = 0.5
"""How long a bundle may last: several groups on one worker take turns, and checkpoints wait for it."""
_GATHER_S = 0.2
_DISCOVER_S = 10.0
_IDLE = Duration(seconds=2)  # Flink cuts off a second, and would spin
_AWAY = Duration(seconds=5)


@dataclass(frozen=True)
class Groups:
    """What is read.

    Attributes:
        group: to which positions are told. groups: how many elements the partitions are shared among, by number; for good.
        idle_after_s: a partition that was read to its end and stays silent for so long holds nothing back.
        wants, batch_bytes: as for `read_topic`.
    """

    cluster: Cluster
    topics: tuple[str, ...]
    group: str
    groups: int = 1
    idle_after_s: float = 60.0
    wants: frozenset[str] = frozenset({"appended"})
    batch_bytes: int = 4 << 20

    def stream(self) -> KafkaStream:
        return KafkaStream(self.cluster, self.topics, self.group, self.groups)

    def read(
        self, root: beam.Pipeline, state: State, decodings: Sequence[Decoding], split: SplitByType | None, sealing: Sealing
    ) -> tuple[dict[str, beam.PCollection], beam.PCollection]:
        """(Decoded batches by tag, letters) of topics, from `state` on, as `KafkaStream.begin` gives it."""
        groups = root | "Start" >> beam.Impulse() | "ListGroups" >> beam.ParDo(ListGroups(self, state)).with_output_types(Group)
        decode = DecodeInside(decodings, split, sealing)
        reader = beam.ParDo(ReadTopics(self, decode)).with_outputs(*decode.tags)
        return tagged(groups | "SpreadGroups" >> beam.Reshuffle() | "ReadTopics" >> reader, decodings)


@dataclass(frozen=True)
class Group:
    """One element: the partitions whose number, divided by how many groups there are, leaves `number`; and where they begin."""

    number: int
    positions: tuple[tuple[str, int], ...]
    ids: tuple[tuple[str, str], ...]


class ListGroups(beam.DoFn):
    """One impulse -> the groups, beginning where the launcher saw the topics begin."""

    def __init__(self, source: Groups, state: State) -> None:
        self._source = source
        self._state = state

    @guarded
    def process(self, _: bytes) -> Iterator[Group]:
        ids = tuple(sorted(self._state["ids"].items()))
        for number in range(self._source.groups):
            own = ((lane, at) for lane, at in sorted(self._state["positions"].items()) if _group_of(lane, self._source) == number)
            yield Group(number, tuple(own), ids)


class _WholeGroup(Whole):
    """All of a group, from where it begins."""

    def initial_restriction(self, element: Group) -> Progress:
        return Progress(dict(element.positions), dict(element.ids))


# Beam finds out by these defaults what to hand in.
_PROGRESS: Any = beam.DoFn.RestrictionParam(_WholeGroup())
_ESTIMATOR: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider())


class ReadTopics(beam.DoFn):
    """A group of partitions -> its events as decoded batches, tagged as `DecodeInside` does; what cannot be decoded -> letters.

    A batch is marked as a part of its own, with the clock that it was read under: the watermark that had been reported, and the time.
    Where batches end may differ when they are read again.

    Args:
        decode: event times are read as the policies behind it say, and the least of them counts.
    """

    def __init__(self, source: Groups, decode: DecodeInside) -> None:
        self._source = source
        self._decode = decode

    def setup(self) -> None:
        self._decode.setup()
        self._stream: KafkaStream | None = None
        self._looked: dict[int, float] = {}

    def teardown(self) -> None:
        if self._stream is not None:
            self._stream.close()

    @beam.DoFn.unbounded_per_element()  # type: ignore[untyped-decorator]
    def process(
        self,
        element: Group,
        finalizer: Any = beam.DoFn.BundleFinalizerParam,  # first: Beam hands it in by its place, and what follows by name
        tracker: Any = _PROGRESS,
        estimator: Any = _ESTIMATOR,
    ) -> Iterator[Any]:
        return self._read(element, tracker, estimator, finalizer)

    @guarded
    def _read(self, element: Group, tracker: Any, estimator: Any, finalizer: Any) -> Iterator[Any]:
        source = self._source
        cluster = source.cluster.with_group(source.group)
        reader: Reader | None = None
        defer: Duration | None = _IDLE
        try:
            if not self._discover(element, tracker):
                return
            began = time.monotonic()
            reader = take(cluster, element.number, source.wants)
            reader.go_to({lane_named(lane): at for lane, at in tracker.current_restriction().positions.items()}, {})
            while time.monotonic() - began < _BUNDLE_S:
                found = list(reader.gather(source.batch_bytes, _GATHER_S))
                now = time.time_ns() // 1000
                raws = [_raw(lane, batch) for lane, _, batch in found if batch is not None]
                outputs, latest = self._decode.treat(raws, estimator.current_watermark(), now)
                if not tracker.try_claim(Claim({name_of(lane): behind for lane, behind, _ in found})):
                    return
                if found:
                    defer = None
                yield from outputs
                idle = [name_of(lane) for lane in reader.idle_lanes(source.idle_after_s)]
                report(tracker, estimator, latest, now=now, idle=idle, idle_after_s=source.idle_after_s)
                if not found:
                    break
            finalizer.register(_Told(cluster, dict(tracker.current_restriction().positions)))
            park(reader, cluster, element.number, source.wants)
            reader = None
        except Unreachable as error:
            # Raised, it would make the engine restart everything, and soon give up.
            _LOG.warning("%s", error)
            defer = _AWAY
        finally:
            if reader is not None:
                reader.close()
        tracker.defer_remainder(defer)

    def _discover(self, element: Group, tracker: Any) -> bool:
        """Look for partitions that are new, and whether what is to be read is still there; False: somebody else goes on."""
        if time.monotonic() - self._looked.get(element.number, float("-inf")) < _DISCOVER_S:
            return True
        if self._stream is None:
            self._stream = self._source.stream()
        bounds = {lane: ends for lane, ends in self._stream.bounds().items() if _group_of(lane, self._source) == element.number}
        progress: Progress = tracker.current_restriction()
        state = {"positions": dict(progress.positions), "ids": dict(progress.ids)}
        self._stream.check(state, bounds)
        self._stream.ids(state)
        self._looked[element.number] = time.monotonic()
        return bool(tracker.try_claim(Claim({lane: progress.positions.get(lane, 0) for lane in bounds})))


class _Told:
    """What is done once a bundle is durable: the consumer group is told."""

    def __init__(self, cluster: Cluster, positions: dict[str, int]) -> None:
        self._cluster = cluster
        self._positions = positions

    def __call__(self) -> None:
        tell_group(self._cluster, {lane_named(lane): at for lane, at in self._positions.items()})


def _raw(lane: Lane, batch: pa.RecordBatch) -> pa.RecordBatch:
    return with_part(with_kind(batch, "messages"), Part(name_of(lane), int(batch.column("position")[0].as_py())))


def _group_of(lane: str, source: Groups) -> int:
    return lane_named(lane)[1] % source.groups
