"""Parts and windows put together: complete, or not at all.

A range of bounded input is read, treated and written in one fused stage, so that its batches come by one after the other; there is no
GroupByKey over rows. Where a runner breaks that up, the numbers of a part's batches do not follow each other, and the
job stops rather than publish half a part.

Windows of unbounded input are put together by the gate (see gate.py) on one machine, and by GroupByKey where an engine keeps state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms import trigger
from apache_beam.transforms.window import FixedWindows, IntervalWindow, TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PaneInfoTiming

from eventveil.pipeline._frames import Address, Frames, Opened, SealedFrames, mark_of, misplaced
from eventveil.pipeline.gathering import Gathering, split_windows
from eventveil.schemas.errors import EventveilError, StorageError, remedy_for
from eventveil.transforms.batch import ORDER, Part, part_of
from eventveil.transforms.beam.anonymize import count
from eventveil.transforms.beam.guard import Step, guarded
from eventveil.transforms.columns import Column, numbers_of
from eventveil.transforms.encode.compact import compact_batch
from eventveil.transforms.keys.keyring import load_keys
from eventveil.transforms.plan import Plan
from eventveil.transforms.release.renumber import Numbers, WindowNumbers, decision_columns

__all__ = ["AssembleParts", "AssembleWindows", "Publish", "WindowShard", "split_shards"]

_ROWS, _DECISIONS = "rows", "decisions"
_PAIR = tuple[bytes, bytes]
_MOST_SHARDS = 1 << 16
_NOTICED_S = 7 * 86_400
_NOTHING = pa.RecordBatch.from_arrays([], schema=pa.schema([]))


class AssembleParts(Step):
    """Batches marked with parts -> whole parts, given to `publish`, which the DoFns below implement."""

    def start_bundle(self) -> None:
        self._part: Part | None = None
        self._batches: list[pa.RecordBatch] = []

    @guarded
    def process(self, batch: pa.RecordBatch) -> Iterator[None]:
        part = part_of(batch)
        expected = len(self._batches)
        if part is None or part.number != expected or (expected and not self._same(part)):
            raise StorageError.of("EV408", "an output part came in incomplete or out of order", remedy_for("EV408"))
        self._part = part
        self._batches.append(batch)
        if part.last:
            batches, self._batches, self._part = self._batches, [], None
            self.publish(part, batches)
        yield from ()

    def finish_bundle(self) -> None:
        if self._batches:
            raise StorageError.of("EV408", "an output part came in incomplete", remedy_for("EV408"))

    def publish(self, part: Part, batches: list[pa.RecordBatch]) -> None:
        """Write a whole part under its final name, at once."""
        raise NotImplementedError

    def _same(self, part: Part) -> bool:
        return self._part is not None and (self._part.origin, self._part.start) == (part.origin, part.start)


@dataclass(frozen=True)
class WindowShard:
    """What is published at once: some rows of one window of one variant.

    Attributes:
        start_us: when the window begins. pane: 0, and for what came to a roll of files when it was closed the seconds since.
        number: of the shard. Which one a row belongs to is told by its keyed order alone.
    """

    variant: str
    start_us: int
    pane: int
    number: int


Publish = Callable[[WindowShard, list[pa.RecordBatch], SealedFrames], bool]
"""Publishes a shard; False where another content stands in its place, which is left as it is. May be pickled. Seals are the job's own."""


