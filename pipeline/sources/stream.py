"""What a stream is to the loop of slices: something that says how far it goes now, and the same ranges again after a restart.

A state is JSON and belongs to the stream alone; the loop keeps it in the checkpoint, and what is between two states is one slice.
Nothing here is forgotten or skipped: where events are gone before they were read, the stream says so and the job stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from eventveil.schemas.errors import Unreachable

if TYPE_CHECKING:
    import apache_beam as beam

    from eventveil.pipeline.sources.decode_inside import Decoding
    from eventveil.transforms.beam.split import SplitByType
    from eventveil.transforms.seal import Sealing

__all__ = ["EngineSource", "EngineStream", "State", "Stream", "Unreachable"]

State: TypeAlias = dict[str, Any]
"""JSON. Of Kafka: ``{"positions": {"orders/0": 17, ...}}``, the next offset to read; of a watched folder its own."""


class EngineStream(Protocol):
    """A source without an end, as an engine needs it."""

    def identity(self) -> dict[str, Any]:
        """What makes two streams the same; a checkpoint is continued only by a stream of the same identity."""
        ...

    def begin(self, from_now: bool) -> State:
        """The state before the first slice: all that is there is still to be read, or, `from_now`, nothing of it.

        Raises:
            Unreachable: EV413, for now. StorageError: EV413, for good.
        """
        ...

    def close(self) -> None:
        """Let go of clients and files."""
        ...

    def on_engine(self, engine: str, wants: frozenset[str], batch_bytes: int, idle_after_us: int) -> EngineSource:
        """The same stream where an engine reads it. Raises PolicyError EV120 where none can.

        Args:
            engine: flink or dataflow. wants, batch_bytes: as for ranges. idle_after_us: as for the job.
        """
        ...


class Stream(EngineStream, Protocol):
    """One that can be read in slices, too. All but `next` and `begin` answer from what these last saw, and cost nothing."""

    def next(self, state: State, most_bytes: int) -> State | None:
        """The state behind the next slice, of about `most_bytes` at most; None: nothing is new.

        Raises:
            Unreachable: EV413, for now. StorageError: EV412 events are gone that `state` still has to read, EV413 for good.
        """
        ...

    def ranges(self, before: State, after: State) -> tuple[Any, ...]:
        """What lies between two states, as elements that ReadEvents reads: the same for the same states. Picklable, without a secret."""
        ...

    def lanes(self, state: State) -> tuple[str, ...]:
        """The lanes of the watermark: what keeps its own order."""
        ...

    def lane_of(self, origin: str) -> str:
        """The lane that a part of this origin belongs to."""
        ...

    def is_caught_up(self, state: State) -> frozenset[str]:
        """The lanes of which `state` has everything that `next` last saw."""
        ...

    def lag(self, state: State) -> int:
        """Events (or files) that `next` last saw and `state` does not have."""
        ...

    def committed(self, state: State) -> None:
        """The checkpoint holds this state: tell whoever watches from outside. Never raises."""
        ...


class EngineSource(Protocol):
    """A stream that an engine reads by a splittable DoFn, which decodes, and tells how far event time has come."""

    def read(
        self, root: beam.Pipeline, state: State, decodings: Sequence[Decoding], split: SplitByType | None, sealing: Sealing
    ) -> tuple[dict[str, beam.PCollection], beam.PCollection]:
        """(Decoded batches by tag, letters), from `state` on, as `Stream.begin` gives it."""
        ...