class AssembleWindows(beam.PTransform):
    """Veiled batches -> windows, each published when it closes, where the engine groups durably (Flink, Dataflow).

    Takes the veiled batches of variants by name. Gives what was withheld, as pairs of a code and sealed rows: EV603, the window was too
    large to be decided on; EV416, rows came when their window was decided on already, or another content stands in its place. Every row
    that goes in is published or withheld, and counted.

    A GroupByKey sees nothing but bytes. Its keys are keyed digests of variant, window and shard, its values sealed under the window's own
    key; so the engine's state shows how many windows there are, when they close, and how large they are.

    A release model decides small and applies wide: the decision columns of all variants meet on one key per window, rows on one per shard.
    What was decided follows the rows through a second GroupByKey.

    One pane per window, at its end plus lateness. All rows of a window have one timestamp, one second before that, in Beam windows of one
    second: so calendar windows, whose lengths differ, need no windows of their own making, which engines do not know. Rows of a roll
    of files that has closed have the time of their batch, which the source has not passed yet: they make a further pane, and Beam never
    finds a row late. Should it do so, the row is not dropped within seven days, but withheld; or published, where `late` says so.

    Args:
        plans: of the variants, by name; all of one domain.
        gathering: how they are gathered, all alike.
        keys: the keyring, as `load_keys` takes it.
        publish: called on a worker, for every shard of every window.
        shards: into how many a window is cut, 1 to 65,536; a shard is held in memory as a whole.
        most_bytes: what a release model may hold to decide on one window.
        late: whether `publish` takes rows of a roll at any time, and knows by itself which of them it has published already.
    """

    def __init__(
        self,
        plans: Mapping[str, Plan],
        gathering: Gathering,
        keys: str,
        publish: Publish,
        *,
        shards: int = 1,
        most_bytes: int = 256 << 20,
        late: bool = False,
    ) -> None:
        super().__init__()
        if len({plan.domain for plan in plans.values()}) != 1 or not 1 <= shards <= _MOST_SHARDS:
            raise EventveilError.of("EV901", "windows are assembled for variants of one domain, in 1 to 65,536 shards")
        self._plans = dict(plans)
        self._gathering = gathering
        self._frames = Frames(next(iter(plans.values())).domain, gathering, keys)
        self._publish = publish
        self._shards = shards
        self._most_bytes = most_bytes
        self._late = late and not gathering.released

    def expand(self, veiled: Mapping[str, beam.PCollection]) -> beam.PCollection:
        rows, decisions = [], []
        for name, plan in self._plans.items():
            split = GatherRows(self._frames, name, plan, self._gathering.released, self._shards)
            outputs = veiled[name] | f"GatherRows/{name}" >> beam.ParDo(split).with_outputs(_DECISIONS, main=_ROWS)
            rows.append(_of_pairs(outputs[_ROWS]))
            decisions.append(_of_pairs(outputs[_DECISIONS]))
        met = rows | "JoinVariants" >> beam.Flatten() | "WindowRows" >> _closing()
        if self._gathering.released:
            columns = decisions | "JoinDecisions" >> beam.Flatten() | "WindowDecisions" >> _closing()
            decider = DecideWindows(self._frames, self._most_bytes)
            decided = columns | "MeetToDecide" >> beam.GroupByKey() | "DecideWindows" >> beam.ParDo(decider).with_output_types(_PAIR)
            met = (met, decided) | "JoinDecided" >> beam.Flatten()
        publisher = PublishShards(self._frames, self._plans, self._gathering.released, self._late, self._publish)
        return met | "GroupShards" >> beam.GroupByKey() | "PublishShards" >> beam.ParDo(publisher).with_output_types(_PAIR)


class GatherRows(beam.DoFn):
    """Veiled batches -> their rows by window and shard, sealed; under the tag ``decisions`` what a release model needs of them."""

    def __init__(self, frames: Frames, variant: str, plan: Plan, released: bool, shards: int) -> None:
        self._frames = frames
        self._variant = variant
        self._plan = plan
        self._released = released
        self._shards = shards

    def setup(self) -> None:
        self._sealed = self._frames.open()

    def process(self, veiled: pa.RecordBatch, stamp: Any = beam.DoFn.TimestampParam) -> Iterator[Any]:
        return self._gather(veiled, stamp)

    @guarded
    def _gather(self, veiled: pa.RecordBatch, stamp: Timestamp) -> Iterator[Any]:
        # Where the rows were read is nobody's business from here on.
        for start, window in split_windows(veiled.replace_schema_metadata(None), self._frames.gathering.column):
            closing = Timestamp(self._sealed.closing_s(start) - 1)
            if not self._released:
                closing = max(closing, stamp)
            for number, rows in split_shards(window, self._shards):
                shard = Address(self._variant, start, number)
                frame = self._sealed.seal("rows", shard, compact_batch(rows))
                yield TimestampedValue((self._sealed.shard_key(shard), frame), closing)
                if self._released:
                    columns = self._sealed.seal("columns", shard, decision_columns(self._plan, rows), mark_of(frame))
                    yield beam.pvalue.TaggedOutput(_DECISIONS, TimestampedValue((self._sealed.window_key(start), columns), closing))


class DecideWindows(beam.DoFn):
    """The decision columns of a window -> to each shard of rows what was decided for it."""

    def __init__(self, frames: Frames, most_bytes: int) -> None:
        self._frames = frames
        self._most_bytes = most_bytes

    def setup(self) -> None:
        self._sealed = self._frames.open()
        self._keys = load_keys(self._frames.keys).domain(self._frames.domain)

    def process(self, group: tuple[bytes, Iterable[bytes]], pane: Any = beam.DoFn.PaneInfoParam) -> Iterator[Any]:
        # What comes late has no say: rows that nothing was decided for are withheld.
        return self._decide(*group) if _is_first(pane) else iter(())

    @guarded
    def _decide(self, key: bytes, frames: Iterable[bytes]) -> Iterator[Any]:
        numbers: WindowNumbers | None = None
        for opened in self._opened(key, frames):
            if numbers is None:
                start = opened.address.start_us
                numbers = WindowNumbers(self._keys, start, self._frames.gathering.rule, self._most_bytes)
            numbers.gather(opened.batch)
        # Read twice rather than kept: what lies in memory is what is decided on.
        for opened in self._opened(key, frames):
            assert numbers is not None
            to = self._sealed.shard_key(opened.address)
            if numbers.is_too_large:
                yield to, self._sealed.seal("too large", opened.address, _NOTHING, opened.mark)
            else:
                yield to, self._sealed.seal("numbers", opened.address, numbers.decide().decided(opened.batch), opened.mark)

    def _opened(self, key: bytes, frames: Iterable[bytes]) -> Iterator[Opened]:
        for frame in frames:
            opened = self._sealed.unseal(frame)
            if opened.kind != "columns" or self._sealed.window_key(opened.address.start_us) != key:
                raise misplaced()
            yield opened


class PublishShards(beam.DoFn):
    """Sealed rows of a shard, and what was decided for them -> published; what must not be comes out, sealed as it was."""

    def __init__(self, frames: Frames, plans: Mapping[str, Plan], released: bool, late: bool, publish: Publish) -> None:
        self._frames = frames
        self._plans = dict(plans)
        self._released = released
        self._late = late
        self._publish = publish

    def setup(self) -> None:
        self._sealed = self._frames.open()

    def process(
        self, group: tuple[bytes, Iterable[bytes]], pane: Any = beam.DoFn.PaneInfoParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        return self._put_together(*group, _is_first(pane), window)

    @guarded
    def _put_together(self, key: bytes, frames: Iterable[bytes], is_first: bool, window: Any) -> Iterator[Any]:
        rows: dict[bytes, tuple[bytes, pa.RecordBatch]] = {}
        decided: dict[bytes, Opened] = {}
        address: Address | None = None
        for frame in frames:
            opened = self._sealed.unseal(frame)
            address = opened.address
            if self._sealed.shard_key(address) != key:
                raise misplaced()
            if opened.kind == "rows":
                rows[mark_of(frame)] = frame, opened.batch
            else:
                decided[opened.mark] = opened
        if address is None:
            # Beam ends every window with a pane, be it empty, when nothing can come any more.
            return
        if decided.keys() - rows.keys():
            raise EventveilError.of("EV901", "a window was decided on without some of its rows")
        kept: list[tuple[bytes, pa.RecordBatch]] = []
        tables = []
        for mark, (frame, batch) in rows.items():
            decision = decided.get(mark)
            if not self._released and (is_first or self._late):
                kept.append((frame, batch))
            elif decision is not None and decision.kind == "numbers":
                kept.append((frame, batch))
                tables.append(decision.batch)
            else:
                yield self._withheld(address, "EV416" if decision is None else "EV603", frame, batch)
        if not kept:
            return
        batches = [batch for _, batch in kept]
        if self._released:
            plan, numbers = self._plans[address.variant], Numbers.joined(tables)
            batches = [numbers.number(plan, batch) for batch in batches]
        # All windows of one second, when nothing is bounded; one for ever, when all is read.
        opens = window.start.micros // 1_000_000 if isinstance(window, IntervalWindow) else 0
        pane = 0 if self._released else max(0, opens - self._sealed.closing_s(address.start_us) + 1)
        shard = WindowShard(address.variant, address.start_us, pane, address.shard)
        if self._publish(shard, batches, self._sealed):
            count(f"{address.variant}|published", sum(batch.num_rows for batch in batches))
            count(f"{address.variant}|windows|published", 1)
            return
        for frame, batch in kept:
            yield self._withheld(address, "EV416", frame, batch)

    def _withheld(self, address: Address, code: str, frame: bytes, batch: pa.RecordBatch) -> tuple[bytes, bytes]:
        count(f"{address.variant}|{'withheld' if code == 'EV603' else 'conflict'}", batch.num_rows)
        return code.encode(), frame


def split_shards(batch: pa.RecordBatch, shards: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Each shard that a veiled batch has rows of, ascending, with these rows in their order. The leading bits of `$order` decide."""
    if shards == 1:
        yield 0, batch
        return
    order = batch.column(ORDER)
    leading = numbers_of(order.buffers()[1], np.uint8, 16 * len(order), 16 * order.offset).reshape(-1, 16)[:, :4]
    of_row = (np.ascontiguousarray(leading).view(">u4").reshape(-1).astype(np.uint64) * np.uint64(shards)) >> np.uint64(32)
    for shard in np.unique(of_row).tolist():
        rows: Column = pa.array(np.flatnonzero(of_row == shard))
        yield shard, batch.take(rows)


def _closing() -> beam.WindowInto:
    """One pane when a window closes; then one for whatever is late, so that it is seen."""
    once = trigger.AfterWatermark(late=trigger.AfterCount(1))
    discard = trigger.AccumulationMode.DISCARDING
    return beam.WindowInto(FixedWindows(1), trigger=once, accumulation_mode=discard, allowed_lateness=_NOTICED_S)


def _is_first(pane: Any) -> bool:
    return bool(pane.index == 0 and pane.timing != PaneInfoTiming.LATE)


def _of_pairs(pairs: beam.PCollection) -> beam.PCollection:
    # Tagged outputs have the type Any, and Any is pickled.
    pairs.element_type = _PAIR
    return pairs
